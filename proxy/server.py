"""The server's side of a session: one connection to one engine, plain TCP.

What a client sends is handed to the kernel in the same step in which the session has looked at its fence: nothing waits
here for a later moment, except the rest of a buffer that the kernel has no room for, and until that is gone the client
is not read.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

from core.clock import Clock
from core.routes import Endpoint
from proxy.gate import Gate
from proxy.postgres.frames import Boundary
from proxy.postgres.server_side import Greeting, ready_state
from proxy.sockets import close_soon, outgoing, read_on
from proxy.table import Fence

IDLE = ord("I")


class Client(Protocol):
    """The other side, as the server's side sees it."""

    transport: asyncio.Transport | None
    fence: Fence | None

    def cut(self) -> None: ...
    def server_lost(self) -> None: ...


class ServerLink(asyncio.Protocol):
    """Opened, asked for its first answer, then relaying until either side ends."""

    def __init__(self, client: Client, gate: Gate, clock: Clock) -> None:
        self._client = client
        self._cancels = gate.cancels
        self._now = clock.now
        self._transport: asyncio.Transport | None = None
        self._greeting: Greeting | None = Greeting()  # until the first ReadyForQuery
        self._held = bytearray()  # before the relay; not read on after the first answer
        self._relaying = False
        self._first: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._cancel_key: tuple[int, bytes] | None = None
        self._endpoint: Endpoint | None = None
        self._linger: asyncio.TimerHandle | None = None
        self.client_full = False  # the client does not keep up
        self._boundary = Boundary()
        self.idle = False  # not in a transaction, and asked nothing since
        self.bytes_out = 0

    # --- opening --------------------------------------------------------------------------------------------------

    async def open(self, endpoint: Endpoint, local_address: str, packet: bytes) -> None:
        """Connect and send the startup packet. OSError when nobody answers."""
        self._endpoint = endpoint
        loop = asyncio.get_running_loop()
        sock = outgoing(local_address)
        try:
            await loop.sock_connect(sock, (endpoint.host, endpoint.port))
            await loop.create_connection(lambda: self, sock=sock)
        except BaseException:
            sock.close()
            raise
        if self._transport is None:
            raise ConnectionResetError("the server has closed the connection")
        self._transport.write(packet)

    async def first_answer(self) -> str:
        """SQLSTATE when the server refuses outright, else empty. ConnectionResetError when it closes first."""
        return await self._first

    def begin_relay(self) -> None:
        """From now on everything goes to the client, first of all what has come already."""
        self._relaying = True
        held, self._held = bytes(self._held), bytearray()
        self._pass(held)
        if self._transport is None:
            self._client.server_lost()
        elif not self.client_full:
            read_on(self._transport, True)

    # --- asyncio.Protocol -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self._transport.set_write_buffer_limits(high=0)

    def data_received(self, data: bytes) -> None:
        if self._greeting is not None:
            self._greet(self._greeting, data)
        if not self._relaying:
            self._held += data
            return
        self._pass(data)

    def _greet(self, greeting: Greeting, data: bytes) -> None:
        greeting.feed(data)
        if greeting.pid and self._cancel_key is None and self._endpoint is not None:
            self._cancel_key = (greeting.pid, greeting.key)
            self._cancels[self._cancel_key] = self._endpoint
        if greeting.done:
            self._greeting = None
        if greeting.answered and not self._first.done():
            self._first.set_result(greeting.refusal)
            read_on(self._transport, False)

    def _pass(self, data: bytes) -> None:
        """To the client, under the same fence as what came from it: what an expired primary says it has committed,
        another one may not have."""
        client = self._client
        fence, transport = client.fence, client.transport
        if fence is not None and self._now() >= fence.until_s:
            client.cut()
        elif transport is not None and data:
            self._boundary.feed(data)
            if state := ready_state(data):
                self.idle = state == IDLE
            self.bytes_out += len(data)
            transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._linger is not None:
            self._linger.cancel()
        if self._cancel_key is not None:
            self._cancels.pop(self._cancel_key, None)
        if not self._first.done():
            self._first.set_exception(exc or ConnectionResetError("the server closed the connection"))
            self._first.exception()  # looked at, whether or not anybody waits for it
        elif self._relaying:
            self._client.server_lost()

    def pause_writing(self) -> None:
        read_on(self._client.transport, False)

    def resume_writing(self) -> None:
        read_on(self._client.transport, True)

    # --- for the client's side ------------------------------------------------------------------------------------

    @property
    def may_be_told(self) -> bool:
        """All that the client got so far is whole messages, and the last of them did not tell it the end already."""
        return self._boundary.between and not self._boundary.after_error

    @property
    def lost(self) -> bool:
        return self._transport is None

    def write(self, data: bytes) -> None:
        """From the client, whole. The caller has looked at the fence."""
        self.idle = False
        if self._transport is not None:
            self._transport.write(data)

    def client_is_full(self, full: bool) -> None:
        self.client_full = full
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
