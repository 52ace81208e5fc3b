"""Drivers through the real proxy to a real PostgreSQL: what each does in its ordinary and in its awkward hours."""

from __future__ import annotations

import asyncio
import concurrent.futures
import io
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from typing import Any

import asyncpg
import pg8000.native
import psycopg
import psycopg2
import psycopg2.extensions
import psycopg2.extras
import pytest
import sqlalchemy
from psycopg import sql

from core.scram import make_verifier
from tests.support.proxy import (
    ADDRESS,
    Proxy,
    Server,
    engine_folder,
    lent_proxy,
    made_tls,
    proxy_process,
)
from tests.support.waiting import eventually_sync

pytestmark = pytest.mark.timeout(90)
MIB = 1 << 20
DRIVERS_PASSWORD = "driver-secret"
DRIVERS_VERIFIER = make_verifier(DRIVERS_PASSWORD)  # some drivers refuse fewer iterations than the usual number
EXTRA_SETTINGS = "max_prepared_transactions = 5\nwal_level = logical\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """With what the awkward ones want: two-phase commits and a database of the user's own."""
    with engine_folder() as folder:
        running = Server("m1", folder)
        running.initialise()
        with (running.data / "postgresql.conf").open("a") as file:
            file.write(EXTRA_SETTINGS)
        running.start()
        try:
            running.prepare()
            running.value(f"CREATE ROLE driver LOGIN PASSWORD '{DRIVERS_VERIFIER}'")
            running.value("CREATE DATABASE shop OWNER driver")
            yield running
        finally:
            running.kill()


@pytest.fixture(scope="module")
def process() -> Iterator[Proxy]:
    with made_tls() as tls, proxy_process(tls) as running:
        yield running


@pytest.fixture
async def proxy(process: Proxy, server: Server) -> AsyncIterator[Proxy]:
    async with lent_proxy(process) as running:
        await running.serve(server)
        await running.declare(driver=DRIVERS_VERIFIER)
        yield running


@pytest.fixture(params=["disable", "require"])
def sslmode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def dsn(proxy: Proxy, **changes: object) -> str:
    return proxy.dsn(**{"user": "driver", "password": DRIVERS_PASSWORD, "dbname": "shop", **changes})


def connect(proxy: Proxy, **changes: object) -> psycopg.Connection[Any]:
    return psycopg.connect(dsn(proxy, **changes), autocommit=True)


def value(connection: psycopg.Connection[Any], statement: str, *arguments: object, **options: Any) -> Any:
    row = connection.execute(statement, arguments or None, **options).fetchone()
    assert row is not None
    return row[0]


class ChangedMindError(Exception):
    """A client's own, in the middle of a COPY."""


def give_up_halfway(copy: psycopg.Copy) -> None:
    copy.write(b"1\tone\n")
    raise ChangedMindError


# --- psycopg 3 --------------------------------------------------------------------------------------------------------


def test_a_client_knows_its_own_process_id(proxy):
    with connect(proxy) as connection, connect(proxy) as other:
        pid = connection.info.backend_pid
        assert value(connection, "SELECT pg_backend_pid()") == pid
        connection.execute("LISTEN news")
        other.execute("NOTIFY news, 'hello'")
        (notification,) = connection.notifies(timeout=10, stop_after=1)
        assert (notification.payload, notification.pid) == ("hello", other.info.backend_pid)
        assert value(other, "SELECT pg_terminate_backend(%s)", pid) is True
        with pytest.raises(psycopg.errors.AdminShutdown):
            connection.execute("SELECT 1")


def test_copy_goes_both_ways_in_text_and_binary(proxy, sslmode):
    rows = 200_000
    with connect(proxy, sslmode=sslmode) as connection:
        connection.execute("CREATE TEMP TABLE copied (id int, body text)")
        with connection.cursor().copy("COPY copied FROM STDIN (FORMAT binary)") as copy:
            copy.set_types(["int4", "text"])
            for number in range(rows):
                copy.write_row((number, "x" * (number % 50)))
        with connection.cursor().copy("COPY copied TO STDOUT (FORMAT binary)") as copy:
            copy.set_types(["int4", "text"])
            assert sum(1 for _ in copy.rows()) == rows
        with connection.cursor().copy("COPY copied (id) TO STDOUT") as copy:
            assert sum(bytes(chunk).count(b"\n") for chunk in copy) == rows
        with pytest.raises(ChangedMindError), connection.cursor().copy("COPY copied FROM STDIN") as copy:
            give_up_halfway(copy)
        assert value(connection, "SELECT count(*) FROM copied") == rows


def test_a_pipeline_of_many_statements_and_one_that_fails(proxy, sslmode):
    with connect(proxy, sslmode=sslmode) as connection:
        connection.execute("CREATE TEMP TABLE piped (id int PRIMARY KEY)")
        with connection.pipeline() as pipeline:
            for number in range(5_000):
                connection.execute("INSERT INTO piped VALUES (%s)", [number])
            pipeline.sync()
            with pytest.raises(psycopg.errors.UniqueViolation):
                connection.execute("INSERT INTO piped VALUES (1)").fetchone()
            pipeline.sync()
            last = connection.execute("SELECT count(*) FROM piped")
        assert last.fetchone() == (5_000,)


def test_values_of_64_mb_go_both_ways(proxy, sslmode):
    body = bytes(range(256)) * (64 * MIB // 256)
    with connect(proxy, sslmode=sslmode) as connection:
        row = connection.execute("SELECT %b::bytea, length(%b)", [body, body], binary=True).fetchone()
        assert row == (body, len(body))


def test_as_many_parameters_as_the_protocol_has_room_for(proxy):
    count = 65_535
    with connect(proxy) as connection:
        holes = sql.SQL("+").join([sql.SQL("%s::int8")] * 1_000)
        assert connection.execute(sql.SQL("SELECT {}").format(holes), [1] * 1_000).fetchone() == (1_000,)
        statement = "SELECT " + ",".join(["(%s)"] * 1_500)
        assert len(connection.execute(statement, ["x"] * 1_500).fetchone() or ()) == 1_500
        array = "SELECT cardinality(ARRAY[" + ",".join(["%s"] * count) + "]::text[])"
        assert value(connection, array, *(["x"] * count)) == count


def test_cursors_prepared_statements_and_large_objects(proxy):
    with psycopg.connect(dsn(proxy)) as connection:
        with connection.cursor(name="walk", withhold=True, scrollable=True) as cursor:
            cursor.itersize = 100
            cursor.execute("SELECT generate_series(1, 5000)")
            connection.commit()
            assert sum(number for (number,) in cursor) == 12_502_500
            cursor.scroll(0, mode="absolute")
            assert cursor.fetchone() == (1,)
        for number in range(20):
            assert value(connection, "SELECT %s::int + 1", number, prepare=True) == number + 1
        assert value(connection, "SELECT count(*) FROM pg_prepared_statements") >= 1
        connection.execute("DEALLOCATE ALL")
        oid = value(connection, "SELECT lo_from_bytea(0, %s)", b"y" * MIB)
        assert len(value(connection, "SELECT lo_get(%s)", oid)) == MIB


def test_a_transaction_in_two_phases_is_ended_by_another_session(proxy):
    with connect(proxy) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS phased (id int)")
    with closing(psycopg.connect(dsn(proxy))) as connection:
        connection.tpc_begin(connection.xid(1, "moorage", "two"))
        connection.execute("INSERT INTO phased VALUES (1)")
        connection.tpc_prepare()
    with connect(proxy) as connection:
        (xid,) = connection.tpc_recover()
        connection.tpc_commit(xid)
    with connect(proxy) as connection:
        assert value(connection, "SELECT count(*) FROM phased") == 1


@pytest.mark.parametrize("version", ["3.0", "3.2", "latest"])
def test_a_cancel_reaches_the_query_by_short_and_long_keys(proxy, version, sslmode):
    with connect(proxy, max_protocol_version=version, sslmode=sslmode) as connection:
        assert connection.pgconn.full_protocol_version == (30000 if version == "3.0" else 30002)
        timer = threading.Timer(0.2, connection.cancel_safe)
        timer.start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("SELECT pg_sleep(20)")
        timer.join()
        assert value(connection, "SELECT 1") == 1


async def test_asyncio_clients_at_once_and_a_task_that_is_cancelled(proxy):
    async def work(number: int) -> int:
        async with await psycopg.AsyncConnection.connect(dsn(proxy, sslmode="require")) as connection:
            row = await (await connection.execute("SELECT %s::int", [number])).fetchone()
            assert row is not None
            return int(row[0])

    assert await asyncio.gather(*map(work, range(40))) == list(range(40))
    async with await psycopg.AsyncConnection.connect(dsn(proxy)) as connection:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await connection.execute("SELECT pg_sleep(20)")
        await connection.rollback()
        assert await (await connection.execute("SELECT 1")).fetchone() == (1,)


# --- psycopg 2 --------------------------------------------------------------------------------------------------------


def test_psycopg2_copies_notifies_polls_and_cancels(proxy, sslmode):
    with closing(psycopg2.connect(dsn(proxy, sslmode=sslmode))) as connection:
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute("CREATE TEMP TABLE old (id int, body text)")
        cursor.copy_expert("COPY old FROM STDIN", io.StringIO("".join(f"{n}\t{n:050}\n" for n in range(20_000))))
        out = io.StringIO()
        cursor.copy_expert("COPY old TO STDOUT", out)
        assert out.getvalue().count("\n") == 20_000
        psycopg2.extras.execute_values(cursor, "INSERT INTO old VALUES %s", [(n, "x") for n in range(1_000)])
        cursor.execute("LISTEN old; NOTIFY old, 'x'")
        connection.poll()
        assert [one.pid for one in connection.notifies] == [connection.info.backend_pid]
        timer = threading.Timer(0.2, connection.cancel)
        timer.start()
        with pytest.raises(psycopg2.extensions.QueryCanceledError):
            cursor.execute("SELECT pg_sleep(20)")
        timer.join()


# --- asyncpg ----------------------------------------------------------------------------------------------------------


def asyncpg_options(proxy: Proxy, ssl: str = "disable") -> dict[str, Any]:
    place = {"host": ADDRESS, "port": proxy.rw_port, "ssl": ssl}
    return {"user": "driver", "password": DRIVERS_PASSWORD, "database": "shop", **place}


async def test_asyncpg_copies_introspects_listens_and_walks_cursors(proxy, sslmode):
    connection = await asyncpg.connect(**asyncpg_options(proxy, sslmode))
    try:
        await connection.execute("CREATE TYPE pair AS (a int, b text[])")
        assert await connection.fetchval("SELECT ROW(1, ARRAY['x'])::pair") == (1, ["x"])
        await connection.execute("DROP TYPE pair")
        await connection.execute("CREATE TEMP TABLE copied (id int, body bytea)")
        rows = [(number, b"z" * 1000) for number in range(5_000)]
        await connection.copy_records_to_table("copied", records=rows)
        await connection.executemany("INSERT INTO copied VALUES ($1, $2)", rows)
        async with connection.transaction():
            assert len([row async for row in connection.cursor("SELECT * FROM copied", prefetch=70)]) == 10_000
        heard: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()
        await connection.add_listener("news", lambda *said: heard.put_nowait(said[1:]))
        await connection.execute("NOTIFY news, 'x'")
        async with asyncio.timeout(10):
            assert await heard.get() == (connection.get_server_pid(), "news", "x")
    finally:
        await connection.close()


async def test_an_asyncpg_pool_resets_cancels_and_recovers_what_was_terminated(proxy):
    async with asyncpg.create_pool(min_size=2, max_size=5, **asyncpg_options(proxy)) as pool:
        assert sorted(await asyncio.gather(*(pool.fetchval("SELECT $1::int", n) for n in range(200)))) == list(
            range(200)
        )
        async with pool.acquire() as connection:
            await connection.execute("SET work_mem = '9MB'; SELECT pg_advisory_lock(1)")
        async with pool.acquire() as connection:
            assert await connection.fetchval("SHOW work_mem") == "4MB"
            assert await connection.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0
            with pytest.raises(TimeoutError):
                await connection.fetchval("SELECT pg_sleep(20)", timeout=0.2)
            assert await connection.fetchval("SELECT 1") == 1
            await pool.fetchval("SELECT pg_terminate_backend($1)", connection.get_server_pid())
            with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.AdminShutdownError)):
                await connection.fetchval("SELECT 1")
        assert await pool.fetchval("SELECT 1") == 1


# --- pg8000 and SQLAlchemy -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ssl", [False, True])
def test_pg8000_speaks_its_own_protocol(proxy, ssl):
    where = {"host": ADDRESS, "port": proxy.rw_port, "database": "shop", "ssl_context": ssl}
    connection = pg8000.native.Connection("driver", password=DRIVERS_PASSWORD, **where)
    try:
        assert connection.run("SELECT :x || 'b'", x="a") == [["ab"]]
        connection.run("CREATE TEMP TABLE copied (id int)")
        connection.run("COPY copied FROM STDIN", stream=io.BytesIO(b"1\n2\n"))
        out = io.BytesIO()
        connection.run("COPY copied TO STDOUT", stream=out)
        assert out.getvalue() == b"1\n2\n"
        with pytest.raises(pg8000.native.DatabaseError) as failed:
            connection.run("SELECT 1/0")
        assert failed.value.args[0]["C"] == "22012"
        statement = connection.prepare("SELECT :x + 1")
        assert statement.run(x=41) == [[42]]
        statement.close()
    finally:
        connection.close()


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "pg8000"])
def test_sqlalchemys_pool_notices_what_was_terminated(proxy, server, driver):
    url = f"postgresql+{driver}://driver:{DRIVERS_PASSWORD}@{ADDRESS}:{proxy.rw_port}/shop"
    engine = sqlalchemy.create_engine(url, pool_pre_ping=True, pool_size=3)
    try:
        with engine.connect() as connection:
            assert connection.execute(sqlalchemy.text("SELECT :x + 1"), {"x": 41}).scalar() == 42
            pid = connection.execute(sqlalchemy.text("SELECT pg_backend_pid()")).scalar()
        server.value(f"SELECT pg_terminate_backend({pid})")
        eventually_sync(
            lambda: server.value(f"SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}") == 0, within=10
        )
        with engine.begin() as connection:
            assert connection.execute(sqlalchemy.text("SELECT pg_backend_pid()")).scalar() != pid
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = pool.map(lambda number: run_one(engine, number), range(50))
            assert list(answers) == list(range(50))
        assert "copied" not in sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()


def run_one(engine: sqlalchemy.Engine, number: int) -> int:
    with engine.connect() as connection:
        return int(connection.execute(sqlalchemy.text("SELECT :n"), {"n": number}).scalar_one())
