"""One client: its startup, its wait for a server, and the relay of whole buffers both ways.

Authentication passes through: the server asks, the client answers, the proxy forwards. The proxy therefore speaks plain
TCP to the engine even when the client speaks TLS: with TLS on both sides SCRAM's channel binding would see two
different certificates and rightly fail.

A session is bound to its server. When its fence falls, or the server ends, the client gets error 57P01 if it stands
between messages, and is closed either way; nothing of it is ever sent to another server.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from core.clock import Clock
from core.errors import words
from core.log import EventLog
from core.routes import Endpoint
from proxy.postgres import refusals
from proxy.postgres.server_side import NOT_YET, Greeting, ends_ready
from proxy.postgres.startup import MAX_STARTUP_BYTES, Cancel, First, Malformed, Startup, Wish, read_first
from proxy.routing import Forward, Hold, Refuse, admit
from proxy.table import Table

log = EventLog("proxy.session")
STARTUP_TIMEOUT_S = 15.0  # from connecting to a whole startup packet
DIAL_TIMEOUT_S = 5.0
RETRY_S = 0.05  # between two tries of a server that is not up yet
TLS_HANDSHAKE_S = 10.0
HIGH_WATER_BYTES = 256 << 10  # per direction; then the other side is not read any more


@dataclass(slots=True)
class Gate:
    """What all sessions of a process share."""

    table: Table
    clock: Clock
    local_address: str
    tls: Callable[[], ssl.SSLContext | None]
    clients_max: int
    cancels: dict[tuple[int, bytes], Endpoint] = field(default_factory=dict)  # whose key is it
    cancel: Callable[[str, Cancel], None] = lambda _instance, _request: None
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    clients: set[ClientSession] = field(default_factory=set)
    bytes_in: int = 0
    bytes_out: int = 0


class ClientSession(asyncio.Protocol):
    """The client's side; the server's side is `ServerLink`."""

    def __init__(self, gate: Gate, instance: str, *, read_only: bool) -> None:
        self.instance = instance
        self.read_only = read_only
        self.endpoint: Endpoint | None = None
        self.fenced = False
        self._gate = gate
        self._table = gate.table
        self._now = gate.clock.now
        self.transport: asyncio.Transport | None = None
        self.server: ServerLink | None = None
        self._buffer = bytearray()
        self._tls = False
        self._startup: Startup | None = None
        self._task: asyncio.Task[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._connected_at = 0.0
        self._address = ""
        self._waits_for = ""
        self.bytes_in = 0

    # --- asyncio.Protocol -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self._connected_at = self._now()
        self._address = str((transport.get_extra_info("peername") or ("",))[0])
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        self._gate.clients.add(self)
        if len(self._gate.clients) > self._gate.clients_max:
            self.refuse(refusals.TOO_MANY, "too many clients")
            return
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(STARTUP_TIMEOUT_S, self._startup_too_slow)

    def data_received(self, data: bytes) -> None:
        server = self.server
        if server is None:
            self._before_server(data)
            return
        # The fence: nothing that a client sends reaches a primary past the end of its route, also when this process
        # was frozen and thaws late.
        if self.fenced and not self._table.valid(self):
            self.cut()
            return
        self.bytes_in += len(data)
        server.forward(data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._gate.clients.discard(self)
        self._table.sessions.discard(self)
        self._stop_waiting()
        if self._deadline is not None:
            self._deadline.cancel()
        if self._task is not None:
            self._task.cancel()
        if self.server is not None:
            self.server.abandon()
            self._log_end()
        self.transport = None

    def pause_writing(self) -> None:
        if self.server is not None:
            self.server.pause()

    def resume_writing(self) -> None:
        if self.server is not None:
            self.server.resume()

    # --- startup --------------------------------------------------------------------------------------------------

    def _before_server(self, data: bytes) -> None:
        self._buffer += data
        if self._startup is not None:
            if len(self._buffer) > MAX_STARTUP_BYTES:
                self.refuse(refusals.malformed("too much data before the server has answered"), "data before answer")
            return
        if self._task is not None:  # a TLS handshake is under way, this is its first plain text: handled after it
            return
        self._read_startup()

    def _read_startup(self) -> None:
        found = read_first(self._buffer)
        if found is None:
            return
        first, used = found
        del self._buffer[:used]
        self._take(first)

    def _take(self, first: First) -> None:
        assert self.transport is not None
        match first:
            case Malformed(why=why):
                self.refuse(refusals.malformed(why), why)
            case Cancel():
                self._gate.cancel(self.instance, first)
                self.transport.close()
            case Wish.GSSENC:
                self._answer_no()
            case Wish.TLS:
                self._take_tls_wish()
            case Startup():
                self._take_startup(first)

    def _answer_no(self) -> None:
        assert self.transport is not None
        if self._buffer:
            self.refuse(refusals.STUFFED, "data after a wish")
            return
        self.transport.write(b"N")

    def _take_tls_wish(self) -> None:
        route = self._table.route(self.instance)
        context = self._gate.tls()
        if self._tls or context is None or (route is not None and route.client_tls == "off"):
            self._answer_no()
        elif self._buffer:
            # Plain bytes behind the wish would be taken as if they had come by TLS (CVE-2021-23214).
            self.refuse(refusals.STUFFED, "data before the handshake")
        else:
            self._run(self._handshake(context))

    async def _handshake(self, context: ssl.SSLContext) -> None:
        assert self.transport is not None
        self.transport.write(b"S")
        loop = asyncio.get_running_loop()
        try:
            secured = await loop.start_tls(
                self.transport, self, context, server_side=True, ssl_handshake_timeout=TLS_HANDSHAKE_S
            )
        except (OSError, ssl.SSLError, ConnectionError) as error:
            log.info("client_refused", client=self._address, instance=self.instance, why=f"TLS: {error}")
            return
        if secured is None or self.transport is None:
            return
        secured.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        self.transport, self._tls, self._task = secured, True, None
        if self._buffer:
            self._read_startup()

    def _take_startup(self, startup: Startup) -> None:
        route = self._table.route(self.instance)
        if route is not None and route.client_tls == "require" and not self._tls:
            self.refuse(refusals.TLS_REQUIRED, "TLS required")
            return
        self._startup = startup
        if self._deadline is not None:
            self._deadline.cancel()
        self._run(self._attach(startup))

    def _startup_too_slow(self) -> None:
        self.refuse(refusals.STARTUP_TIMEOUT, "startup took too long")

    def _run(self, work: object) -> None:
        """One task at a time belongs to this session; the gate owns it and sees its failure."""
        assert asyncio.iscoroutine(work)
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work, name=f"client {self._address}")
        self._task = task
        self._gate.tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._gate.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.unexpected("session_failed", error, client=self._address, instance=self.instance)
            self._close()

    # --- finding a server -----------------------------------------------------------------------------------------

    async def _attach(self, startup: Startup) -> None:
        """Connect to the server of the moment; hold the client, bounded, while there is none."""
        started = self._now()
        refused = ""
        while self.transport is not None:
            now = self._now()
            route = self._table.route(self.instance)
            verdict = admit(
                route,
                read_only=self.read_only,
                client=self._address,
                sessions=self._table.per_member(self.instance) if self.read_only else {},
                now=now,
            )
            if isinstance(verdict, Refuse):
                self.refuse(refusals.error(verdict.sqlstate, verdict.message, verdict.hint), verdict.message)
                return
            waited_until = started + (route.hold_s if route else 0.0)
            if isinstance(verdict, Forward):
                refused = await self._connect(verdict, startup, started)
                if not refused:
                    return
            self._wait_for(verdict.why if isinstance(verdict, Hold) else refused)
            if now >= waited_until:
                self._give_up(now - started)
                return
            pause_s = RETRY_S if isinstance(verdict, Forward) else waited_until - now
            await self._table.changed(min(pause_s, max(0.01, waited_until - now)))

    def _wait_for(self, why: str) -> None:
        if not self._waits_for:
            self._table.waiting[self.instance] += 1
        self._waits_for = why

    def _stop_waiting(self) -> None:
        if self._waits_for:
            self._waits_for = ""
            self._table.waiting[self.instance] -= 1

    def _give_up(self, waited_s: float) -> None:
        message = f"no primary of {self.instance} to connect to: {self._waits_for}; waited {waited_s:.0f} s"
        self.refuse(refusals.error("57P03", message, "Try again; `moorctl status` tells what is wrong."), message)

    async def _connect(self, forward: Forward, startup: Startup, started: float) -> str:
        """Empty when the relay runs; else why this server cannot serve just now."""
        endpoint = forward.endpoint
        link = ServerLink(self, self._gate, endpoint)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                await loop.create_connection(
                    lambda: link, endpoint.host, endpoint.port, local_addr=(self._gate.local_address, 0)
                )
                link.send(startup.packet)
                refusal = await link.first_answer()
        except (OSError, TimeoutError) as error:
            link.abandon()
            return f"{endpoint.member} does not answer ({words(error)})"
        if refusal in NOT_YET or self.transport is None:
            link.abandon()
            return f"{endpoint.member} is not accepting connections ({refusal})"
        self._stop_waiting()
        self._begin_relay(link, forward, startup, started)
        return ""

    def _begin_relay(self, link: ServerLink, forward: Forward, startup: Startup, started: float) -> None:
        self.endpoint, self.fenced = forward.endpoint, forward.fenced
        self.server, self._task = link, None
        self._table.sessions.add(self)
        log.info(
            "client_connected",
            client=self._address,
            user=startup.user,
            database=startup.database,
            instance=self.instance,
            server=forward.endpoint.member,
            read_only=self.read_only,
            tls=self._tls,
            waited_ms=round((self._now() - started) * 1000),
        )
        link.begin_relay()
        if self._buffer and self.server is not None:
            held, self._buffer = bytes(self._buffer), bytearray()
            self.data_received(held)

    # --- the end --------------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """The fence falls."""
        self._end_with(refusals.FAILOVER)

    def server_lost(self) -> None:
        self._end_with(refusals.SERVER_LOST)

    def shut_down(self) -> None:
        self._end_with(refusals.SHUTDOWN)

    def _end_with(self, farewell: bytes) -> None:
        """Close; with a word if the client stands between messages and its server did not say one itself."""
        if self.transport is not None and (self.server is None or self.server.between_messages):
            self.transport.write(farewell)
        self._close()

    def refuse(self, message: bytes, why: str) -> None:
        """Say no and close."""
        self._table.refused += 1
        log.info("client_refused", client=self._address, instance=self.instance, why=why)
        if self.transport is not None:
            self.transport.write(message)
        self._close()

    def _close(self) -> None:
        self._table.sessions.discard(self)
        if self.server is not None:
            self.server.abandon()
        if self.transport is not None:
            self.transport.close()

    def _log_end(self) -> None:
        server = self.server
        log.info(
            "client_disconnected",
            client=self._address,
            instance=self.instance,
            server=self.endpoint.member if self.endpoint else "",
            lasted_s=round(self._now() - self._connected_at, 3),
            bytes_in=self.bytes_in,
            bytes_out=server.bytes_out if server else 0,
        )


class ServerLink(asyncio.Protocol):
    """The server's side of one session."""

    def __init__(self, client: ClientSession, gate: Gate, endpoint: Endpoint) -> None:
        self._client = client
        self._endpoint = endpoint
        self._gate = gate
        self._transport: asyncio.Transport | None = None
        self._greeting = Greeting()
        self._held = bytearray()
        self._relaying = False
        self._first: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._cancel_key: tuple[int, bytes] | None = None
        self.between_messages = False
        self.bytes_out = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)

    def send(self, data: bytes) -> None:
        if self._transport is None:
            raise ConnectionResetError("the server has closed the connection")
        self._transport.write(data)

    def forward(self, data: bytes) -> None:
        """From the client, whole."""
        if self._transport is not None:
            self._transport.write(data)

    async def first_answer(self) -> str:
        """SQLSTATE when the server refuses outright, else empty. ConnectionResetError when it closes first."""
        return await self._first

    def begin_relay(self) -> None:
        """From now on everything goes to the client, first of all what has come already."""
        self._relaying = True
        held, self._held = bytes(self._held), bytearray()
        if held:
            self._to_client(held)
        if self._transport is None:
            self._client.server_lost()
        else:
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if not self._greeting.done:
            self._greet(data)
        if self._relaying:
            self._to_client(data)
        else:
            self._held += data

    def _greet(self, data: bytes) -> None:
        self._greeting.feed(data)
        if self._greeting.pid and self._cancel_key is None:
            self._cancel_key = (self._greeting.pid, self._greeting.key)
            self._gate.cancels[self._cancel_key] = self._endpoint
        if not self._first.done():
            self._first.set_result(self._greeting.refusal)
            if self._transport is not None and not self._relaying:
                self._transport.pause_reading()

    def _to_client(self, data: bytes) -> None:
        self.between_messages = ends_ready(data)
        self.bytes_out += len(data)
        client = self._client.transport
        if client is not None:
            client.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._cancel_key is not None:
            self._gate.cancels.pop(self._cancel_key, None)
        if not self._first.done():
            self._first.set_exception(exc or ConnectionResetError("the server closed the connection"))
        elif self._relaying:
            self._client.server_lost()

    def pause_writing(self) -> None:
        if self._client.transport is not None:
            self._client.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._client.transport is not None:
            self._client.transport.resume_reading()

    def pause(self) -> None:
        """The client does not keep up."""
        if self._transport is not None:
            with contextlib.suppress(RuntimeError):
                self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None:
            with contextlib.suppress(RuntimeError):
                self._transport.resume_reading()

    def abandon(self) -> None:
        """The client has gone: the server's session ends with its connection."""
        self._relaying = False
        if self._first.done():
            self._first.exception()  # looked at, whether or not anybody waited for it
        else:
            self._first.cancel()
        if self._transport is not None:
            self._transport.abort()
