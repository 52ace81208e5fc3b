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
from agent.verifiers import Conversation, Desk
from core.backoff import Backoff
from core.errors import EngineError, MoorageError, UnavailableError, words
from core.log import EventLog
from core.routes import (
    MAX_LINE_BYTES,
    Declared,
    ProxyReport,
    Route,
    RouteTable,
    VerifierAsk,
    decode_note,
    decode_report,
    encode,
    encode_question,
)

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
            *("--ca", str(identity / "ca.crt")),
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
            await asyncio.to_thread(_wait_gone, process, within_s)
        if self._child is not None and self._child.poll() is not None:
            self._child = None


def _wait_gone(process: psutil.Process, within_s: float) -> bool:
    try:
        process.wait(timeout=within_s)
    except psutil.TimeoutExpired:
        return False
    return True


class RoutePusher:
    """Keeps the proxy's table equal to what `routes()` says (None = as it is); `changed()` makes it look at once.

    Reports are heard in a task of their own: the proxy may speak at any time, and its end is seen at once.
    """

    def __init__(self, process: ProxyProcess, routes: Callable[[], tuple[Route, ...] | None], desk: Desk) -> None:
        self._process = process
        self._routes = routes
        self._desk = desk
        self._told: Declared | None = None  # over the present connection
        self._changed = asyncio.Event()
        self._seq = 0
        self._in_force: tuple[Route, ...] | None = None
        self._expected: tuple[int, asyncio.Future[ProxyReport]] | None = None  # the report of this `seq`
        self._settling: list[asyncio.Future[ProxyReport]] = []  # who wait for the next report
        self.report: ProxyReport | None = None

    def changed(self) -> None:
        self._changed.set()

    async def settled(self, timeout_s: float) -> ProxyReport:
        """The report by which the proxy acknowledges the routes of this moment. UnavailableError when none comes within
        the time, or when this agent does not know its routes yet."""
        settled: asyncio.Future[ProxyReport] = asyncio.get_running_loop().create_future()
        self._settling.append(settled)
        self._changed.set()
        try:
            async with asyncio.timeout(timeout_s):
                return await settled
        except TimeoutError as error:
            raise UnavailableError(f"the proxy did not take its routes within {timeout_s} s", object="proxy") from error
        finally:
            if settled in self._settling:
                self._settling.remove(settled)

    async def run(self) -> None:
        backoff = Backoff(base_s=0.2, cap_s=2.0, uniform=lambda _low, high: high)
        while True:
            try:
                await self._process.ensure()
                await self._serve(backoff)
            except* (OSError, ValueError, MoorageError) as group:
                log.warning("proxy_unreachable", error="; ".join(words(error) for error in _leaves(group)))
            await asyncio.sleep(backoff.next_delay())

    async def _serve(self, backoff: Backoff) -> None:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(str(self._process.socket), limit=MAX_LINE_BYTES)
        self._in_force = self._told = None
        try:
            async with asyncio.TaskGroup() as group:
                conversation = self._desk.conversation(group, lambda answer: writer.write(encode(answer)))
                group.create_task(self._hear(reader, conversation), name="proxy reports")
                while True:
                    self._changed.clear()
                    await self._push(writer)
                    backoff.reset()
                    await self._idle()
        finally:
            self._expected = None
            writer.close()

    async def _hear(self, reader: asyncio.StreamReader, conversation: Conversation) -> None:
        """Until the proxy goes away, which is an UnavailableError."""
        while line := await reader.readline():
            note = decode_note(line)
            if isinstance(note, VerifierAsk):
                conversation.asked(note)
                continue
            self.report = decode_report(line)
            if self._expected is not None and self.report.seq >= self._expected[0] and not self._expected[1].done():
                self._expected[1].set_result(self.report)
        raise UnavailableError("the proxy has gone", object="proxy")

    async def _idle(self) -> None:
        """Until something changed; after IDLE_PUSH_S the table is sent again."""
        try:
            async with asyncio.timeout(IDLE_PUSH_S):
                await self._changed.wait()
        except TimeoutError:
            self._in_force = None

    async def _push(self, writer: asyncio.StreamWriter) -> None:
        """The table, if it is another one than that in force; to who waits for it the report of the present moment."""
        waiting, self._settling = self._settling, []
        routes = self._routes()
        try:
            if routes is None:
                _tell(waiting, UnavailableError("this agent does not know its routes yet", object="proxy"))
                return
            self._tell_verifiers(writer)
            if routes == self._in_force and not waiting:
                return
            self._seq += 1
            known = routes == self._in_force
            line = encode_question(self._seq) if known else encode(RouteTable(seq=self._seq, routes=routes))
            report = await self._exchange(writer, line)
            self._in_force = routes
            _tell(waiting, report)
        finally:
            # Who is not told now is told over the next connection, if there is one within their time.
            self._settling += [one for one in waiting if not one.done()]

    def _tell_verifiers(self, writer: asyncio.StreamWriter) -> None:
        """Before the routes: who comes by a new route is known then."""
        declared = self._desk.declared()
        if declared != self._told:
            writer.write(encode(declared))
            self._told = declared

    async def _exchange(self, writer: asyncio.StreamWriter, line: bytes) -> ProxyReport:
        answer: asyncio.Future[ProxyReport] = asyncio.get_running_loop().create_future()
        self._expected = (self._seq, answer)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                writer.write(line)
                await writer.drain()
                return await answer
        except TimeoutError as error:
            raise UnavailableError(f"no answer within {ANSWER_TIMEOUT_S} s", object="proxy") from error


def _tell(waiting: list[asyncio.Future[ProxyReport]], outcome: ProxyReport | MoorageError) -> None:
    for one in waiting:
        if not one.done():
            if isinstance(outcome, ProxyReport):
                one.set_result(outcome)
            else:
                one.set_exception(outcome)


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The failures themselves, however deep they lie."""
    return [
        leaf
        for error in group.exceptions
        for leaf in (_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    ]
