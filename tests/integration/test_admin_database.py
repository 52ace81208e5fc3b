"""The proxy's own database and its figures: psql, drivers and an exporter's questions at a real proxy, and what its
clients do in front of a real PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from typing import Any

import asyncpg
import pg8000.native
import psycopg
import psycopg2
import pytest
from psycopg.rows import dict_row

from core.figures import Figures
from core.routes import Pooling
from core.scram import make_verifier
from proxy.admin.pages import TOPICS
from tests.support.proxy import (
    ADDRESS,
    INSTANCE,
    Proxy,
    Server,
    Tls,
    made_tls,
    running_proxy,
    running_servers,
)
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(60)
OBSERVERS = ("postgres", "watcher")
# Some drivers refuse the few iterations that the other users have.
WATCHERS_PASSWORD = "watcher-secret"
WATCHERS_VERIFIER = make_verifier(WATCHERS_PASSWORD)
# What prometheus-community/pgbouncer_exporter reads, and pgMonitor: columns that must be there, and be numbers.
READ_BY_EXPORTERS = {
    "DATABASES": "pool_size max_connections current_connections paused disabled",
    "STATS": "total_xact_count total_query_count total_received total_sent total_xact_time total_query_time"
    " total_wait_time total_client_parse_count total_server_parse_count total_bind_count avg_query_count avg_recv"
    " avg_sent avg_xact_time avg_query_time avg_wait_time",
    "STATS_TOTALS": "query_count query_time bytes_received bytes_sent wait_time xact_count xact_time client_parse_count"
    " server_parse_count bind_count server_assignment_count",
    "POOLS": "cl_active cl_active_cancel_req cl_waiting cl_waiting_cancel_req sv_active sv_active_cancel"
    " sv_being_canceled sv_idle sv_used sv_tested sv_login maxwait maxwait_us",
    "CLIENTS": "wait wait_us port prepared_statements id",
    "SERVERS": "wait port remote_pid close_needed",
}
LISTS = "databases users pools free_clients used_clients login_clients free_servers used_servers dns_names dns_zones"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_servers("m1") as (one,):
        yield one


@pytest.fixture(scope="module")
def tls() -> Iterator[Tls]:
    with made_tls() as files:
        yield files


@pytest.fixture
async def proxy(tls: Tls) -> AsyncIterator[Proxy]:
    """One of its own for each test: connections that a former one has left in a pool would be counted."""
    async with running_proxy(tls) as fresh:
        yield fresh


async def figures(proxy: Proxy) -> Figures:
    return (await proxy.again()).figures[INSTANCE]


async def grown(proxy: Proxy, before: Figures, what: Callable[[Figures], int]) -> int:
    return what(await figures(proxy)) - what(before)


async def psql(proxy: Proxy, command: str, **changes: str) -> subprocess.CompletedProcess[str]:
    arguments = ["psql", "-X", "-A", "-t", proxy.dsn(dbname="moorage", **changes), "-c", command]
    return await asyncio.to_thread(subprocess.run, arguments, capture_output=True, text=True, timeout=20)


async def shown(proxy: Proxy, what: str) -> list[dict[str, Any]]:
    async with await psycopg.AsyncConnection.connect(
        proxy.dsn(dbname="moorage"), autocommit=True, row_factory=dict_row
    ) as connection:
        return await (await connection.execute(f"SHOW {what}")).fetchall()  # type: ignore[call-overload,no-any-return]


async def test_psql_asks_the_proxy_and_who_may_not_is_told_how_to(proxy: Proxy, server: Server) -> None:
    await proxy.serve(server, observers=OBSERVERS)
    async with await proxy.connect(application_name="shop"):
        pools = (await psql(proxy, "SHOW POOLS;")).stdout.splitlines()
        assert "postgres|postgres|1|0|0|0|1|0|0|0|0|0|0|0|0|session|" in pools
        (client,) = [line for line in (await psql(proxy, "SHOW CLIENTS")).stdout.splitlines() if "|shop|" in line]
        (backend,) = [line for line in (await psql(proxy, "SHOW SERVERS")).stdout.splitlines() if "|shop|" in line]
        assert client.split("|")[4] == backend.split("|")[4] == "active"
        assert client.split("|")[15] == backend.split("|")[14], "link and ptr"
        assert f"|{server.port}|" in backend
        route = (await psql(proxy, "SHOW ROUTES")).stdout
        assert route.startswith(f"{INSTANCE}|1|m1|{ADDRESS}:{server.port}|")
    encrypted = (await psql(proxy, "SHOW CLIENTS", sslmode="require")).stdout.split("|")
    assert (encrypted[0], encrypted[17], encrypted[18]) == ("C", "TLS", "psql")
    told = await psql(proxy, "SHOW HELP")
    assert all(f"SHOW {name.upper()}" in told.stderr for name in TOPICS)
    for name in TOPICS:
        assert (await psql(proxy, f"SHOW {name}")).returncode == 0, name
    refused = await psql(proxy, "PAUSE")
    assert "read only" in refused.stderr
    assert "moorctl instance switchover" in refused.stderr
    stranger = await psql(proxy, "SHOW POOLS", user="app", password="app-secret")
    assert "user app may not ask the proxy's own database" in stranger.stderr
    assert "proxy.observers" in stranger.stderr
    assert [line["count"] for line in await shown(proxy, "ERRORS") if line["sqlstate"] == "42501"] == [1]
    assert "password" in (await psql(proxy, "SHOW POOLS", user="app", password="wrong")).stderr


async def test_another_databases_name_is_the_servers_on_the_read_only_port(proxy: Proxy, server: Server) -> None:
    await proxy.serve(server, observers=OBSERVERS, replicas=(server.endpoint,))
    with pytest.raises(psycopg.OperationalError, match='database "moorage" does not exist'):
        await proxy.connect(dbname="moorage", read_only=True)


async def test_drivers_ask_by_either_protocol_in_text_and_in_binary(proxy: Proxy, server: Server) -> None:
    await proxy.serve(server, observers=OBSERVERS)
    await proxy.declare(watcher=WATCHERS_VERIFIER)
    who = {"user": "watcher", "password": WATCHERS_PASSWORD, "host": ADDRESS, "port": proxy.rw_port}
    dsn = proxy.dsn(dbname="pgbouncer")
    async with await psycopg.AsyncConnection.connect(dsn) as transactional:
        cursor = await transactional.execute("SHOW STATS", binary=True)
        assert (await cursor.fetchone())[0] == "moorage"  # type: ignore[index]
        await transactional.commit()
        with pytest.raises(psycopg.errors.UndefinedObject):
            await transactional.execute("SHOW NONSENSE")
        await transactional.rollback()
        async with transactional.cursor() as server_side:
            await server_side.execute("SHOW LISTS", prepare=True)
            assert ("databases", 1) in await server_side.fetchall()
    connection = await asyncpg.connect(database="moorage", ssl=False, **who)
    try:
        (version,) = await connection.fetch("SHOW VERSION")
        assert version["version"].startswith("PgBouncer 1.24.0")
        (row,) = await connection.fetch("SHOW STATS_TOTALS")
        assert row["query_count"] == 0
    finally:
        await connection.close()

    def blocking() -> None:
        with closing(psycopg2.connect(dsn)) as plain:
            plain.autocommit = True
            with plain.cursor() as cursor:
                cursor.execute("SHOW POOLS")
                assert [column.name for column in cursor.description][:2] == ["database", "user"]
                assert ("moorage", "watcher") not in [row[:2] for row in cursor.fetchall()]
        with closing(pg8000.native.Connection(database="moorage", ssl_context=None, **who)) as native:  # type: ignore[arg-type]
            assert ["pool_mode", "session", "session", "no"] in native.run("SHOW CONFIG")

    await asyncio.to_thread(blocking)


async def test_exporters_find_what_they_read(proxy: Proxy, server: Server) -> None:
    await proxy.serve(server, observers=OBSERVERS)
    async with await proxy.connect() as client:
        await client.execute("SELECT 1")
        for what, names in READ_BY_EXPORTERS.items():
            rows = await shown(proxy, what)
            assert rows, what
            for row in rows:
                assert all(float(row[name]) >= 0 for name in names.split()), (what, row)
        for what in ("POOLS", "STATS", "STATS_TOTALS", "STATS_AVERAGES", "CLIENTS", "SERVERS"):
            assert all(row["database"] for row in await shown(proxy, what)), what
        assert set(LISTS.split()) <= {row["list"] for row in await shown(proxy, "LISTS")}
        settings = {row["key"]: row["value"] for row in await shown(proxy, "CONFIG")}
        assert float(settings["max_client_conn"]) > 0
        assert float(settings["max_user_connections"]) == 0


async def test_what_clients_do_is_counted(proxy: Proxy, server: Server) -> None:
    await proxy.serve(server, observers=OBSERVERS)
    async with await proxy.connect() as client:
        before = await figures(proxy)
        assert before.logins == before.waits
        for _ in range(3):
            await client.execute("SELECT 1")
        async with client.transaction():
            await client.execute("SELECT pg_sleep(0.03)")
            await client.execute("SELECT 2")
        with contextlib.suppress(psycopg.Error):
            await client.execute("SELECT 1/0")
        after = await figures(proxy)
        assert after.queries - before.queries == 3 + 4 + 1
        assert after.transactions - before.transactions == 3 + 1 + 1
        assert after.errors["22"] - before.errors.get("22", 0) == 1
        assert sum(after.query_counts) == after.queries
        assert sum(after.wait_counts) == after.waits
        assert 30_000 <= after.query_us - before.query_us <= after.transaction_us - before.transaction_us + 20
        assert after.bytes_in > before.bytes_in
        assert after.bytes_out > before.bytes_out
        (row,) = [row for row in await shown(proxy, "STATS_TOTALS") if row["database"] == "postgres"]
        assert (row["query_count"], row["xact_count"]) == (after.queries, after.transactions)
    async with await proxy.connect() as client:
        waiting = asyncio.create_task(client.execute("SELECT pg_sleep(30)"))
        await eventually(
            lambda: asyncio.to_thread(
                server.value, "SELECT count(*) FROM pg_stat_activity WHERE query ~ '^SELECT pg_sleep.30'"
            ),
            within=10,
        )
        await client.cancel_safe()
        with pytest.raises(psycopg.errors.QueryCanceled):
            await waiting
        assert await grown(proxy, after, lambda one: one.cancels) == 1
        assert await grown(proxy, after, lambda one: one.errors.get("57", 0)) == 1
    with pytest.raises(psycopg.OperationalError):
        await proxy.connect(user="app", password="wrong")
    assert await grown(proxy, after, lambda one: one.refused.get("28P01", 0)) == 1

    async def servers() -> tuple[int, int, int]:
        now, rows = await figures(proxy), await shown(proxy, "POOLS")
        return now.opened - now.closed, sum(row["sv_idle"] for row in rows), sum(row["sv_active"] for row in rows)

    # Each connection is closed, or waits for another client.
    await eventually(servers, lambda found: found[0] == found[1] and not found[2], within=10)


async def test_a_client_that_waits_for_a_server_is_shown_and_its_wait_is_counted(proxy: Proxy, server: Server) -> None:
    await proxy.serve(None, observers=OBSERVERS)
    coming = asyncio.create_task(proxy.connect())

    async def waits() -> bool:
        return any(row["cl_waiting"] == 1 and row["maxwait_us"] > 0 for row in await shown(proxy, "POOLS"))

    await eventually(waits, within=10)
    before = await figures(proxy)
    await proxy.serve(server, observers=OBSERVERS)
    client = await coming
    after = await figures(proxy)
    assert after.waits - before.waits == 1
    assert after.wait_us - before.wait_us > 1000
    assert not await waits()

    # A query that is held while the primary is moved takes as long as its client waits for it.
    await proxy.serve(server, observers=OBSERVERS, paused=True)
    held = asyncio.create_task(client.execute("SELECT 1"))
    await eventually(waits, within=10)
    await proxy.serve(server, observers=OBSERVERS)
    await held
    last = await figures(proxy)
    assert last.held_us - after.held_us > 1000
    assert last.query_us - after.query_us >= last.held_us - after.held_us
    await client.close()

    # What the proxy tells a client that it had let in.
    async with await proxy.connect() as doomed:
        await proxy.serve(None, observers=OBSERVERS, hold_s=0.1)
        with pytest.raises(psycopg.OperationalError):
            await doomed.execute("SELECT 1")
    assert await grown(proxy, last, lambda one: sum(one.ended.values())) == 1


async def test_slow_queries_are_logged_where_that_is_wanted(proxy: Proxy, server: Server) -> None:
    await proxy.serve(server, slow_query_ms=50)
    async with await proxy.connect() as client:
        client.prepare_threshold = 1
        before = await figures(proxy)
        await client.execute("SELECT 'not slow'")
        await client.execute("SELECT pg_sleep(0.06), 'a literal'")
        for _ in range(2):
            await client.execute("SELECT pg_sleep(%s), %s", [0.07, "a parameter"])
        await grown(proxy, before, lambda one: one.slow)

        async def told() -> int:
            return len(proxy.events("query_slow"))

        await eventually(told, lambda count: count == 3, within=10)
        assert await grown(proxy, before, lambda one: one.slow) == 3
        await proxy.serve(server, slow_query_ms=0)
        await client.execute("SELECT pg_sleep(0.06)")
        assert len(proxy.events("query_slow")) == 3
    first, *others = proxy.events("query_slow")
    assert first["statement"] == "SELECT pg_sleep(0.06), 'a literal'"
    assert {event["statement"] for event in others} == {"SELECT pg_sleep($1), $2"}
    assert all(event["duration_ms"] >= 50 for event in (first, *others))
    fields = {"user": "postgres", "database": "postgres", "instance": INSTANCE, "server": "m1", "client": ADDRESS}
    assert all(fields.items() <= event.items() for event in (first, *others))
    assert "a parameter" not in proxy.log.read_text()[proxy.told_before :]


async def test_clients_that_share_servers_are_shown_and_counted(proxy: Proxy, server: Server) -> None:
    pooling = Pooling(mode="transaction", size=1)
    await proxy.serve(server, observers=OBSERVERS, pooling=pooling, slow_query_ms=40)
    async with await proxy.connect() as one, await proxy.connect() as other:
        before = await figures(proxy)
        for _ in range(3):
            for client in (one, other):
                await client.execute("SELECT 1")

        async def pool() -> dict[str, Any]:
            return next(row for row in await shown(proxy, "POOLS") if row["database"] == "postgres")

        rested = await eventually(pool, lambda row: row["sv_idle"] == 1, within=10)
        assert (rested["cl_active"], rested["sv_active"], rested["pool_mode"]) == (2, 0, "transaction")
        (backend,) = await shown(proxy, "SERVERS")
        assert (backend["state"], backend["link"], backend["port"]) == ("idle", "", server.port)
        assert {row["state"] for row in await shown(proxy, "CLIENTS") if row["database"] == "postgres"} == {"idle"}
        after = await figures(proxy)
        assert (after.queries - before.queries, after.transactions - before.transactions) == (6, 6)
        assert after.reused > before.reused
        assert after.moved == before.moved

        # One has the only connection, the other waits for it; what it waits is in its query's time.
        await one.execute("BEGIN")
        waiting = asyncio.create_task(other.execute("SELECT 2"))
        queued = await eventually(pool, lambda row: row["cl_waiting"] == 1, within=10)
        assert (queued["sv_active"], queued["sv_idle"]) == (1, 0)
        await one.execute("SELECT pg_sleep(%s)", [0.06], prepare=True)
        await one.execute("COMMIT")
        await waiting
        last = await figures(proxy)
        assert last.held_us - after.held_us > 50_000
        assert last.waits - after.waits == 1

        async def slow() -> list[tuple[str, bool]]:
            return sorted((event["statement"], event["waited_ms"] > 0) for event in proxy.events("query_slow"))

        await eventually(slow, lambda told: told == [("SELECT 2", True), ("SELECT pg_sleep($1)", False)], within=10)


async def test_long_answers_are_whole_and_others_are_served_meanwhile(proxy: Proxy, server: Server) -> None:
    await proxy.serve(server, observers=OBSERVERS)
    clients = await asyncio.gather(*(proxy.connect(application_name="crowd") for _ in range(120)))
    try:
        rows, _ = await asyncio.gather(shown(proxy, "CLIENTS"), clients[0].execute("SELECT 1"))
        assert sum(row["application_name"] == "crowd" for row in rows) == 120
        assert len({row["id"] for row in rows}) == len(rows)
        async with await psycopg.AsyncConnection.connect(proxy.dsn(dbname="moorage"), autocommit=True) as watcher:
            async with watcher.pipeline():
                answers = [await watcher.execute("SHOW CLIENTS") for _ in range(20)]
            assert all([len(await answer.fetchall()) >= 120 for answer in answers])
    finally:
        for client in clients:
            await client.close()
