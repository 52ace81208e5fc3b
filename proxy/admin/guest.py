"""The connection of a client of the proxy's own database.

It has shown who it is as everybody does; here it is looked up whether it may ask. Answers go out in pieces, no more
than the client takes, and between two of them everybody else has its turn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator

from core.log import EventLog
from proxy.admin.answers import Page
from proxy.admin.conversation import Conversation
from proxy.admin.facts import ClientFacts, ServerFacts, Shown, Standing
from proxy.admin.gathering import ends_of, gather, number_of
from proxy.admin.pages import SPEAKS_AS, show
from proxy.gate import Gate
from proxy.postgres import refusals
from proxy.postgres.authentication import AUTHENTICATION_OK
from proxy.postgres.messages import READY_IDLE, Garbled, backend_key, parameter_status
from proxy.postgres.startup import Startup
from proxy.sockets import close_soon, part_with, read_on
from proxy.tls import TlsTransport

log = EventLog("proxy.admin")
GUESTS_MAX = 32  # of all instances: each may ask for long answers
IDLE_S = 3600.0  # who asks nothing for so long is ended
_PARAMETERS = {
    "server_version": f"{SPEAKS_AS}/moorage",
    "server_encoding": "UTF8",
    "client_encoding": "UTF8",
    "DateStyle": "ISO, MDY",
    "TimeZone": "UTC",
    "integer_datetimes": "on",
    "standard_conforming_strings": "on",
    "is_superuser": "off",
    "default_transaction_read_only": "on",
    "in_hot_standby": "off",
}


class Observer(asyncio.Protocol):
    """Takes over the transport of a `Reception`, once the password was right."""

    def __init__(self, gate: Gate, transport: asyncio.Transport, startup: Startup, *, instance: str) -> None:
        self.instance = instance
        self.user = startup.user
        self.database = startup.database
        self._application = startup.parameters.get("application_name", "")
        self.transport: asyncio.Transport | None = transport
        self._began_at = self._asked_at = gate.clock.now()
        self.bytes_in = 0
        self.bytes_out = 0
        self._gate = gate
        self._conversation = Conversation(self._answer)
        self._unread = deque[bytes]()
        self._reply: Iterator[bytes] | None = None  # pieces that were not sent yet
        self._busy = False  # there is something to answer
        self._full = False  # the client does not keep up
        self._step: asyncio.Handle | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._linger: asyncio.TimerHandle | None = None
        self._ended = False

    def begin(self, early: bytes) -> None:
        """Let it in, or say no. `early`: what it has sent behind its login."""
        gate = self._gate
        route = gate.table.route(self.instance)
        if route is None or self.user not in route.observers:
            hint = "Name the user in proxy.observers of the instance's document, or give it the role pg_monitor."
            message = f"user {self.user} may not ask the proxy's own database"
            self._refuse(refusals.error("42501", message, hint), message)
            return
        if sum(isinstance(guest, Observer) for guest in gate.guests) > GUESTS_MAX:
            self._refuse(refusals.error("53300", f"more than {GUESTS_MAX} observers", "End some of them."), "observers")
            return
        log.info("observer_connected", client=self._address(), instance=self.instance, user=self.user)
        parameters = b"".join(parameter_status(name, value) for name, value in _PARAMETERS.items())
        self._write(AUTHENTICATION_OK + parameters + backend_key(0, bytes(4)) + READY_IDLE)
        self._rest()
        if early:
            self.data_received(early)

    @property
    def idle(self) -> bool:
        return not self._busy

    @property
    def ended(self) -> bool:
        return self._ended

    # --- as SHOW CLIENTS shows it ---------------------------------------------------------------------------------

    @property
    def shown(self) -> Shown:
        return self

    def settle(self) -> None:
        """It has no meter: who asks about clients is none of them."""

    def standing(self, now: float) -> Standing:
        return Standing(self.database, self.user, "active", "")

    def client_facts(self, now: float, wall: float) -> ClientFacts:
        return ClientFacts(
            number=number_of(self),
            user=self.user,
            database=self.database,
            state="active",
            ends=ends_of(self.transport),
            connected_at=wall - (now - self._began_at),
            asked_at=wall - (now - self._asked_at),
            tls=isinstance(self.transport, TlsTransport),
            application=self._application,
        )

    def server_facts(self, now: float, wall: float) -> ServerFacts | None:
        return None

    # --- answers --------------------------------------------------------------------------------------------------

    def _answer(self, what: str) -> Page | None:
        facts = gather(self._gate, self.instance)
        return show(what, facts) if facts is not None else None

    # --- asyncio.Protocol -----------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        self.bytes_in += len(data)
        self._asked_at = self._gate.clock.now()
        self._unread.append(data)
        if self._busy:
            read_on(self.transport, False)
        else:
            self._busy = True
            if self._idle is not None:
                self._idle.cancel()
            self._go_on()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._ended = True
        for timer in (self._idle, self._linger, self._step):
            if timer is not None:
                timer.cancel()
        self._gate.gone(self)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        if self._busy and self._step is None and not self._ended:
            self._go_on()

    # --- answering ------------------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """The next piece of the answer; the next question when there is none left."""
        self._step = None
        if self._ended:
            return
        try:
            piece = self._next_piece()
        except Garbled as garbled:
            self._refuse(refusals.malformed(str(garbled)), str(garbled))
            return
        if piece:
            self._write(piece)
        if self._conversation.ended:
            self._leave()
        elif self._reply is None and not self._unread:
            self._busy = False
            read_on(self.transport, True)
            self._rest()
        elif not self._full:
            self._step = asyncio.get_running_loop().call_soon(self._go_on)

    def _next_piece(self) -> bytes:
        if self._reply is None and self._unread:
            self._reply = self._conversation.feed(self._unread.popleft())
        piece = next(self._reply, None) if self._reply is not None else None
        if piece is None:
            self._reply = None
        return piece or b""

    def _write(self, data: bytes) -> None:
        if self.transport is not None:
            self.bytes_out += len(data)
            self.transport.write(data)

    def _rest(self) -> None:
        """It is the client's turn, and it has so long for it."""
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(IDLE_S, self._too_idle)

    # --- the end --------------------------------------------------------------------------------------------------

    def shut_down(self) -> None:
        if not self._ended:
            self._write(refusals.SHUTDOWN)
            self._close()

    def _too_idle(self) -> None:
        self._write(refusals.error("57P05", f"terminating connection: nothing was asked for {IDLE_S:.0f} s"))
        self._close()

    def _refuse(self, message: bytes, why: str) -> None:
        self._gate.refuses(client=self._address(), instance=self.instance, why=why, told=message)
        self._write(message)
        self._close()

    def _leave(self) -> None:
        """It has said goodbye."""
        self._ended = True
        if self.transport is not None:
            self._linger = close_soon(self.transport)

    def _close(self) -> None:
        if not self._ended:
            self._ended = True
            if self.transport is not None:
                self._linger = part_with(self.transport)

    def _address(self) -> str:
        peer = self.transport.get_extra_info("peername") if self.transport is not None else None
        return str((peer or ("",))[0])
