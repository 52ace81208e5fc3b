"""Session mode: a connection that its client has left is the next one's, as good as new, and to nobody's harm."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import psycopg
import pytest

from core.routes import Pooling
from core.scram import make_verifier
from tests.support.proxy import (
    APP_PASSWORD,
    VERIFIERS,
    Proxy,
    RawClient,
    Server,
    running_servers,
)
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(60)
TERMINATE = b"X\0\0\0\x04"


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Server]]:
    with running_servers("m1", "m2") as running:
        yield running


async def free(server: Server, count: int = 1) -> None:
    """So many connections, and nothing runs on them."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"

    async def found() -> tuple[int, int]:
        return server.value(waiting), server.value(f"{waiting} AND state = 'idle'")

    await eventually(found, lambda one: one == (count, count), within=5)


async def pid_of(proxy: Proxy, statement: str = "SELECT pg_backend_pid()", **changes: object) -> str:
    async with await proxy.connect(**changes) as connection:
        row = await (await connection.execute(statement)).fetchone()
    return str(row[0])


async def test_the_next_client_gets_the_connection_as_good_as_new(proxy, servers):
    m1 = servers[0]
    await proxy.serve(m1)
    async with await proxy.connect(user="app") as connection:
        first = connection.info.backend_pid
        for statement in (
            "SET search_path = nowhere",
            "SET TimeZone = 'Asia/Tokyo'",
            "SELECT set_config('shop.tenant', 'acme', false)",
            "CREATE TEMP TABLE mine (n int)",
            "SELECT pg_advisory_lock(77)",
            "PREPARE mine AS SELECT 1",
            "LISTEN news",
        ):
            await connection.execute(statement)
    await free(m1)
    async with await proxy.connect(user="app") as connection:
        assert connection.info.backend_pid == first
        assert connection.info.parameter_status("TimeZone") != "Asia/Tokyo"
        for statement, expected in {
            "SHOW search_path": '"$user", public',
            "SELECT coalesce(current_setting('shop.tenant', true), '')": "",
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'": 0,
            "SELECT count(*) FROM pg_prepared_statements": 0,
            "SELECT count(*) FROM pg_listening_channels()": 0,
            "SELECT count(*) FROM pg_class WHERE relname = 'mine'": 0,
        }.items():
            row = await (await connection.execute(statement)).fetchone()
            assert row[0] == expected, statement


async def test_only_clients_of_the_same_login_share(proxy, servers):
    m1 = servers[0]
    await proxy.serve(m1)
    first = await pid_of(proxy, user="app", application_name="one")
    await free(m1)
    assert await pid_of(proxy, user="app", application_name="two") != first
    await free(m1, 2)
    assert await pid_of(proxy, user="postgres", application_name="one") != first
    await free(m1, 3)
    assert await pid_of(proxy, user="app", application_name="one") == first


async def test_a_new_password_leaves_the_old_connections_to_nobody(proxy, servers):
    m1 = servers[0]
    await proxy.serve(m1)
    first = await pid_of(proxy, user="app")
    await free(m1)
    changed = make_verifier("another", salt=b"0123456789abcdef", iterations=16)
    m1.value(f"ALTER ROLE app PASSWORD '{changed}'")
    try:
        await proxy.declare(app=changed)
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            await pid_of(proxy, user="app")
        dsn = proxy.dsn(user="app").replace(APP_PASSWORD, "another")
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            assert str(connection.info.backend_pid) != first
    finally:
        m1.value(f"ALTER ROLE app PASSWORD '{VERIFIERS['app']}'")
        await proxy.declare()


async def test_none_is_kept_where_none_is_wanted_and_idle_ones_fall_away(proxy, servers):
    m1 = servers[0]
    await proxy.serve(m1, pooling=Pooling(idle_max=0))
    await pid_of(proxy)
    await free(m1, 0)
    await proxy.serve(m1, pooling=Pooling(idle_s=0.2))
    await pid_of(proxy)
    await free(m1, 0)


async def test_who_left_a_transaction_open_leaves_no_connection(proxy, servers):
    m1 = servers[0]
    await proxy.serve(m1)
    for ending in (b"", TERMINATE):
        client = await RawClient.connect(proxy.rw_port)
        await client.value("BEGIN")
        client.send(ending)
        await client.writer.drain()
        client.close()
        await free(m1, 0)
    client = await RawClient.connect(proxy.rw_port)
    await client.value("SELECT 1")
    client.close()  # without a goodbye, in good order
    await free(m1, 1)


async def test_connections_are_bounded_and_the_next_in_line_gets_one(proxy, servers):
    m1 = servers[0]
    await proxy.serve(m1, pooling=Pooling(size=1, queue_timeout_s=1.0))
    async with await proxy.connect() as connection:
        pid = connection.info.backend_pid
        with pytest.raises(psycopg.OperationalError, match=r"became free within 1 s[\s\S]*pooling\.size"):
            await proxy.connect()
        await proxy.serve(m1, pooling=Pooling(size=1, queue_timeout_s=30.0))
        waits = asyncio.ensure_future(proxy.connect())
        await asyncio.sleep(0)
    async with await waits as connection:
        assert connection.info.backend_pid == pid
        await free(m1)


async def test_free_connections_end_with_the_fence_and_hold_no_switchover_up(proxy, servers):
    m1, m2 = servers
    await proxy.serve(m1)
    await pid_of(proxy)
    await free(m1)
    assert list((await proxy.serve(m1, paused=True)).busy.values()) == [0]
    waits = asyncio.ensure_future(pid_of(proxy, "SHOW cluster_name"))
    await proxy.serve(None)
    await free(m1, 0)
    await proxy.serve(m2, term=2)
    assert await waits == "m2"
    await free(m2)
    await proxy.serve(m2, term=2, valid_s=0.0)  # nobody vouches for it any more, and nobody says so
    await free(m2, 0)


async def test_a_server_that_is_full_gets_room_from_connections_that_nobody_uses(proxy, servers):
    m1 = servers[0]
    await proxy.serve(m1)
    await pid_of(proxy, application_name="other")
    await free(m1)
    m1.value("ALTER ROLE app CONNECTION LIMIT 1")
    try:
        await pid_of(proxy, user="app", application_name="one")
        await free(m1, 2)
        assert await pid_of(proxy, user="app", application_name="two")
    finally:
        m1.value("ALTER ROLE app CONNECTION LIMIT -1")
