"""The processes of a demo: started by command name, each with its log, watched, stopped in order.

Each runs in a session of its own, so that Ctrl-C reaches the demo only, which then stops them in the right order. What
a demo that was killed has left behind is known from demo.json and ended before new ones are started.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from cli.demo.layout import Layout
from core.errors import MoorageError, TimedOutError

T = TypeVar("T")
STOP_WITHIN_S = 15.0
TAIL_LINES = 15
TAIL_BYTES = 8 << 10


class PartError(MoorageError):
    """A part of the demo ended or failed. `tail` is the end of its log."""

    code = "demo"
    exit_code = 8

    def __init__(self, what: str, *, object: str, log: Path) -> None:
        super().__init__(what, object=object, hint=f"Its whole log: {log}")
        self.tail = tail(log)


@dataclass(slots=True)
class Part:
    """A running process."""

    name: str
    process: asyncio.subprocess.Process
    log: Path
    stopping: bool = False


class Parts:
    """All processes of a demo, in the order they were started."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._parts: list[Part] = []

    async def start(self, name: str, command: Sequence[str]) -> Part:
        """Start a part that runs until it is stopped."""
        log = self._layout.logs / f"{name}.log"
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd="/",
                env=clean_environment(),
            )
        part = Part(name, process, log)
        self._parts.append(part)
        self._layout.memory.processes[name] = (process.pid, _started_at(process.pid))
        self._layout.save()
        return part

    async def watch(self) -> None:
        """Until a part ends that should not: then a PartError with its log."""
        async with asyncio.TaskGroup() as group:
            for part in self._parts:
                group.create_task(self._watch(part), name=f"watch {part.name}")

    async def _watch(self, part: Part) -> None:
        status = await part.process.wait()
        if not part.stopping:
            how = f"by signal {-status}" if status < 0 else f"with status {status}"
            raise PartError(f"ended {how}", object=part.name, log=part.log)

    async def guard(self, work: Coroutine[Any, Any, T]) -> T:
        """The outcome of `work`, unless a part that runs now ends meanwhile: then its PartError."""
        try:
            async with asyncio.TaskGroup() as group:
                watcher = group.create_task(self.watch(), name="watch")
                try:
                    return await work
                finally:
                    watcher.cancel()
        except BaseExceptionGroup as group_error:
            raise first_error(group_error) from None

    async def stop(self, name: str) -> None:
        """End a part: SIGTERM, and SIGKILL when it does not obey."""
        for part in [part for part in self._parts if part.name == name]:
            part.stopping = True
            await end(part.process)
            self._parts.remove(part)
            self._layout.memory.processes.pop(name, None)
        self._layout.save()

    def stopping(self, name: str) -> None:
        """From now on the end of a part is not a failure."""
        for part in self._parts:
            part.stopping = part.stopping or part.name == name

    @property
    def names(self) -> list[str]:
        return [part.name for part in self._parts]


async def run_to_end(name: str, command: Sequence[str], *, log: Path, within_s: float) -> str:
    """What a command that ends by itself printed. PartError when it fails, TimedOutError when it takes too long."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd="/",
        env=clean_environment(),
    )
    try:
        async with asyncio.timeout(within_s):
            printed, _ = await process.communicate()
    except TimeoutError as error:
        raise TimedOutError(f"not done after {within_s:g} s", object=name) from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()  # killed: it ends at once
    with log.open("ab") as file:
        file.write(printed)
    if process.returncode != 0:
        raise PartError(f"failed with status {process.returncode}", object=name, log=log)
    return printed.decode(errors="replace")


async def end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    try:
        async with asyncio.timeout(STOP_WITHIN_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()  # killed: it ends at once


def end_leftovers(layout: Layout) -> list[str]:
    """End what a demo that was killed has left running; returns the parts' names."""
    left: list[tuple[str, psutil.Process]] = []
    for name, (pid, started_at) in layout.memory.processes.items():
        if psutil.pid_exists(pid) and abs(_started_at(pid) - started_at) < 1.0:
            left.append((name, psutil.Process(pid)))
    for _, process in left:
        process.terminate()
    _, alive = psutil.wait_procs([process for _, process in left], timeout=STOP_WITHIN_S)
    for process in alive:
        process.kill()
    layout.memory.processes.clear()
    layout.save()
    return [name for name, _ in left]


def clean_environment() -> dict[str, str]:
    """Ours, without what would make etcd or libpq do something else than they are told."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("ETCD", "PG", "MOORAGE_"))}


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error that tells something."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def tail(log: Path) -> list[str]:
    """The last lines of a log."""
    try:
        data = log.read_bytes()[-TAIL_BYTES:]
    except OSError:
        return []
    return data.decode(errors="replace").splitlines()[-TAIL_LINES:]


def _started_at(pid: int) -> float:
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return 0.0
