"""The server's side of a session: one connection to one engine, from the login to its end.

What a client sends is handed to the kernel in the same step in which the session has looked at its fence: nothing waits
here for a later moment, except the rest of a buffer that the kernel has no room for, and until that is gone the client
is not read.

Between the login and the relay, and while the session is at rest, the proxy may talk to the server itself
(`_exchange`): to make again what the session carries, or to ask for it. Nothing of that reaches the client.

A connection may outlive its client (`pools`): between two clients it hears its server alone, and `serve` gives it to
the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from core.routes import Endpoint
from proxy.client import Client
from proxy.gate import Gate
from proxy.pools import ServerPool, Signature
from proxy.postgres.answering import answers
from proxy.postgres.carried import DISMISSED, LAST_WORDS, LIKE_NEW, Inquiry, Restoring
from proxy.postgres.doubt import Doubt
from proxy.postgres.frames import ERROR, Boundary
from proxy.postgres.login import LoggedIn, LoginRefused, ServerLogin
from proxy.postgres.messages import Garbled, Stream, error_fields, message, parameter_of
from proxy.postgres.prepared import Held
from proxy.postgres.requests import IDLE
from proxy.sockets import close_soon, read_on

_ASIDE, _COMPLAINTS = frozenset(b"SA"), frozenset(b"NE")
_PARAMETER, _UNHEARD = ord("S"), frozenset(b"NEA")
STATEMENTS_MAX = 500  # prepared ones kept by a server, until its pool says otherwise
REPORTED_MAX = 100  # parameters reported in one transaction, until they are looked at
EARLY_BYTES_MAX = 64 << 10  # between the login and the relay; no server says that much unasked


class ServerLink(asyncio.Protocol):
    """Opened, logged in, then relaying until either side ends."""

    def __init__(self, client: Client, gate: Gate) -> None:
        self._client = client
        self._requests = client.requests
        self._gate = gate
        self._now = gate.clock.now
        self._transport: asyncio.Transport | None = None
        self._take: Callable[[bytes], bool] | None = None  # who hears the server just now; True: it has heard all
        self._heard: asyncio.Future[None] | None = None
        self._early = b""
        self._relaying = False
        self._boundary = Boundary()
        self._aside: Stream | None = None  # a message that nobody asked for, and that has not come whole
        self._doubt: Doubt | None = None
        self._linger: asyncio.TimerHandle | None = None
        self._client_full = False  # it does not keep up
        self.opened_s = 0.0  # monotonic; when it was logged in
        self.freed_s = 0.0  # when its last client left it
        self.signature: Signature  # what it is and carries, from its login on
        self.home: ServerPool | None = None  # while it may be used again
        self.cancels = 0  # requests under way for what it runs
        self.held = Held(STATEMENTS_MAX)  # statements that the server has; `opened` says how many
        self._meter = client.account.meter
        self.cancel_key: tuple[Endpoint, int, bytes] | None = None
        self.parameters: dict[str, str] = {}
        self.dismissal = b""  # by which the server has ended this one session, kept from the client

    # --- opening --------------------------------------------------------------------------------------------------

    async def log_in(self, endpoint: Endpoint, login: ServerLogin) -> LoggedIn | LoginRefused:
        """Connect, and log in. OSError when nobody answers; the caller bounds the time."""
        await self._gate.inner_tls.connect(self, endpoint, self._gate.local_address)
        outcome: list[LoggedIn | LoginRefused] = []

        def take(data: bytes) -> bool:
            progress = login.feed(data)
            if progress.send and self._transport is not None:
                self._transport.write(progress.send)
            outcome.extend([progress.outcome] if progress.outcome is not None else [])
            return bool(outcome)

        await self._exchange(login.begin(), take)
        (answer,) = outcome
        if isinstance(answer, LoggedIn):
            self.opened_s = self._now()
            self._meter.opened += 1
            self.cancel_key = (endpoint, answer.pid, answer.key)
            self.parameters = dict(answer.parameters)
            self._early += answer.rest
        return answer

    async def restore(self, restoring: Restoring) -> None:
        """Before the relay. OSError or Garbled when the server does not answer as it should."""

        def take(data: bytes) -> bool:
            restoring.feed(data)
            return restoring.done

        early, self._early = self._early, b""
        self.held.unnamed = None
        if early:
            restoring.feed(early)
        await self._exchange(restoring.begin(), take)
        _ = self._note(list(restoring.parameters.items()))
        self._early = restoring.notifications + restoring.rest + self._early

    async def ask(self, inquiry: Inquiry) -> None:
        """While the session rests: nothing else may be sent until this returns, or the link is lost."""

        def take(data: bytes) -> bool:
            passed = inquiry.feed(data)
            if passed and self._client.transport is not None and not self._expired():
                self._client.transport.write(passed)
            self.dismissal = inquiry.dismissal or self.dismissal
            if inquiry.done and inquiry.rest:
                self._aside = Stream()
                self._aside.push(inquiry.rest)
            return inquiry.done

        await self._exchange(inquiry.begin(), take)

    async def _exchange(self, data: bytes, take: Callable[[bytes], bool]) -> None:
        """Send, and hand over what comes until all is heard. ConnectionResetError when the server ends before."""
        if self._transport is None:
            raise ConnectionResetError("the server has closed the connection")
        self._take, self._heard = take, asyncio.get_running_loop().create_future()
        try:
            self._transport.write(data)
            await self._heard
        finally:
            self._take = self._heard = None

    async def make_like_new(self) -> None:
        """Between two clients: as it was after its login. OSError or Garbled when the server does not say so."""
        self.held.clear()
        restoring = Restoring(LIKE_NEW)
        await self.restore(restoring)
        self._early = b""  # notifications for who had it
        if restoring.failed or restoring.rest:
            raise ConnectionResetError(restoring.failed or "the server says more than it was asked")

    def serve(self, client: Client) -> None:
        """The next client has it, as its signature says."""
        self._meter.reused += client is not self._client
        self._client, self._requests = client, client.requests
        self._take = None

    def let_hear(self, take: Callable[[bytes], bool]) -> None:
        """What the server says goes there first, until it says `pass_on`."""
        self._take = take

    def pass_on(self, data: bytes) -> None:
        self._take = None
        self._pass(data)

    def go_on(self) -> None:
        """`begin_relay` for one that was free: nothing has come."""
        self._relaying = True
        fence = self._client.fence
        if self._doubt is not None or (fence is not None and fence.strict):
            self._guard()

    def wait_for_client(self) -> None:
        """Nobody has it for now."""
        self._relaying = False
        self._take = self._overhear
        if self._client_full:
            self._client_full = False
            read_on(self._transport, True)

    def _overhear(self, data: bytes) -> bool:
        """What a server says to nobody: parameters that a reload has changed, or that it ends."""
        stream = self._aside = self._aside or Stream()
        try:
            for kind, body in stream.feed(data):
                if kind == _PARAMETER:
                    self._note([parameter_of(body)])
                elif kind not in _UNHEARD:
                    raise Garbled("a server speaks to nobody")
        except Garbled:
            self.abort()
            if self.home is not None:
                self.home.died(self)
        if not stream.rest:
            self._aside = None
        return False

    def _note(self, reported: list[tuple[str, str]]) -> bool:
        """Parameters as they are now; whether that is news. The dictionary is replaced, never changed: who remembers it
        sees by that whether there is anything new."""
        news = self.parameters | dict(reported)
        if news == self.parameters:
            return False
        self.parameters = news
        return True

    def begin_relay(self) -> None:
        """From now on everything goes to the client, first of all what has come already."""
        self._relaying = True
        self._guard()
        early, self._early = self._early, b""
        if early:
            self._pass(early)
        if self._transport is None:
            self._client.server_lost(self)
        else:
            read_on(self._transport, not self._client_full)

    # --- asyncio.Protocol -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self._transport.set_write_buffer_limits(high=0)

    def data_received(self, data: bytes) -> None:
        if self._take is not None:
            self._hear(self._take, data)
        elif self._relaying:
            self._pass(data)
        else:
            self._early += data
            if len(self._early) > EARLY_BYTES_MAX:
                self.abort()

    def _hear(self, take: Callable[[bytes], bool], data: bytes) -> None:
        heard = self._heard
        try:
            if not take(data):
                return
        except Garbled as error:
            if heard is not None and not heard.done():
                heard.set_exception(error)
        self._take = None
        if heard is not None and not heard.done():
            heard.set_result(None)

    def _pass(self, data: bytes) -> None:
        """To the client, under the same fence as what came from it: what an expired primary says it has committed,
        another one may not have."""
        client, requests, boundary = self._client, self._requests, self._boundary
        fence, transport, now = client.fence, client.transport, self._now()
        if fence is not None and now >= fence.until_s:
            client.cut()
            return
        idle = requests.outstanding == 0 and not requests.open
        if self._aside is not None or (idle and self.quiet):
            data = self._unasked(data)
            if not data:
                return
        if self._doubt is not None:
            data = self._doubt.feed(data, awaited=requests.outstanding > 0)
            if not data:
                return
        statements = client.statements
        if statements is not None:
            data = answers(statements, self.held, data, boundary)
            if statements.waits and statements.may_go_on and client.sharing is not None:
                asyncio.get_running_loop().call_soon(client.sharing.let_on, self)
        boundary.feed(data)
        if transport is None:
            return
        client.bytes_out += len(data)
        transport.write(data)
        if boundary.sqlstates:
            client.account.failed(boundary.sqlstates)
            boundary.sqlstates.clear()
        if boundary.readies:
            self._ready(now)
        else:
            self._go_on(rests=idle)

    def _go_on(self, *, rests: bool) -> None:
        """No request has been answered yet. `rests`: none was owed an answer."""
        client, requests, boundary = self._client, self._requests, self._boundary
        requests.copy_asked = boundary.copy_asked
        requests.unclear |= boundary.lost
        if requests.copy_asked and requests.leaving and client.sharing:
            client.rested()  # who has said goodbye sends no data
        elif rests and self.quiet:
            self._rest()  # who wanted to ask may have found it half-way through a message

    def _ready(self, now: float) -> None:
        """At least one request has been answered."""
        requests, boundary, account = self._requests, self._boundary, self._client.account
        requests.ready(boundary.readies, boundary.state)
        if account.running:
            took_s = account.answered(boundary.readies, boundary.state == IDLE, requests.outstanding > 0, now)
            if took_s >= account.wishes.slow_s:
                account.was_slow(took_s)
        if requests.outstanding == 0:
            self._rest()

    def _rest(self) -> None:
        """All is answered."""
        client, reported = self._client, self._boundary.reported
        self._guard()
        if reported and (self._requests.state == IDLE or len(reported) > REPORTED_MAX):
            if self._note([parameter_of(body) for body in reported]):
                client.reported(self.parameters)
            reported.clear()
        if client.sharing or self._requests.changed or (client.fence is not None and client.fence.paused):
            client.rested()

    def _unasked(self, data: bytes) -> bytes:
        """The server speaks though nothing was asked. What it says when it ends is kept back, for the session may go
        on elsewhere; what comes back from here is for the client."""
        stream = self._aside or Stream()
        passed = b""
        try:
            for kind, body in stream.feed(data):
                code = error_fields(body).get("C") if kind in _COMPLAINTS else None
                if code in LAST_WORDS and self._requests.resting:
                    if code == DISMISSED and kind == ERROR:
                        self.dismissal = message(b"E", body)
                    continue
                passed += message(bytes((kind,)), body)
                if kind not in _ASIDE and kind not in _COMPLAINTS:
                    self._requests.stirred()
        except Garbled:
            self._requests.unclear = True
        answered = self._requests.outstanding > 0 or self._requests.open or self._requests.unclear
        if answered:
            passed += stream.rest
        self._aside = stream if stream.rest and not answered else None
        return passed

    def _guard(self) -> None:
        """At a message boundary: watch acknowledgements where the route asks for it."""
        fence = self._client.fence
        strict = fence is not None and fence.strict
        if strict is (self._doubt is None) and not (self._doubt is not None and self._doubt.holds):
            self._doubt = Doubt() if strict else None

    def _expired(self) -> bool:
        fence = self._client.fence
        return fence is not None and self._now() >= fence.until_s

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._meter.closed += self.cancel_key is not None
        if self._linger is not None:
            self._linger.cancel()
        if self._heard is not None and not self._heard.done():
            self._heard.set_exception(exc or ConnectionResetError("the server closed the connection"))
        if self.home is not None:
            self.home.died(self)
        if self._relaying:
            self._client.server_lost(self)

    def pause_writing(self) -> None:
        self._client.read_client(False)

    def resume_writing(self) -> None:
        self._client.read_client(True)

    # --- for the client's side ------------------------------------------------------------------------------------

    @property
    def may_be_told(self) -> bool:
        """All that the client got so far is whole messages, and the last of them did not tell it the end already."""
        return self._boundary.between and not self._boundary.after_error

    @property
    def quiet(self) -> bool:
        """Nothing that the server has begun to say is unfinished."""
        return self._boundary.between and self._aside is None and not (self._doubt is not None and self._doubt.holds)

    @property
    def lost(self) -> bool:
        return self._transport is None

    @property
    def transport(self) -> asyncio.Transport | None:
        return self._transport

    def write(self, data: bytes) -> None:
        """From the client. The caller has looked at the fence."""
        if self._transport is not None:
            self._transport.write(data)

    def client_is_full(self, full: bool) -> None:
        self._client_full = full
        if self._relaying:
            read_on(self._transport, not full)

    def half_close(self) -> None:
        """The client will send nothing more; its answers still come."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write_eof()

    def release(self) -> None:
        """The client has gone in good order: what it sent still arrives, then the server's session ends."""
        if self._transport is not None:
            self._linger = close_soon(self._transport)

    def abort(self) -> None:
        """At once; what the kernel has not taken yet is dropped."""
        if self._transport is not None:
            self._transport.abort()
