"""Several proxy processes on one node: they share ports, find each other's cancel keys, and follow on each other with
no client cut."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from agent.config import AgentConfig
from agent.fleet import Fleet, halt
from agent.peer import Peers
from agent.verifiers import Desk
from core.routes import Declared, Passwords, Route
from tests.support.ports import free_port
from tests.support.proxy import ADDRESS, INSTANCE, OWNER_PASSWORD, VERIFIERS, Server, made_tls, running_servers
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(90)


class Told(Desk):
    """Knows the users of the test's server."""

    def declared(self) -> Declared:
        return Declared(passwords={INSTANCE: Passwords(mock_secret="00" * 32, verifiers=VERIFIERS)})


@dataclass(slots=True)
class Node:
    """An agent as far as its proxy goes; it may die and come back."""

    config: AgentConfig
    routes: tuple[Route, ...]
    fleet: Fleet = field(init=False)
    fleets: list[Fleet] = field(default_factory=list)
    task: asyncio.Task[None] | None = None
    errors: list[str] = field(default_factory=list)
    served: int = 0

    def start(self) -> None:
        self.fleet = Fleet(self.config, lambda: self.routes, Told({}, Peers(self.config.identity_dir)))
        self.fleets.append(self.fleet)
        self.task = asyncio.ensure_future(self.fleet.run())

    async def kill(self) -> None:
        """As kill -9 would: nothing is tidied up."""
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def generations(self) -> list[int]:
        return sorted(place.generation for place in self.fleet.pids())

    async def left(self) -> list[int]:
        """Processes that live. Each fleet reaps its own."""
        return [pid for fleet in self.fleets for pid in fleet.pids().values()]

    async def connect(self) -> psycopg.AsyncConnection[Any]:
        return await psycopg.AsyncConnection.connect(
            f"host={ADDRESS} port={self.routes[0].rw_port} user=postgres dbname=postgres password={OWNER_PASSWORD}"
            " sslmode=disable connect_timeout=10",
            autocommit=True,
        )

    async def ready(self) -> None:
        await self.fleet.settled(15)

        async def unopened() -> int | None:
            return self.fleet.report.unopened if self.fleet.report is not None else None

        await eventually(unopened, lambda count: count == 0, within=10)

    async def come_and_go(self) -> None:
        """For ever: connect, ask, leave."""
        while True:
            try:
                async with await self.connect() as connection:
                    await connection.execute("SELECT 1")
                self.served += 1
            except (psycopg.Error, OSError) as error:
                self.errors.append(str(error))
                await asyncio.sleep(0.02)

    async def serves_more(self, count: int = 10) -> None:
        before = self.served

        async def more() -> int:
            return self.served - before

        await eventually(more, lambda served: served >= count, within=20)

    async def told_to_leave(self) -> int:
        return sum(pusher.drain_s is not None for pusher in self.fleet._pushers.values())


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_servers("m1") as (m1,):
        yield m1


@pytest.fixture
async def node(tmp_path: Path, server: Server) -> AsyncIterator[Node]:
    config = AgentConfig(node="n1", address=ADDRESS, data_root=tmp_path, proxy_processes=2, proxy_drain_s=60)
    config.identity_dir.mkdir(parents=True)
    with made_tls() as tls:
        for source in (tls.cert, tls.key, tls.ca):
            (config.identity_dir / source.name).write_bytes(source.read_bytes())
    route = Route(
        instance=INSTANCE,
        rw_port=free_port(),
        ro_port=free_port(),
        term=1,
        primary=server.endpoint,
        expires_at_s=asyncio.get_running_loop().time() + 3600,
    )
    made = Node(config, (route,))
    made.start()
    try:
        await made.ready()
        yield made
    finally:
        await made.kill()
        await halt(config, 3)
        await eventually(made.left, lambda left: left == [], within=10)


async def test_processes_share_clients_and_cancels(node: Node) -> None:
    clients = [await node.connect() for _ in range(24)]
    report = await node.fleet.settled(5)
    assert report.sessions[INSTANCE].read_write == 24
    loads = [pusher.report.sessions[INSTANCE].read_write for pusher in node.fleet._pushers.values()]
    assert len(loads) == 2
    assert min(loads) > 0  # by the kernel's hash; all at one would be a chance of 1 in 8 million
    sleeping = [asyncio.ensure_future(client.execute("SELECT pg_sleep(60)")) for client in clients[:12]]

    async def busy() -> int:
        return (await node.fleet.settled(5)).busy[INSTANCE]

    await eventually(busy, lambda count: count == 12, within=10)
    for client in clients[:12]:  # each request lands at either process, by chance
        await asyncio.to_thread(client.cancel)
    async with asyncio.timeout(10):
        outcomes = await asyncio.gather(*sleeping, return_exceptions=True)
    assert all(isinstance(outcome, psycopg.errors.QueryCanceled) for outcome in outcomes)
    for client in clients:
        await client.close()


async def test_a_restart_under_load_cuts_nobody_and_the_old_processes_end_with_their_clients(node: Node) -> None:
    stayers = [await node.connect() for _ in range(8)]
    goers = [asyncio.ensure_future(node.come_and_go()) for _ in range(4)]
    try:
        await node.serves_more()
        node.fleet.restart()
        await eventually(node.generations, lambda seen: seen == [1, 1, 2, 2], within=15)
        await eventually(node.told_to_leave, lambda count: count == 2, within=10)
        await node.serves_more(40)
    finally:
        for goer in goers:
            goer.cancel()
        await asyncio.gather(*goers, return_exceptions=True)
    assert node.errors == []
    sleeping = [asyncio.ensure_future(client.execute("SELECT pg_sleep(60)")) for client in stayers]
    await eventually(lambda: node.fleet.settled(5), lambda report: report.busy[INSTANCE] == 8, within=10)
    for client in stayers:  # their keys are known only at processes where no new connection comes in
        await asyncio.to_thread(client.cancel)
    async with asyncio.timeout(10):
        outcomes = await asyncio.gather(*sleeping, return_exceptions=True)
    assert all(isinstance(outcome, psycopg.errors.QueryCanceled) for outcome in outcomes)
    for client in stayers:
        await client.execute("SELECT 1")
        await client.close()
    await eventually(node.generations, lambda seen: seen == [2, 2], within=10)


async def test_one_that_dies_is_started_again_alone(node: Node) -> None:
    first, second = node.fleet.pids().values()
    clients = [await node.connect() for _ in range(16)]
    os.kill(first, signal.SIGKILL)

    async def pids() -> list[int]:
        return list(node.fleet.pids().values())

    await eventually(pids, lambda living: len(living) == 2 and first not in living and second in living, within=15)
    lived = 0
    for client in clients:
        with suppress(psycopg.OperationalError):
            await client.execute("SELECT 1")
            lived += 1
        await client.close()
    assert 0 < lived < 16
    await node.ready()


@pytest.mark.parametrize("victim", ["agent", "new process", "both"])
async def test_a_death_in_the_middle_of_a_restart_is_made_good(node: Node, victim: str) -> None:
    stayer = await node.connect()
    node.fleet.restart()
    await eventually(node.generations, lambda seen: 2 in seen, within=15)
    if victim != "new process":
        await node.kill()
    if victim != "agent":
        new = [pid for place, pid in node.fleet.pids().items() if place.generation == 2]
        os.kill(new[0], signal.SIGKILL)
    if victim != "new process":
        before, _ = node.fleet, node.start()
        assert before is not node.fleet
    await eventually(node.generations, lambda seen: seen.count(2) == 2, within=20)
    await node.ready()
    async with await node.connect() as connection:
        await connection.execute("SELECT 1")
    await stayer.execute("SELECT 1")
    await stayer.close()
    await eventually(node.generations, lambda seen: seen == [2, 2], within=15)


async def test_an_agent_with_other_settings_restarts_the_proxy_by_itself(node: Node) -> None:
    stayer = await node.connect()
    await node.kill()
    node.config = node.config.model_copy(update={"proxy_processes": 1})
    node.start()
    await eventually(node.generations, lambda seen: seen in ([1, 2], [1, 1, 2]), within=15)
    await node.ready()
    async with await node.connect() as connection:
        await connection.execute("SELECT 1")
    await stayer.execute("SELECT 1")
    await stayer.close()
    await eventually(node.generations, lambda seen: seen == [2], within=15)


async def test_a_silent_process_is_not_settled_and_hangs_nothing(node: Node) -> None:
    first, _ = node.fleet.pids().values()
    os.kill(first, signal.SIGSTOP)
    try:
        with pytest.raises(Exception, match="did not take its routes"):
            await node.fleet.settled(0.3)
    finally:
        os.kill(first, signal.SIGCONT)
    await node.fleet.settled(10)
