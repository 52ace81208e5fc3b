"""PostgreSQL members among themselves: cloned, streaming, promoted, following, brought back. Both kinds of engine."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from agent.engines.postgres.engine import PostgresEngine
from agent.engines.postgres.member import Member
from agent.ha.view import EngineState
from core.errors import EngineError, MoorageError, UnavailableError
from core.records import Replication, SyncRecord
from core.status import Role
from tests.support.postgres import Site, offers
from tests.support.waiting import eventually

OFFERS = offers()
SYSTEM = pytest.param("system", marks=pytest.mark.skipif("system" not in OFFERS, reason="no system PostgreSQL"))
WHEEL = pytest.param("wheel", marks=pytest.mark.skipif("wheel" not in OFFERS, reason="no embedded PostgreSQL"))
PREFERRED = SYSTEM if "system" in OFFERS else WHEEL  # where the kind of engine makes no difference


async def _site(kind: str) -> AsyncIterator[Site]:
    site = Site(offer=OFFERS[kind])
    yield site
    await site.close()


@pytest.fixture(params=[SYSTEM, WHEEL])
async def site(request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    async for made in _site(request.param):
        yield made


@pytest.fixture(params=[PREFERRED])
async def any_site(request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    async for made in _site(request.param):
        yield made


async def test_replica_is_cloned_streams_encrypted_and_is_seen_by_its_primary(site: Site) -> None:
    primary = await site.primary(others=("m2",))
    site.sql("m1", "CREATE TABLE t (n int)", "INSERT INTO t SELECT generate_series(1, 1000)")
    replica = await site.replica("m2")
    site.introduce("m1", "m2")
    assert await primary.converge()
    assert await replica.converge()
    seen = await replica.observe()
    assert (seen.state, seen.role, seen.upstream) == (EngineState.RUNNING, Role.REPLICA, "m1")
    assert seen.position.timeline == 1
    await eventually(_replicated(site, "m2", "SELECT count(*) FROM t", 1000), within=10)
    leader = await eventually(primary.observe, lambda e: [s.streaming for s in e.standbys] == [True], within=5)
    assert [standby.member for standby in leader.standbys] == ["m2"]
    site.sql("m1", "INSERT INTO t VALUES (0)")
    leader = await primary.observe()
    await eventually(replica.observe, lambda e: min(e.position.lsn, e.leader_lsn) >= leader.position.lsn, within=5)
    await eventually(replica.observe, lambda _: replica.facts().lag_bytes == 0, within=5)
    slots = site.sql("m1", "SELECT slot_name, active FROM pg_replication_slots")
    assert slots == [("moorage_m2", True)]
    if site.offer.tls:
        query = "SELECT s.ssl FROM pg_stat_replication r JOIN pg_stat_ssl s USING (pid)"
        assert site.sql("m1", query) == [(True,)]


async def test_replica_without_the_right_certificate_is_refused(any_site: Site) -> None:
    site = any_site
    if not site.offer.tls:
        pytest.skip("needs an engine with TLS")
    await site.primary(others=("m2",))
    stranger = site.engine("m3")
    stranger.set_peers((site.peer("m1"),))
    with pytest.raises(MoorageError, match=r"reject|no pg_hba\.conf entry|certificate"):
        await stranger.clone(site.peer("m1"))
    assert (await stranger.observe()).state is EngineState.ABSENT


async def test_promoted_replica_is_followed_by_the_others_without_a_restart(site: Site) -> None:
    first = await site.primary(others=("m2", "m3"))
    second, third = await site.replica("m2"), await site.replica("m3")
    site.introduce("m1", "m2", "m3")
    assert await third.converge()
    site.sql("m1", "CREATE TABLE t (n int)", "INSERT INTO t VALUES (1)")
    await eventually(_replicated(site, "m2", "SELECT count(*) FROM t", 1), within=10)
    await first.fence(1.0)
    began = time.monotonic()
    await second.promote()
    site.sql("m2", "INSERT INTO t VALUES (2)")
    assert time.monotonic() - began < 3
    seen = await second.observe()
    assert (seen.role, seen.position.timeline) == (Role.PRIMARY, 2)
    pid = site.postmaster_pid("m3")
    await third.follow(site.peer("m2"))
    followed = await eventually(
        third.observe, lambda e: e.streaming and e.upstream == "m2" and e.position.timeline == 2, within=15
    )
    assert followed.role is Role.REPLICA
    assert site.postmaster_pid("m3") == pid
    await eventually(_replicated(site, "m3", "SELECT count(*) FROM t", 2), within=10)
    forks = await third.timeline_forks(site.peer("m2"))
    assert [fork.timeline for fork in forks] == [1]
    assert forks[0].lsn.value > 0
    assert (await third.observe()).leader_forks == forks


async def test_detached_replica_gets_nothing_more_and_confirms_nothing_more(any_site: Site) -> None:
    site = any_site
    primary = await site.primary(others=("m2",))
    replica = await site.replica("m2")
    site.introduce("m1", "m2")
    site.sql("m1", "CREATE TABLE t (n int)")
    await primary.apply_sync(SyncRecord(mode="sync", k=1, names=("m2",)))
    await replica.follow(None)
    final = await replica.observe()
    assert (final.upstream, final.streaming, final.state) == ("", False, EngineState.RUNNING)
    with site.connect("m1") as client:
        commit = asyncio.create_task(asyncio.to_thread(client.execute, "INSERT INTO t VALUES (1)"))
        done, _ = await asyncio.wait({commit}, timeout=1.0)
        assert not done
        assert (await replica.observe()).position == final.position
        await replica.follow(site.peer("m1"))
        async with asyncio.timeout(10):
            await commit
    await site.streams(replica)


async def test_diverged_primary_is_rewound_and_its_tail_is_saved(site: Site) -> None:
    first, second = await _split_brain_of_the_past(site)
    sentence = await first.rejoin(site.peer("m2", role=Role.PRIMARY))
    assert "rewound to timeline 2" in sentence
    assert "had 3 commits" in sentence
    seen = await site.streams(first)
    assert (seen.role, seen.upstream, seen.position.timeline) == (Role.REPLICA, "m2", 2)
    await eventually(_replicated(site, "m1", "SELECT array_agg(n ORDER BY n) FROM t", [1, 2]), within=10)
    saved = list(site.paths("m1").root.glob("kept/*-tl1/0000000100*"))
    assert saved, "the segments of timeline 1 past the fork are kept"
    assert str(saved[0].parent) in sentence
    assert await first.converge()
    await second.observe()


async def test_diverged_member_that_cannot_be_rewound_is_cloned_anew(any_site: Site) -> None:
    site = any_site
    first, _ = await _split_brain_of_the_past(site)
    damaged = site.paths("m1").data / "global" / "pg_control"
    damaged.write_bytes(bytes(8192))
    assert (await first.observe()).state is EngineState.ABSENT
    sentence = await first.rejoin(site.peer("m2", role=Role.PRIMARY))
    assert "was cloned from m2" in sentence
    await site.streams(first)
    await eventually(_replicated(site, "m1", "SELECT array_agg(n ORDER BY n) FROM t", [1, 2]), within=10)


async def test_rewind_that_fails_half_way_ends_in_a_copy_and_keeps_the_old_data(any_site: Site) -> None:
    site = any_site
    first, _ = await _split_brain_of_the_past(site)
    # What pg_rewind looks for before the fork is not there any more: the segment with the last common checkpoint.
    fork = (await first.timeline_forks(site.peer("m2")))[0].lsn
    first_of_tail = f"00000001{fork.value >> 32:08X}{(fork.value & 0xFFFFFFFF) >> 24:08X}"
    for segment in (site.paths("m1").data / "pg_wal").glob("00000001????????????????"):
        if segment.name < first_of_tail:
            segment.unlink()
    sentence = await first.rejoin(site.peer("m2", role=Role.PRIMARY))
    assert "was cloned from m2" in sentence, sentence
    await site.streams(first)
    await eventually(_replicated(site, "m1", "SELECT array_agg(n ORDER BY n) FROM t", [1, 2]), within=10)
    kept = [path.name for path in site.paths("m1").root.glob("kept/*-tl1/*")]
    assert "data" in kept
    assert first_of_tail in kept


async def test_member_on_another_log_of_the_same_number_is_cloned_and_its_data_kept(any_site: Site) -> None:
    site = any_site
    first, second = await _split_brain_of_the_past(site)
    await first.start_replica(None)
    await site.runs(first)
    await first.promote()
    assert (await first.observe()).position.timeline == (await second.observe()).position.timeline == 2
    await first.fence(1.0)
    sentence = await first.rejoin(site.peer("m2", role=Role.PRIMARY), anew=True)
    assert "was cloned from m2" in sentence
    await site.streams(first)
    await eventually(_replicated(site, "m1", "SELECT array_agg(n ORDER BY n) FROM t", [1, 2]), within=10)
    kept = list(site.paths("m1").root.glob("kept/*/data/PG_VERSION"))
    assert len(kept) == 1
    assert str(kept[0].parent.parent) in sentence


async def test_data_is_not_given_up_for_a_leader_that_does_not_answer(any_site: Site) -> None:
    site = any_site
    first, second = await _split_brain_of_the_past(site)
    before = await first.observe()
    await second.fence(1.0)
    for attempt in (
        lambda: first.rejoin(site.peer("m2")),
        lambda: first.rejoin(site.peer("m2"), anew=True),
        lambda: first.clone(site.peer("m2")),
    ):
        with pytest.raises(UnavailableError):
            await attempt()
        after = await first.observe()
        assert (after.state, after.role, after.position) == (EngineState.CRASHED, Role.PRIMARY, before.position)
    await first.start_primary()
    assert site.sql("m1", "SELECT count(*) FROM t") == [(4,)]


async def test_interrupted_rewind_is_never_started_and_the_next_agent_clones(any_site: Site) -> None:
    site = any_site
    first, _ = await _split_brain_of_the_past(site)
    await first.aclose()
    label = site.paths("m1").label
    label.write_text(label.read_text().replace('"begun":""', '"begun":"rewind"'))
    again = site.engine("m1")
    again.set_peers((site.peer("m2"),))
    assert (await again.observe()).state is EngineState.ABSENT
    with pytest.raises(EngineError, match="no usable data directory"):
        await again.start_replica(site.peer("m2"))
    sentence = await again.rejoin(site.peer("m2", role=Role.PRIMARY))
    assert "was cloned from m2" in sentence
    await site.streams(again)


async def test_clean_former_primary_follows_without_rewinding(any_site: Site) -> None:
    site = any_site
    first = await site.primary(others=("m2",))
    second = await site.replica("m2")
    site.introduce("m1", "m2")
    site.sql("m1", "CREATE TABLE t (n int)")
    await first.checkpoint()
    await first.stop()
    stopped = await first.observe()
    caught_up = await second.observe()
    assert caught_up.position.lsn > stopped.position.lsn, "the shutdown checkpoint has arrived"
    await second.promote()
    sentence = await first.rejoin(site.peer("m2", role=Role.PRIMARY))
    assert "had nothing past" in sentence
    seen = await site.streams(first)
    assert seen.position.timeline == 2


async def test_stopped_replica_that_holds_more_log_than_the_new_leader_is_cut_back(any_site: Site) -> None:
    site = any_site
    first = await site.primary(others=("m2", "m3"))
    second, third = await site.replica("m2"), await site.replica("m3")
    site.introduce("m1", "m2", "m3")
    site.sql("m1", "CREATE TABLE t (n int)", "INSERT INTO t VALUES (1)")
    await eventually(_replicated(site, "m2", "SELECT count(*) FROM t", 1), within=10)
    await second.fence(1.0)
    site.sql("m1", "INSERT INTO t VALUES (666)")
    await eventually(_replicated(site, "m3", "SELECT count(*) FROM t", 2), within=10)
    await third.fence(1.0)
    await first.fence(1.0)
    await second.start_replica(None)
    await site.runs(second)
    await second.promote()
    site.sql("m2", "INSERT INTO t VALUES (2)")
    sentence = await third.rejoin(site.peer("m2", role=Role.PRIMARY))
    assert "cut off" in sentence, sentence
    await site.streams(third)
    await eventually(_replicated(site, "m3", "SELECT array_agg(n ORDER BY n) FROM t", [1, 2]), within=10)


async def test_interrupted_clone_is_not_started_and_can_be_repeated(any_site: Site) -> None:
    site = any_site
    await site.primary(others=("m2",))
    replica = site.engine("m2")
    replica.set_peers((site.peer("m1"),))
    cloning = asyncio.create_task(replica.clone(site.peer("m1")))
    await eventually(_exists(site.paths("m2").incoming / "PG_VERSION"), within=20, every=0.002)
    cloning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cloning
    assert site.processes("m2") == []
    again = site.engine("m2")
    again.set_peers((site.peer("m1"),))
    assert (await again.observe()).state is EngineState.ABSENT
    with pytest.raises(EngineError, match="no usable data directory"):
        await again.start_replica(site.peer("m1"))
    await again.clone(site.peer("m1"))
    await again.start_replica(site.peer("m1"))
    await site.streams(again)


async def test_copy_of_an_agent_that_was_killed_is_ended_by_the_next_agent(any_site: Site) -> None:
    site = any_site
    await site.primary(others=("m2",))
    replica = site.engine("m2")
    replica.set_peers((site.peer("m1"),))
    cloning = asyncio.create_task(replica.clone(site.peer("m1")))
    await eventually(_exists(site.paths("m2").incoming / "PG_VERSION"), within=20, every=0.002)
    copying = site.processes("m2")
    for pid in copying:
        os.kill(pid, signal.SIGSTOP)
    next_agent = site.engine("m2")
    await next_agent.observe()
    assert site.processes("m2") == []
    with pytest.raises(EngineError):
        await cloning


async def test_sync_set_is_in_force_when_apply_returns(any_site: Site) -> None:
    site = any_site
    primary = await site.primary(others=("m2",))
    replica = await site.replica("m2")
    site.introduce("m1", "m2")
    site.sql("m1", "CREATE TABLE t (n int)")
    quorum = SyncRecord(mode="quorum", k=1, names=("m2",))
    primary.update(site.desired("m1", replication=Replication(mode="quorum", k=1)), site.secrets())
    await primary.apply_sync(quorum)
    assert (await primary.observe()).sync == quorum
    site.sql("m1", "INSERT INTO t VALUES (1)")
    os.kill(site.postmaster_pid("m2"), signal.SIGSTOP)
    frozen = site.processes("m2")
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    with site.connect("m1") as client:
        commit = asyncio.create_task(asyncio.to_thread(client.execute, "INSERT INTO t VALUES (2)"))
        done, _ = await asyncio.wait({commit}, timeout=0.5)
        assert not done, "the only standby is frozen"
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
        async with asyncio.timeout(10):
            await commit
    await site.streams(replica)
    await primary.apply_sync(SyncRecord(mode="async"))
    assert (await primary.observe()).sync == SyncRecord(mode="async")


async def test_replica_with_less_connections_than_its_primary_starts_all_the_same(any_site: Site) -> None:
    site = any_site
    site.parameters = {"max_connections": "90"}
    primary = await site.primary(others=("m2",))
    site.parameters = {"max_connections": "30"}
    replica = await site.replica("m2")
    assert site.sql("m2", "SHOW max_connections") == [("90",)]
    assert (await primary.observe()).state is EngineState.RUNNING
    assert (await replica.observe()).state is EngineState.RUNNING


async def test_standby_directory_becomes_primary_only_on_a_new_timeline(any_site: Site) -> None:
    site = any_site
    first = await site.primary(others=("m2",))
    second = await site.replica("m2")
    await first.fence(1.0)
    await second.fence(1.0)
    await second.start_primary()
    seen = await second.observe()
    assert (seen.role, seen.position.timeline) == (Role.PRIMARY, 2)
    with pytest.raises(EngineError, match="runs as primary"):
        await second.start_replica(site.peer("m1"))


async def test_replica_whose_log_is_gone_from_the_primary_says_so_and_is_cloned(any_site: Site) -> None:
    site = any_site
    site.parameters = {"wal_keep_size": "0", "max_wal_size": "32MB", "min_wal_size": "32MB"}
    primary = await site.primary(others=("m2",))
    replica = await site.replica("m2")
    await replica.stop()
    primary.set_peers(())
    assert await primary.converge(), "its slot is dropped"
    member = Member(primary.setup)
    async with member.session(within_s=30) as session:
        for _ in range(6):
            await session.rows("CREATE TABLE filler AS SELECT generate_series(1, 1000) AS n", within_s=30)
            await session.rows("DROP TABLE filler", within_s=30)
            await session.rows("SELECT pg_switch_wal()", within_s=30)
        await session.rows("CHECKPOINT", within_s=30)
    primary.set_peers((site.peer("m2"),))
    assert await primary.converge()
    await replica.start_replica(site.peer("m1"))
    await eventually(replica.observe, lambda e: "must be cloned anew" in e.failure and not e.streaming, within=10)
    sentence = await replica.rejoin(site.peer("m1", role=Role.PRIMARY))
    assert "LogMissing" in sentence
    assert "was cloned from m1" in sentence
    assert "kept" not in sentence
    seen = await site.streams(replica)
    assert seen.failure == ""


async def test_renewed_certificate_is_taken_without_a_restart(any_site: Site) -> None:
    site = any_site
    if not site.offer.tls:
        pytest.skip("needs an engine with TLS")
    primary = await site.primary(others=("m2",))
    replica = await site.replica("m2")
    pid = site.postmaster_pid("m1")
    for member in ("m1", "m2"):
        shutil.rmtree(site.data_root(member) / "identity")
        site.identity(member)
    assert await primary.converge()
    assert await replica.converge()
    renewed = site.identity("m1").cert.read_bytes()

    async def shown() -> bytes:
        return await asyncio.to_thread(_certificate_of, site.address("m1"), site.port)

    await eventually(shown, lambda pem: pem == ssl.PEM_cert_to_DER_cert(renewed.decode()), within=10)
    await replica.follow(None)
    await replica.follow(site.peer("m1"))
    await site.streams(replica)
    assert site.postmaster_pid("m1") == pid


def _certificate_of(address: str, port: int) -> bytes:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection((address, port), timeout=5) as plain:
        plain.sendall(struct.pack("!II", 8, 80877103))  # SSLRequest
        assert plain.recv(1) == b"S"
        with context.wrap_socket(plain) as wrapped:
            return wrapped.getpeercert(binary_form=True) or b""


async def test_slots_of_members_that_are_gone_and_of_a_former_primary_are_dropped(any_site: Site) -> None:
    site = any_site
    primary = await site.primary(others=("m2", "m3"))
    slots = "SELECT array_agg(slot_name ORDER BY slot_name) FROM pg_replication_slots"
    assert site.sql("m1", slots) == [(["moorage_m2", "moorage_m3"],)]
    second = await site.replica("m2")
    primary.set_peers((site.peer("m2"),))
    assert await primary.converge()
    assert site.sql("m1", slots) == [(["moorage_m2"],)]
    await primary.stop()
    await second.promote()
    await primary.rejoin(site.peer("m2"))
    assert await primary.converge()
    assert site.sql("m1", slots) == [(None,)]


async def _split_brain_of_the_past(site: Site) -> tuple[PostgresEngine, PostgresEngine]:
    """m1 wrote three commits that m2 never got; m2 leads on timeline 2; m1 is dead."""
    first = await site.primary(others=("m2",))
    second = await site.replica("m2")
    site.introduce("m1", "m2")
    site.sql("m1", "CREATE TABLE t (n int)", "INSERT INTO t VALUES (1)")
    await eventually(_replicated(site, "m2", "SELECT count(*) FROM t", 1), within=10)
    await second.fence(1.0)
    site.sql("m1", *(f"INSERT INTO t VALUES ({n})" for n in (666, 667, 668)))
    os.kill(site.postmaster_pid("m1"), signal.SIGKILL)
    await first.wait_died()
    assert (await first.observe()).state is EngineState.CRASHED
    await second.start_replica(None)
    await site.runs(second)
    await second.promote()
    site.sql("m2", "INSERT INTO t VALUES (2)")
    return first, second


def _replicated(site: Site, member: str, query: str, value: object) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        try:
            return site.sql(member, query) == [(value,)]
        except Exception as error:
            raise AssertionError(str(error)) from error

    return look


def _exists(path: Path) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return path.exists()

    return look
