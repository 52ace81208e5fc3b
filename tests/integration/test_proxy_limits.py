"""What bounds clients: how many there may be, for how long they may do nothing, and what when they do not read."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress
from typing import Any, Literal

import psycopg
import pytest

from core.routes import Pooling
from tests.support.proxy import (
    INSTANCE,
    Proxy,
    RawClient,
    Server,
    Tls,
    proxy_process,
    query,
    running_servers,
)
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(60)
Client = psycopg.AsyncConnection[Any]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_servers("m1") as (m1,):
        yield m1


@pytest.fixture
async def guests() -> AsyncIterator[AsyncExitStack]:
    """Closes who came."""
    async with AsyncExitStack() as stack:
        yield stack


async def come(guests: AsyncExitStack, proxy: Proxy, **changes: Any) -> Client | str:
    """A client that stays; or what it was told."""
    try:
        return await guests.enter_async_context(await proxy.connect(**changes))
    except psycopg.OperationalError as error:
        return str(error)


async def refused(proxy: Proxy) -> int:
    """How many were told that there is no room."""
    figures = (await proxy.again()).figures.get(INSTANCE)
    return figures.refused.get("53300", 0) if figures is not None else 0


# --- how many ---------------------------------------------------------------------------------------------------------


async def test_beyond_the_bound_a_client_is_told_so_and_an_observer_is_let_in(
    proxy: Proxy, server: Server, guests: AsyncExitStack
) -> None:
    await proxy.serve(server, clients_max=3, observers=("postgres",))
    before = await refused(proxy)
    first, *others = [await come(guests, proxy, user="app") for _ in range(3)]
    assert isinstance(first, psycopg.AsyncConnection)
    assert not any(isinstance(one, str) for one in others)
    told = await come(guests, proxy, user="app")
    assert "sorry, too many clients already: demo/orders may have 3 at this node's proxy" in str(told)
    assert "proxy.limits.clients" in str(told)
    assert await refused(proxy) == before + 1
    assert "too many clients" in proxy.events("client_refused")[-1]["why"]
    assert not isinstance(await come(guests, proxy), str), "an observer has a place of its own"
    assert not isinstance(await come(guests, proxy, dbname="moorage"), str), "and the proxy's own database is no client"

    await first.close()  # so there are 3 again, the observer included
    assert "too many clients" in str(await come(guests, proxy, user="app"))
    await proxy.serve(server, clients_max=4)
    assert not isinstance(await come(guests, proxy, user="app"), str)
    await proxy.serve(server, clients_max=1)
    assert (await (await others[0].execute("SELECT 1")).fetchone()) == (1,), "who is there may stay"
    await proxy.serve(server)
    assert not isinstance(await come(guests, proxy, user="app"), str)


async def test_a_user_has_a_bound_of_its_own_that_is_told_to_nobody_else(
    proxy: Proxy, server: Server, guests: AsyncExitStack
) -> None:
    await proxy.serve(server, clients_per_user_max=1)
    assert not isinstance(await come(guests, proxy, user="app"), str)
    assert 'too many connections for role "app"' in str(await come(guests, proxy, user="app"))
    wrong = await come(guests, proxy, user="app", password="wrong")
    assert "password authentication failed" in str(wrong), "without the password nothing is said of the user"
    assert not isinstance(await come(guests, proxy), str)


async def test_several_processes_count_together(
    tls: Tls, server: Server, guests: AsyncExitStack, tmp_path: Any
) -> None:
    options = ("--siblings", str(tmp_path), "--processes", "2", "--index")
    with proxy_process(tls, *options, "0") as one, proxy_process(tls, *options, "1") as two:
        two.rw_port, two.ro_port = one.rw_port, one.ro_port
        for proxy in (one, two):
            await proxy.serve(server, clients_max=5)
        found = await asyncio.gather(*(come(guests, one, user="app") for _ in range(20)))
        assert sum(not isinstance(client, str) for client in found) <= 5, (
            "none too many, also of those that come at once"
        )
        for _ in range(5):
            found.append(await come(guests, one, user="app"))
        assert sum(not isinstance(client, str) for client in found) == 5, "and not one too few"
        await guests.aclose()

        async def free() -> bool:
            return not isinstance(await come(guests, one, user="app"), str)

        await eventually(free, bool, within=5)
        for proxy in (one, two):
            await proxy.leave()


# --- for how long they may do nothing ---------------------------------------------------------------------------------

IDLE = b"C57P05\0Mterminating connection due to idle-session timeout\0"
IN_TRANSACTION = b"C25P03\0Mterminating connection due to idle-in-transaction timeout\0"
WAITS = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND wait_event = 'ClientWrite'"


async def raw(guests: AsyncExitStack, proxy: Proxy, tls: Tls | None = None) -> RawClient:
    client = await RawClient.connect(proxy.rw_port, ca=tls.ca if tls is not None else None)

    async def close() -> None:
        client.writer.transport.abort()
        with suppress(OSError):
            await client.writer.wait_closed()

    guests.push_async_callback(close)
    return client


async def rest_of(client: RawClient) -> tuple[bytes, float]:
    """What it is told before it is ended, and after how long."""
    began = time.monotonic()
    told = await client.rest()
    return told, time.monotonic() - began


@pytest.mark.parametrize("mode", ["session", "transaction"])
async def test_a_client_that_asks_nothing_is_ended_and_its_connection_serves_the_next(
    proxy: Proxy, server: Server, guests: AsyncExitStack, mode: Literal["session", "transaction"]
) -> None:
    await proxy.serve(server, client_idle_s=0.5, pooling=Pooling(mode=mode, idle_s=30))
    client = await raw(guests, proxy)
    pid = await client.value("SELECT pg_backend_pid()")
    told, after_s = await rest_of(client)
    assert IDLE in told
    assert b"proxy.limits.idle_s" in told
    assert after_s > 0.4
    if mode == "session":

        async def cleaned() -> bool:
            last = (
                f"SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND query LIKE 'DISCARD%' AND state = 'idle'"
            )
            return bool(server.value(last))

        await eventually(cleaned, bool, within=5)
    client = await raw(guests, proxy)
    assert await client.value("SELECT pg_backend_pid()") == pid
    assert proxy.events("silent_clients_ended")[-1]["stance"] == "idle"
    assert (await proxy.again()).figures[INSTANCE].ended["57P05"] >= 1


@pytest.mark.parametrize("mode", ["session", "transaction"])
@pytest.mark.parametrize("failed", [False, True])
async def test_a_client_that_forgets_its_transaction_is_ended_and_the_server_rolls_back(
    proxy: Proxy, server: Server, guests: AsyncExitStack, mode: Literal["session", "transaction"], failed: bool
) -> None:
    await proxy.serve(server, client_idle_s=0.1, idle_transaction_s=0.6, pooling=Pooling(mode=mode))
    client = await raw(guests, proxy)
    client.send(query("BEGIN; SELECT pg_advisory_xact_lock(4711)" + ("; SELECT 1/0" if failed else "")))
    await client.until("Z")
    told, after_s = await rest_of(client)
    assert IN_TRANSACTION in told
    assert after_s > 0.5, "the other bound is not meant"

    async def locks() -> int:
        return int(server.value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"))

    await eventually(locks, lambda count: count == 0, within=5)


async def test_who_is_busy_or_asks_in_time_stays_whatever_the_bounds_come_to_be(
    proxy: Proxy, server: Server, guests: AsyncExitStack
) -> None:
    await proxy.serve(server)
    idle, asking = await raw(guests, proxy), await raw(guests, proxy)
    busy, copying = await raw(guests, proxy), await raw(guests, proxy)
    copying.send(query("CREATE TEMP TABLE mine (n int)"))
    await copying.until("Z")
    copying.send(query("COPY mine FROM STDIN"))
    await copying.until("G")
    await proxy.serve(server, client_idle_s=1.5, idle_transaction_s=1.5)
    answered = asyncio.ensure_future(busy.value("SELECT pg_sleep(2.5)"))
    while not answered.done():
        await asking.value("SELECT 1")
        await asyncio.sleep(0.1)
    assert IDLE in (await rest_of(idle))[0]
    copying.send(b"d\0\0\0\x067\n" + b"c\0\0\0\4")
    assert ("C", b"COPY 1\0") in await copying.until("Z")
    await proxy.serve(server)
    assert await asking.value("SELECT 7") == "7"


async def test_time_in_which_the_proxy_itself_was_frozen_does_not_count(
    proxy: Proxy, server: Server, guests: AsyncExitStack
) -> None:
    await proxy.serve(server, client_idle_s=1.0)
    client = await raw(guests, proxy)
    assert await client.value("SELECT 1") == "1"
    os.kill(proxy.pid, signal.SIGSTOP)
    try:
        client.send(query("SELECT 7"))
        await asyncio.sleep(1.5)  # the time itself is the case: longer than the client may be idle
    finally:
        os.kill(proxy.pid, signal.SIGCONT)
    assert any(kind == "D" for kind, _ in await client.until("Z"))


# --- who does not read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encrypted", [False, True])
async def test_a_client_that_does_not_read_gives_its_server_back(
    proxy: Proxy, server: Server, guests: AsyncExitStack, tls: Tls, encrypted: bool
) -> None:
    await proxy.serve(server, client_unread_s=0.5, client_idle_s=0.2)
    client = await raw(guests, proxy, tls if encrypted else None)
    client.send(query("SELECT repeat('x', 1000) FROM generate_series(1, 1000000)"))

    async def waiting() -> int:
        return int(server.value(WAITS))

    async def ended() -> list[dict[str, Any]]:
        return proxy.events("slow_client_ended")

    await eventually(ended, bool, within=10)
    await eventually(waiting, lambda count: count == 0, within=5)
    assert (await proxy.again()).figures[INSTANCE].ended["08006"] >= 1


async def test_a_client_that_reads_slowly_but_reads_is_left_alone(
    proxy: Proxy, server: Server, guests: AsyncExitStack
) -> None:
    await proxy.serve(server, client_unread_s=0.5)
    client = await raw(guests, proxy)
    client.send(query("SELECT repeat('x', 1000) FROM generate_series(1, 50000)"))
    taken, began = 0, time.monotonic()
    while time.monotonic() - began < 2.0:
        taken += len(await client.reader.readexactly(256 << 10))
        await asyncio.sleep(0.1)
    assert taken < 40_000_000, "it was slow"
    while not (await client.reader.read(1 << 20)).endswith(b"C\0\0\0\x11SELECT 50000\0Z\0\0\0\5I"):
        pass
    assert proxy.events("slow_client_ended") == []
