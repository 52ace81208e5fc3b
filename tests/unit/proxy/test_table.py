"""Routes in force: their fences, and who is woken by a new table."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from core.routes import Endpoint, Route, RouteTable
from proxy.table import Fence, Table
from tests.support.clocks import ManualClock
from tests.support.waiting import eventually

M1, M2 = (Endpoint(member=f"m{n}", host=f"10.0.0.{n}", port=5432) for n in (1, 2))
SOON_S = 0.02


@dataclass(eq=False)
class Bystander:
    """A session that only remembers what it was told."""

    table: Table
    instance: str = "demo/orders"
    read_only: bool = False
    endpoint: Endpoint | None = None
    fence: Fence | None = None
    connected: bool = True
    busy: bool = False
    cuts: int = 0
    looks: int = 0

    def cut(self) -> None:
        self.cuts += 1
        self.table.unbind(self)

    def look(self) -> None:
        self.looks += 1


def table_of(
    primary: Endpoint | None = M1, *, until_s: float = 5.0, instance: str = "demo/orders", **changes: Any
) -> RouteTable:
    route = Route(instance=instance, rw_port=1, ro_port=2, primary=primary, expires_at_s=until_s, **changes)
    return RouteTable(seq=1, routes=(route,))


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
async def table(clock):
    made = Table(clock)
    yield made
    made.replace(RouteTable(seq=99))  # no timer outlives the test


def bound(table, endpoint=M1, *, fenced=True):
    session = Bystander(table, read_only=not fenced)
    table.bind(session, endpoint, fenced=fenced)
    return session


async def test_one_assignment_renews_all_sessions_of_a_primary(table):
    table.replace(table_of())
    sessions = [bound(table), bound(table)]
    table.replace(table_of(until_s=9.0, term=2))
    assert [session.fence.until_s for session in sessions] == [9.0, 9.0]
    assert sessions[0].fence is sessions[1].fence
    assert not any(session.cuts for session in sessions)


@pytest.mark.parametrize("after", [table_of(M2), table_of(None), table_of(until_s=0.0), RouteTable(seq=2)])
async def test_a_dropped_fence_stays_shut_for_ever(table, after):
    table.replace(table_of())
    session = bound(table)
    table.replace(after)
    assert session.cuts == 1
    table.replace(table_of(until_s=100.0))
    assert session.fence.until_s < 0


async def test_a_renewal_that_comes_after_the_end_is_too_late(table, clock):
    table.replace(table_of())
    session = bound(table)
    clock.advance(5.0)
    table.replace(table_of(until_s=100.0))
    assert session.cuts == 1
    assert bound(table).fence.until_s == 100.0


async def test_a_fence_ends_by_its_own_timer(table, clock):
    table.replace(table_of(until_s=SOON_S))
    session = bound(table)
    clock.advance(SOON_S)

    async def cuts() -> int:
        return session.cuts

    await eventually(cuts, within=5, every=0.01)
    assert session.fence.until_s < 0


async def test_a_pause_and_its_end_are_told_once_to_each_session_that_can_write(table):
    table.replace(table_of())
    writer, reader = bound(table), bound(table, M2, fenced=False)
    for paused, looks in ((False, 0), (True, 1), (True, 1), (False, 2)):
        table.replace(table_of(paused=paused))
        assert (writer.fence.paused, writer.looks) == (paused, looks)
    assert reader.looks == 0


async def test_a_new_fence_is_paused_and_strict_as_its_route_is(table):
    table.replace(table_of(paused=True, strict=True))
    fence = bound(table).fence
    assert (fence.paused, fence.strict) == (True, True)
    table.replace(table_of(strict=False))
    assert (fence.paused, fence.strict) == (False, False)


async def test_only_busy_sessions_that_can_write_are_reported_as_busy(table):
    table.replace(table_of())
    assert table.busy() == {"demo/orders": 0}
    writer, other, reader = bound(table), bound(table), bound(table, M2, fenced=False)
    writer.busy = reader.busy = True
    assert table.busy() == {"demo/orders": 1}
    other.busy = True
    assert table.busy() == {"demo/orders": 2}


async def test_other_instances_are_left_alone(table):
    both = (*table_of().routes, *table_of(M2, instance="demo/other").routes)
    table.replace(RouteTable(seq=1, routes=both))
    session = bound(table)
    table.replace(table_of())
    assert session.cuts == 0


async def test_a_replicas_session_is_fenced_when_its_server_becomes_the_primary(table):
    table.replace(table_of(M1))
    reader = bound(table, M2, fenced=False)
    table.replace(table_of(M2, until_s=7.0))
    assert reader.fence.until_s == 7.0
    table.replace(table_of(M1))
    assert reader.cuts == 1


async def test_only_who_is_on_its_way_to_a_replica_that_is_gone_turns_back(table):
    table.replace(table_of(replicas=(M2,)))
    arrived, coming = bound(table, M2, fenced=False), bound(table, M2, fenced=False)
    coming.connected = False
    table.replace(table_of(replicas=(M2,)))
    assert (arrived.cuts, coming.cuts) == (0, 0)
    table.replace(table_of())
    assert (arrived.cuts, coming.cuts) == (0, 1)


async def test_loads_follow_sessions_and_forget_nobody_twice(table):
    table.replace(table_of())
    one, two = bound(table), bound(table)
    assert table.loads("demo/orders")["m1"] == 2
    table.unbind(one)
    table.unbind(one)
    assert table.loads("demo/orders")["m1"] == 1
    table.unbind(two)
    assert not table.loads("demo/orders")
    assert table.counts()["demo/orders"].read_write == 0


async def test_a_table_that_came_before_the_wait_ends_it_at_once(table):
    seen = table.version
    table.replace(table_of())
    async with asyncio.timeout(1):
        assert await table.changed(seen, 60)


async def test_a_new_table_wakes_who_waits_and_time_wakes_the_others(table):
    async with asyncio.TaskGroup() as group:
        waits = [group.create_task(table.changed(table.version, 60)) for _ in range(3)]
        short = group.create_task(table.changed(table.version, SOON_S))
        assert not await short
        table.replace(table_of())
    assert [wait.result() for wait in waits] == [True] * 3
