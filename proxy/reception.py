"""A client's first seconds: its wish for TLS, a cancel request, or its startup packet and then its password, which make
it a `Session`.

Everything here is bounded: one startup packet of bytes, one wish of each kind, one exchange about the password, and one
deadline for it all, the TLS handshake included.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
from collections.abc import Callable
from typing import cast

from core.errors import UnavailableError
from core.scram import Verifier
from proxy.admin.facts import DATABASES
from proxy.admin.guest import Observer
from proxy.gate import Gate
from proxy.headcount import Seat, bounded, no_room
from proxy.postgres import refusals
from proxy.postgres.authentication import Accepted, ClientAuthentication, Rejected
from proxy.postgres.login import negotiation
from proxy.postgres.scram import Login
from proxy.postgres.startup import Cancel, DirectTls, First, Malformed, Startup, Wish, read_first
from proxy.routing import Refuse, refused
from proxy.session import Session
from proxy.sockets import client_address, part_with
from proxy.tls import TlsTransport
from proxy.verifiers import UnusableError

HIGH_WATER_BYTES = 256 << 10  # towards a client; then its server is not read any more
MAX_UNREAD_BYTES = 64 << 10  # a startup packet, and what may lie behind it
NONCE_BYTES = 18
# Instance, address of who asks, request, what to do when it is done.
Cancelling = Callable[[str, str, Cancel, Callable[[], None]], None]


class Reception(asyncio.Protocol):
    """Holds a new connection until it is known what it wants."""

    def __init__(self, gate: Gate, cancelling: Cancelling, instance: str, *, read_only: bool) -> None:
        self.bytes_in = 0
        self.bytes_out = 0
        self._gate = gate
        self._cancelling = cancelling
        self._instance = instance
        self._read_only = read_only
        self._transport: asyncio.Transport | None = None
        self._address = ""
        self._buffer = bytearray()
        self._wishes: set[Wish] = set()  # heard so far
        self._tls = False
        self._shaking: asyncio.Task[None] | None = None  # the TLS handshake
        self._startup: Startup | None = None  # who it wants to be
        self._authentication: ClientAuthentication | None = None
        self._looking: asyncio.Task[None] | None = None  # for its verifier, later for room
        self._seat: Seat | None = None  # once its password was right
        self._deadline: asyncio.TimerHandle | None = None
        self._linger: asyncio.TimerHandle | None = None
        self._ended = False

    @property
    def idle(self) -> bool:
        return True

    @property
    def ended(self) -> bool:
        return self._ended

    @property
    def shown(self) -> None:
        return None

    # --- asyncio.Protocol -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self._address = client_address(self._transport)
        self._gate.guests.add(self)
        if not self._address:
            self._transport.abort()
        elif len(self._gate.guests) > self._gate.limits.clients_max:
            self._refuse(refusals.TOO_MANY, "too many clients")
        else:
            self._deadline = asyncio.get_running_loop().call_later(self._gate.limits.startup_s, self._too_slow)

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        self._buffer += data
        if len(self._buffer) > MAX_UNREAD_BYTES:
            self._refuse(refusals.malformed("too much data before the startup is complete"), "too much data")
        elif self._authentication is not None:
            self._authenticate(self._authentication)
        elif (
            self._shaking is None and self._startup is None
        ):  # else it is the first that came by TLS, and waits for the end of the handshake
            self._read()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._end()
        self._gate.gone(self)
        if self._seat is not None:
            self._seat.leave()
        if self._linger is not None:
            self._linger.cancel()
        for task in (self._shaking, self._looking):
            if task is not None:
                task.cancel()

    # --- first packets --------------------------------------------------------------------------------------------

    def _read(self) -> None:
        found = read_first(self._buffer)
        if found is not None:
            first, used = found
            del self._buffer[:used]
            self._take(first)

    def _take(self, first: First) -> None:
        match first:
            case Malformed(why=why):
                self._refuse(refusals.malformed(why), why)
            case DirectTls(hello=hello):
                self._take_direct_tls(hello)
            case Cancel():
                self._end()
                # The client may take the end of its connection for the end of the request, so it ends no sooner.
                self._cancelling(self._instance, self._address, first, self._close)
            case Wish():
                self._take_wish(first)
            case Startup():
                self._take_startup(first)

    def _take_wish(self, wish: Wish) -> None:
        """One byte is the answer. Plain bytes behind the wish would be taken as if they had come by TLS
        (CVE-2021-23214)."""
        assert self._transport is not None
        if wish in self._wishes or self._tls:
            self._refuse(refusals.malformed("a wish was repeated"), "repeated wish")
            return
        self._wishes.add(wish)
        if self._buffer:
            self._refuse(refusals.STUFFED, "data behind a wish")
            return
        context = self._offered_tls() if wish is Wish.TLS else None
        self._transport.write(b"N" if context is None else b"S")
        if context is not None:
            self._shake(context, b"")

    def _take_direct_tls(self, hello: bytes) -> None:
        context = self._offered_tls()
        if context is None or self._tls or self._wishes:
            self._refuse(refusals.TLS_ALERT, "direct TLS where none is offered, or after another beginning")
        else:
            self._shake(context, hello)

    def _offered_tls(self) -> ssl.SSLContext | None:
        route = self._gate.table.route(self._instance)
        return self._gate.tls() if route is None or route.client_tls != "off" else None

    def _shake(self, context: ssl.SSLContext, hello: bytes) -> None:
        self._shaking = self._gate.tasks.spawn(self._handshake(context, hello), f"tls {self._address}", self._abort)

    async def _handshake(self, context: ssl.SSLContext, hello: bytes) -> None:
        assert self._transport is not None
        secured = TlsTransport(self._transport, context, self)
        try:
            await secured.handshake(hello)
        except OSError as error:  # ssl.SSLError is one
            self._gate.refuses(client=self._address, instance=self._instance, why=f"TLS: {error}")
            self._end()
            self._close()
            return
        self._transport, self._tls, self._shaking = secured, True, None
        if hello and not secured.speaks_postgresql:
            self._refuse(refusals.NO_ALPN, "direct TLS without ALPN")
        else:
            self._read()

    # --- who it is ------------------------------------------------------------------------------------------------

    def _take_startup(self, startup: Startup) -> None:
        assert self._transport is not None
        self._startup = startup
        no = self._refusal(startup)
        if no is not None:
            self._refuse(refusals.error(no.sqlstate, no.message, no.hint), no.message)
            return
        self._transport.write(negotiation(startup.packet, startup.parameters))
        verifiers = self._gate.verifiers
        if verifiers.knows(self._instance, startup.user):  # as nearly always: no task is made for it
            try:
                self._begin_authentication(startup, verifiers.at_once(self._instance, startup.user))
            except UnusableError as error:
                self._refuse(refusals.error("28000", str(error)), str(error))
        else:
            self._looking = self._gate.tasks.spawn(self._look_up(startup), f"login {self._address}", self._abort)

    def _refusal(self, startup: Startup) -> Refuse | None:
        """What can be said without asking for a password."""
        route = self._gate.table.route(self._instance)
        if route is not None and route.client_tls == "require" and not self._tls:
            return Refuse("28000", "this instance accepts TLS connections only", "Use sslmode=require or stronger.")
        wait_s = self._gate.failures.wait_s(self._address, self._instance, startup.user)
        if wait_s > 0:
            return Refuse("28000", "too many logins with a wrong password", f"Try again in {wait_s:.0f} s.")
        return refused(route, self._address) if route is not None else None

    async def _look_up(self, startup: Startup) -> None:
        try:
            verifier = await self._gate.verifiers.find(self._instance, startup.user)
        except UnavailableError as error:
            self._refuse(refusals.error("57P03", error.what, error.hint), error.what)
            return
        except UnusableError as error:
            self._refuse(refusals.error("28000", str(error)), str(error))
            return
        self._begin_authentication(startup, verifier)

    def _begin_authentication(self, startup: Startup, verifier: Verifier | None) -> None:
        if self._ended or self._transport is None:
            return
        channel = self._transport.channel_binding if isinstance(self._transport, TlsTransport) else b""
        self._authentication = ClientAuthentication(
            startup.user,
            verifier,
            nonce=secrets.token_urlsafe(NONCE_BYTES),
            channel_binding=channel or None,
            mock_secret=self._gate.verifiers.mock_secret(self._instance),
        )
        self._transport.write(self._authentication.begin())
        if self._buffer:
            self._authenticate(self._authentication)

    def _authenticate(self, authentication: ClientAuthentication) -> None:
        assert self._transport is not None
        data, self._buffer = bytes(self._buffer), bytearray()
        progress = authentication.feed(data)
        if progress.reply and not isinstance(progress.outcome, Accepted):
            self._transport.write(progress.reply)
        match progress.outcome:
            case Accepted(login=login):
                self._let_in(login, progress.reply, progress.rest)
            case Rejected(reply_error=reply, why=why, wrong_password=wrong):
                if wrong and self._startup is not None:
                    self._gate.failures.note(self._address, self._instance, self._startup.user)
                    self._gate.verifiers.doubt(self._instance, self._startup.user)
                self._refuse(reply, why)
            case None:
                pass

    # --- whether there is room ------------------------------------------------------------------------------------

    def _let_in(self, login: Login, proof: bytes, early: bytes) -> None:
        """`proof`: the last word of the authentication, not written yet."""
        assert self._startup is not None
        if self._startup.database in DATABASES and not self._read_only:
            self._become_observer(proof, early)
            return
        seat = self._seat = self._gate.headcount.enter(self._instance, self._startup.user)
        if bounded(self._gate.table.route(self._instance)):
            self._authentication, self._buffer = None, bytearray(early)
            way = self._look_for_room(login, proof, seat)
            self._looking = self._gate.tasks.spawn(way, f"room {self._address}", self._abort)
        else:
            self._become_session(login, proof, early, seat)

    async def _look_for_room(self, login: Login, proof: bytes, seat: Seat) -> None:
        gate, instance, user = self._gate, seat.instance, seat.user
        elsewhere = await gate.counted_elsewhere(instance, user)
        if self._ended or self._transport is None:
            return
        no = no_room(gate.table.route(instance), user, [gate.headcount.of(instance, user), *elsewhere])
        if no is None:
            self._become_session(login, proof, bytes(self._buffer), seat)
        else:
            seat.leave()
            self._refuse(refusals.error(no.sqlstate, no.message, no.hint), no.message)

    def _become_observer(self, proof: bytes, early: bytes) -> None:
        assert self._transport is not None
        assert self._startup is not None
        self._settle_in()
        observer = Observer(self._gate, self._transport, self._startup, instance=self._instance)
        self._transport.write(proof)
        self._hand_over(observer)
        observer.begin(early)

    def _become_session(self, login: Login, proof: bytes, early: bytes, seat: Seat) -> None:
        assert self._transport is not None
        assert self._startup is not None
        self._settle_in()
        session = Session(
            self._gate, self._transport, self._startup, login, seat, read_only=self._read_only, tls=self._tls
        )
        self._hand_over(session)
        session.begin(early, proof)

    def _settle_in(self) -> None:
        assert self._transport is not None
        self._end()
        self._transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)

    def _hand_over(self, guest: Session | Observer) -> None:
        assert self._transport is not None
        self._gate.guests.discard(self)
        self._gate.guests.add(guest)
        self._transport.set_protocol(guest)
        self._transport = None

    # --- the end --------------------------------------------------------------------------------------------------

    def shut_down(self) -> None:
        self._refuse(refusals.STOPPING, "stopping")

    def _too_slow(self) -> None:
        self._refuse(refusals.STARTUP_TIMEOUT, "startup took too long")

    def _refuse(self, message: bytes, why: str) -> None:
        """Say no and close; in the middle of a TLS handshake there is no way to say it."""
        if self._ended:
            return
        self._end()
        self._gate.refuses(client=self._address, instance=self._instance, why=why, told=message)
        if self._transport is None:
            return
        if self._shaking is None:
            self._transport.write(message)
            self._close()
        else:
            self._abort()

    def _end(self) -> None:
        """Nothing more is read from this client here."""
        self._ended = True
        if self._deadline is not None:
            self._deadline.cancel()

    def _close(self) -> None:
        if self._transport is not None and self._linger is None:
            self._linger = part_with(self._transport)

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
