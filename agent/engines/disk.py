"""The disk below a member's data: how much room it has, and whether it answers at all.

*Room.* A full disk is met before the engine meets it: it is warned of while there is time, an engine is not started or
promoted on it, and it is looked at again until there is room.

*Answers.* A disk that hangs (a lost storage path, a frozen file system) lets a primary go on talking to its standbys
and clients while no write ever ends. So a few bytes are written and synced in the data directory every few seconds, by
a small child process: a process that waits for such a disk can neither be interrupted nor killed, and in the agent it
would take the agent along. There is never more than one: while it has not come back, its age is what is observed.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.engines.troubles import Diagnosis, Trouble
from agent.supervise.base import OsUser
from core.log import EventLog

log = EventLog("agent.disk")
MIB = 1 << 20
# Two segments of log: one to end recovery with, one for the first writes on a new timeline.
FULL_BELOW_BYTES = 32 * MIB
FILLING_SHARE = 10  # warned of when less than a tenth is free ...
FILLING_BELOW_MIN_BYTES = 4 * FULL_BELOW_BYTES
FILLING_BELOW_MAX_BYTES = 20 << 30  # ... or, on large disks, less than this
WARNING_ENDS_FACTOR = 1.25  # the warning goes only when there is so much more room, lest it comes and goes
WRITER = Path("/usr/bin/dd")
KILLED_WITHIN_S = 0.1  # one that can be killed takes a millisecond
PROBE_FILE = "moorage.probe"


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Of one file system, for an unprivileged user."""

    free: int
    total: int
    where: str = ""
    read_only: bool = False


def room(path: Path) -> Room:
    """OSError when it is not there."""
    told = os.statvfs(path)
    return Room(
        free=told.f_bavail * told.f_frsize,
        total=told.f_blocks * told.f_frsize,
        where=str(path),
        read_only=bool(told.f_flag & os.ST_RDONLY),
    )


def filling_below(total: int) -> int:
    """Free bytes below which a disk is filling."""
    return max(FILLING_BELOW_MIN_BYTES, min(total // FILLING_SHARE, FILLING_BELOW_MAX_BYTES))


def judge_room(seen: Room, *, warned: bool) -> Diagnosis | None:
    """Full, filling, or nothing. `warned`: it was filling when it was looked at last."""
    if seen.read_only:
        return Diagnosis(trouble=Trouble.DISK_READ_ONLY, evidence=seen.where)
    if seen.free < FULL_BELOW_BYTES:
        return Diagnosis(trouble=Trouble.DISK_FULL, evidence=_told(seen))
    below = filling_below(seen.total) * (WARNING_ENDS_FACTOR if warned else 1.0)
    if seen.free < below:
        return Diagnosis(trouble=Trouble.DISK_FILLING, evidence=_told(seen))
    return None


def _told(seen: Room) -> str:
    return f"{coarse_bytes(seen.free)} free of {coarse_bytes(seen.total)} at {seen.where}"


def coarse_bytes(size: int) -> str:
    """For texts that must not change with every byte: the power of two below it."""
    for unit, name in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{1 << ((size // unit).bit_length() - 1)} {name}"
    return "nothing" if size == 0 else "less than 1 KiB"


class DiskProbe:
    """Writes and syncs a few bytes in a directory, at most once every `every_s`, at most one at a time."""

    def __init__(self, directory: Path, *, run_as: OsUser | None, now: Callable[[], float], every_s: float) -> None:
        self._directory = directory
        self._run_as = run_as
        self._now = now
        self._every_s = every_s
        self._begun_at: float | None = None
        self._last_at: float | None = None
        self._writer: subprocess.Popen[bytes] | None = None
        self._failed = False

    @property
    def silent_s(self) -> float:
        """For how long the disk has owed an answer; 0 while it owes none."""
        self._look()
        return self._now() - self._begun_at if self._begun_at is not None else 0.0

    def _look(self) -> None:
        """Take the answer, if it has come."""
        _reap()
        if self._writer is None:
            return
        status = self._writer.poll()
        if status is None:
            return
        # An error is an answer: a full or broken disk is told of by other means.
        if status != 0:
            self._note_failure(f"dd ended with status {status}")
        self._failed = status != 0
        self._writer, self._begun_at = None, None

    def ask(self) -> None:
        """Begin a write when one is due and none is under way; never waits for it."""
        self._look()
        now = self._now()
        due = self._last_at is None or now - self._last_at >= self._every_s
        if self._begun_at is not None or not due or not self._directory.is_dir():
            return
        self._last_at = self._begun_at = now
        try:
            self._writer = self._begin()
        except OSError as error:
            self._begun_at = None
            self._note_failure(str(error))

    def _begin(self) -> subprocess.Popen[bytes]:
        user = self._run_as
        target = self._directory / PROBE_FILE
        return subprocess.Popen(
            (str(WRITER), "if=/dev/zero", f"of={target}", "bs=512", "count=1", "conv=notrunc,fsync", "status=none"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
            user=user.uid if user else None,
            group=user.gid if user else None,
            extra_groups=() if user else None,
            umask=0o077,
        )

    def _note_failure(self, why: str) -> None:
        if not self._failed:
            log.warning("disk_probe_failed", directory=str(self._directory), why=why)
        self._failed = True

    def close(self) -> None:
        """Let go of a write under way; one that hangs ends when its disk answers."""
        if self._writer is not None and self._writer.poll() is None:
            self._writer.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._writer.wait(timeout=KILLED_WITHIN_S)
            _let_go.append(self._writer)
        self._writer, self._begun_at, self._last_at = None, None, None


# Writers that were given up and have not ended yet; they must be reaped all the same.
_let_go: list[subprocess.Popen[bytes]] = []


def _reap() -> None:
    _let_go[:] = [writer for writer in _let_go if writer.poll() is None]
