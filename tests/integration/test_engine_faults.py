"""What can go wrong with a real engine, provoked: each fault has a name, a next step, and no loop of blind starts."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.engines.disk import FULL_BELOW_BYTES
from agent.engines.postgres.engine import PostgresEngine
from agent.engines.troubles import Cure, Diagnosis, Trouble, diagnosis_of
from agent.ha.view import EngineState
from core.errors import EngineError
from core.status import Role
from tests.support.mounts import Mount, may_mount
from tests.support.postgres import Site, offers
from tests.support.waiting import eventually

OFFERS = offers()
OFFER = OFFERS.get("system") or OFFERS.get("wheel")
pytestmark = pytest.mark.skipif(OFFER is None, reason="no PostgreSQL")
NO_MOUNT = pytest.mark.skipif(not may_mount(), reason="needs to be root and to mount file systems")
MIB = 1 << 20


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    assert OFFER is not None
    made = Site(offer=OFFER)
    yield made
    await made.close()


async def _why(work: object) -> Diagnosis:
    """The diagnosis with which it failed."""
    with pytest.raises(EngineError) as caught:
        await work  # type: ignore[misc]
    diagnosis = diagnosis_of(caught.value)
    assert diagnosis is not None, caught.value
    return diagnosis


async def _crashed_primary(site: Site) -> PostgresEngine:
    engine = await site.primary()
    site.sql("m1", "CREATE TABLE t (n int)", "INSERT INTO t SELECT generate_series(1, 1000)")
    os.kill(site.postmaster_pid("m1"), signal.SIGKILL)
    await engine.wait_died()
    return engine


def _fault(engine: PostgresEngine) -> Trouble | None:
    fault = engine.facts().fault
    return fault.trouble if fault is not None else None


# --- the data ---------------------------------------------------------------------------------------------------------


async def test_control_file_with_a_wrong_checksum_is_damaged_data(site: Site) -> None:
    engine = await _crashed_primary(site)
    control = site.paths("m1").data / "global" / "pg_control"
    content = bytearray(control.read_bytes())
    content[100] ^= 0xFF
    control.write_bytes(bytes(content))
    seen = await engine.observe()
    assert (seen.state, _fault(engine)) == (EngineState.ABSENT, Trouble.DATA_CORRUPTED)
    assert "checksum" in seen.failure or "damaged" in seen.failure


async def test_control_file_cut_short_is_damaged_data(site: Site) -> None:
    engine = await _crashed_primary(site)
    os.truncate(site.paths("m1").data / "global" / "pg_control", 100)
    seen = await engine.observe()
    assert (seen.state, _fault(engine)) == (EngineState.ABSENT, Trouble.DATA_CORRUPTED)


@pytest.mark.parametrize("lost", ["PG_VERSION", "global/pg_control"])
async def test_lost_file_that_makes_the_directory_unusable_is_named(site: Site, lost: str) -> None:
    engine = await _crashed_primary(site)
    (site.paths("m1").data / lost).unlink()
    seen = await engine.observe()
    assert (seen.state, _fault(engine)) == (EngineState.ABSENT, Trouble.DATA_INCOMPLETE)
    assert lost in seen.failure


async def test_zeroed_checkpoint_is_damaged_data_and_counts_as_broken(site: Site) -> None:
    engine = await _crashed_primary(site)
    for segment in (site.paths("m1").data / "pg_wal").glob("0000000100*"):
        segment.write_bytes(bytes(16 * MIB))
    why = await _why(engine.start_primary())
    assert why.trouble is Trouble.DATA_CORRUPTED
    assert "checkpoint record" in why.evidence
    seen = await engine.observe()
    assert seen.broken


async def test_missing_log_directory_is_told_without_starting_anything(site: Site) -> None:
    engine = await _crashed_primary(site)
    (site.paths("m1").data / "pg_wal").rename(site.paths("m1").root / "elsewhere")
    before = _starts(site)
    why = await _why(engine.start_primary())
    assert (why.trouble, _starts(site)) == (Trouble.DATA_INCOMPLETE, before)


async def test_missing_catalog_file_is_found_by_what_the_engine_says(site: Site) -> None:
    engine = await _crashed_primary(site)
    shutil.rmtree(site.paths("m1").data / "pg_xact")
    why = await _why(engine.start_primary())
    assert why.cure is Cure.COPY, why


async def test_data_of_another_major_version_is_not_started(site: Site) -> None:
    engine = await _crashed_primary(site)
    (site.paths("m1").data / "PG_VERSION").write_text("12\n")
    why = await _why(engine.start_primary())
    assert (why.trouble, why.cure) == (Trouble.WRONG_VERSION, Cure.LOOK)


# --- the host ---------------------------------------------------------------------------------------------------------


async def test_programs_removed_under_a_stopped_engine_lose_no_data_and_are_waited_for(
    site: Site, tmp_path: Path
) -> None:
    copied = Path(site.base) / "programs"
    shutil.copytree(Path(site.offer.bin_dir), copied / "bin", symlinks=True)
    for entry in (Path(site.offer.bin_dir).parent).iterdir():
        if entry.name != "bin":
            (copied / entry.name).symlink_to(entry)
    site.offer = replace(site.offer, bin_dir=str(copied / "bin"))
    if subprocess.run([copied / "bin" / "postgres", "--version"], capture_output=True, check=False).returncode != 0:
        pytest.skip("these programs cannot be moved")
    engine = site.engine("m1")
    try:
        await engine.initialise()
    except EngineError:
        pytest.skip("these programs cannot be moved")
    await engine.start_primary()
    await engine.stop()
    (copied / "bin").rename(copied / "removed")
    fresh = site.engine("m1")
    seen = await fresh.observe()
    assert (seen.state, _fault(fresh)) == (EngineState.CRASHED, Trouble.PROGRAMS_MISSING)
    why = await _why(fresh.start_primary())
    assert (why.trouble, why.cure) == (Trouble.PROGRAMS_MISSING, Cure.LOOK)
    (copied / "removed").rename(copied / "bin")
    await fresh.start_primary()
    assert (await fresh.observe()).state is EngineState.RUNNING


@pytest.mark.parametrize("how", ["mode", "owner"])
async def test_data_directory_that_is_not_the_engines_own_is_told_with_its_owner_and_mode(site: Site, how: str) -> None:
    if how == "owner" and os.getuid() != 0:
        pytest.skip("only root can give a directory away")
    engine = await _crashed_primary(site)
    data = site.paths("m1").data
    owner = data.stat()
    data.chmod(0o755) if how == "mode" else os.chown(data, 0, 0)
    why = await _why(engine.start_primary())
    assert (why.trouble, why.cure) == (Trouble.DATA_PERMISSIONS, Cure.LOOK)
    assert str(data) in why.evidence
    data.chmod(0o700)
    os.chown(data, owner.st_uid, owner.st_gid)
    await engine.start_primary()


async def test_port_taken_by_a_stranger_names_the_stranger(site: Site) -> None:
    engine = site.engine("m1")
    await engine.initialise()
    async with await asyncio.start_server(lambda _r, _w: None, site.address("m1"), site.port):
        why = await _why(engine.start_primary())
        assert (why.trouble, why.cure) == (Trouble.PORT_TAKEN, Cure.LOOK)
        assert f"pid {os.getpid()}" in why.evidence
        assert _starts(site) == 0
    await engine.start_primary()
    assert (await engine.observe()).state is EngineState.RUNNING


async def test_key_that_does_not_fit_its_certificate_is_named(site: Site) -> None:
    if not site.offer.tls:
        pytest.skip("needs an engine with TLS")
    engine = site.engine("m1")
    await engine.initialise()
    files = site.identity("m1")
    files.key.write_bytes(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    why = await _why(engine.start_primary())
    assert why.trouble is Trouble.TLS_UNREADABLE, why


async def test_identity_that_is_gone_is_named(site: Site) -> None:
    if not site.offer.tls:
        pytest.skip("needs an engine with TLS")
    engine = site.engine("m1")
    await engine.initialise()
    site.identity("m1").key.unlink()
    why = await _why(engine.start_primary())
    assert why.trouble is Trouble.TLS_UNREADABLE, why


async def test_memory_that_the_machine_has_not_is_not_insisted_on(site: Site) -> None:
    engine = await site.primary()
    wanted = {"shared_buffers": "4096GB"}
    engine.update(site.desired("m1", parameters=wanted), site.secrets())
    await engine.stop()
    await engine.start_primary()
    await engine.observe()
    assert "shared_buffers = 4096GB" in engine.facts().problem
    assert site.sql("m1", "SHOW shared_buffers") == [("64MB",)]


async def test_clock_that_went_back_is_warned_of(site: Site) -> None:
    engine = await site.primary()
    control = site.paths("m1").data / "global" / "pg_control"
    later = control.stat().st_mtime + 3600
    os.utime(control, (later, later))

    async def noticed() -> bool:
        await engine.observe()
        return Trouble.CLOCK_WRONG in {notice.trouble for notice in engine.facts().notices}

    await eventually(noticed, within=5)


# --- crashes ----------------------------------------------------------------------------------------------------------


async def test_killed_postmaster_and_killed_backend_are_told_apart(site: Site) -> None:
    engine = await _crashed_primary(site)
    assert (await engine.observe()).state is EngineState.CRASHED
    assert _fault(engine) is Trouble.ENDED_SILENTLY
    await engine.start_primary()
    await engine.observe()
    assert _fault(engine) is None
    for number, trouble in ((signal.SIGKILL, Trouble.PROCESS_KILLED), (signal.SIGSEGV, Trouble.PROCESS_CRASHED)):
        with site.connect("m1") as client:
            row = client.execute("SELECT pg_backend_pid()").fetchone()
            assert row is not None
            os.kill(row[0], number)
            async with asyncio.timeout(10):
                await engine.wait_died()
        seen = await engine.observe()
        assert (seen.state, _fault(engine)) == (EngineState.CRASHED, trouble)
        await engine.start_primary()


async def test_engine_that_dies_again_and_again_is_started_after_growing_pauses_and_called_a_crash_loop(
    site: Site,
) -> None:
    engine = await site.primary()
    pauses = []
    for _ in range(5):
        await engine.observe()
        os.kill(site.postmaster_pid("m1"), signal.SIGKILL)
        await engine.wait_died()
        seen = await engine.observe()
        assert seen.state is EngineState.CRASHED
        pauses.append(max(0.0, seen.retry_at - engine.setup.clock.now()))
        await engine.start_primary()
    await engine.observe()
    assert pauses[:2] == [0.0, 0.0], "a death or two are answered at once"
    assert 1 < pauses[2] < pauses[3] < pauses[4]
    loop = next(notice for notice in engine.facts().notices if notice.trouble is Trouble.CRASH_LOOP)
    assert "EndedSilently" in loop.message


async def test_client_cannot_pretend_a_fault_by_what_it_has_logged(site: Site) -> None:
    engine = await site.primary()
    lie = "DO $$ BEGIN RAISE LOG 'PANIC:  could not locate a valid checkpoint record'; END $$"
    site.sql("m1", lie)
    os.kill(site.postmaster_pid("m1"), signal.SIGKILL)
    await engine.wait_died()
    seen = await engine.observe()
    assert not seen.broken
    assert _fault(engine) is Trouble.ENDED_SILENTLY


# --- the disk ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(site: Site) -> Iterator[Mount]:
    """The member's directory on a file system of its own."""
    mount = Mount.memory(site.paths("m1").root, size_bytes=320 * MIB)
    try:
        yield mount
    finally:
        for pid in site.processes("m1"):
            os.kill(pid, signal.SIGKILL)
        mount.close()


@NO_MOUNT
async def test_full_disk_is_warned_of_ends_no_loop_and_starts_by_itself_when_there_is_room(
    site: Site, small_disk: Mount
) -> None:
    engine = await site.primary()
    await engine.observe()
    assert engine.facts().notices == ()
    ballast = small_disk.fill(leave_bytes=100 * MIB)

    async def notices() -> set[Trouble]:
        await engine.observe()
        return {notice.trouble for notice in engine.facts().notices}

    await eventually(notices, lambda seen: seen == {Trouble.DISK_FILLING}, within=5)
    more = small_disk.fill(leave_bytes=FULL_BELOW_BYTES // 4)
    await eventually(notices, lambda seen: seen == {Trouble.DISK_FULL}, within=5)
    assert (await engine.observe()).unfit
    with pytest.raises(Exception, match=r"No space left|terminated|closed|connection"):
        site.sql("m1", "CREATE TABLE big AS SELECT repeat('x', 1000) AS x FROM generate_series(1, 200000)")
    await engine.fence(1.0)
    before = _starts(site)
    why = await _why(engine.start_primary())
    assert (why.trouble, why.cure) == (Trouble.DISK_FULL, Cure.LOOK)
    assert "free of" in why.evidence
    assert _starts(site) == before, "no engine is started on a full disk"
    ballast.unlink()
    more.unlink()
    await engine.start_primary()
    assert (await engine.observe()).unfit == ""


@NO_MOUNT
async def test_replica_on_a_full_disk_is_not_promoted(site: Site, small_disk: Mount) -> None:
    engine = await site.primary()
    await engine.stop()
    await engine.start_replica(None)
    seen = await site.runs(engine)
    assert seen.role is Role.REPLICA
    ballast = small_disk.fill(leave_bytes=FULL_BELOW_BYTES // 4)
    why = await _why(engine.promote())
    assert why.trouble is Trouble.DISK_FULL
    assert (await engine.observe()).role is Role.REPLICA
    ballast.unlink()
    await engine.promote()
    assert (await engine.observe()).role is Role.PRIMARY


@pytest.fixture
def frozen_disk(site: Site) -> Iterator[Mount]:
    """The member's data directory on a file system that can be frozen; the agent's own files are elsewhere."""
    site.disk_answers_within_s = 1.5
    mount = Mount.block_device(site.paths("m1").root, size_bytes=600 * MIB, image=site.base / "disk.img")
    try:
        yield mount
    finally:
        mount.thaw()
        for pid in site.processes("m1"):
            os.kill(pid, signal.SIGKILL)
        mount.close()


@NO_MOUNT
async def test_primary_whose_disk_does_not_answer_is_noticed_fenced_and_comes_back(
    site: Site, frozen_disk: Mount
) -> None:
    engine = await site.primary()
    await engine.observe()
    frozen_disk.freeze()
    with site.connect("m1") as client:
        commit = asyncio.create_task(asyncio.to_thread(_write, client))
        began = engine.setup.clock.now()
        seen = await eventually(engine.observe, lambda e: e.state is EngineState.UNRESPONSIVE, within=10)
        assert engine.setup.clock.now() - began < 4
        assert "has not answered" in seen.failure
        assert _fault(engine) is Trouble.DISK_SILENT
        assert not commit.done()
        async with asyncio.timeout(5):
            await engine.fence(1.0)
        after = await engine.observe()
        assert (after.state, after.role) == (EngineState.CRASHED, Role.PRIMARY)
        why = await _why(engine.start_primary())
        assert why.trouble is Trouble.DISK_SILENT
        frozen_disk.thaw()
        assert await commit != "committed", "nothing is acknowledged after the fence"

    async def starts() -> bool:
        await engine.observe()
        try:
            await engine.start_primary()
        except EngineError as error:
            raise AssertionError(str(error)) from error
        return True

    await eventually(starts, within=20, every=0.3)
    assert (await engine.observe()).state is EngineState.RUNNING


def _write(client: object) -> str:
    try:
        client.execute("CREATE TABLE hangs (n int)")  # type: ignore[attr-defined]
    except Exception as error:
        return str(error)
    return "committed"


def _starts(site: Site) -> int:
    """How often the engine has begun to start, by its own log."""
    logs = site.paths("m1").logs
    return sum(log.read_text(errors="replace").count("starting PostgreSQL") for log in logs.glob("engine-*.log"))
