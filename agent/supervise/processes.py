"""Who is who in /proc: identities that survive pid reuse, and processes left over below a directory.

Leftovers matter because the backends of a killed postmaster may live on: one that is busy notices its parent's death
only when it next waits, and until then goes on writing. They are recognised by program and working directory (an
engine's processes work in its data directory, our tools in the member's directory), since each backend has a session
of its own and an orphan has no parent to be found by.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.supervise.base import ProcessId
from core.log import EventLog

log = EventLog("agent.supervise")
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_DELETED = " (deleted)"  # the kernel's mark on a link to something that has been removed or replaced
_DEAD_STATES = "ZXx"
LOOK_AGAIN_S = 0.005  # a killed process is gone after about a millisecond


def identify(pid: int) -> ProcessId | None:
    """The living process with this pid; None when there is none or it is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name in parentheses may hold anything
    if fields[0] in _DEAD_STATES:
        return None
    return ProcessId(pid, int(fields[19]), _BOOT.read_text().strip())


def send(process: ProcessId, number: signal.Signals) -> None:
    """Through a pidfd whose identity is checked after opening, so that a reused pid is never hit."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(process.pid)
        try:
            if identify(process.pid) == process:
                signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)


def program(pid: int) -> str:
    """File name of the program a process runs; empty when it cannot be told."""
    return os.path.basename(_link(pid, "exe"))


def working_directory(pid: int) -> str:
    """Empty when it cannot be told."""
    return _link(pid, "cwd")


def _link(pid: int, name: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/{name}").removesuffix(_DELETED)
    except OSError:
        return ""


def running_below(directory: Path, programs: frozenset[str]) -> list[ProcessId]:
    """Living processes of these programs that work in the directory or below it."""
    top = str(directory)
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        where = working_directory(int(entry))
        if where != top and not where.startswith(f"{top}/"):
            continue
        if program(int(entry)) in programs and (process := identify(int(entry))) is not None:
            found.append(process)
    return found


@dataclass(frozen=True, slots=True)
class Killing:
    """What became of an attempt to kill: how many there were, and which the kernel has not let go yet.

    Those have SIGKILL pending and wait in the kernel, for a disk that does not answer. None of them ever runs another
    instruction of its program: it can acknowledge nothing any more, but its files are not free yet."""

    found: int
    left: tuple[ProcessId, ...]


async def kill_below(
    directory: Path, programs: frozenset[str], now: Callable[[], float], *, within_s: float
) -> Killing:
    """SIGKILL them until none is left, or for `within_s`."""
    seen: set[ProcessId] = set()
    give_up_at = now() + within_s
    while alive := running_below(directory, programs):
        seen.update(alive)
        for process in alive:
            send(process, signal.SIGKILL)
        if now() > give_up_at:
            log.error("processes_not_killable", directory=str(directory), pids=[process.pid for process in alive])
            return Killing(len(seen), tuple(alive))
        await asyncio.sleep(LOOK_AGAIN_S)
    return Killing(len(seen), ())
