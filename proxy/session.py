"""One client with its startup packet: the wait for a server, and the relay of whole buffers both ways.

Authentication passes through: the server asks, the client answers, the proxy forwards. The proxy therefore speaks plain
TCP to the engine even when the client speaks TLS: with TLS on both sides SCRAM's channel binding would see two
different certificates and rightly fail.

A session is bound to its server. When its fence falls, or the server ends, the client gets error 57P01 if it stands
between messages, and is closed either way; nothing of it is ever sent to another server.
"""

from __future__ import annotations

import asyncio
import random

from core.backoff import Backoff
from core.errors import words
from core.log import EventLog
from core.routes import Endpoint
from proxy.gate import Gate
from proxy.postgres import refusals
from proxy.postgres.server_side import NOT_YET, TERMINATE
from proxy.postgres.startup import Startup
from proxy.routing import Forward, Hold, Refuse, admit
from proxy.server import ServerLink
from proxy.sockets import LINGER_S, part_with
from proxy.table import Fence

log = EventLog("proxy.session")
DIAL_TIMEOUT_S = 5.0  # to the server's first answer
DIAL_MIN_S = 1.0  # for a client whose time is nearly over
RETRY_BASE_S, RETRY_CAP_S = 0.05, 0.5  # between two tries of a server that is not up yet
MAX_EARLY_BYTES = 64 << 10  # of a client that talks before the server has answered


class Session(asyncio.Protocol):
    """The client's side; the server's side is `ServerLink`. Takes over the transport of a `Reception`."""

    def __init__(
        self, gate: Gate, transport: asyncio.Transport, startup: Startup, *, instance: str, read_only: bool, tls: bool
    ) -> None:
        self.instance = instance
        self.read_only = read_only
        self.endpoint: Endpoint | None = None
        self.fence: Fence | None = None
        self.transport: asyncio.Transport | None = transport
        self.bytes_in = 0
        self._gate = gate
        self._table = gate.table
        self._now = gate.clock.now
        self._startup = startup
        self._tls = tls
        self._address = client_address(transport)
        self._began = self._now()
        self._link: ServerLink | None = None
        self._held = bytearray()  # sent before the server has answered
        self._dialing: asyncio.Timeout | None = None
        self._task: asyncio.Task[None] | None = None
        self._waiting = False
        self._leaving = False  # the client has said goodbye, or will send nothing more
        self._ended = False
        self._linger: asyncio.TimerHandle | None = None

    def begin(self, early: bytes) -> None:
        """Look for a server. `early`: what the client sent behind its startup packet."""
        self._held += early
        self._task = self._gate.tasks.spawn(self._attach(), f"client {self._address}", failed=self._close)

    @property
    def connected(self) -> bool:
        return self._link is not None

    @property
    def bytes_out(self) -> int:
        return self._link.bytes_out if self._link is not None else 0

    @property
    def ended(self) -> bool:
        return self._ended

    @property
    def idle(self) -> bool:
        return self._link is None or self._link.idle

    # --- asyncio.Protocol -----------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        link = self._link
        if link is None or self._ended:
            self._hold(data)
            return
        # The fence: nothing that a client sends reaches a primary past the end of its route, also when this process
        # was frozen and thaws late.
        fence = self.fence
        if fence is not None and self._now() >= fence.until_s:
            self.cut()
            return
        self.bytes_in += len(data)
        link.write(data)
        if data[-5:] == TERMINATE:
            self._leaving = True

    def _hold(self, data: bytes) -> None:
        if self._ended:
            return
        self._held += data
        if len(self._held) > MAX_EARLY_BYTES:
            self.refuse(refusals.malformed("too much data before the server has answered"), "data before answer")

    def eof_received(self) -> bool:
        """A client that only stopped sending still gets its answers: the server, told the same way, ends the session.
        TLS cannot be half closed."""
        link = self._link
        if link is None or self._tls or self._ended:
            return False
        if self._leaving:  # the server ends by itself after a goodbye, unless it hangs
            self._linger = asyncio.get_running_loop().call_later(LINGER_S, self._close)
        else:
            self._leaving = True
            link.half_close()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._stop_waiting()
        if self._task is not None:
            self._task.cancel()
        link = self._link
        if link is None or link.lost:
            self._settle()
        elif exc is None and not self._ended:
            link.release()
        else:
            link.abort()

    def pause_writing(self) -> None:
        if self._link is not None:
            self._link.client_is_full(True)

    def resume_writing(self) -> None:
        if self._link is not None:
            self._link.client_is_full(False)

    # --- finding a server -----------------------------------------------------------------------------------------

    async def _attach(self) -> None:
        """Connect to the server of the moment; hold the client, bounded, while there is none."""
        backoff = Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S, uniform=random.uniform)
        avoid: set[str] = set()
        while not self._ended:
            seen = self._table.version
            route = self._table.route(self.instance)
            verdict = self._admit(avoid)
            if isinstance(verdict, Refuse):
                self.refuse(refusals.error(verdict.sqlstate, verdict.message, verdict.hint), verdict.message)
                return
            until = self._began + (route.hold_s if route else 0.0)
            if isinstance(verdict, Hold):
                why = verdict.why
                pause_s = backoff.next_delay() if avoid else until - self._now()
                avoid.clear()
            else:
                why = await self._dial(verdict, max(DIAL_MIN_S, until - self._now()))
                if not why:
                    return
                # Another replica may answer at once; a primary is tried again a little later.
                pause_s = backoff.next_delay() if verdict.fenced else 0.0
                avoid = set() if verdict.fenced else avoid | {verdict.endpoint.member}
            if not await self._pause(why, until, pause_s, seen):
                return

    def _admit(self, avoid: set[str]) -> Forward | Hold | Refuse:
        if self._gate.stopping:
            return Refuse("57P03", "the proxy is stopping", "Connect to another node's proxy.")
        return admit(
            self._table.route(self.instance),
            read_only=self.read_only,
            client=self._address,
            sessions=self._table.loads(self.instance),
            now=self._now(),
            avoid=avoid,
            turn=self._table.next_turn(),
        )

    async def _pause(self, why: str, until: float, pause_s: float, seen: int) -> bool:
        """Wait for a newer table, at most so long; False when the client's time is over, or too many wait already."""
        now = self._now()
        if now >= until:
            message = f"no server of {self.instance} to connect to: {why}; waited {now - self._began:.1f} s"
            self.refuse(refusals.error("57P03", message, "Try again; `moorctl status` tells what is wrong."), message)
            return False
        if not self._waiting:
            if self._table.waiting[self.instance] >= self._gate.limits.waiters_max:
                self.refuse(refusals.TOO_MANY_WAIT, "too many clients wait")
                return False
            self._waiting = True
            self._table.waiting[self.instance] += 1
        await self._table.changed(seen, min(pause_s, until - now))
        return True

    def _stop_waiting(self) -> None:
        if self._waiting:
            self._waiting = False
            self._table.waiting[self.instance] -= 1

    async def _dial(self, forward: Forward, within_s: float) -> str:
        """Empty when the relay runs; else why this server cannot serve just now."""
        link = ServerLink(self, self._gate, self._gate.clock)
        member = forward.endpoint.member
        self._table.bind(self, forward.endpoint, fenced=forward.fenced)
        try:
            async with asyncio.timeout(min(DIAL_TIMEOUT_S, within_s)) as self._dialing:
                await link.open(forward.endpoint, self._gate.local_address, self._startup.packet)
                refusal = await link.first_answer()
            if refusal not in NOT_YET:
                self._relay(link)
                return ""
            return f"{member} is not accepting connections ({refusal})"
        except (OSError, TimeoutError) as error:
            return f"{member} does not answer ({words(error)})"
        finally:
            self._dialing = None
            if self._link is not link:
                self._table.unbind(self)
                link.abort()

    def _relay(self, link: ServerLink) -> None:
        assert self.endpoint is not None, "bound before it was dialled"
        waited_s = self._now() - self._began
        self._stop_waiting()
        self._link, self._task = link, None
        log.info(
            "client_connected",
            client=self._address,
            user=self._startup.user,
            database=self._startup.database,
            instance=self.instance,
            server=self.endpoint.member,
            read_only=self.read_only,
            tls=self._tls,
            waited_ms=round(waited_s * 1000),
        )
        link.begin_relay()
        if self._held:
            held, self._held = bytes(self._held), bytearray()
            self.data_received(held)

    # --- the end --------------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """The fence falls. A client that is only on its way to that server looks for another one."""
        if self._link is not None:
            self._end_with(refusals.FAILOVER)
        elif self._dialing is not None and not self._dialing.expired():
            self._dialing.reschedule(asyncio.get_running_loop().time())

    def server_lost(self) -> None:
        self._end_with(refusals.SERVER_LOST)
        if self.transport is None:
            self._settle()

    def shut_down(self) -> None:
        if self._link is None:
            self.refuse(refusals.STOPPING, "stopping")
        else:
            self._end_with(refusals.SHUTDOWN)

    def _end_with(self, farewell: bytes) -> None:
        """Close; with a word if the client stands between messages and expects one."""
        if self._ended:
            return
        link = self._link
        if link is not None and link.may_be_told and self.transport is not None and not self._leaving:
            self.transport.write(farewell)
        self._close()

    def refuse(self, message: bytes, why: str) -> None:
        """Say no and close."""
        if self._ended:
            return
        self._gate.refuses(client=self._address, instance=self.instance, why=why)
        if self.transport is not None:
            self.transport.write(message)
        self._close()

    def _close(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._table.unbind(self)
        self._stop_waiting()
        if self._link is not None:
            self._link.abort()
        if self.transport is not None:
            self._linger = part_with(self.transport)

    def _settle(self) -> None:
        """Both sides are gone."""
        self._ended = True
        if self._linger is not None:
            self._linger.cancel()
        self._table.unbind(self)
        self._gate.gone(self)
        if self._link is None:
            return
        log.info(
            "client_disconnected",
            client=self._address,
            instance=self.instance,
            server=self.endpoint.member if self.endpoint else "",
            lasted_s=round(self._now() - self._began, 3),
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
        )


def client_address(transport: asyncio.Transport) -> str:
    """Empty when the client has gone before it was asked."""
    return str((transport.get_extra_info("peername") or ("",))[0])
