"""What other systems were wounded by at the level of single engines, replayed on ours. Each test says what happened."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest

from agent.engines.files import remove_tree
from agent.engines.postgres.engine import PostgresEngine
from agent.engines.postgres.kept import Kept
from agent.engines.postgres.member import Member
from agent.engines.rubbish import Rubbish
from agent.engines.troubles import Trouble
from agent.ha.view import EngineState
from agent.supervise import processes
from core.errors import EngineError
from core.status import Role
from tests.support.postgres import Site, offers
from tests.support.waiting import eventually

OFFERS = offers()
OFFER = OFFERS.get("system") or OFFERS.get("wheel")
pytestmark = pytest.mark.skipif(OFFER is None, reason="no PostgreSQL")


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    assert OFFER is not None
    made = Site(offer=OFFER)
    yield made
    await made.close()


def _holds(site: Site, member: str, query: str, value: object) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        try:
            return site.sql(member, query) == [(value,)]
        except Exception as error:
            raise AssertionError(str(error)) from error

    return look


async def _parted(site: Site) -> tuple[PostgresEngine, PostgresEngine]:
    """m1 wrote three commits that m2 never got, and died; m2 leads on timeline 2."""
    first = await site.primary(others=("m2",))
    second = await site.replica("m2")
    site.introduce("m1", "m2")
    site.sql("m1", "CREATE TABLE t (n int)", "INSERT INTO t VALUES (1)")
    await eventually(_holds(site, "m2", "SELECT count(*) FROM t", 1), within=10)
    await second.fence(1.0)
    site.sql("m1", *(f"INSERT INTO t VALUES ({n})" for n in (666, 667, 668)))
    os.kill(site.postmaster_pid("m1"), signal.SIGKILL)
    await first.wait_died()
    await first.observe()
    await second.start_replica(None)
    await site.runs(second)
    await second.promote()
    site.sql("m2", "INSERT INTO t VALUES (2)")
    return first, second


def _children(site: Site, member: str, title: str) -> list[int]:
    """Processes of the member's engine whose title holds these words."""
    found = []
    for pid in site.processes(member):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if title.encode() in file.read():
                    found.append(pid)
        except OSError:
            continue
    return found


# --- rewinding --------------------------------------------------------------------------------------------------------


async def test_rewind_does_not_begin_before_the_promoted_member_has_made_its_first_checkpoint(site: Site) -> None:
    """pg_rewind ran at once, read the old timeline from the source's control file and destroyed the replica."""
    first = await site.primary(others=("m2",))
    second = await site.replica("m2")
    site.introduce("m1", "m2")
    site.sql("m1", "CREATE TABLE t (n int)", "INSERT INTO t VALUES (1)")
    await eventually(_holds(site, "m2", "SELECT count(*) FROM t", 1), within=10)
    await second.fence(1.0)
    site.sql("m1", "INSERT INTO t VALUES (666)", "CHECKPOINT", user="postgres", host=str(site.paths("m1").sockets))
    os.kill(site.postmaster_pid("m1"), signal.SIGKILL)
    await first.wait_died()
    await second.start_replica(None)
    await site.runs(second)
    checkpointers = _children(site, "m2", "checkpointer")
    assert len(checkpointers) == 1
    os.kill(checkpointers[0], signal.SIGSTOP)
    await second.promote()
    rejoining = asyncio.create_task(first.rejoin(site.peer("m2", role=Role.PRIMARY)))
    done, _ = await asyncio.wait({rejoining}, timeout=2.0)
    assert not done
    assert Member(first.setup).label.begun == "", "not a byte has been changed"
    os.kill(checkpointers[0], signal.SIGCONT)
    async with asyncio.timeout(60):
        sentence = await rejoining
    assert "rewound to timeline 2" in sentence
    await site.streams(first)
    await eventually(_holds(site, "m1", "SELECT array_agg(n ORDER BY n) FROM t", [1]), within=10)


async def test_rewind_that_is_killed_half_way_is_never_started_and_ends_in_a_copy_by_itself(site: Site) -> None:
    """A half-rewound directory was started and waited for log for ever."""
    first, _ = await _parted(site)
    rejoining = asyncio.create_task(first.rejoin(site.peer("m2", role=Role.PRIMARY)))
    root = site.paths("m1").root

    async def killed() -> bool:
        found = processes.running_below(root, frozenset({"pg_rewind"}))
        for process in found:
            os.kill(process.pid, signal.SIGKILL)
        return bool(found) or rejoining.done()

    await eventually(killed, within=20, every=0.001)
    async with asyncio.timeout(60):
        sentence = await rejoining
    assert "was cloned from m2" in sentence
    assert "former data is kept in" in sentence
    await site.streams(first)
    await eventually(_holds(site, "m1", "SELECT array_agg(n ORDER BY n) FROM t", [1, 2]), within=10)


async def test_next_agent_finds_a_rewind_begun_and_keeps_what_only_that_directory_may_hold(site: Site) -> None:
    """The agent died during the rewind; the next one threw the former primary's data away unseen."""
    first, _ = await _parted(site)
    Member(first.setup).relabel(begun="rewind")
    again = site.engine("m1")
    again.set_peers((site.peer("m2"),))
    assert (await again.observe()).state is EngineState.ABSENT
    await again.clone(site.peer("m2", role=Role.PRIMARY))
    await again.start_replica(site.peer("m2"))
    await site.streams(again)
    assert len(list(site.paths("m1").root.glob("kept/*/data/PG_VERSION"))) == 1


async def test_un_replicated_tail_is_kept_and_told_with_its_bytes_its_range_and_how_to_look_at_it(site: Site) -> None:
    """What a former primary had alone vanished without a word."""
    first, _ = await _parted(site)
    sentence = await first.rejoin(site.peer("m2", role=Role.PRIMARY))
    assert "3 commits" in sentence
    command = sentence.split("look with `")[1].split("`")[0].split()
    assert command[0] == "pg_waldump"
    tools = replace(Member(first.setup).tools, run_as=None)  # the agent's own: as a person would look
    output = await tools.attempt(*command, within_s=20)
    assert output.stdout.count("COMMIT") == 3
    assert "bytes of log from" in sentence


# --- histories --------------------------------------------------------------------------------------------------------


async def test_members_that_promoted_themselves_apart_to_one_timeline_number_are_not_taken_for_one(site: Site) -> None:
    """Timeline numbers were compared instead of histories: a diverged member was started as it was."""
    first, second = await _parted(site)
    await first.start_replica(None)
    await site.runs(first)
    await first.promote()
    assert (await first.observe()).position.timeline == (await second.observe()).position.timeline == 2
    await first.stop()
    sentence = await first.rejoin(site.peer("m2", role=Role.PRIMARY))
    assert "is not m2's" in sentence
    assert "was cloned from m2" in sentence
    assert "former data is kept in" in sentence
    await site.streams(first)
    await eventually(_holds(site, "m1", "SELECT array_agg(n ORDER BY n) FROM t", [1, 2]), within=10)


async def test_member_whose_own_history_file_is_missing_is_not_believed(site: Site) -> None:
    """A history file was missing, nothing could be compared, and the member was started instead of rewound."""
    first, second = await _parted(site)
    await first.rejoin(site.peer("m2", role=Role.PRIMARY))
    await site.streams(first)
    site.introduce("m1", "m2")
    await second.fence(1.0)
    await first.fence(1.0)
    await first.start_replica(None)
    await site.runs(first)
    await first.promote()
    for history in (site.paths("m2").data / "pg_wal").glob("*.history"):
        history.unlink()
    sentence = await second.rejoin(site.peer("m1", role=Role.PRIMARY))
    assert "history of its own timeline 2 cannot be read" in sentence
    assert "was cloned from m1" in sentence
    seen = await site.streams(second)
    assert seen.position.timeline == 3


async def test_crashes_in_place_make_no_new_timelines(site: Site) -> None:
    """A crash loop made 22 timelines."""
    engine = await site.primary()
    for _ in range(3):
        os.kill(site.postmaster_pid("m1"), signal.SIGKILL)
        await engine.wait_died()
        await engine.start_primary()
    assert (await engine.observe()).position.timeline == 1


async def test_replica_turns_to_a_new_primary_and_its_timeline_without_a_restart(site: Site) -> None:
    """Replicas were restarted to change their upstream, and cut their readers off."""
    await site.primary(others=("m2", "m3"))
    second, third = await site.replica("m2"), await site.replica("m3")
    site.introduce("m1", "m2", "m3")
    site.sql("m1", "CREATE TABLE t (n int)")
    await eventually(_holds(site, "m3", "SELECT count(*) FROM t", 0), within=10)
    started = site.postmaster_pid("m3"), site.sql("m3", "SELECT pg_postmaster_start_time()")
    with site.connect("m3") as reader:
        await site.engines["m1"].fence(1.0)
        await second.follow(None)
        await second.promote()
        await third.follow(site.peer("m2", role=Role.PRIMARY))
        await site.streams(third)
        seen = await eventually(third.observe, lambda e: e.position.timeline == 2, within=10)
        assert seen.upstream == "m2"
        site.sql("m2", "INSERT INTO t VALUES (1)")
        await eventually(_holds(site, "m3", "SELECT count(*) FROM t", 1), within=10)
        assert reader.execute("SELECT count(*) FROM t").fetchone() == (1,)
    assert (site.postmaster_pid("m3"), site.sql("m3", "SELECT pg_postmaster_start_time()")) == started


# --- damaged data -----------------------------------------------------------------------------------------------------


async def test_replica_with_damaged_data_is_copied_anew_and_nothing_of_it_is_kept(site: Site) -> None:
    """A replica with a broken directory was restarted for ever."""
    await site.primary(others=("m2",))
    replica = await site.replica("m2")
    site.introduce("m1", "m2")
    os.kill(site.postmaster_pid("m2"), signal.SIGKILL)
    await replica.wait_died()
    shutil.rmtree(site.paths("m2").data / "base")
    with pytest.raises(EngineError, match=r"files of its data directory are missing"):
        await replica.start_replica(site.peer("m1"))
    sentence = await replica.rejoin(site.peer("m1", role=Role.PRIMARY))
    assert "could not be used" in sentence
    assert "was cloned from m1" in sentence
    assert "kept" not in sentence, "a standby holds only what it was sent"
    await site.streams(replica)


async def test_former_primary_with_damaged_data_is_copied_anew_and_its_data_is_kept(site: Site) -> None:
    """The same of a former primary, which may hold commits that nobody else has."""
    first, _ = await _parted(site)
    for segment in (site.paths("m1").data / "pg_wal").glob("0000000100*"):
        segment.write_bytes(bytes(16 << 20))
    with pytest.raises(EngineError, match="damaged"):
        await first.start_primary()
    sentence = await first.rejoin(site.peer("m2", role=Role.PRIMARY))
    assert "could not be used (DataCorrupted" in sentence
    assert "former data is kept in" in sentence
    await site.streams(first)


async def test_of_former_data_only_the_newest_is_kept_and_that_not_on_a_filling_disk(site: Site) -> None:
    """Copies kept aside filled the disk."""
    first, _ = await _parted(site)
    root = site.paths("m1").root
    for _ in range(3):
        place = root / "kept" / f"20260101T00000{len(list(root.glob('kept/*')))}-tl1"
        (place / "data").mkdir(parents=True)
    await first.rejoin(site.peer("m2", role=Role.PRIMARY), anew=True)
    assert await first.converge()
    kept = list(root.glob("kept/*/data"))
    assert len(kept) == 1
    assert (kept[0] / "PG_VERSION").exists()
    member = Member(first.setup)
    Kept(member, remove_tree).prune(filling=True)
    assert list(root.glob("kept/*/data")) == []


# --- slots ------------------------------------------------------------------------------------------------------------


async def test_slot_of_a_member_that_is_away_is_bounded_its_loss_told_and_the_member_copied_anew(site: Site) -> None:
    """Replication slots of a dead member kept log until the disk was full."""
    site.parameters = {
        "max_slot_wal_keep_size": "32MB", "wal_keep_size": "0", "max_wal_size": "32MB", "min_wal_size": "32MB",
    }  # fmt: skip
    primary = await site.primary(others=("m2",))
    replica = await site.replica("m2")
    site.introduce("m1", "m2")
    await replica.fence(1.0)
    async with Member(primary.setup).session(within_s=30) as session:
        await session.rows("SELECT pg_create_physical_replication_slot('of_a_user', true)", within_s=30)
        for _ in range(8):
            await session.rows("CREATE TABLE filler AS SELECT generate_series(1, 1000) AS n", within_s=30)
            await session.rows("DROP TABLE filler", within_s=30)
            await session.rows("SELECT pg_switch_wal()", within_s=30)
        await session.rows("CHECKPOINT", within_s=30)
        size = await session.row("SELECT sum(size)::bigint AS bytes FROM pg_ls_waldir()", within_s=30)
    assert size["bytes"] < 160 << 20
    assert await primary.converge()
    await primary.observe()
    notices = {notice.trouble: notice for notice in primary.facts().notices}
    assert "moorage_m2" in notices[Trouble.SLOT_LOST].evidence
    assert "of_a_user" in notices[Trouble.SLOT_FALLS_BEHIND].evidence
    assert site.sql("m1", "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'of_a_user'") == [(1,)]
    await replica.start_replica(site.peer("m1"))
    await eventually(replica.observe, lambda seen: seen.broken, within=10)
    sentence = await replica.rejoin(site.peer("m1", role=Role.PRIMARY))
    assert "was cloned from m1" in sentence
    seen = await site.streams(replica)
    assert not seen.broken


# --- frozen engines ---------------------------------------------------------------------------------------------------


async def test_primary_that_still_feeds_its_replicas_but_answers_nobody_is_unresponsive(site: Site) -> None:
    """An old primary kept its WAL sender alive, the replicas stayed connected, and failover waited 45 minutes."""
    site.unresponsive_after_s = 2.5
    primary = await site.primary(others=("m2",))
    replica = await site.replica("m2")
    site.introduce("m1", "m2")
    await primary.observe()
    os.kill(site.postmaster_pid("m1"), signal.SIGSTOP)
    seen = await eventually(primary.observe, lambda e: e.state is EngineState.UNRESPONSIVE, within=20, every=0.3)
    assert (await replica.observe()).streaming, "its replica is content all the while"
    assert not seen.streaming
    async with asyncio.timeout(4):
        await primary.fence(1.0)
    assert site.processes("m1") == []


async def test_stop_of_an_engine_whose_checkpointer_hangs_does_not_keep_a_fence_waiting(site: Site) -> None:
    """Demotion waited for the checkpoint and the fast shutdown of an engine that no longer answered."""
    engine = await site.primary()
    for pid in _children(site, "m1", "checkpointer"):
        os.kill(pid, signal.SIGSTOP)
    stopping = asyncio.create_task(engine.stop())
    await asyncio.wait({stopping}, timeout=0.3)
    assert not stopping.done()
    async with asyncio.timeout(3):
        await engine.fence(1.0)
    assert site.processes("m1") == []
    async with asyncio.timeout(5):
        await stopping


# --- deletion ---------------------------------------------------------------------------------------------------------


async def test_member_with_very_many_files_is_deleted_at_once_and_its_files_afterwards(site: Site) -> None:
    """Deleting a large directory took longer than was allowed for it, and began again and again."""
    engine = await site.primary()
    rubbish = Rubbish(site.data_root("m1") / "rubbish", engine.setup.clock)
    setup = replace(engine.setup, rubbish=rubbish)
    await engine.aclose()
    fresh = PostgresEngine(setup)
    many = site.paths("m1").root / "kept" / "many"
    many.mkdir(parents=True)
    for number in range(20000):
        (many / str(number)).touch()
    await fresh.fence(1.0)
    began = setup.clock.now()
    await fresh.destroy()
    took_s = setup.clock.now() - began
    assert not site.paths("m1").root.exists()
    assert took_s < 1.5, took_s
    thrown = list((site.data_root("m1") / "rubbish").iterdir())
    assert thrown
    emptying = asyncio.create_task(rubbish.run())
    await eventually(_empty(site), within=30)
    emptying.cancel()
    await fresh.aclose()


def _empty(site: Site) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return not list((site.data_root("m1") / "rubbish").iterdir())

    return look


async def test_an_engine_that_is_killed_during_a_switchover_is_not_taken_for_one_that_stopped_in_good_order(
    site: Site,
) -> None:
    """pg_control then tells of the last checkpoint, which every replica is beyond: no measure of what was acknowledged.
    Only an orderly end makes the position a bound, and the handover asks for that."""
    engine = await site.primary()
    site.sql("m1", "CREATE TABLE t (n int)")
    await engine.checkpoint()
    site.sql("m1", "INSERT INTO t SELECT generate_series(1, 1000)")
    acknowledged = (await engine.observe()).position
    os.kill(site.postmaster_pid("m1"), signal.SIGKILL)
    await engine.wait_died()
    await engine.stop()
    seen = await engine.observe()
    assert seen.position < acknowledged
    assert not seen.clean
    await engine.start_primary()
    await engine.stop()
    seen = await engine.observe()
    assert seen.state is EngineState.STOPPED
    assert seen.clean
    assert seen.position >= acknowledged
