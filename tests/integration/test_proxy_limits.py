"""What bounds clients: how many there may be, at one process and at several, changed while they are there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import psycopg
import pytest

from tests.support.proxy import (
    INSTANCE,
    Proxy,
    Server,
    Tls,
    lent_proxy,
    made_tls,
    proxy_process,
    running_servers,
)
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(60)
Client = psycopg.AsyncConnection[Any]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_servers("m1") as (m1,):
        yield m1


@pytest.fixture(scope="module")
def tls() -> Iterator[Tls]:
    with made_tls() as made:
        yield made


@pytest.fixture(scope="module")
def process(tls: Tls) -> Iterator[Proxy]:
    with proxy_process(tls) as running:
        yield running


@pytest.fixture
async def proxy(process: Proxy) -> AsyncIterator[Proxy]:
    async with lent_proxy(process) as running:
        yield running


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
