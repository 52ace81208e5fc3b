"""Running an engine's own programs: as the engine's user, in a session of their own, never longer than allowed.

A tool that outlives its deadline, or whose caller is cancelled, is killed with everything it started. One whose agent
was killed goes on for a while: it works in the member's directory, where the next agent finds and kills it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.engines.troubles import Diagnosis, Trouble, TroubleError
from agent.supervise.base import OsUser
from core.errors import EngineError, TimedOutError

TAIL_LINES = 12  # of what a tool printed, for the error
KILL_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What a program printed and how it ended."""

    status: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Toolbox:
    """One engine installation's programs, run for one member."""

    bin_dir: Path
    cwd: Path
    run_as: OsUser | None
    subject: str  # the member, for errors

    def environment(self) -> dict[str, str]:
        """Nothing of the agent's own: no PG* variable, no locale, no home directory with certificates."""
        system = {"PATH": f"{self.bin_dir}:/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": str(self.cwd), "TZ": "UTC"}
        # When memory is short a backend goes, not the postmaster, which has the agent's own protection.
        return system | {"PG_OOM_ADJUST_FILE": "/proc/self/oom_score_adj", "PG_OOM_ADJUST_VALUE": "0"}

    async def run(self, name: str, *arguments: str, within_s: float, hint: str = "") -> Output:
        """EngineError with the tail of what it printed when it fails, TimedOutError when it takes too long."""
        output = await self.attempt(name, *arguments, within_s=within_s)
        if output.status != 0:
            printed = tail(output.stderr or output.stdout)
            raise EngineError(
                f"{name} failed with status {output.status}: {printed}", object=self.subject, hint=_hint(printed, hint)
            )
        return output

    async def attempt(self, name: str, *arguments: str, within_s: float) -> Output:
        """The same, but how it ended is for the caller to judge."""
        process = await self._start(name, arguments)
        try:
            async with asyncio.timeout(within_s):
                stdout, stderr = await process.communicate()
        except TimeoutError as error:
            raise TimedOutError(f"{name} did not end within {within_s:.0f} s", object=self.subject) from error
        finally:
            if process.returncode is None:
                await _kill(process)
        assert process.returncode is not None
        return Output(
            status=process.returncode, stdout=stdout.decode(errors="replace"), stderr=stderr.decode(errors="replace")
        )

    async def _start(self, name: str, arguments: Sequence[str]) -> asyncio.subprocess.Process:
        user = self.run_as
        try:
            return await asyncio.create_subprocess_exec(
                self.bin_dir / name,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd=self.cwd,
                env=self.environment(),
                start_new_session=True,
                user=user.uid if user else None,
                group=user.gid if user else None,
                extra_groups=user.groups if user else None,
                umask=0o077,
            )
        except OSError as error:
            if not (self.bin_dir / name).exists():
                diagnosis = Diagnosis(trouble=Trouble.PROGRAMS_MISSING, evidence=str(self.bin_dir / name))
                raise TroubleError(diagnosis, object=self.subject) from error
            raise EngineError(
                f"cannot run {self.bin_dir / name}: {error}", object=self.subject, hint=_hint(str(error), "")
            ) from error


async def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):  # in uninterruptible sleep: the event loop reaps it later
        async with asyncio.timeout(KILL_WITHIN_S):
            await process.wait()


def tail(text: str, lines: int = TAIL_LINES) -> str:
    """The last lines on one line."""
    return " | ".join(line.strip() for line in text.strip().splitlines()[-lines:])


def _hint(printed: str, hint: str) -> str:
    if "Permission denied" in printed and not hint:
        return "The engine's user must be able to enter every directory on the way to the programs and the data."
    if "No space left" in printed:
        return "Free or add disk space."
    return hint
