"""Logical slots of users survive a change of primary where the version allows it, and are told of where it does not."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from agent.engines.postgres.member import CARRIED_OVER_FROM, Member
from agent.engines.postgres.session import Row
from agent.engines.troubles import Trouble
from core.records import Replication
from core.status import Role
from tests.support.postgres import Site, offers
from tests.support.waiting import eventually

OFFERS = offers()
NEW = next((o for o in OFFERS.values() if o.version >= CARRIED_OVER_FROM), None)
OLD = next((o for o in OFFERS.values() if o.version < CARRIED_OVER_FROM), None)
LOGICAL = {"wal_level": "logical"}


async def _closing(site: Site) -> AsyncIterator[Site]:
    yield site
    await site.close()


@pytest.fixture
async def new() -> AsyncIterator[Site]:
    if NEW is None:
        pytest.skip(f"no PostgreSQL {CARRIED_OVER_FROM} or later")
    async for site in _closing(Site(offer=NEW, parameters=dict(LOGICAL))):
        yield site


@pytest.fixture
async def old() -> AsyncIterator[Site]:
    if OLD is None:
        pytest.skip(f"no PostgreSQL before {CARRIED_OVER_FROM}")
    async for site in _closing(Site(offer=OLD, parameters=dict(LOGICAL))):
        yield site


async def _sql(site: Site, member: str, statement: str) -> list[Row]:
    """As the agent, in the users' database."""
    async with Member(site.engines[member].setup).session(within_s=20, database="shop") as session:
        return await session.rows(statement, within_s=20)


async def test_slot_made_with_failover_is_carried_over_and_loses_no_change(new: Site) -> None:
    site = new
    primary = await site.primary(others=("m2",))
    replica = await site.replica("m2")
    site.introduce("m1", "m2")
    assert await primary.converge()
    assert await replica.converge()
    assert (await _sql(site, "m1", "SHOW synchronized_standby_slots"))[0]["synchronized_standby_slots"] == "moorage_m2"
    await _sql(site, "m1", "CREATE TABLE t (n int)")
    make = "SELECT pg_create_logical_replication_slot('feed', 'test_decoding', false, false, true)"
    await _sql(site, "m1", make)
    await _sql(site, "m1", "INSERT INTO t VALUES (1)")
    assert len(await _changes(site, "m1", "get")) == 1

    async def carried() -> bool:
        rows = await _sql(
            site, "m2", "SELECT synced AND NOT temporary AS ready FROM pg_replication_slots WHERE slot_name = 'feed'"
        )
        return bool(rows and rows[0]["ready"])

    # A replica takes the slot over once its reader has got as far as the replica's own beginning of log.
    async def pushed() -> bool:
        await _sql(site, "m1", "SELECT pg_log_standby_snapshot()")
        await _sql(site, "m1", "INSERT INTO t VALUES (1)")
        await _changes(site, "m1", "get")
        return await carried()

    await eventually(pushed, within=60, every=0.5)
    await _sql(site, "m1", "INSERT INTO t VALUES (2)")
    await primary.fence(1.0)
    await replica.follow(None)
    await replica.promote()
    changes = await _changes(site, "m2", "get")
    assert any("2" in change for change in changes), changes
    await _sql(site, "m2", "INSERT INTO t VALUES (3)")
    await primary.rejoin(site.peer("m2", role=Role.PRIMARY))
    await site.streams(primary)
    site.introduce("m1", "m2")
    assert await primary.converge()
    assert await replica.converge()

    async def carried_back() -> bool:
        await _sql(site, "m2", "SELECT pg_log_standby_snapshot()")
        await _changes(site, "m2", "get")
        rows = await _sql(site, "m1", "SELECT synced FROM pg_replication_slots WHERE slot_name = 'feed'")
        return bool(rows and rows[0]["synced"])

    await eventually(carried_back, within=60, every=0.5)
    assert Trouble.SLOTS_NOT_CARRIED_OVER not in {notice.trouble for notice in replica.facts().notices}


async def test_subscriber_never_gets_what_no_successor_has(new: Site) -> None:
    site = new
    site.replication = Replication(mode="async")
    primary = await site.primary(others=("m2",))
    replica = await site.replica("m2")
    site.introduce("m1", "m2")
    assert await primary.converge()
    assert (await _sql(site, "m1", "SHOW synchronized_standby_slots"))[0]["synchronized_standby_slots"] == "moorage_m2"
    await _sql(site, "m1", "CREATE TABLE t (n int)")
    await _sql(site, "m1", "SELECT pg_create_logical_replication_slot('feed', 'test_decoding', false, false, true)")
    await replica.fence(1.0)
    await _sql(site, "m1", "INSERT INTO t VALUES (1)")
    with pytest.raises(Exception, match=r"timeout|within"):
        await _changes(site, "m1", "get", within_s=2)
    await replica.start_replica(site.peer("m1"))
    await site.streams(replica)
    assert len(await _changes(site, "m1", "get")) == 1


async def test_where_slots_are_not_carried_over_it_is_said(old: Site) -> None:
    site = old
    primary = await site.primary(others=("m2",))
    await _sql(site, "m1", "SELECT pg_create_logical_replication_slot('feed', 'test_decoding')")
    assert await primary.converge()
    await primary.observe()
    told = next(n for n in primary.facts().notices if n.trouble is Trouble.SLOTS_NOT_CARRIED_OVER)
    assert "feed" in told.message
    assert f"PostgreSQL {site.offer.version} carries none over" in told.message


async def _changes(site: Site, member: str, how: str, within_s: float = 20) -> list[str]:
    """Inserts decoded from the slot."""
    async with Member(site.engines[member].setup).session(within_s=within_s, database="shop") as session:
        rows = await session.rows(
            f"SELECT data FROM pg_logical_slot_{how}_changes('feed', NULL, NULL)", within_s=within_s
        )
        return [row["data"] for row in rows if "INSERT" in row["data"]]
