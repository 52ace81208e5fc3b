"""Routes that come, change and end: who waits, who is cut, who stays, and that no write passes an expired route."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import psutil
import psycopg
import pytest

from core.routes import Pooling, Route, RouteTable, SessionCounts
from proxy.cancel import Canceller
from proxy.gate import Gate
from proxy.listeners import Listeners
from proxy.postgres.server_side import sqlstate_of
from proxy.table import Table
from tests.support.clocks import ManualClock
from tests.support.ports import free_port
from tests.support.proxy import (
    ADDRESS,
    INSTANCE,
    Proxy,
    RawClient,
    Server,
    Tls,
    declared,
    proxy_process,
    query,
    running_proxy,
    running_servers,
)
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(60)
GOING_DOWN = "57P01"


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Server]]:
    with running_servers("m1", "m2", "m3") as running:
        yield running


@pytest.fixture
def mortal(servers: list[Server]) -> Iterator[Server]:
    """The third of them, whatever the test does to it."""
    yield servers[2]
    servers[2].kill()
    servers[2].start()


@pytest.fixture(scope="module")
def process(tls: Tls) -> Iterator[Proxy]:
    with proxy_process(tls, "--drain-s", "1") as running:
        yield running


@pytest.fixture
async def own_proxy(tls: Tls) -> AsyncIterator[Proxy]:
    """For a test that ends it."""
    async with running_proxy(tls, "--drain-s", "1") as running:
        yield running


async def name_of(connection: psycopg.AsyncConnection) -> str:
    row = await (await connection.execute("SHOW cluster_name")).fetchone()
    assert row is not None
    return str(row[0])


async def told(client: RawClient) -> str:
    """The SQLSTATE in the last words of an idle client's connection; empty when there were none."""
    rest = await client.rest()
    client.close()
    return sqlstate_of(rest[5:]) if rest[:1] == b"E" else ""


async def still_served(client: RawClient) -> bool:
    client.send(query("SELECT 1"))
    return (await client.until("Z"))[-1] == ("Z", b"I")


def written(server: Server, number: int) -> int:
    return int(server.value(f"SELECT count(*) FROM written WHERE id = {number}"))


# --- waiting --------------------------------------------------------------------------------------------------------


async def test_a_client_waits_for_a_primary_and_is_served_when_there_is_one(proxy, servers):
    await proxy.serve(None)
    connecting = asyncio.ensure_future(proxy.connect())
    await eventually(lambda: waiting(proxy), lambda count: count == 1, within=5)
    await proxy.serve(servers[0])
    async with await connecting as connection:
        assert await name_of(connection) == "m1"
    assert await waiting(proxy) == 0
    assert proxy.events("client_connected")[0]["waited_ms"] > 0


async def waiting(proxy: Proxy) -> int:
    """What the proxy reports when the table is sent once more."""
    return (await counts(proxy)).waiting


async def counts(proxy: Proxy) -> SessionCounts:
    report = await proxy.again()
    return report.sessions[INSTANCE]


async def test_a_client_waits_for_a_server_that_is_starting(proxy, mortal):
    """A dead server is tried again; nobody sends a new table meanwhile."""
    mortal.kill()
    await proxy.serve(mortal)
    connecting = asyncio.ensure_future(proxy.connect())
    await eventually(lambda: waiting(proxy), lambda count: count == 1, within=5)
    mortal.start(wait=False)
    async with await connecting as connection:
        assert await name_of(connection) == "m3"


@pytest.mark.parametrize("paused", [False, True])
async def test_a_client_that_waited_long_enough_is_refused_with_57p03(proxy, servers, paused):
    await proxy.serve(servers[0] if paused else None, hold_s=0.2, paused=paused)
    client = await RawClient.open(proxy.rw_port)
    await client.prove()
    assert await told(client) == "57P03"
    (event,) = proxy.events("client_refused")
    assert "switchover" in event["why"] if paused else "no primary" in event["why"]


async def test_a_client_that_vanishes_while_it_waits_is_forgotten(proxy):
    await proxy.serve(None)
    client = await RawClient.open(proxy.rw_port)
    await client.prove()
    await eventually(lambda: waiting(proxy), lambda count: count == 1, within=5)
    client.close()
    await eventually(lambda: waiting(proxy), lambda count: count == 0, within=5)
    assert proxy.established() == 0


async def test_a_client_that_vanishes_while_its_server_is_silent_leaves_no_connection(proxy, servers):
    m3 = servers[2]
    await proxy.serve(m3)
    m3.freeze()
    try:
        client = await RawClient.open(proxy.rw_port)
        await client.prove()
        await eventually(lambda: connections(proxy), lambda count: count == 2, within=5)
        client.close()
        await eventually(lambda: connections(proxy), lambda count: count == 0, within=5)
    finally:
        m3.thaw()


async def connections(proxy: Proxy) -> int:
    return proxy.established()


async def test_a_client_on_its_way_to_a_silent_primary_goes_to_the_next_one_at_once(proxy, servers):
    m1, _, m3 = servers
    await proxy.serve(m3)
    m3.freeze()
    try:
        connecting = asyncio.ensure_future(proxy.connect())
        await eventually(lambda: connections(proxy), lambda count: count == 2, within=5)
        began = time.monotonic()
        await proxy.serve(m1, term=2)
        async with await connecting as connection:
            assert await name_of(connection) == "m1"
        assert time.monotonic() - began < 2
    finally:
        m3.thaw()


async def test_no_more_clients_wait_than_is_allowed(tls):
    async with running_proxy(tls, "--waiters-max", "2") as proxy:
        await proxy.serve(None)
        clients = [await RawClient.open(proxy.rw_port) for _ in range(3)]
        for client in clients[:2]:
            await client.prove()
        await eventually(lambda: waiting(proxy), lambda count: count == 2, within=5)
        await clients[2].prove()
        assert await told(clients[2]) == "53300"
        for client in clients[:2]:
            client.close()


# --- fences ---------------------------------------------------------------------------------------------------------


async def test_a_route_that_ends_takes_sessions_off_their_server_with_no_agent_there(proxy, servers):
    """The one in a transaction is told; the idle one waits for another route."""
    m1, m2, _ = servers
    await proxy.serve(m1, valid_s=0.7)
    idle, busy = await RawClient.connect(proxy.rw_port), await RawClient.connect(proxy.rw_port)
    busy.send(query("BEGIN"))
    await busy.until("Z")
    await proxy.leave()
    assert await told(busy) == GOING_DOWN
    assert proxy.events("sessions_cut")[0]["sessions"] == 2
    await eventually(lambda: backends(m1), lambda count: count == 0, within=5)
    await proxy.serve(m2)
    assert await idle.value("SHOW cluster_name") == "m2"
    idle.close()


async def test_a_proxy_that_was_frozen_past_the_end_of_a_route_forwards_no_write(proxy, servers):
    """Neither what had come before the thaw, nor the answer to what was under way. What an idle client had sent goes to
    the next primary, once."""
    m1, m2, _ = servers
    await proxy.serve(m1, valid_s=2.0)
    late, under_way = await RawClient.connect(proxy.rw_port), await RawClient.connect(proxy.rw_port)
    under_way.send(query("SELECT pg_sleep(0.5)"))
    await eventually(lambda: asleep(m1), lambda count: count == 1, within=1, every=0.01)
    psutil.Process(proxy.pid).suspend()
    ends_at = time.monotonic() + 2.0
    late.send(query("INSERT INTO written VALUES (101)"))
    await eventually(lambda: passed(ends_at + 0.1), within=5)
    psutil.Process(proxy.pid).resume()
    assert b"SELECT 1" not in await under_way.rest()
    under_way.close()
    await eventually(lambda: backends(m1), lambda count: count == 0, within=5)
    assert written(m1, 101) == 0
    await proxy.serve(m2, term=2)
    assert ("C", b"INSERT 0 1\0") in await late.until("Z")
    late.close()
    assert (written(m1, 101), written(m2, 101)) == (0, 1)


@asynccontextmanager
async def timerless(primary: Server) -> AsyncIterator[tuple[int, ManualClock]]:
    """A read-write port of proxy parts whose clock stands still: its timers are far away when the clock is moved, as
    in a process that thaws and looks at its sockets first."""
    clock = ManualClock()
    gate = Gate(table=Table(clock), clock=clock, local_address=ADDRESS, tls=lambda: None)
    gate.verifiers.declare(declared())
    listeners = Listeners(gate, Canceller(gate).cancel)
    route = Route(
        instance=INSTANCE,
        rw_port=free_port(),
        ro_port=free_port(),
        primary=primary.endpoint,
        expires_at_s=1000,
        pooling=Pooling(idle_max=0),
    )
    gate.table.replace(RouteTable(seq=1, routes=(route,)))
    listening = asyncio.create_task(listeners.run())
    try:
        yield route.rw_port, clock
    finally:
        listening.cancel()
        listeners.close()
        gate.table.replace(RouteTable(seq=2))


async def test_a_write_after_the_end_of_a_route_is_not_forwarded(servers):
    m1 = servers[0]
    async with timerless(m1) as (port, clock):
        client = await eventually(lambda: RawClient.connect(port), within=5)
        clock.advance(1000)
        client.send(query("INSERT INTO written VALUES (104)"))
        await eventually(lambda: backends(m1), lambda count: count == 0, within=5)
        client.close()
    assert written(m1, 104) == 0


async def test_an_answer_after_the_end_of_a_route_is_not_passed_on(servers):
    m1 = servers[0]
    async with timerless(m1) as (port, clock):
        client = await eventually(lambda: RawClient.connect(port), within=5)
        client.send(query("SELECT pg_sleep(0.3)"))
        await eventually(lambda: asleep(m1), lambda count: count == 1, within=5, every=0.01)
        clock.advance(1000)
        assert await told(client) == GOING_DOWN


async def backends(server: Server) -> int:
    return server.backends()


async def asleep(server: Server) -> int:
    return int(server.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"))


async def passed(moment: float) -> bool:
    return time.monotonic() > moment


async def test_another_primary_ends_transactions_at_the_former_one_and_takes_idle_sessions_over(proxy, servers):
    m1, m2, _ = servers
    await proxy.serve(m1)
    idle, busy = await RawClient.connect(proxy.rw_port), await RawClient.connect(proxy.rw_port)
    busy.send(query("BEGIN; INSERT INTO written VALUES (102)"))
    await busy.until("Z")
    await proxy.serve(m2, term=2)
    assert await told(busy) == GOING_DOWN
    assert await idle.value("SHOW cluster_name") == "m2"
    idle.close()
    async with await proxy.connect() as connection:
        assert await name_of(connection) == "m2"
    assert written(m1, 102) == 0


async def test_a_route_that_names_nobody_any_more_takes_sessions_off_their_server(proxy, servers):
    m1 = servers[0]
    await proxy.serve(m1)
    client = await RawClient.connect(proxy.rw_port)
    await proxy.serve(None)
    await eventually(lambda: backends(m1), lambda count: count == 0, within=5)
    assert await waiting(proxy) == 1
    client.close()


async def test_an_instance_that_is_served_no_more_loses_all_its_clients(proxy, servers):
    m1, m2, _ = servers
    await proxy.serve(m1, replicas=(m2.endpoint,))
    writer, reader = await RawClient.connect(proxy.rw_port), await RawClient.connect(proxy.ro_port)
    await proxy.send()
    assert [await told(client) for client in (writer, reader)] == [GOING_DOWN] * 2


@pytest.mark.parametrize(
    "changes",
    [{}, {"term": 2}, {"valid_s": 100.0}, {"allow": ("10.0.0.0/8",)}],
    ids=["same", "term", "renewed", "allow"],
)
async def test_a_table_with_the_same_primary_keeps_sessions(proxy, servers, changes):
    await proxy.serve(servers[0])
    client = await RawClient.connect(proxy.rw_port)
    for _ in range(3):
        await proxy.serve(servers[0], **changes)
    assert await still_served(client)
    client.close()


async def test_a_renewed_route_outlives_its_first_end(proxy, servers):
    await proxy.serve(servers[0], valid_s=0.3)
    client = await RawClient.connect(proxy.rw_port)
    await proxy.serve(servers[0], valid_s=60)
    first_end = time.monotonic() + 0.4
    await eventually(lambda: passed(first_end), within=5)
    assert await still_served(client)
    client.close()


async def test_an_agent_that_goes_and_another_that_comes_keep_sessions(proxy, servers):
    await proxy.serve(servers[0])
    client = await RawClient.connect(proxy.rw_port)
    await proxy.leave()
    assert await still_served(client)
    await proxy.serve(servers[0])
    assert await still_served(client)
    client.close()


async def test_readers_on_a_replica_that_became_the_primary_come_under_its_fence(proxy, servers):
    m1, m2, _ = servers
    await proxy.serve(m1, replicas=(m2.endpoint,))
    reader = await RawClient.connect(proxy.ro_port)
    await proxy.serve(m2, term=2)
    assert await still_served(reader)
    await proxy.serve(m1, term=3)
    assert await reader.value("SHOW cluster_name") == "m1"
    reader.close()


# --- readers --------------------------------------------------------------------------------------------------------


async def test_readers_are_spread_over_replicas_and_fall_back_to_the_primary(proxy, servers):
    m1, m2, m3 = servers
    await proxy.serve(m1, replicas=(m2.endpoint, m3.endpoint))
    readers = await asyncio.gather(*(proxy.connect(read_only=True) for _ in range(6)))
    assert sorted([await name_of(reader) for reader in readers]) == ["m2"] * 3 + ["m3"] * 3
    assert await counts(proxy) == SessionCounts(read_only=6)
    await proxy.serve(m1)
    for reader in readers:
        assert await name_of(reader) in {"m2", "m3"}, "a replica that is unwell keeps who it has"
        await reader.close()
    async with await proxy.connect(read_only=True) as reader:
        assert await name_of(reader) == "m1"


async def test_readers_pass_by_a_replica_that_does_not_answer(proxy, servers):
    m1, m2, _ = servers
    dead = replace(m2.endpoint, member="m0", port=1)
    await proxy.serve(m1, replicas=(dead, m2.endpoint))
    for _ in range(3):
        async with await proxy.connect(read_only=True) as reader:
            assert await name_of(reader) == "m2"
    await proxy.serve(m1, replicas=(dead,))
    async with await proxy.connect(read_only=True) as reader:
        assert await name_of(reader) == "m1"


# --- servers that end -----------------------------------------------------------------------------------------------


async def test_idle_clients_of_a_killed_server_wait_for_it_to_come_back(proxy, mortal):
    await proxy.serve(mortal)
    clients = [await RawClient.connect(proxy.rw_port) for _ in range(3)]
    mortal.kill()
    await eventually(lambda: waiting(proxy), lambda count: count == 3, within=5)
    mortal.start(wait=False)
    for client in clients:
        assert await client.value("SHOW cluster_name") == "m3"
        client.close()


async def test_clients_in_a_transaction_of_a_killed_server_are_told_57p01(proxy, mortal):
    await proxy.serve(mortal)
    client = await RawClient.connect(proxy.rw_port)
    client.send(query("BEGIN"))
    await client.until("Z")
    mortal.kill()
    assert await told(client) == GOING_DOWN


@pytest.mark.parametrize("begun", ["SELECT 1", "BEGIN"], ids=["idle", "busy"])
async def test_a_session_that_a_server_ends_on_purpose_is_told_so_once(proxy, servers, begun):
    m1 = servers[0]
    await proxy.serve(m1)
    client = await RawClient.connect(proxy.rw_port)
    pid = await client.value("SELECT pg_backend_pid()")
    client.send(query(begun))
    await client.until("Z")
    m1.value(f"SELECT pg_terminate_backend({pid})")
    rest = await client.rest()
    client.close()
    assert rest.count(b"57P01") == 1


async def test_a_client_in_the_middle_of_a_copy_is_told_57p01(proxy, servers):
    await proxy.serve(servers[0])
    client = await RawClient.connect(proxy.rw_port)
    client.send(query("COPY written FROM STDIN"))
    await client.until("G")
    client.send(b"d" + struct.pack("!I", 8) + b"471\n")
    await proxy.send(proxy.route(None))
    assert await told(client) == GOING_DOWN


async def test_an_idle_client_that_was_notified_is_still_idle(proxy, servers):
    m1 = servers[0]
    await proxy.serve(m1)
    client = await RawClient.connect(proxy.rw_port)
    client.send(query("LISTEN news"))
    await client.until("Z")
    m1.value("NOTIFY news")
    await client.until("A")
    assert (await proxy.again()).busy[INSTANCE] == 0
    client.close()


async def test_a_goodbye_is_not_answered(proxy, servers):
    await proxy.serve(servers[0], pooling=Pooling(idle_max=0))
    client = await RawClient.connect(proxy.rw_port)
    client.send(b"X\0\0\0\4")
    assert await client.rest() == b""
    client.close()
    await eventually(lambda: connections(proxy), lambda count: count == 0, within=5)


async def test_bytes_and_sessions_are_reported(proxy, servers):
    before = await proxy.serve(servers[0])
    async with await proxy.connect() as connection:
        await connection.execute("SELECT repeat('x', 100000)")
        live = await proxy.again()
        assert live.bytes_out - before.bytes_out > 100_000
        assert 0 < live.bytes_in - before.bytes_in < 10_000
        assert live.sessions[INSTANCE] == SessionCounts(read_write=1)
    await eventually(lambda: counts(proxy), lambda seen: seen == SessionCounts(), within=5)
    assert (await proxy.again()).bytes_out >= live.bytes_out


# --- the process ----------------------------------------------------------------------------------------------------


async def test_sigterm_ends_idle_clients_at_once_and_lets_a_transaction_finish(own_proxy, servers):
    m1 = servers[0]
    await own_proxy.serve(m1)
    idle, busy, stubborn = [await RawClient.connect(own_proxy.rw_port) for _ in range(3)]
    for client in (busy, stubborn):
        client.send(query("BEGIN; INSERT INTO written VALUES (103)"))
        await client.until("Z")
    os.kill(own_proxy.pid, signal.SIGTERM)
    assert await told(idle) == GOING_DOWN
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", own_proxy.rw_port)
    busy.send(query("COMMIT"))
    await busy.until("Z")
    assert await told(busy) == GOING_DOWN
    assert await told(stubborn) == GOING_DOWN
    assert own_proxy.process is not None
    assert await asyncio.to_thread(own_proxy.process.wait, 10) == 0
    assert written(m1, 103) == 1
    assert not own_proxy.socket.exists()
    assert not (own_proxy.folder / "proxy.pid").exists()


async def test_sigterm_does_not_wait_for_clients_that_wait(own_proxy):
    await own_proxy.serve(None)
    client = await RawClient.open(own_proxy.rw_port)
    await client.prove()
    await eventually(lambda: waiting(own_proxy), lambda count: count == 1, within=5)
    os.kill(own_proxy.pid, signal.SIGTERM)
    assert await told(client) == "57P03"
    assert own_proxy.process is not None
    assert await asyncio.to_thread(own_proxy.process.wait, 10) == 0


async def test_ending_leaves_a_successors_pid_file_and_socket_alone(own_proxy):
    pid_file = own_proxy.folder / "proxy.pid"
    pid_file.write_text("1\n")
    own_proxy.socket.unlink()
    own_proxy.socket.touch()
    os.kill(own_proxy.pid, signal.SIGTERM)
    assert own_proxy.process is not None
    assert await asyncio.to_thread(own_proxy.process.wait, 10) == 0
    assert pid_file.exists()
    assert own_proxy.socket.exists()
