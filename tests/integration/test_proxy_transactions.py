"""Transaction mode: many clients on few server connections, none of which sees what another one has left."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import psycopg
import pytest

from core.routes import Pooling
from proxy.postgres import messages
from tests.support.proxy import (
    ADDRESS,
    APP_PASSWORD,
    BIN,
    OWNER_PASSWORD,
    Proxy,
    RawClient,
    Server,
    query,
    running_servers,
)
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(60)
SHARED = Pooling(mode="transaction", size=2, queue_timeout_s=20.0)
ALONE = Pooling(mode="transaction", size=1, queue_timeout_s=20.0)
GOING_DOWN = "57P01"


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Server]]:
    with running_servers("m1", "m2") as running:
        for server in running:
            server.value("CREATE ROLE clerk")
            server.value("GRANT clerk TO app")
        yield running


async def value(connection: psycopg.AsyncConnection[Any], statement: str) -> Any:
    row = await (await connection.execute(statement)).fetchone()
    assert row is not None
    return row[0]


async def told(client: RawClient) -> str:
    """SQLSTATE of the last word."""
    rest = await client.rest()
    client.close()
    return messages.error_fields(rest[5:]).get("C", "")


async def waits(proxy: Proxy, count: int) -> None:
    """So many clients stand in the queue: they have connected, and the proxy has nothing else to say."""
    async with asyncio.timeout(5):
        while (await proxy.again()).sessions["demo/orders"].read_write < count:
            await asyncio.sleep(0.01)


async def test_many_clients_share_few_connections(proxy, servers):
    m1 = servers[0]
    await proxy.serve(m1, pooling=SHARED)
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(await proxy.connect()) for _ in range(20)]
        assert (await proxy.again()).sessions["demo/orders"].read_write == 20
        assert m1.backends() <= 2

        async def work(client: psycopg.AsyncConnection[Any], number: int) -> None:
            for _ in range(10):
                async with client.transaction():
                    await client.execute("INSERT INTO written VALUES (%s)", (number,))
                    assert await value(client, f"SELECT {number}") == number

        m1.value("TRUNCATE written")
        await asyncio.gather(*(work(client, number) for number, client in enumerate(clients)))
        assert m1.value("SELECT count(DISTINCT id) || '/' || count(*) FROM written") == "20/200"
        assert m1.backends() <= 2


@pytest.mark.parametrize("protocol", ["simple", "extended", "prepared"])
async def test_pgbench_is_served(proxy, servers, protocol, tmp_path):
    """A thread for each of its clients: it prepares without looking at the others of the thread, which would wait."""
    m1 = servers[0]
    m1.value("DROP TABLE IF EXISTS counted; CREATE TABLE counted (n int, by int); INSERT INTO counted VALUES (1, 0)")
    await proxy.serve(m1, pooling=SHARED)
    script = tmp_path / "script.sql"
    script.write_text(
        "\\set n random(1, 9)\nSELECT :n + 1;\nBEGIN;\nUPDATE counted SET by = by + 1 WHERE n = 1;\nSELECT :n;\nEND;\n"
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


async def test_settings_stay_with_their_client(proxy, servers):
    await proxy.serve(servers[0], pooling=ALONE)
    async with await proxy.connect(user="app") as one, await proxy.connect(user="app") as other:
        await one.execute("SET search_path = 'pg_catalog', 'public'")
        await one.execute("SELECT set_config('shop.tenant', 'acme', false)")
        await one.execute("SET TimeZone = 'Asia/Tokyo'")
        await one.execute("SET ROLE clerk")
        assert await value(one, "SELECT pg_backend_pid()") == await value(other, "SELECT pg_backend_pid()")
        for _ in range(2):
            assert await value(other, "SHOW search_path") == '"$user", public'
            assert await value(other, "SELECT coalesce(current_setting('shop.tenant', true), '')") == ""
            assert await value(other, "SELECT current_user") == "app"
            assert await value(other, "SHOW TimeZone") != "Asia/Tokyo"
            assert other.info.parameter_status("TimeZone") != "Asia/Tokyo"
            assert await value(one, "SHOW search_path") == "pg_catalog, public"
            assert await value(one, "SELECT current_setting('shop.tenant')") == "acme"
            assert await value(one, "SHOW TimeZone") == "Asia/Tokyo"
            assert await value(one, "SELECT current_user") == "clerk"
            assert one.info.parameter_status("TimeZone") == "Asia/Tokyo"
        await one.execute("DISCARD ALL")
        assert await value(one, "SHOW search_path") == '"$user", public'
        await other.execute("BEGIN; SET LOCAL search_path = nowhere")
        await other.execute("COMMIT")
        assert await value(one, "SHOW search_path") == '"$user", public'


async def test_statements_of_drivers_stay_with_their_client(proxy, servers):
    await proxy.serve(servers[0], pooling=ALONE)
    async with await proxy.connect() as one, await proxy.connect() as other:
        one.prepare_threshold = other.prepare_threshold = 0
        for number in range(3):
            for client, sign in ((one, "+"), (other, "-")):
                row = await (await client.execute(f"SELECT 10 {sign} %s::int", (number,))).fetchone()
                assert row == (10 + number if sign == "+" else 10 - number,)
    options = {"user": "app", "password": APP_PASSWORD, "database": "postgres", "ssl": "disable"}
    pool = await asyncpg.create_pool(host=ADDRESS, port=proxy.rw_port, min_size=4, max_size=4, **options)
    try:
        answers = await asyncio.gather(*(pool.fetchval("SELECT $1::int * 2", number) for number in range(40)))
        assert answers == [2 * number for number in range(40)]
    finally:
        await pool.close()


PINS = {
    "temporary table": ("CREATE TEMP TABLE mine (n int)", "DROP TABLE mine"),
    "advisory lock": ("SELECT pg_advisory_lock(5)", "SELECT pg_advisory_unlock(5)"),
    "cursor WITH HOLD": ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", "CLOSE c"),
    "LISTEN": ("LISTEN news", "UNLISTEN *"),
    "PREPARE": ("PREPARE mine AS SELECT 1", "DEALLOCATE mine"),
    "a setting without a name": ("SELECT set_config('shop.' || 'tenant', 'x', false)", "DISCARD ALL"),
}


@pytest.mark.parametrize(("begin", "end"), PINS.values(), ids=PINS)
async def test_what_cannot_be_moved_keeps_its_connection_until_it_is_gone(proxy, servers, begin, end):
    await proxy.serve(servers[0], pooling=SHARED)
    async with await proxy.connect() as one, await proxy.connect() as other:
        await one.execute(begin)
        pid = await value(one, "SELECT pg_backend_pid()")
        for _ in range(3):
            assert await value(other, "SELECT pg_backend_pid()") != pid
            assert await value(one, "SELECT pg_backend_pid()") == pid
        await one.execute(end)
        await proxy.serve(servers[0], pooling=ALONE)

        async def shared() -> bool:
            return bool(await value(other, "SELECT pg_backend_pid()") == await value(one, "SELECT pg_backend_pid()"))

        await eventually(shared, within=10)


async def test_a_library_keeps_its_connection_for_good_and_nobody_inherits_it(proxy, servers):
    m1 = servers[0]
    await proxy.serve(m1, pooling=ALONE)
    async with await proxy.connect() as one:
        await one.execute("LOAD 'auto_explain'")
        pid = await value(one, "SELECT pg_backend_pid()")
        await one.execute("DISCARD ALL")
        assert await value(one, "SELECT pg_backend_pid()") == pid
    async with await proxy.connect() as other:
        assert await value(other, "SELECT pg_backend_pid()") != pid


async def test_who_pinned_a_connection_leaves_it_clean(proxy, servers):
    await proxy.serve(servers[0], pooling=ALONE)
    async with await proxy.connect() as one:
        await one.execute("CREATE TEMP TABLE mine (n int)")
        await one.execute("SET search_path = nowhere")
    async with await proxy.connect() as other:
        assert await value(other, "SELECT count(*) FROM pg_class WHERE relname = 'mine'") == 0
        assert await value(other, "SHOW search_path") == '"$user", public'


async def test_who_waits_too_long_is_told_what_to_do(proxy, servers):
    await proxy.serve(servers[0], pooling=Pooling(mode="transaction", size=1, queue_timeout_s=0.5))
    async with await proxy.connect() as one, await proxy.connect() as other:
        await one.execute("BEGIN")
        with pytest.raises(psycopg.OperationalError, match=r"became free within 0.5 s[\s\S]*pooling\.size"):
            await other.execute("SELECT 1")
        await one.execute("COMMIT")


async def test_the_reserve_helps_who_has_waited(proxy, servers):
    m1 = servers[0]
    await proxy.serve(m1, pooling=Pooling(mode="transaction", size=1, reserve=1, reserve_after_s=0.2))
    async with await proxy.connect() as one, await proxy.connect() as other:
        await one.execute("BEGIN")
        assert await value(other, "SELECT 1") == 1
        await one.execute("COMMIT")


async def test_a_transaction_keeps_its_connection_also_when_it_has_failed(proxy, servers):
    await proxy.serve(servers[0], pooling=ALONE)
    one, other = await RawClient.connect(proxy.rw_port), await RawClient.connect(proxy.rw_port)
    await one.value("BEGIN")
    other.send(query("SELECT 'other'"))
    await one.value("SELECT 1 / 0")
    one.send(query("SELECT 1"))
    assert "E" in [kind for kind, _ in await one.until("Z")]
    await one.value("ROLLBACK")
    assert "D" in [kind for kind, _ in await other.until("Z")]
    one.close()
    other.close()


async def test_a_pipeline_is_at_rest_when_its_last_answer_has_come(proxy, servers):
    await proxy.serve(servers[0], pooling=ALONE)
    one, other = await RawClient.connect(proxy.rw_port), await RawClient.connect(proxy.rw_port)
    piece = messages.parse(b"", b"SELECT pg_sleep(0.05)") + messages.run(b"")
    one.send((piece + messages.SYNC) * 3 + piece + b"H\0\0\0\x04")  # the last one is flushed, and not ended
    for _ in range(3):
        await one.until("Z")
    await one.until("C")
    other.send(query("SELECT 'other'"))
    one.send(messages.SYNC)
    await one.until("Z")
    assert "D" in [kind for kind, _ in await other.until("Z")]
    one.close()
    other.close()


async def test_copy_in_pieces_is_one_transaction(proxy, servers):
    m1 = servers[0]
    await proxy.serve(m1, pooling=ALONE)
    m1.value("TRUNCATE written")
    async with await proxy.connect() as one, await proxy.connect() as other:
        async with one.cursor() as cursor, cursor.copy("COPY written FROM STDIN") as copy:
            asking = asyncio.ensure_future(value(other, "SELECT count(*) FROM written"))
            for number in range(100):
                await copy.write(f"{number}\n".encode())
                await asyncio.sleep(0)
        assert await asking == 100


async def test_a_client_that_vanishes_in_a_transaction_takes_its_connection_along(proxy, servers):
    m1 = servers[0]
    await proxy.serve(m1, pooling=ALONE)
    m1.value("TRUNCATE written")
    one = await RawClient.connect(proxy.rw_port)
    await one.value("BEGIN; INSERT INTO written VALUES (1)")
    async with await proxy.connect() as other:
        asking = asyncio.ensure_future(value(other, "SELECT count(*) FROM written"))
        one.writer.transport.abort()
        assert await asking == 0


@pytest.mark.parametrize(
    ("said", "answered"),
    [
        ([query("BEGIN"), query("INSERT INTO written VALUES (1)")], "Z"),
        ([messages.parse(b"s", b"SELECT 1") + b"H\0\0\0\x04"], "1"),
        ([query("COPY written FROM STDIN")], "G"),
        ([query("COPY written FROM STDIN") + messages.TERMINATE], "G"),
        ([query("BEGIN; INSERT INTO written VALUES (1)") + messages.TERMINATE], "Z"),
        ([query("SELECT pg_sleep(0.05)") + messages.TERMINATE], "Z"),
    ],
    ids=["transaction", "no Sync", "COPY", "COPY at once", "transaction at once", "rested"],
)
async def test_a_goodbye_at_any_moment_is_followed_by_the_end(proxy, servers, said, answered):
    """Some drivers wait for the server to close."""
    m1 = servers[0]
    await proxy.serve(m1, pooling=ALONE)
    m1.value("TRUNCATE written")
    one = await RawClient.connect(proxy.rw_port)
    for words in said:
        one.send(words)
        await one.until(answered)
    if not said[-1].endswith(messages.TERMINATE):
        one.send(messages.TERMINATE)
    async with asyncio.timeout(5):
        assert await one.rest() == b""
    one.close()
    async with await proxy.connect() as other:
        assert await value(other, "SELECT count(*) FROM written") == 0


async def test_a_cancel_request_never_hits_the_next_client(proxy, servers):
    await proxy.serve(servers[0], pooling=ALONE)
    async with await proxy.connect() as other:
        for _ in range(10):
            async with await proxy.connect() as one:
                asking = asyncio.ensure_future(one.execute("SELECT pg_sleep(0.02)"))
                await asyncio.sleep(0.015)
                answers = asyncio.gather(
                    *(value(other, "SELECT pg_sleep(0.01) IS NULL") for _ in range(1)), return_exceptions=True
                )
                await one.cancel_safe()
                await asyncio.gather(asking, return_exceptions=True)
                assert await answers == [False]
    async with await proxy.connect() as one:
        asking = asyncio.ensure_future(one.execute("SELECT pg_sleep(20)"))
        async with asyncio.timeout(10):
            while not asking.done():
                await one.cancel_safe()
        with pytest.raises(psycopg.errors.QueryCanceled):
            await asking


async def test_a_switchover_moves_nobody_and_who_waits_goes_on_at_the_new_primary(proxy, servers):
    m1, m2 = servers
    await proxy.serve(m1, pooling=ALONE)
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(await proxy.connect()) for _ in range(5)]
        await clients[0].execute("SET search_path = nowhere")
        await clients[1].execute("BEGIN")
        asking = [asyncio.ensure_future(value(client, "SHOW cluster_name")) for client in clients[2:]]
        await waits(proxy, 5)
        assert (await proxy.serve(m1, pooling=ALONE, paused=True)).busy["demo/orders"] == 1
        await clients[1].execute("COMMIT")
        assert (await proxy.again()).busy["demo/orders"] == 0
        await proxy.serve(None, pooling=ALONE, paused=True)
        await proxy.serve(m2, term=2, pooling=ALONE)
        assert await asyncio.gather(*asking) == ["m2"] * 3
        assert await value(clients[0], "SHOW search_path") == "nowhere"
        assert await value(clients[0], "SHOW cluster_name") == "m2"


async def test_a_failover_ends_only_who_was_in_a_transaction(proxy, servers):
    m1, m2 = servers
    await proxy.serve(m1, pooling=SHARED)
    busy, idle = await RawClient.connect(proxy.rw_port), await RawClient.connect(proxy.rw_port)
    await busy.value("BEGIN")
    await proxy.serve(m2, term=2, pooling=SHARED)
    assert await told(busy) == GOING_DOWN
    assert await idle.value("SHOW cluster_name") == "m2"
    idle.close()


async def test_a_server_that_dies_under_free_connections_is_not_noticed(proxy, servers):
    m1, m2 = servers
    await proxy.serve(m1, pooling=SHARED)
    client = await RawClient.connect(proxy.rw_port)
    assert await client.value("SHOW cluster_name") == "m1"
    m1.kill()
    client.send(query("SHOW cluster_name"))
    await proxy.serve(m2, term=2, pooling=SHARED)
    assert "D" in [kind for kind, _ in await client.until("Z")]
    m1.start()
    await proxy.serve(m1, term=3, pooling=SHARED)
    m1.value("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    assert await client.value("SHOW cluster_name") == "m1"
    client.close()


async def test_readers_share_connections_to_replicas_and_follow_the_route(proxy, servers):
    m1, m2 = servers
    await proxy.serve(m1, replicas=(m2.endpoint,), pooling=ALONE)
    async with await proxy.connect(read_only=True) as one, await proxy.connect(read_only=True) as other:
        assert await value(one, "SHOW cluster_name") == "m2"
        assert await value(one, "SELECT pg_backend_pid()") == await value(other, "SELECT pg_backend_pid()")
        await proxy.serve(m1, pooling=ALONE)
        assert await value(one, "SHOW cluster_name") == "m1"
        assert await value(other, "SHOW cluster_name") == "m1"


async def test_where_the_route_is_strict_warnings_are_heard_on_every_connection(proxy, servers):
    m1 = servers[0]
    await proxy.serve(m1, pooling=ALONE)
    async with await proxy.connect() as one, await proxy.connect() as other:
        pid = await value(one, "SELECT pg_backend_pid()")
        await proxy.serve(m1, pooling=ALONE, strict=True)
        assert await value(one, "SELECT pg_backend_pid()") != pid, "it was opened without asking for warnings"
        with pytest.raises(psycopg.errors.FeatureNotSupported):
            await one.execute("SET client_min_messages = error")
        assert await value(other, "SHOW client_min_messages") == "notice"
