"""The demo's own parts that need no etcd, hub or engine."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cli.demo import layout as layouts
from cli.demo import traces
from cli.demo.layout import BLOCK, Layout, Memory, Ports
from cli.demo.parts import PartError, Parts, end_leftovers, run_to_end
from cli.demo.writer import Writer
from core.clock import SystemClock
from core.errors import ConflictError, TimedOutError, UserError

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[Layout]:
    root = Path("/tmp") / f"md-{os.getpid()}-{tmp_path.name[-12:]}"
    made = Layout(root)
    made.prepare()
    yield made
    traces.kill_all(root)
    shutil.rmtree(root)


# --- folder and ports ------------------------------------------------------------------------------------------------


def test_ports_of_a_demo_lie_in_one_block_and_do_not_overlap() -> None:
    ports = Ports(20000)
    assert len(set(ports.of_parts)) == len(ports.of_parts)
    assert all(ports.instances[1] < port < 20000 + BLOCK for port in ports.of_parts)


def test_ports_are_chosen_once_and_kept(layout: Layout) -> None:
    chosen = layout.memory.base_port
    again = Layout(layout.root)
    again.prepare()
    assert again.memory.base_port == chosen


def test_block_in_use_is_passed_over() -> None:
    base = layouts.free_block()
    with socket.socket() as taken:
        taken.bind(("127.0.0.12", base + 7))
        taken.listen()
        assert layouts.busy(range(base, base + BLOCK)) == [f"127.0.0.12:{base + 7}"]
        assert traces.listening([base + 7]) == [f"127.0.0.12:{base + 7}"]
        assert layouts.free_block(base) != base


def test_second_demo_in_one_folder_is_refused(layout: Layout) -> None:
    with layout.locked(), pytest.raises(ConflictError) as caught, Layout(layout.root).locked():
        pass
    assert f"pid {os.getpid()}" in caught.value.what
    with layout.locked():
        pass  # free again


def test_folder_that_is_no_demo_is_never_cleared(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError):
        Layout(tmp_path).clear()
    assert (tmp_path / "thesis.tex").exists()


def test_path_too_long_for_sockets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too long"):
        Layout(tmp_path / ("x" * 60)).prepare()


def test_damaged_memory_is_told_and_not_guessed(layout: Layout) -> None:
    (layout.root / "demo.json").write_text("{")
    with pytest.raises(UserError, match="cannot be understood"):
        layout.load()
    layout.save()


def test_moorctl_context_is_for_the_owner_only(layout: Layout) -> None:
    assert layout.moorctl_config.stat().st_mode & 0o077 == 0


# --- processes -------------------------------------------------------------------------------------------------------


async def test_part_that_ends_by_itself_is_told_with_the_end_of_its_log(layout: Layout) -> None:
    parts = Parts(layout)
    await parts.start("hub", [sys.executable, "-c", "print('no etcd here'); raise SystemExit(3)"])
    with pytest.raises(PartError) as caught:
        async with asyncio.timeout(20):
            await parts.guard(asyncio.sleep(15))
    assert (caught.value.object, caught.value.what) == ("hub", "ended with status 3")
    assert caught.value.tail == ["no etcd here"]


async def test_parts_are_stopped_and_forgotten(layout: Layout) -> None:
    parts = Parts(layout)
    part = await parts.start("etcd", SLEEP)
    assert layout.memory.processes["etcd"][0] == part.process.pid
    assert await parts.guard(asyncio.sleep(0, "done")) == "done"
    await parts.stop("etcd")
    assert part.process.returncode == -signal.SIGTERM
    assert layout.memory.processes == {}


def test_what_a_killed_demo_left_running_is_ended_by_the_next(layout: Layout) -> None:
    with subprocess.Popen(SLEEP) as left:
        layout.memory.processes["etcd"] = (left.pid, psutil.Process(left.pid).create_time())
        layout.save()
        again = Layout(layout.root)
        again.load()
        assert end_leftovers(again) == ["etcd"]
        assert not psutil.pid_exists(left.pid) or left.wait(5) == -signal.SIGTERM
    assert end_leftovers(again) == []


async def test_pid_that_now_is_anothers_is_left_alone(layout: Layout) -> None:
    me = psutil.Process()
    layout.memory.processes["hub"] = (me.pid, me.create_time() - 1000)
    assert end_leftovers(layout) == []


async def test_command_that_fails_or_hangs_is_an_error(layout: Layout) -> None:
    log = layout.logs / "x.log"
    with pytest.raises(PartError) as caught:
        await run_to_end("x", [sys.executable, "-c", "raise SystemExit('bad token')"], log=log, within_s=20)
    assert caught.value.tail == ["bad token"]
    with pytest.raises(TimedOutError):
        await run_to_end("x", SLEEP, log=log, within_s=0.1)
    assert await run_to_end("x", [sys.executable, "-c", "print(1)"], log=log, within_s=20) == "1\n"


async def test_processes_of_the_folder_are_found(layout: Layout) -> None:
    part = await Parts(layout).start("n1", [*SLEEP, str(layout.root)])
    assert [line.split()[0] for line in traces.processes(layout.root)] == [str(part.process.pid)]
    await asyncio.to_thread(traces.kill_all, layout.root)
    async with asyncio.timeout(5):
        await part.process.wait()
    assert traces.processes(layout.root) == []


# --- the writer ------------------------------------------------------------------------------------------------------


def test_gap_is_the_longest_pause_that_ends_after_the_event() -> None:
    writer = Writer("", SystemClock(), acknowledged=[(1, 10.0), (2, 15.0), (4, 15.1), (5, 17.1), (6, 17.2)])
    assert writer.longest_gap_s(15.05) == pytest.approx(2.0)
    assert writer.longest_gap_s(99) == 0.0


def test_memory_starts_empty() -> None:
    assert Memory().processes == {}
