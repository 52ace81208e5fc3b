"""Processes that outlive the agent: started, recognised, watched, ended, and never mistaken for others."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.supervise import processes
from agent.supervise.base import Launch, ProcessId
from agent.supervise.detached import Detached
from tests.support.waiting import eventually_sync

SLEEP = shutil.which("sleep") or "/bin/sleep"


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[ProcessId]:
    process = _start(tmp_path, SLEEP, "300")
    yield process
    processes.send(process, signal.SIGKILL)
    eventually_sync(lambda: not Detached().alive(process), within=5)


def _start(where: Path, *argv: str) -> ProcessId:
    return Detached().start(
        Launch(argv=argv, env={"PATH": "/usr/bin:/bin"}, cwd=where, output=where / "output", run_as=None)
    )


async def test_death_is_told_within_milliseconds_to_everyone_who_waits(sleeper: ProcessId) -> None:
    waiting = [asyncio.create_task(Detached().died(sleeper)) for _ in range(3)]
    await asyncio.sleep(0)
    assert Detached().alive(sleeper)
    killed_at = time.monotonic()
    Detached().send(sleeper, signal.SIGKILL)
    async with asyncio.timeout(5):
        await asyncio.gather(*waiting)
    assert time.monotonic() - killed_at < 0.5
    assert not Detached().alive(sleeper)
    await Detached().died(sleeper)
    Detached().send(sleeper, signal.SIGKILL)


def test_process_has_a_session_of_its_own_and_nothing_of_our_environment(sleeper: ProcessId) -> None:
    assert os.getsid(sleeper.pid) == sleeper.pid
    environment = Path(f"/proc/{sleeper.pid}/environ")  # empty for an instant while the program is being loaded
    eventually_sync(environment.read_bytes, lambda seen: seen == b"PATH=/usr/bin:/bin\0", within=5)
    assert os.readlink(f"/proc/{sleeper.pid}/fd/0") == "/dev/null"


async def test_another_process_of_the_same_pid_is_neither_hit_nor_waited_for(sleeper: ProcessId) -> None:
    former = ProcessId(sleeper.pid, sleeper.started - 1, sleeper.boot)
    assert not Detached().alive(former)
    Detached().send(former, signal.SIGKILL)
    async with asyncio.timeout(1):
        await Detached().died(former)
    assert Detached().alive(sleeper)
    assert not Detached().alive(ProcessId(sleeper.pid, sleeper.started, "another boot"))


async def test_zombie_counts_as_dead(tmp_path: Path) -> None:
    process = _start(tmp_path, SLEEP, "0")
    async with asyncio.timeout(5):
        await Detached().died(process)
    assert not Detached().alive(process)
    assert not Path(f"/proc/{process.pid}").exists(), "reaped"


async def test_leftovers_are_found_by_program_and_directory_and_killed_even_when_stopped(tmp_path: Path) -> None:
    inside, outside = tmp_path / "member" / "data", tmp_path / "member-2"
    inside.mkdir(parents=True)
    outside.mkdir()
    mine, other = _start(inside, SLEEP, "300"), _start(outside, SLEEP, "300")
    programs = frozenset({os.path.basename(os.path.realpath(SLEEP))})
    try:
        os.kill(mine.pid, signal.SIGSTOP)
        assert processes.running_below(tmp_path / "member", programs) == [mine]
        assert processes.running_below(tmp_path / "member", frozenset({"postgres"})) == []
        async with asyncio.timeout(5):
            killing = await processes.kill_below(tmp_path / "member", programs, time.monotonic, within_s=5.0)
            assert (killing.found, killing.left) == (1, ())
        assert not Detached().alive(mine)
        assert Detached().alive(other)
    finally:
        processes.send(other, signal.SIGKILL)
        eventually_sync(lambda: not Detached().alive(other), within=5)
