"""The engine's processes: started, found again, watched, stopped and killed.

The postmaster is started directly, not through pg_ctl, so that its pid is ours from the first moment; the next agent
finds it by the identity in the label or, failing that, by postmaster.pid checked against program and directory.

Invariant: the engine counts as ended only when none of its processes is left. A postmaster killed with SIGKILL leaves
backends that go on writing until they next look up, and a new postmaster refuses to start beside them; so whoever
notices the death (observe, wait_died, start, fence) kills them before anything is concluded from it.

A process that waits for a disk which does not answer cannot be killed, but with SIGKILL pending it will never run
again: it is *doomed*. A fence does not wait for it, since it acknowledges nothing any more; a start does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

from agent.engines.files import make_owned_directory
from agent.engines.postgres import faults
from agent.engines.postgres.member import Member
from agent.engines.troubles import Diagnosis, Trouble, TroubleError
from agent.engines.waiting import until
from agent.supervise import processes
from agent.supervise.base import Launch, ProcessId, Supervisor
from core.errors import EngineError, TimedOutError
from core.log import EventLog

log = EventLog("agent.engine")
# Everything that may work in a member's directory on the agent's behalf.
PROGRAMS = frozenset(
    {"postgres", "initdb", "pg_basebackup", "pg_rewind", "pg_controldata", "pg_waldump", "pg_ctl", "pg_resetwal"}
)
POLL_S = 0.005  # one small file is read
STOP_FAST_S = 30.0  # the shutdown checkpoint, and standbys that must hear of it
STOP_IMMEDIATE_S = 5.0
LINGER_S = 1.0  # the log collector ends by itself when the last writer has
SWEEP_WITHIN_S = 2.0  # below what the keeper allows for a look
KILL_WITHIN_S = 0.3  # while the disk is known not to answer: what can be killed is gone after milliseconds
LOG_TAIL_BYTES = 32768
_FIRST_WORDS = "starting PostgreSQL"
EARLY_LOG_BYTES_MAX = 1 << 20  # what is printed before the engine's own log works; a few lines a start


class StartPreventedError(EngineError):
    """The start was called off by a stop or a fence."""


class Postmaster:
    """The main process of one member's engine, and all it brought forth."""

    def __init__(self, member: Member, supervisor: Supervisor, disk_silent: Callable[[], bool]) -> None:
        self._member = member
        self._supervisor = supervisor
        self._disk_silent = disk_silent
        self.doomed: frozenset[ProcessId] = frozenset()
        self._ready: ProcessId | None = None
        self._process: ProcessId | None = None
        self._swept = False  # no leftover can exist: nothing of ours has run since the last sweep
        # Held while killing: a sweep that began before a start must not meet the new postmaster.
        self._sweeping = asyncio.Lock()
        self.halts = 0  # grows with each stop or fence, which calls off a start that is under way

    # --- who it is --------------------------------------------------------------------------------------------------

    def find(self) -> ProcessId | None:
        """The living postmaster, whoever started it."""
        if self._process is None:
            self._process = self._adoptable()
            if self._process is not None:
                self._swept = False
                log.info("engine_adopted", member=self._member.subject, pid=self._process.pid)
        elif not self._supervisor.alive(self._process):
            self._process = None
        return None if self._process in self.doomed else self._process

    def _adoptable(self) -> ProcessId | None:
        label = self._member.label
        if label.pid and self._supervisor.alive(label.process):
            return label.process
        lines = self._pid_file()
        if not lines or not lines[0].isdecimal():
            return None
        process = processes.identify(int(lines[0]))
        if process is None or not self._is_ours(process.pid):
            return None
        return process

    def _is_ours(self, pid: int) -> bool:
        return processes.program(pid) == "postgres" and processes.working_directory(pid) == str(self._member.paths.data)

    def _pid_file(self) -> list[str]:
        try:
            return (self._member.paths.data / "postmaster.pid").read_text(errors="replace").splitlines()
        except OSError:
            return []

    @property
    def status(self) -> str:
        """What the postmaster last wrote of itself: starting, ready, standby, stopping; empty when it says nothing."""
        lines, process = self._pid_file(), self._process
        mine = process is not None and len(lines) > 7 and lines[0] == str(process.pid)  # else left by an earlier one
        return lines[7].strip() if mine else ""

    # --- starting ---------------------------------------------------------------------------------------------------

    async def start(self, *, within_s: float) -> bool:
        """Start it and wait until it lets clients in: True; False when it still recovers after `within_s`. EngineError
        with the end of its log when it ends meanwhile."""
        halts = self.halts
        member = self._member
        if self.find() is not None:
            raise EngineError("the engine runs already", object=member.subject)
        await self.sweep()
        if self.doomed:
            pids = ", ".join(str(process.pid) for process in self.doomed)
            diagnosis = Diagnosis(trouble=Trouble.LEFTOVER_PROCESS, evidence=f"pid {pids}, which cannot be killed")
            raise TroubleError(diagnosis, object=member.subject)
        self._remove_stale_lock()
        make_owned_directory(member.paths.sockets, member.setup.run_as)
        make_owned_directory(member.paths.logs, member.setup.run_as)
        member.relabel(asked_to_end=False)
        if self.halts != halts:
            raise StartPreventedError("the start was called off", object=member.subject)
        # No await between the check and the start: a fence either calls it off or sees the process.
        process = self._launch()
        member.relabel(pid=process.pid, started=process.started, boot=process.boot)
        return await self._await_ready(process, halts, within_s)

    def _launch(self) -> ProcessId:
        member, tools = self._member, self._member.tools
        program = tools.bin_dir / "postgres"
        launch = Launch(
            argv=(str(program), "-D", str(member.paths.data)),
            env=tools.environment(),
            cwd=member.paths.data,
            output=member.paths.log,
            run_as=member.setup.run_as,
        )
        self._log_from, self._early_from = self._log_end(), 0
        with contextlib.suppress(OSError):
            if launch.output.stat().st_size > EARLY_LOG_BYTES_MAX:
                os.truncate(launch.output, 0)
            self._early_from = launch.output.stat().st_size
        try:
            self._process = self._supervisor.start(launch)
        except OSError as error:
            raise EngineError(f"cannot start {program}: {error}", object=member.subject) from error
        self._swept = False
        log.info("engine_started", member=member.subject, pid=self._process.pid)
        return self._process

    def _remove_stale_lock(self) -> None:
        """PostgreSQL refuses to start when the pid in an old lock file belongs to any process of its user by now. No
        process of this data directory is left at this point, so such a file says nothing."""
        paths = self._member.paths
        sockets = sorted(paths.sockets.glob(".s.PGSQL.*.lock")) if paths.sockets.is_dir() else []
        for lock in (paths.data / "postmaster.pid", *sockets):
            try:
                pid = lock.read_text(errors="replace").split("\n", 1)[0].strip()
            except OSError:
                continue
            if pid.isdecimal() and processes.identify(int(pid)) is not None:
                lock.unlink(missing_ok=True)

    async def _await_ready(self, process: ProcessId, halts: int, within_s: float) -> bool:
        try:
            async with asyncio.timeout(within_s):
                while self._supervisor.alive(process):
                    if self.status == "ready":
                        self.note_ready(process)
                        return True
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            log.warning("engine_still_starting", member=self._member.subject, after_s=within_s)
            return False
        await self._let_linger(LINGER_S)
        printed = self.printed()
        await self.sweep()
        subject = self._member.subject
        if self.halts != halts:
            raise StartPreventedError("the start was called off", object=subject)
        raise TroubleError(faults.ended(printed), object=subject)

    def note_ready(self, process: ProcessId) -> None:
        """It has let clients in."""
        self._ready = process

    def was_ready(self, process: ProcessId) -> bool:
        """Whether it has ever let clients in, as far as this agent knows."""
        return self._ready == process

    # --- its log ----------------------------------------------------------------------------------------------------

    _log_from: tuple[Path, int] | None = None  # where its log ended when it was started; None = started by another
    _early_from = 0

    def _log_end(self) -> tuple[Path, int]:
        newest = self._newest_log()
        return (newest, newest.stat().st_size) if newest else (self._member.paths.logs, 0)

    def _newest_log(self) -> Path | None:
        logs = self._member.paths.logs
        files = list(logs.glob("engine-*.log")) if logs.is_dir() else []
        return max(files, key=lambda path: path.stat().st_mtime, default=None)

    def printed(self) -> str:
        """What the engine has logged since its last start, the end of it."""
        newest, start = self._newest_log(), self._log_from
        if start is None:
            text = _read_end(newest, 0) if newest is not None else ""
            return text[max(0, text.rfind(_FIRST_WORDS)) :]
        text = _read_end(newest, start[1] if start[0] == newest else 0) if newest is not None else ""
        return f"{_read_end(self._member.paths.log, self._early_from)}\n{text}"

    def lacks_log(self) -> bool:
        """Whether a replica asked its primary for log that is no longer there, as the last it had to say of it."""
        return faults.lacks_log(self.printed())

    # --- ending -----------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Fast shutdown; immediate when that takes too long; then SIGKILL. No process is left when it returns."""
        self.halts += 1
        process = self.find()
        if process is not None:
            self._member.relabel(asked_to_end=True)
            for number, within_s in ((signal.SIGINT, STOP_FAST_S), (signal.SIGQUIT, STOP_IMMEDIATE_S)):
                self._supervisor.send(process, number)
                if await self._ended_within(process, within_s):
                    break
                log.warning("engine_not_stopped", member=self._member.subject, signal=number.name, after_s=within_s)
            await self._let_linger(LINGER_S)
        await self.sweep(force=True)
        if self.doomed:
            diagnosis = Diagnosis(trouble=Trouble.DISK_SILENT, evidence="its processes cannot be ended")
            raise TroubleError(diagnosis, object=self._member.subject)

    async def fence(self, within_s: float) -> None:
        """Immediate shutdown; after half of the time SIGKILL to everything. Depends on no disk: what waits for one is
        left behind doomed."""
        self.halts += 1
        process = self.find()
        if process is not None and not self._disk_silent():  # else it could not obey
            self._supervisor.send(process, signal.SIGQUIT)
            if await self._ended_within(process, within_s / 2):
                await self._let_linger(within_s / 4)
        await self.sweep(force=True, within_s=KILL_WITHIN_S if self._disk_silent() else SWEEP_WITHIN_S)
        if self.doomed or self._disk_silent():
            return  # writing the label would wait for that disk
        with contextlib.suppress(OSError):
            self._member.relabel(durable=False, asked_to_end=True)

    async def _ended_within(self, process: ProcessId, within_s: float) -> bool:
        try:
            async with asyncio.timeout(within_s):
                await self._supervisor.died(process)
        except TimeoutError:
            return False
        return True

    async def _let_linger(self, within_s: float) -> None:
        async def all_gone() -> bool:
            return not processes.running_below(self._member.paths.data, PROGRAMS)

        with contextlib.suppress(TimedOutError):
            await until(all_gone, within_s=within_s, what="leftovers did not end", subject=self._member.subject)

    async def sweep(self, *, force: bool = False, within_s: float = SWEEP_WITHIN_S) -> None:
        """Kill what is left of an engine that has ended, and of tools of an agent before us, unless nothing can be
        left. With `force` the living postmaster as well."""
        async with self._sweeping:
            if self.doomed:
                self.doomed = frozenset(process for process in self.doomed if self._supervisor.alive(process))
                if self.doomed and not force:
                    return
            if not force and (self._swept or self.find() is not None):
                return
            now = self._member.setup.clock.now
            killing = await processes.kill_below(self._member.paths.root, PROGRAMS, now, within_s=within_s)
            if killing.found:
                log.warning("engine_leftovers_killed", member=self._member.subject, processes=killing.found)
            self.doomed = frozenset(killing.left)
            if not self.doomed:
                self._process = None
            self._swept = not self.doomed

    async def died(self) -> None:
        """Return when the postmaster has ended and no process of the engine is left."""
        process = self.find()
        if process is not None:
            await self._supervisor.died(process)
            log.info("engine_ended", member=self._member.subject, pid=process.pid)
        await self.sweep()

    def reload(self) -> None:
        """Let it read its configuration again."""
        process = self.find()
        if process is not None:
            self._supervisor.send(process, signal.SIGHUP)


def _read_end(path: Path, offset: int) -> str:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(offset, size - LOG_TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
