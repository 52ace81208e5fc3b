"""Reads of the read-write port at a real streaming replica: what goes there, what does not, and what is run again."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import psycopg
import pytest
from pglast.parser import parse_sql_json

from core.routes import Endpoint, Pooling
from proxy.postgres.harmless import HARMLESS
from proxy.postgres.messages import SYNC, TERMINATE, error_fields, parse, run
from proxy.postgres.verdicts import Kind, judge
from tests.support.ports import free_port
from tests.support.proxy import (
    ADDRESS,
    APP_PASSWORD,
    BIN,
    OWNER_PASSWORD,
    VERIFIERS,
    Proxy,
    RawClient,
    Server,
    lent_proxy,
    proxy_process,
    query,
    running_servers,
)
from tests.support.statements import BEGINS, CALLS, OTHERS, READS, SCHEMA
from tests.support.waiting import eventually, eventually_sync

pytestmark = pytest.mark.timeout(60)
SHARED = Pooling(mode="transaction", size=4, queue_timeout_s=20.0)
WHERE = "SELECT current_setting('cluster_name')"
FUNCTIONS = ("current_setting", "pg_sleep", "touch", "total")


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Server]]:
    """m1, and m2 that replicates it."""
    with running_servers("m1") as (m1,):
        m1.value(SCHEMA)
        m1.value("ALTER SYSTEM SET wal_receiver_status_interval = '100ms'")
        m2 = Server("m2", m1.folder)
        m2.follow(m1)
        try:
            m2.start()
            m2.value("ALTER SYSTEM SET max_standby_streaming_delay = 0")
            m2.value("SELECT pg_reload_conf()")
            yield [m1, m2]
        finally:
            m2.kill()


@pytest.fixture
async def proxy(process: Proxy, servers: list[Server]) -> AsyncIterator[Proxy]:
    async with lent_proxy(process) as running:
        m1, m2 = servers
        await running.serve(m1, replicas=(m2.endpoint,), pooling=SHARED, splits=True, split_functions=FUNCTIONS)
        yield running


async def value(connection: psycopg.AsyncConnection[Any], statement: str, *values: Any, **how: Any) -> Any:
    row = await (await connection.execute(statement, values or None, **how)).fetchone()  # type: ignore[call-overload]
    assert row is not None
    return row[0]


async def replayed(servers: list[Server]) -> None:
    """The replica has all that the primary has."""
    m1, m2 = servers
    end = m1.value("SELECT pg_current_wal_lsn()")
    asked = f"SELECT pg_last_wal_replay_lsn() >= '{end}'"
    await asyncio.to_thread(eventually_sync, lambda: m2.value(asked), within=10)


async def runs_at(server: Server, words: str) -> None:
    """A statement with these words is under way there."""
    active = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid()"
    asked = f"{active} AND query LIKE '%{words}%'"
    await asyncio.to_thread(eventually_sync, lambda: server.value(asked) > 0, within=10)


def test_verdicts_agree_with_a_server(servers):
    """What a server refuses in a READ ONLY transaction is never called a read; and what is called harmless is."""
    m1 = servers[0]
    refused = set()
    with psycopg.connect(m1.dsn(), autocommit=True) as connection:
        for text in (*READS, *(text for text, _ in CALLS), *OTHERS):
            verdict = judge(text.encode(), parse_sql_json)
            if text.startswith("COPY"):
                continue  # answered by other messages
            connection.execute("BEGIN READ ONLY")
            try:
                connection.execute(text.encode())
            except psycopg.errors.ReadOnlySqlTransaction:
                refused.add(text)
                assert verdict.kind is Kind.OTHER or verdict.calls, text
            except psycopg.Error:
                assert text not in READS, text
            except ValueError:
                assert "\0" in text
            finally:
                if connection.info.transaction_status is not psycopg.pq.TransactionStatus.IDLE:
                    connection.execute("ROLLBACK")
        for text in BEGINS:
            connection.execute(text.encode())
            assert connection.execute("SHOW transaction_read_only").fetchone() == ("on",)
            connection.execute("ROLLBACK")
        effects = connection.execute(
            "SELECT proname FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND proname = ANY (%s)"
            " AND (provolatile = 'v' OR prokind = 'p')",
            [sorted(HARMLESS)],
        ).fetchall()
    assert {"SELECT touch()", "SELECT nextval('numbers')", "INSERT INTO items VALUES (100, 'x')"} <= refused
    assert effects == []


async def test_reads_go_to_the_replica_and_all_else_to_the_primary(proxy, servers):
    async with await proxy.connect() as client:
        assert await value(client, WHERE) == "m2"
        assert await value(client, "INSERT INTO written VALUES (1) RETURNING current_setting('cluster_name')") == "m1"
        for _ in range(8):
            assert await value(client, WHERE + " || %s", "!") == "m2!", "becomes a prepared statement on its way"
        for _ in range(3):
            assert await value(client, WHERE + " || %s", "?", prepare=True) == "m2?"
        assert await value(client, WHERE + " FROM items FOR UPDATE LIMIT 1") == "m1"
        assert await value(client, WHERE + " FROM pg_class LIMIT 1") == "m1"
        assert await value(client, f"SELECT left(total(1)::text, 0) || ({WHERE})") in ("m2", None), "it is listed"
        assert await value(client, WHERE + " || coalesce(pg_backend_pid() * 0, 0)") == "m10", "not in the list"
        assert await value(client, "SHOW cluster_name") == "m1"
        assert await value(client, WHERE + "; SELECT 1") == "m1", "several statements are one transaction"
        async with client.transaction():
            assert await value(client, WHERE) == "m1"
        assert client.info.parameter_status("in_hot_standby") == "off"
        await client.execute("CREATE TEMP TABLE own AS SELECT 1 AS id")
        assert await value(client, WHERE + " FROM own") == "m1", "it is pinned"
    async with await proxy.connect(read_only=True) as reader:
        assert await value(reader, WHERE) == "m2"
        assert reader.info.parameter_status("in_hot_standby") == "on"


async def test_a_read_only_transaction_stays_at_the_replica_to_its_end(proxy, servers):
    async with await proxy.connect() as client:
        await client.set_autocommit(False)
        await client.set_read_only(True)
        for _ in range(2):
            assert await value(client, WHERE) == "m2"
            assert await value(client, "SHOW cluster_name") == "m2", "whatever it says"
            pid = await value(client, "SELECT pg_backend_pid()")
            assert await value(client, "SELECT pg_backend_pid() || %s", "", prepare=True) == str(pid)
            await client.commit()
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            await client.execute("INSERT INTO written VALUES (1)")
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            await client.execute(WHERE)
        await client.rollback()
        await client.set_read_only(False)
        assert await value(client, WHERE) == "m1"
        await client.rollback()
        await client.set_autocommit(True)
        await client.execute("BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY")
        assert await value(client, WHERE) == "m1", "a replica has no such thing"
        await client.execute("COMMIT")


async def test_settings_of_the_session_hold_at_the_replica_too(proxy, servers):
    async with await proxy.connect() as client, await proxy.connect() as other:
        await client.execute("SET search_path = 'nowhere', 'public'")
        await client.execute("SELECT set_config('shop.tenant', 'acme', false)")
        await client.execute("SET TimeZone = 'Asia/Tokyo'")
        asked = f"{WHERE}, current_setting('search_path'), current_setting('shop.tenant', true)"
        await eventually(lambda: _is(client, WHERE, "m2"), within=5)
        row = await (await client.execute(asked)).fetchone()
        assert row == ("m2", "nowhere, public", "acme")
        assert client.info.parameter_status("TimeZone") == "Asia/Tokyo"
        row = await (await other.execute(asked)).fetchone()
        assert row is not None
        assert (row[0], row[1], row[2] or "") == ("m2", '"$user", public', "")
        async with client.transaction():
            assert await value(client, "SHOW search_path") == "nowhere, public"


async def _is(client: psycopg.AsyncConnection[Any], statement: str, expected: str) -> bool:
    return bool(await value(client, statement) == expected)


async def test_what_a_replica_refuses_or_does_not_know_yet_runs_at_the_primary_once(proxy, servers):
    m1, m2 = servers
    m1.value("TRUNCATE parts")
    async with await proxy.connect() as client:
        assert await value(client, "SELECT touch()") == 1
        assert await value(client, "SELECT touch() + %s", 1, prepare=True) == 2
        assert m1.value("SELECT count(*) FROM parts") == 2
        await replayed(servers)
        m2.value("SELECT pg_wal_replay_pause()")
        try:
            m1.value("CREATE TABLE IF NOT EXISTS fresh (id int)")
            assert await value(client, WHERE + " || count(*) FROM fresh") == "m10"
            for _ in range(2):
                assert await value(client, WHERE + " || count(*) || %s FROM fresh", "!", prepare=True) == "m10!"
            m1.value(f"CREATE ROLE latecomer LOGIN PASSWORD '{VERIFIERS['app']}'")
            await proxy.declare(latecomer=VERIFIERS["app"])
            async with await proxy.connect(user="latecomer", password=APP_PASSWORD) as late:
                assert await value(late, WHERE) == "m1", "the replica does not know the role yet"
                assert await value(late, WHERE) == "m1"
            async with await proxy.connect() as acting:
                await acting.execute("SET ROLE latecomer")
                assert await value(acting, "SELECT 1") == 1
                for _ in range(2):
                    assert await value(acting, f"SELECT current_user || ({WHERE})") == "latecomerm1"
            raw = await RawClient.connect(proxy.rw_port)
            raw.send(parse(b"mine", b"SELECT id FROM fresh") + run(b"mine") + SYNC)
            assert [kind for kind, _ in await raw.until("Z")] == ["1", "2", "C", "Z"], "nothing of the first try"
            raw.send(run(b"mine") + SYNC)
            assert [kind for kind, _ in await raw.until("Z")] == ["2", "C", "Z"]
            raw.close()
        finally:
            m2.value("SELECT pg_wal_replay_resume()")
        with pytest.raises(psycopg.errors.UndefinedTable):
            await client.execute("SELECT * FROM nowhere")
        with pytest.raises(psycopg.errors.DivisionByZero):
            await client.execute("SELECT 1 / (id - 1) FROM items WHERE id = 1")
        assert await value(client, WHERE) == "m2"
        await client.execute("SET default_transaction_isolation = serializable")
        assert await value(client, "SELECT count(*) FROM items") == 20
        assert await value(client, WHERE) == "m1"


async def test_a_read_that_stands_in_the_way_of_replay_runs_at_the_primary(proxy, servers):
    m1, m2 = servers
    m1.value("CREATE TABLE IF NOT EXISTS moving (id int); INSERT INTO moving VALUES (1)")
    await replayed(servers)
    async with await proxy.connect() as client:
        slow = asyncio.create_task(value(client, WHERE + " || max(id) FROM moving, pg_sleep(0.8)"))
        await runs_at(m2, "FROM moving")
        m1.value("ALTER TABLE moving ADD COLUMN IF NOT EXISTS more int")
        assert await slow == "m11"
        reader = asyncio.create_task(value(client, WHERE + ", pg_sleep(30)"))
        await runs_at(m2, "pg_sleep(30)")
        await asyncio.to_thread(client.cancel)
        with pytest.raises(psycopg.errors.QueryCanceled):
            await reader
        assert await value(client, WHERE) == "m2"


async def test_what_a_client_says_behind_a_read_waits_for_its_answer(proxy, servers):
    m1, m2 = servers
    m1.value("TRUNCATE written")
    client = await RawClient.connect(proxy.rw_port)
    client.send(query(WHERE + ", pg_sleep(0.3)"))
    await runs_at(m2, "pg_sleep(0.3)")
    client.send(query("INSERT INTO written VALUES (7)") + query("SHOW cluster_name") + query(WHERE))
    answers = [await client.until("Z") for _ in range(4)]
    assert ["".join(kind for kind, _ in answer) for answer in answers] == ["TDCZ", "CZ", "TDCZ", "TDCZ"]
    assert [body[6:8] for answer in answers for kind, body in answer if kind == "D"] == [b"m2", b"m1", b"m1"]
    # In a transaction at the replica, too; and the goodbye comes last.
    client.send(query("BEGIN READ ONLY"))
    assert [kind for kind, _ in await client.until("Z")] == ["C", "Z"]
    inside = query("SHOW cluster_name") + parse(b"", b"SHOW cluster_name") + run(b"") + SYNC + query("COMMIT")
    client.send(inside + query("INSERT INTO written VALUES (8)") + query(WHERE) + TERMINATE)
    rest = await client.rest()
    client.close()
    assert (rest.count(b"m2"), rest.count(b"m1")) == (2, 1)
    assert b"COMMIT\0" in rest
    assert b"INSERT 0 1\0" in rest
    assert m1.value("SELECT array_agg(id ORDER BY id) FROM written") == [7, 8]


# The proxy takes it for one that might leave something behind, and asks the server.
DOUBTFUL = "SELECT count(*) FROM items, pg_sleep(0.3) WHERE name <> 'pg_temp'"


async def test_what_waits_behind_a_read_goes_on_though_the_server_is_asked_something(proxy, servers):
    m1, m2 = servers
    m1.value("TRUNCATE written")
    client = await RawClient.connect(proxy.rw_port)
    client.send(query(DOUBTFUL))
    await runs_at(m2, "pg_temp")
    client.send(query("INSERT INTO written VALUES (1)") + query("SHOW cluster_name"))
    assert ["".join(kind for kind, _ in await client.until("Z")) for _ in range(3)] == ["TDCZ", "CZ", "TDCZ"]
    client.close()


async def test_a_replica_that_dies_while_it_is_asked_ends_the_client_and_runs_nothing(proxy, servers):
    m1, m2 = servers
    m1.value("TRUNCATE written")
    with psycopg.connect(m1.dsn()) as locker:
        locker.execute("LOCK TABLE pg_depend IN ACCESS EXCLUSIVE MODE")  # which the proxy's question reads
        m1.value("INSERT INTO parts VALUES (0)")  # so that the log is written, and the replica has the lock
        await replayed(servers)
        client = await RawClient.connect(proxy.rw_port)
        client.send(query(DOUBTFUL))
        await runs_at(m2, "pg_temp")
        client.send(query("INSERT INTO written VALUES (1)"))
        assert (await client.until("Z"))[-2][0] == "C"
        await runs_at(m2, "WITH carried")
        m2.kill()
        try:
            rest = await client.rest()
            assert error_fields(rest[5:])["C"] == "57P01", "what it carries was not known yet"
            assert m1.value("SELECT count(*) FROM written") == 0
        finally:
            locker.rollback()
            m2.start()
    client.close()


async def test_what_would_mean_nothing_at_a_replica_is_refused_in_a_read_only_transaction(proxy, servers):
    async def ended(*statements: str) -> dict[str, str]:
        client = await RawClient.connect(proxy.rw_port)
        for statement in statements[:-1]:
            client.send(query(statement))
            _ = await client.until("Z")
        client.send(query(statements[-1]))
        rest = await client.rest()
        client.close()
        return error_fields(rest[rest.rindex(b"E\0\0") + 5 :])

    told = await ended("BEGIN READ ONLY", "SELECT pg_advisory_xact_lock(1)")
    assert (told["C"], "advisory locks" in told["M"]) == ("0A000", True)
    told = await ended("BEGIN READ ONLY", "PREPARE mine AS SELECT 1", "COMMIT")
    assert (told["C"], "has a statement of PREPARE" in told["M"]) == ("0A000", True)
    async with await proxy.connect() as client:
        async with client.transaction():
            await client.execute("SELECT pg_advisory_xact_lock(1)")
        await client.execute("BEGIN READ ONLY")
        assert await value(client, WHERE) == "m1", "it is known to take such locks"
        await client.execute("COMMIT")
        assert await value(client, WHERE) == "m2"


async def test_without_a_replica_that_serves_the_primary_does(proxy, servers):
    m1, m2 = servers
    how = {"pooling": SHARED, "splits": True, "split_functions": FUNCTIONS}
    async with await proxy.connect() as client:
        await proxy.serve(m1, **how)
        assert await value(client, WHERE) == "m1"
        dead = Endpoint(member="m9", host=ADDRESS, port=free_port())
        await proxy.serve(m1, replicas=(dead,), **how)
        for _ in range(2):
            assert await value(client, WHERE) == "m1"
        async with client.pipeline():
            asked = [await client.execute(WHERE) for _ in range(3)]
            await client.execute("INSERT INTO written VALUES (1)")
        assert [await one.fetchone() for one in asked] == [("m1",)] * 3
        await proxy.serve(m1, replicas=(m2.endpoint,), **{**how, "splits": False})
        assert await value(client, WHERE) == "m1"
        await proxy.serve(None, replicas=(m2.endpoint,), **how)
        assert await value(client, WHERE) == "m2", "reads need no primary"
        await proxy.serve(m1, replicas=(m2.endpoint,), paused=True, **how)
        assert await value(client, WHERE) == "m2"
        await proxy.serve(m1, replicas=(m2.endpoint,), **{**how, "pooling": Pooling()})
    async with await proxy.connect() as client:
        assert await value(client, WHERE) == "m1", "it has its connection to itself"


@pytest.mark.parametrize(
    ("protocol", "changes"),
    [
        ("simple", {}),
        ("extended", {"strict": True}),
        ("prepared", {"pooling": Pooling(mode="transaction", size=1, queue_timeout_s=20.0)}),
        ("prepared", {"pooling": Pooling(mode="transaction", size=3, reset="always")}),
    ],
)
async def test_pgbench_reads_and_writes(proxy, servers, protocol, changes, tmp_path):
    m1, m2 = servers
    await proxy.send(proxy.route(m1, replicas=(m2.endpoint,), **{"pooling": SHARED, "splits": True, **changes}))
    m1.value("DROP TABLE IF EXISTS counted; CREATE TABLE counted (n int, by int); INSERT INTO counted VALUES (1, 0)")
    await replayed(servers)
    script = tmp_path / "script.sql"
    script.write_text(
        "\\set n random(1, 9)\nSELECT :n + 1;\nBEGIN;\nUPDATE counted SET by = by + 1 WHERE n = 1;\nSELECT :n;\nEND;\n"
        "SELECT by FROM counted WHERE n = :n;\nBEGIN READ ONLY;\nSELECT count(*) FROM counted;\nSHOW port;\nEND;\n"
    )
    command = [str(BIN / "pgbench"), "-n", "-f", str(script), "-M", protocol, "-c", "8", "-j", "8", "-t", "20"]
    environment = {"PGPASSWORD": OWNER_PASSWORD, "PGSSLMODE": "disable"}
    where = ["-h", ADDRESS, "-p", str(proxy.rw_port), "-U", "postgres", "postgres"]
    done = await asyncio.to_thread(
        subprocess.run, [*command, *where], env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "number of failed transactions: 0" in done.stdout
    assert m1.value("SELECT by FROM counted") == 160


async def test_asyncpg_reads_at_the_replica(proxy, servers):
    client = await asyncpg.connect(
        host=ADDRESS, port=proxy.rw_port, user="postgres", password=OWNER_PASSWORD, database="postgres", ssl=False
    )
    try:
        statement = await client.prepare(WHERE + " || $1::text")
        assert [await statement.fetchval("!") for _ in range(3)][1:] == ["m2!"] * 2, "the first ends its preparation"
        await client.execute("INSERT INTO written VALUES (1)")
        async with client.transaction(readonly=True):
            assert await client.fetchval("SHOW cluster_name") == "m2"
        async with client.transaction():
            assert await client.fetchval("SHOW cluster_name") == "m1"
    finally:
        await client.close()


async def test_a_replica_that_dies_ends_who_reads_there_and_nobody_else(proxy, servers):
    m2 = servers[1]
    async with await proxy.connect() as client, await proxy.connect() as idle:
        assert await value(idle, WHERE) == "m2"
        reader = asyncio.create_task(value(client, WHERE + ", pg_sleep(30)"))
        await runs_at(m2, "pg_sleep(30)")
        m2.kill()
        try:
            with pytest.raises(psycopg.OperationalError) as caught:
                await reader
            assert caught.value.sqlstate == "57P01"
            assert await value(idle, WHERE) == "m1"
        finally:
            m2.start()
        await eventually(lambda: _is(idle, WHERE, "m2"), within=10)


async def test_without_its_parser_all_goes_to_the_primary_and_that_is_told(tls, servers, tmp_path, monkeypatch):
    m1, m2 = servers
    (tmp_path / "pglast").mkdir()
    (tmp_path / "pglast" / "__init__.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with proxy_process(tls) as process:
        async with lent_proxy(process) as proxy:
            how = {"pooling": SHARED, "split_functions": FUNCTIONS, "observers": ("postgres",)}
            await proxy.serve(m1, replicas=(m2.endpoint,), splits=True, **how)
            assert len(proxy.events("splitting_unavailable")) == 1
            async with await proxy.connect() as client:
                assert await value(client, WHERE) == "m1"
            async with await proxy.connect(dbname="moorage") as admin:
                cursor = await admin.execute("SHOW ROUTES")
                row = await cursor.fetchone()
                assert row is not None
                assert cursor.description is not None
                shown = dict(zip([column.name for column in cursor.description], row, strict=True))
                assert shown["splitting"] == "unavailable"
