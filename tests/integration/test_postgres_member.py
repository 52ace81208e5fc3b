"""One PostgreSQL member on its own: made, configured, killed, adopted, fenced, deleted. Both kinds of engine."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from agent.ha.view import EngineState
from core.errors import EngineError
from core.records import DatabaseDesired, Replication, SyncRecord, UserDesired
from core.status import Role
from tests.support.postgres import Site, offers
from tests.support.waiting import eventually

OFFERS = offers()
SYSTEM = pytest.param("system", marks=pytest.mark.skipif("system" not in OFFERS, reason="no system PostgreSQL"))
WHEEL = pytest.param("wheel", marks=pytest.mark.skipif("wheel" not in OFFERS, reason="no embedded PostgreSQL"))


KIND = "system" if "system" in OFFERS else "wheel"  # where the kind of engine makes no difference


@pytest.fixture(params=[SYSTEM, WHEEL])
async def each_site(request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    site = Site(offer=OFFERS[request.param])
    yield site
    await site.close()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site(offer=OFFERS[KIND])
    yield site
    await site.close()


async def test_new_primary_has_declared_roles_and_databases_and_lets_clients_in_by_password(each_site: Site) -> None:
    site = each_site
    engine = site.engine("m1")
    assert (await engine.observe()).state is EngineState.ABSENT
    await engine.initialise()
    stopped = await engine.observe()
    assert (stopped.state, stopped.role) == (EngineState.STOPPED, Role.PRIMARY)
    await engine.start_primary()
    assert await engine.converge()
    seen = await engine.observe()
    assert (seen.state, seen.role, seen.position.timeline) == (EngineState.RUNNING, Role.PRIMARY, 1)
    assert seen.system_id == stopped.system_id
    assert seen.position.lsn.value > 0
    assert engine.facts().problems == ()
    assert engine.facts().tls is site.offer.tls
    assert engine.facts().data_bytes > 1 << 20
    rows = site.sql("m1", "SELECT current_user, extname FROM pg_extension WHERE extname = 'pg_trgm'")
    assert rows == [("app", "pg_trgm")]
    checksums = site.sql("m1", "SHOW data_checksums")
    assert checksums == [("on",)]
    with pytest.raises(psycopg.OperationalError, match="password"):
        site.sql("m1", "SELECT 1", password="wrong")
    with pytest.raises(psycopg.OperationalError, match="reject"):
        site.sql("m1", "SELECT 1", user="postgres", dbname="postgres")
    if site.offer.tls:
        used = site.sql("m1", "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", sslmode="require")
        assert used == [(True,)]


async def test_what_is_declared_later_is_made_and_what_cannot_be_made_is_told(site: Site) -> None:
    engine = await site.primary()
    site.sql("m1", "CREATE TABLE kept (id int)")
    desired = site.desired(
        "m1",
        users=(UserDesired(name="app"), UserDesired(name="report", roles=("pg_read_all_data", "nobody_such"))),
        databases=(
            DatabaseDesired(name="shop", owner="report", extensions=("pg_trgm", "no_such_extension")),
            DatabaseDesired(name="more", owner="app"),
        ),
    )
    engine.update(desired, site.secrets())
    assert await engine.converge()
    await engine.observe()
    problems = engine.facts().problems
    assert len(problems) == 2, problems
    assert any("nobody_such" in problem for problem in problems)
    assert any("no_such_extension" in problem for problem in problems)
    assert engine.facts().problem == "; ".join(problems)
    owner = site.sql("m1", "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'shop'")
    assert owner == [("report",)]
    assert site.sql("m1", "SELECT pg_has_role('app', 'pg_monitor', 'member')") == [(False,)], "taken out, taken away"
    assert site.sql("m1", "SELECT count(*) FROM kept", dbname="shop") == [(0,)]


async def test_parameters_are_reloaded_or_reported_as_waiting_and_bad_ones_are_left_out(each_site: Site) -> None:
    site = each_site
    engine = await site.primary()
    desired = site.desired("m1")
    wanted = {
        **desired.parameters,
        "work_mem": "7MB",
        "max_connections": "77",
        "no_such_parameter": "1",
        "random_page_cost": "cheap",
        "port": "1",
        "app.greeting": "it's a \\ test",
    }
    engine.update(replace(desired, parameters=wanted), site.secrets())
    assert await engine.converge()
    await eventually(lambda: _shown(site, "work_mem"), lambda value: value == "7MB", within=5)
    seen = await eventually(engine.observe, lambda _: bool(engine.facts().pending_restart), within=5)
    assert seen.state is EngineState.RUNNING
    assert engine.facts().pending_restart == ("max_connections",)
    text = engine.facts().problem
    assert "no_such_parameter" in text
    assert "random_page_cost = cheap" in text
    assert "port is managed" in text
    assert await _shown(site, "app.greeting") == "it's a \\ test"
    await engine.stop()
    await engine.start_primary()
    assert await _shown(site, "max_connections") == "77"
    await engine.observe()
    assert engine.facts().pending_restart == ()


async def test_engine_that_does_not_start_with_new_parameters_starts_with_the_former_ones(site: Site) -> None:
    engine = await site.primary()
    desired = site.desired("m1")
    wanted = {**desired.parameters, "shared_preload_libraries": "no_such_library", "work_mem": "9MB"}
    engine.update(replace(desired, parameters=wanted), site.secrets())
    assert await engine.converge()
    await engine.stop()
    await engine.start_primary()
    assert (await engine.observe()).state is EngineState.RUNNING
    assert await engine.converge()
    await engine.observe()
    assert "shared_preload_libraries = no_such_library" in engine.facts().problem
    assert await _shown(site, "work_mem") == "4MB"
    engine.update(replace(desired, parameters={**desired.parameters, "work_mem": "9MB"}), site.secrets())
    assert await engine.converge()
    await eventually(lambda: _shown(site, "work_mem"), lambda value: value == "9MB", within=5)
    await engine.observe()
    assert engine.facts().problem == ""


async def test_death_of_the_postmaster_is_noticed_at_once_and_orphans_do_not_outlive_it(each_site: Site) -> None:
    site = each_site
    engine = await site.primary()
    site.sql("m1", "CREATE TABLE t (n int)")
    with site.connect("m1") as busy:
        row = busy.execute("SELECT pg_backend_pid()").fetchone()
        assert row is not None
        os.kill(row[0], signal.SIGSTOP)  # an orphan that cannot notice anything by itself
        watching = asyncio.create_task(engine.wait_died())
        await engine.observe()
        killed_at = time.monotonic()
        os.kill(site.postmaster_pid("m1"), signal.SIGKILL)
        async with asyncio.timeout(5):
            await watching
        assert time.monotonic() - killed_at < 0.5
        assert site.processes("m1") == []
    seen = await engine.observe()
    assert (seen.state, seen.role) == (EngineState.CRASHED, Role.PRIMARY)
    assert seen.position.timeline == 1
    await engine.start_primary()
    assert (await engine.observe()).state is EngineState.RUNNING
    assert site.sql("m1", "SELECT count(*) FROM t") == [(0,)]


async def test_engine_started_again_while_its_death_is_being_cleared_up_lives(site: Site) -> None:
    engine = await site.primary()
    for _ in range(5):
        await engine.observe()
        watchers = [asyncio.create_task(engine.wait_died()) for _ in range(3)]
        await asyncio.sleep(0)
        os.kill(site.postmaster_pid("m1"), signal.SIGKILL)
        async with asyncio.timeout(10):
            await watchers[0]
            await asyncio.gather(engine.start_primary(), engine.observe(), *watchers[1:])
        assert (await engine.observe()).state is EngineState.RUNNING


async def test_crash_of_a_backend_ends_the_engine_for_the_agent_to_decide(site: Site) -> None:
    engine = await site.primary()
    with site.connect("m1") as client:
        row = client.execute("SELECT pg_backend_pid()").fetchone()
        assert row is not None
        os.kill(row[0], signal.SIGSEGV)
        async with asyncio.timeout(10):
            await engine.wait_died()
    assert (await engine.observe()).state is EngineState.CRASHED


async def test_next_agent_adopts_the_engine_and_cuts_no_session(site: Site) -> None:
    await site.primary()
    pid = site.postmaster_pid("m1")
    with site.connect("m1") as client:
        again = site.engine("m1")
        seen = await again.observe()
        assert (seen.state, seen.role) == (EngineState.RUNNING, Role.PRIMARY)
        assert client.execute("SELECT 1").fetchone() == (1,)
    (site.paths("m1").label).unlink()  # a label lost: postmaster.pid tells as well
    third = site.engine("m1")
    assert (await third.observe()).state is EngineState.RUNNING
    assert site.postmaster_pid("m1") == pid
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(5):
        await third.wait_died()
    assert (await third.observe()).state is EngineState.CRASHED


async def test_fence_leaves_no_process_in_bounded_time_even_when_all_are_frozen(site: Site) -> None:
    engine = await site.primary()
    with site.connect("m1"), site.connect("m1"):
        await engine.observe()
        for pid in site.processes("m1"):
            os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        await engine.fence(1.0)
        assert time.monotonic() - began < 2.0
        assert site.processes("m1") == []
    assert (await engine.observe()).state is EngineState.STOPPED
    await engine.start_primary()
    assert (await engine.observe()).state is EngineState.RUNNING
    began = time.monotonic()
    await engine.fence(1.0)
    assert time.monotonic() - began < 1.0, "an engine that obeys is not waited for"


async def test_frozen_engine_is_unresponsive_after_the_limit_and_observing_it_never_hangs(site: Site) -> None:
    site.unresponsive_after_s = 2.5
    engine = await site.primary()
    await engine.observe()
    frozen = site.processes("m1")
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    states = []
    began = time.monotonic()
    while time.monotonic() - began < 8 and EngineState.UNRESPONSIVE not in states:
        asked = time.monotonic()
        states.append((await engine.observe()).state)
        assert time.monotonic() - asked < 4
    assert states[0] is EngineState.RUNNING, "the last answer stands for a while"
    assert states[-1] is EngineState.UNRESPONSIVE
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)
    await site.runs(engine)


async def test_stop_is_clean_and_a_start_that_is_fenced_meanwhile_does_not_come_up(site: Site) -> None:
    engine = await site.primary()
    await engine.stop()
    assert site.processes("m1") == []
    seen = await engine.observe()
    assert (seen.state, seen.role) == (EngineState.STOPPED, Role.PRIMARY)
    starting = asyncio.create_task(engine.start_primary())
    await eventually(_processes(site), within=5, every=0.001)
    await engine.fence(0.2)
    with pytest.raises(EngineError):
        await starting
    assert site.processes("m1") == []


async def test_port_taken_by_another_program_is_told(site: Site) -> None:
    engine = site.engine("m1")
    await engine.initialise()
    async with await asyncio.start_server(lambda _r, _w: None, site.address("m1"), site.port):
        with pytest.raises(EngineError, match="could not bind"):
            await engine.start_primary()
    await engine.start_primary()
    assert (await engine.observe()).state is EngineState.RUNNING


async def test_commits_wait_for_standbys_from_the_first_moment(site: Site) -> None:
    site.replication = Replication(mode="sync", strict=True)
    engine = await site.primary()
    assert (await engine.observe()).sync == SyncRecord(mode="sync", k=0, names=())
    with site.connect("m1") as client:
        commit = asyncio.create_task(asyncio.to_thread(client.execute, "CREATE TABLE waits (n int)"))
        done, _ = await asyncio.wait({commit}, timeout=0.5)
        assert not done
        named = SyncRecord(mode="sync", k=1, names=("m2", "m3"))
        await engine.apply_sync(named)
        assert (await engine.observe()).sync == named
        assert await _shown(site, "synchronous_standby_names") == 'ANY 1 ("m2","m3")'
        assert not commit.done()
        await engine.apply_sync(SyncRecord(mode="async"))
        async with asyncio.timeout(5):
            await commit
    assert (await engine.observe()).sync == SyncRecord(mode="async")
    await engine.fence(1.0)
    await engine.start_primary()
    assert (await engine.observe()).sync == SyncRecord(mode="sync"), "a start does not remember who was named"


async def test_destroy_leaves_neither_file_nor_process_nor_shared_memory(each_site: Site) -> None:
    site = each_site
    engine = await site.primary()
    postmaster = site.postmaster_pid("m1")
    mapped = Path(f"/proc/{postmaster}/maps").read_text()
    files = {Path(line.split()[-1]) for line in mapped.splitlines() if "/dev/shm/PostgreSQL" in line}
    assert files
    assert all(path.exists() for path in files)
    assert postmaster in _creators_of_system_v_segments()
    os.kill(postmaster, signal.SIGKILL)
    await engine.wait_died()
    await engine.destroy()
    assert not site.paths("m1").root.exists()
    assert not site.paths("m1").sockets.exists()
    assert site.processes("m1") == []
    assert not any(path.exists() for path in files)
    assert postmaster not in _creators_of_system_v_segments()
    assert (await engine.observe()).state is EngineState.ABSENT


async def test_half_made_directory_is_never_started(site: Site) -> None:
    engine = site.engine("m1")
    making = asyncio.create_task(engine.initialise())
    await eventually(_exists(site.paths("m1").incoming / "PG_VERSION"), within=20, every=0.002)
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    assert site.processes("m1") == [], "the program does not go on without us"
    again = site.engine("m1")
    assert (await again.observe()).state is EngineState.ABSENT
    with pytest.raises(EngineError, match="no usable data directory"):
        await again.start_primary()
    await again.initialise()
    await again.start_primary()
    assert (await again.observe()).state is EngineState.RUNNING


async def _shown(site: Site, name: str) -> str:
    return str(site.sql("m1", f"SHOW {name}")[0][0])


def _processes(site: Site):
    async def look() -> list[int]:
        return site.processes("m1")

    return look


def _exists(path: Path):
    async def look() -> bool:
        return path.exists()

    return look


def _creators_of_system_v_segments() -> set[int]:
    return {int(line.split()[4]) for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]}
