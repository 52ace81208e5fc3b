"""The proxy beside the agent: started once, adopted afterwards, told its routes over a Unix socket.

The proxy outlives the agent, so that an agent restart cuts no client session; its routes end by themselves when nobody
renews them. A table is sent whenever it differs from the one in force.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

from agent.config import AgentConfig
from core.backoff import Backoff
from core.errors import EngineError, MoorageError, UnavailableError, words
from core.log import EventLog
from core.routes import MAX_LINE_BYTES, ProxyReport, Route, RouteTable, decode_report, encode

log = EventLog("agent.proxies")
ANSWER_TIMEOUT_S = 3.0
START_TIMEOUT_S = 10.0
IDLE_PUSH_S = 5.0  # a table at least this often: a dead proxy is noticed, and its counters stay fresh


class ProxyProcess:
    """The proxy's process on this node."""

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._dir = config.proxy_dir
        self.socket = self._dir / "control.sock"
        self._pid_file = self._dir / "proxy.pid"
        self._child: subprocess.Popen[bytes] | None = None  # ours to reap when it ends

    def pid(self) -> int | None:
        """Of the running proxy, if the pid file names one that truly is ours."""
        try:
            pid = int(self._pid_file.read_text().split()[0])
            process = psutil.Process(pid)
            ours = str(self.socket) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE
        except (OSError, ValueError, IndexError, psutil.Error):
            return None
        return pid if ours else None

    async def ensure(self) -> None:
        """Start the proxy unless it runs already. EngineError when it does not come up."""
        if self._child is not None and self._child.poll() is not None:
            log.warning("proxy_ended", exit_status=self._child.returncode)
            self._child = None
        if self.pid() is not None:
            return
        self._dir.mkdir(parents=True, exist_ok=True)
        self.socket.unlink(missing_ok=True)
        command = shutil.which(self._config.proxy_command, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        if command is None:
            raise EngineError(f"{self._config.proxy_command} not found", hint="Install moorage-agent's proxy.")
        identity = self._config.identity_dir
        arguments = [
            *(command, "--address", self._config.address, "--control", str(self.socket)),
            *("--cert", str(identity / "node.crt"), "--key", str(identity / "node.key")),
            *("--pid-file", str(self._pid_file), "--log-level", self._config.log_level, "--log-format", "json"),
        ]
        with (self._dir / "proxy.log").open("ab") as output:
            # A session of its own: signals to the agent's group and the agent's death do not reach it.
            child = subprocess.Popen(  # noqa: ASYNC220 - returns at once, and the child is not waited for
                arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd="/"
            )
        self._child = child
        await self._await_socket(child)
        log.info("proxy_started", pid=child.pid)

    async def _await_socket(self, child: subprocess.Popen[bytes]) -> None:
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while not (self.socket.exists() and self.pid() == child.pid):
                    if child.poll() is not None:
                        tail = (self._dir / "proxy.log").read_bytes()[-500:].decode(errors="replace")
                        raise EngineError(f"proxy ended with {child.returncode}: {tail}", object="proxy")
                    await asyncio.sleep(0.02)
        except TimeoutError as error:
            raise EngineError(f"proxy did not open {self.socket} within {START_TIMEOUT_S} s", object="proxy") from error

    async def halt(self, within_s: float) -> None:
        """End the proxy in an orderly way, by force when it does not within the time."""
        pid = self.pid()
        if pid is None:
            return
        process = psutil.Process(pid)
        process.send_signal(signal.SIGTERM)
        gone = await asyncio.to_thread(_wait_gone, process, within_s)
        if not gone:
            process.kill()


def _wait_gone(process: psutil.Process, within_s: float) -> bool:
    try:
        process.wait(timeout=within_s)
    except psutil.TimeoutExpired:
        return False
    return True


class RoutePusher:
    """Keeps the proxy's table equal to what `routes()` says (None = as it is); `changed()` makes it look at once."""

    def __init__(self, process: ProxyProcess, routes: Callable[[], tuple[Route, ...] | None]) -> None:
        self._process = process
        self._routes = routes
        self._changed = asyncio.Event()
        self._seq = 0
        self._in_force: tuple[Route, ...] | None = None
        self.report: ProxyReport | None = None

    def changed(self) -> None:
        self._changed.set()

    async def run(self) -> None:
        backoff = Backoff(base_s=0.2, cap_s=2.0, uniform=lambda _low, high: high)
        while True:
            try:
                await self._process.ensure()
                await self._serve(backoff)
            except (OSError, ValueError, MoorageError, asyncio.IncompleteReadError) as error:
                log.warning("proxy_unreachable", error=words(error))
            await asyncio.sleep(backoff.next_delay())

    async def _serve(self, backoff: Backoff) -> None:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(str(self._process.socket), limit=MAX_LINE_BYTES)
        self._in_force = None
        try:
            while True:
                self._changed.clear()
                await self._push(reader, writer)
                backoff.reset()
                await self._idle(reader)
        finally:
            writer.close()

    async def _idle(self, reader: asyncio.StreamReader) -> None:
        """Until something changed, at most IDLE_PUSH_S. UnavailableError at once when the proxy goes away."""
        async with asyncio.TaskGroup() as group:
            gone = group.create_task(reader.read(1), name="proxy gone")
            changed = group.create_task(self._changed.wait(), name="routes changed")
            done, pending = await asyncio.wait(
                {gone, changed}, timeout=IDLE_PUSH_S, return_when=asyncio.FIRST_COMPLETED
            )
            for task in pending:
                task.cancel()
        if gone in done:
            raise UnavailableError("the proxy has gone", object="proxy")
        if not done:
            self._in_force = None

    async def _push(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        routes = self._routes()
        if routes is None or routes == self._in_force:
            return
        self._seq += 1
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                writer.write(encode(RouteTable(seq=self._seq, routes=routes)))
                await writer.drain()
                while True:
                    line = await reader.readline()
                    if not line:
                        raise UnavailableError("the proxy closed its control socket", object="proxy")
                    report = decode_report(line)
                    if report.seq >= self._seq:
                        break
        except TimeoutError as error:
            raise UnavailableError(f"no answer within {ANSWER_TIMEOUT_S} s", object="proxy") from error
        self._in_force = routes
        self.report = report
