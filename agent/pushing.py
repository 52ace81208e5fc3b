"""One proxy process, told its routes over its Unix socket; what it answers is its word that they are in force.

A table is sent whenever it differs from the one in force, and at least every few seconds, so that a dead proxy is
noticed and its counters stay fresh. Reports are heard in a task of their own: the proxy may speak at any time, and its
end is seen at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agent.proxies import ProxyProcess
from agent.verifiers import Conversation, Desk
from core.backoff import Backoff
from core.errors import MoorageError, UnavailableError, words
from core.log import EventLog
from core.routes import (
    MAX_LINE_BYTES,
    Declared,
    Drain,
    ProxyReport,
    Route,
    RouteTable,
    VerifierAsk,
    decode_note,
    decode_report,
    encode,
    encode_question,
)

log = EventLog("agent.pushing")
ANSWER_TIMEOUT_S = 3.0
IDLE_PUSH_S = 5.0
UNOPENED_ASK_S = 0.3  # while ports are not open yet, which a restart waits for


class Pusher:
    """Keeps the process' table equal to what `routes()` says (None = as it is); `changed()` makes it look at once."""

    def __init__(
        self,
        process: ProxyProcess,
        routes: Callable[[], tuple[Route, ...] | None],
        desk: Desk,
        heard: Callable[[], None] = lambda: None,
    ) -> None:
        self.process = process
        self.report: ProxyReport | None = None
        self.drain_s: float | None = None  # to be told
        self._routes = routes
        self._desk = desk
        self._heard = heard
        self._told: tuple[Declared | None, float | None] = (None, None)  # over the present connection
        self._changed = asyncio.Event()
        self._seq = 0
        self._in_force: tuple[Route, ...] | None = None
        self._expected: tuple[int, asyncio.Future[ProxyReport]] | None = None  # the report of this `seq`
        self._settling: list[asyncio.Future[ProxyReport | None]] = []  # who wait for the next report
        self._ask_again = False
        self._sent = False
        self._gone = False

    @property
    def may_have_clients(self) -> bool:
        """One that was just started has none before it is sent a table."""
        return self.process.adopted or self._sent

    def changed(self) -> None:
        self._changed.set()

    def drain(self, within_s: float) -> None:
        """Tell it to leave, over each connection there will be: it takes the first time it is told."""
        if self.drain_s is None:
            self.drain_s = within_s
            self._changed.set()

    async def settled(self) -> ProxyReport | None:
        """The report by which the proxy acknowledges the routes of this moment; None when the process ends instead.
        UnavailableError when this agent does not know its routes yet. To be bounded by the caller."""
        if self._gone:
            return None
        settled: asyncio.Future[ProxyReport | None] = asyncio.get_running_loop().create_future()
        self._settling.append(settled)
        self._changed.set()
        try:
            return await settled
        finally:
            if settled in self._settling:
                self._settling.remove(settled)

    async def run(self) -> None:
        """As long as the process lives. Its socket may be away for a while: it is tried again."""
        backoff = Backoff(base_s=0.1, cap_s=2.0, uniform=lambda _low, high: high)
        try:
            while self.process.pid() is not None:
                try:
                    await self._serve(backoff)
                except* (OSError, ValueError, MoorageError) as group:
                    if self.process.pid() is not None:
                        error = "; ".join(words(error) for error in _leaves(group))
                        log.warning("proxy_unreachable", process=self.process.name, error=error)
                if self.process.pid() is not None:
                    await asyncio.sleep(backoff.next_delay())
        finally:
            self._gone = True
            _tell(self._settling, None)

    async def _serve(self, backoff: Backoff) -> None:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(str(self.process.socket), limit=MAX_LINE_BYTES)
        self._in_force, self._told = None, (None, None)
        try:
            async with asyncio.TaskGroup() as group:
                conversation = self._desk.conversation(group, lambda answer: writer.write(encode(answer)))
                group.create_task(self._hear(reader, conversation), name=f"reports of {self.process.name}")
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
            self._heard()
        raise UnavailableError("the proxy has gone", object="proxy")

    async def _idle(self) -> None:
        """Until something changed; after IDLE_PUSH_S the table is sent again."""
        unopened = self.report is not None and self.report.unopened > 0
        try:
            async with asyncio.timeout(UNOPENED_ASK_S if unopened else IDLE_PUSH_S):
                await self._changed.wait()
        except TimeoutError:
            if unopened:
                self._ask_again = True
            else:
                self._in_force = None

    async def _push(self, writer: asyncio.StreamWriter) -> None:
        """The table, if it is another one than that in force; to who waits for it the report of the present moment."""
        waiting, self._settling = self._settling, []
        routes = self._routes()
        try:
            if routes is None:
                _tell(waiting, UnavailableError("this agent does not know its routes yet", object="proxy"))
                return
            drain_told = self._tell_notes(writer)
            if routes == self._in_force and not waiting and not drain_told and not self._ask_again:
                return
            self._ask_again = False
            self._sent = True
            self._seq += 1
            known = routes == self._in_force
            line = encode_question(self._seq) if known else encode(RouteTable(seq=self._seq, routes=routes))
            report = await self._exchange(writer, line)
            self._in_force = routes
            _tell(waiting, report)
        finally:
            # Who is not told now is told over the next connection, if there is one within their time.
            self._settling += [one for one in waiting if not one.done()]

    def _tell_notes(self, writer: asyncio.StreamWriter) -> bool:
        """Before the routes: who comes by a new route is known then. Whether the process was told to leave."""
        declared, drain_s = self._desk.declared(), self.drain_s
        declared_then, drain_s_then = self._told
        if declared != declared_then:
            writer.write(encode(declared))
        leave = drain_s is not None and drain_s != drain_s_then
        if drain_s is not None and leave:
            writer.write(encode(Drain(within_s=drain_s)))
        self._told = (declared, drain_s)
        return leave

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


def _tell(waiting: list[asyncio.Future[ProxyReport | None]], outcome: ProxyReport | MoorageError | None) -> None:
    for one in waiting:
        if not one.done():
            if isinstance(outcome, MoorageError):
                one.set_exception(outcome)
            else:
                one.set_result(outcome)


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The failures themselves, however deep they lie."""
    return [
        leaf
        for error in group.exceptions
        for leaf in (_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    ]
