"""What a supervisor of long-lived processes offers, and how such a process is named.

A pid alone says nothing after a while: the kernel gives it to somebody else. A `ProcessId` is the pid with the start
time the kernel recorded, in the same boot; two are equal only when they are the same process.
"""

from __future__ import annotations

import os
import pwd
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from core.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class OsUser:
    """The unprivileged user that runs engines while the agent is root."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    @staticmethod
    def named(name: str) -> OsUser:
        """UserError when this host has no such user."""
        try:
            entry = pwd.getpwnam(name)
        except KeyError as error:
            raise UserError(
                f"user {name!r} does not exist on this host", object="engine_user", hint="Create it or name another."
            ) from error
        groups = tuple(os.getgrouplist(name, entry.pw_gid))
        return OsUser(name=name, uid=entry.pw_uid, gid=entry.pw_gid, groups=groups)


@dataclass(frozen=True, slots=True)
class ProcessId:
    """`started`: clock ticks since boot; `boot`: the kernel's id of the boot."""

    pid: int
    started: int
    boot: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A process to start. Its output is appended to `output`."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    output: Path
    run_as: OsUser | None


class Supervisor(Protocol):
    """Starts processes that outlive the agent."""

    def start(self, launch: Launch) -> ProcessId:
        """At once, without waiting for what the process makes of it. OSError when it cannot be started."""

    def alive(self, process: ProcessId) -> bool:
        """Whether it has not ended. One that has ended and was not reaped yet counts as ended."""

    def send(self, process: ProcessId, number: signal.Signals) -> None:
        """A signal; nothing happens when the process has ended."""

    async def died(self, process: ProcessId) -> None:
        """Return when it has ended, within a millisecond; at once when it has ended before."""
