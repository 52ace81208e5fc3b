"""What a session carries, as its server says: when it is asked, and what is held back meanwhile.

During a switchover the fence is *paused*: who is at rest begins nothing new, what its client sends is held, and the
server is asked while it can still say; then the session is *parked*. After a crash it cannot be asked, so a session
that may have changed something is asked beforehand, when its client has been silent for a moment. One that shares its
server with others (`sharing`) is asked at once: until it is known what it carries, it cannot let the server go.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from core.log import EventLog
from proxy.gate import Gate
from proxy.pools import Parameters, Signature, sent_parameters
from proxy.postgres import refusals
from proxy.postgres.carried import NOTHING, Carried, Inquiry, Step, steps_of
from proxy.postgres.messages import Garbled
from proxy.postgres.requests import Requests
from proxy.postgres.scram import Login
from proxy.server import ServerLink
from proxy.table import Fence

log = EventLog("proxy.session")
INQUIRY_S = 5.0  # a server that does not answer the proxy's question for so long is lost
SETTLED_S = 0.05  # a client is silent so long before its server is asked what its session carries


class Sharer(Protocol):
    """Its part in transaction mode."""

    def carries(self, carried: Carried) -> None: ...


class Asked(Protocol):
    """The session."""

    instance: str
    address: str
    login: Login
    requests: Requests
    fence: Fence | None
    holding: bool
    bytes_in: int
    parameters: Parameters

    @property
    def ended(self) -> bool: ...
    @property
    def server(self) -> ServerLink | None: ...
    @property
    def sharing(self) -> Sharer | None: ...
    def cut(self) -> None: ...
    def go_on(self) -> None: ...
    def close(self) -> None: ...
    def end_with(self, farewell: bytes) -> None: ...
    def part_from_server(self, link: ServerLink, farewell: refusals.Farewell) -> None: ...


class Asking:
    """One a session."""

    __slots__ = ("_gate", "_now", "_session", "_settling", "_signatures", "_task", "carried", "parked")

    def __init__(self, session: Asked, gate: Gate) -> None:
        self.carried = NOTHING
        self.parked = False  # paused, and all is known that is needed to go elsewhere
        self._session = session
        self._signatures: dict[bool, Signature] = {}  # where the route is strict, and where not
        self._gate = gate
        self._now = gate.clock.now
        self._task: asyncio.Task[None] | None = None
        self._settling: asyncio.TimerHandle | None = None

    @property
    def signature(self) -> Signature:
        """Of the connection that the session wants. Only what it shares carries settings when it gets it."""
        session = self._session
        strict = session.fence is not None and session.fence.strict
        found = self._signatures.get(strict)
        if found is None:
            parameters = sent_parameters(session.parameters, strict=strict)
            settings = self.carried.settings if session.sharing is not None else ()
            found = self._gate.pools.signature(parameters, session.login.verifier, settings)
            self._signatures[strict] = found
        return found

    def steps(self) -> list[Step]:
        """By which a new server comes to carry what the former did."""
        requests = self._session.requests
        if self._session.sharing is not None:
            return steps_of(self.carried, {}, b"", ())
        return steps_of(self.carried, requests.prepared, requests.unnamed, requests.unconfirmed)

    def look(self) -> None:
        """The fence is paused, or is no longer; or there is a new one."""
        session = self._session
        if session.fence is not None and session.fence.paused:
            self.rested()
        elif self._task is None:
            session.holding = self.parked = False
            if session.server is not None:
                session.go_on()

    def rested(self) -> None:
        """The session may be at rest, and either its fence is paused or something may have changed."""
        session = self._session
        if not self._may_be_asked() or self._task is not None:
            return
        if session.fence is not None and session.fence.paused:
            session.holding = True
            if session.requests.touched:
                self._begin()
            else:
                self.parked = True
        elif session.sharing is not None and session.requests.changed:
            session.holding = True
            self._begin()
        else:
            self.settle()

    def settle(self) -> None:
        """Ask when the client has been silent for a moment."""
        session = self._session
        if (session.requests.changed or (session.sharing and session.requests.touched)) and self._settling is None:
            self._settling = asyncio.get_running_loop().call_later(SETTLED_S, self._settled, session.bytes_in)

    def _settled(self, bytes_in: int) -> None:
        self._settling = None
        if self._session.bytes_in == bytes_in and self._may_be_asked() and self._task is None:
            self._begin()
        else:
            self.rested()

    def _may_be_asked(self) -> bool:
        """Whole messages in both directions, none of which is owed an answer."""
        link = self._session.server
        return link is not None and self._session.requests.resting and link.quiet

    def _begin(self) -> None:
        session = self._session
        self._task = self._gate.tasks.spawn(self._ask(), f"inquiry {session.address}", failed=session.close)

    async def _ask(self) -> None:
        """Ask the server what the session carries; hold the client meanwhile."""
        session = self._session
        link, asked = session.server, False
        try:
            async with self._gate.inquiries(session.instance):
                if link is None or session.server is not link or not self._may_be_asked():
                    return
                if session.fence is not None and self._now() >= session.fence.until_s:
                    session.cut()
                    return
                session.holding = asked = True
                inquiry = Inquiry(session.login.user, session.requests.names, texts=session.requests.doubtful)
                async with asyncio.timeout(INQUIRY_S):
                    await link.ask(inquiry)
                if session.server is link:
                    self._take_answer(link, inquiry)
        except TimeoutError:
            log.warning("inquiry_timed_out", client=session.address, instance=session.instance)
            if link is not None and session.server is link:
                session.part_from_server(link, refusals.server_lost)
        except OSError:
            pass  # the link is lost, and the session knows
        except Garbled as error:
            session.end_with(refusals.server_lost(f"its server was not understood: {error}"))
        finally:
            if self._task is asyncio.current_task():
                self._task = None
                if not session.ended and link is session.server:
                    self._asked(asked=asked)

    def _asked(self, *, asked: bool) -> None:
        """An answer that does not come a second time either would keep a switchover waiting for nothing."""
        session = self._session
        if session.fence is not None and session.fence.paused:
            self.parked = session.holding and asked
        else:
            session.holding = False
            session.go_on()

    def _take_answer(self, link: ServerLink, inquiry: Inquiry) -> None:
        session = self._session
        if inquiry.failed:
            log.info("inquiry_failed", client=session.address, instance=session.instance, error=inquiry.failed)
            return
        self.carried = inquiry.answer()
        if session.sharing is None:
            _ = session.requests.confirm(inquiry.statements())
        else:
            session.requests.known()
            self._signatures.clear()
            session.sharing.carries(self.carried)
            link.signature = self.signature

    def stop(self) -> None:
        """Its server is gone: an answer would come from nowhere."""
        self.parked = False
        task, self._task = self._task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    def end(self) -> None:
        """The session has ended."""
        self.stop()
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None
