"""PostgreSQL when another member takes over: what waits goes on at once, no timeline's number is used twice, and a
member may stream through another replica. Both kinds of engine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from agent.engines.postgres.engine import PostgresEngine
from agent.ha.view import EngineState
from core.records import SyncRecord
from core.status import Role
from tests.support.postgres import Site, offers
from tests.support.waiting import eventually

OFFERS = offers()


@pytest.fixture(params=sorted(OFFERS))
async def site(request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    made = Site(offer=OFFERS[request.param])
    yield made
    await made.close()


async def three(site: Site) -> tuple[PostgresEngine, PostgresEngine, PostgresEngine]:
    """m1 leads, m2 and m3 stream from it; everybody knows everybody."""
    first = await site.primary(others=("m2", "m3"))
    second, third = await site.replica("m2"), await site.replica("m3")
    site.introduce("m1", "m2", "m3")
    for engine in (first, second, third):
        assert await engine.converge()
    site.sql("m1", "CREATE TABLE t (n int)")
    return first, second, third


async def test_commits_that_wait_are_acknowledged_as_soon_as_a_standby_is_named(site: Site) -> None:
    first, second, third = await three(site)
    await eventually(lambda: has_table(site, "m2"), within=10)
    await first.fence(1.0)
    await second.promote(SyncRecord(mode="sync"))
    await third.follow(site.peer("m2"))
    await site.streams(third)
    with site.connect("m2") as client:
        commit = asyncio.create_task(asyncio.to_thread(client.execute, "INSERT INTO t VALUES (1)"))
        done, _ = await asyncio.wait({commit}, timeout=0.5)
        assert not done, "acknowledged before anybody was named"
        began = time.monotonic()
        await second.apply_sync(SyncRecord(mode="sync", k=1, names=("m3",)))
        async with asyncio.timeout(5):
            await commit
        assert time.monotonic() - began < 0.8, "a silent standby answers only once a second"


async def test_a_promotion_passes_over_numbers_that_another_leader_may_have_used(site: Site) -> None:
    first, second, third = await three(site)
    for member in ("m2", "m3"):
        await eventually(lambda member=member: has_table(site, member), within=10)
    await third.follow(None)
    await first.fence(1.0)
    await second.promote()
    site.sql("m2", "INSERT INTO t VALUES (2)")
    assert (await second.observe()).position.timeline == 2
    await second.fence(1.0)
    await third.promote(above=2)
    site.sql("m3", "INSERT INTO t VALUES (3)", "INSERT INTO t VALUES (33)")
    assert (await third.observe()).position.timeline == 3
    # The log that nobody followed can be told from the new one: it is not let in.
    await second.start_replica(site.peer("m3"))
    seen = await site.runs(second)
    assert (seen.role, seen.position.timeline, seen.streaming) == (Role.REPLICA, 2, False)
    forks = await second.timeline_forks(site.peer("m3"))
    assert 2 not in {fork.timeline for fork in forks}
    assert "not in this server's history" in await refusal(site)
    # Who was on the common part follows across the gap.
    await first.rejoin(site.peer("m3", role=Role.PRIMARY))
    followed = await site.streams(first)
    assert followed.position.timeline == 3
    assert site.sql("m1", "SELECT n FROM t ORDER BY n") == [(3,), (33,)]


async def refusal(site: Site) -> str:
    """What m2's walreceiver was told."""

    async def logged() -> str:
        files = sorted(site.paths("m2").logs.glob("engine-*.log"))
        return "".join(path.read_text(errors="replace") for path in files)

    return await eventually(logged, lambda text: "history" in text and "FATAL" in text, within=10)


async def test_a_replica_streams_through_another_one_with_a_slot_there_and_none_at_the_primary(site: Site) -> None:
    first, second, third = await three(site)
    third.update(replace(site.desired("m3"), upstream="m2"), site.secrets())
    cascading = replace(site.peer("m3"), upstream="m2")
    first.set_peers((site.peer("m2"), cascading))
    second.set_peers((site.peer("m1"), cascading))
    assert await second.converge()
    await third.follow(site.peer("m2"))
    seen = await site.streams(third)
    assert (seen.upstream, seen.state) == ("m2", EngineState.RUNNING)
    assert await first.converge()
    assert slots(site, "m1") == ["moorage_m2"]
    assert slots(site, "m2") == ["moorage_m3"]
    leader = await eventually(first.observe, lambda e: len(e.standbys) == 1, within=5)
    assert leader.standbys[0].member == "m2"
    site.sql("m1", "INSERT INTO t VALUES (1)")
    await eventually(lambda: counted(site, "m3"), lambda n: n == 1, within=10)
    # The one in the middle takes over: who streams through it goes on, on the new timeline.
    await first.fence(1.0)
    await second.promote()
    site.sql("m2", "INSERT INTO t VALUES (2)")
    await eventually(lambda: counted(site, "m3"), lambda n: n == 2, within=10)
    assert (await third.observe()).position.timeline == 2
    # Without it, the leader: by no slot there.
    assert slots(site, "m2") == ["moorage_m1", "moorage_m3"]


async def has_table(site: Site, member: str) -> bool:
    return bool(site.sql(member, "SELECT to_regclass('t') IS NOT NULL")[0][0])


async def counted(site: Site, member: str) -> int:
    found: int = site.sql(member, "SELECT count(*) FROM t")[0][0]
    return found


def slots(site: Site, member: str) -> list[str]:
    return [str(row[0]) for row in site.sql(member, "SELECT slot_name FROM pg_replication_slots ORDER BY slot_name")]
