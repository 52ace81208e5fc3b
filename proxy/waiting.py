"""A client that waits for a server: what it has said meanwhile, and for how long it waits.

What it says is kept, up to a bound, behind which it is not read any more. It waits `hold_s` of its route, counted from
when it wanted something: a client that has a session and is silent does not wait. Then it is told 57P03.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from proxy.gate import Gate
from proxy.postgres import refusals
from proxy.sockets import read_on

HELD_BYTES_MAX = 64 << 10
EARLY_S = 0.01  # timers may fire so early
DIAL_MIN_S = 1.0  # for a client whose time is over just while it is being logged in


class Waiter(Protocol):
    """A session, as its wait sees it."""

    instance: str
    kept: bool
    transport: asyncio.Transport | None
    dialing: asyncio.Timeout | None

    @property
    def connected(self) -> bool: ...
    @property
    def queued(self) -> bool:
        """In a pool, which says itself when it has waited too long."""

    @property
    def ended(self) -> bool: ...
    def refuse(self, message: bytes, why: str) -> None: ...


class Waiting:
    """One a session."""

    def __init__(self, session: Waiter, gate: Gate) -> None:
        self._session = session
        self._table = gate.table
        self._waiters_max = gate.limits.waiters_max
        self._now = gate.clock.now
        self._held = bytearray()
        self._unread = False  # the client is not read, because too much is held ...
        self._barred = False  # ... or what it has sent must be answered first
        self._since: float | None = None  # when it began to wait
        self._until = 0.0  # when its patience ends
        # Left as it is when the waiting ends, and asked what it is for when it fires: where connections are shared, a
        # client waits for a moment with every other transaction.
        self._timer: asyncio.TimerHandle | None = None
        self._fires_at = 0.0
        self._why = "no server was tried"
        self._counted = False  # among those that wait for a server

    @property
    def holds(self) -> bool:
        return bool(self._held)

    @property
    def waits(self) -> bool:
        return self._since is not None

    def hold(self, data: bytes) -> None:
        """The client has said something that cannot be sent yet."""
        self._held += data
        if self._since is None:
            self.begin()
        if len(self._held) > HELD_BYTES_MAX:
            self._unread = True
            self.read_client(False)

    def begin(self) -> None:
        """The client wants something, and waits from now on."""
        now = self._now()
        self._since = now
        self._wait(now, self._hold_s())

    def for_server(self, why: str) -> None:
        """There is no server for it yet."""
        self._why = why
        session = self._session
        if session.ended or self._counted:
            return
        if not session.kept and self._table.waiting[session.instance] >= self._waiters_max:
            session.refuse(refusals.TOO_MANY_WAIT, "too many clients wait")
            return
        self._counted = True
        self._table.waiting[session.instance] += 1

    def end(self) -> bytes:
        """It waits no longer; what it has said."""
        self._since = None
        if self._timer is not None and (self._session.ended or self._session.transport is None):
            self._timer.cancel()
            self._timer = None
        if self._counted:
            self._counted = False
            self._table.waiting[self._session.instance] -= 1
        held, self._held = bytes(self._held), bytearray()
        return held

    def read_on(self) -> None:
        """What was held has gone to a server."""
        if self._unread and not self._held:
            self._unread = False
            self.read_client(True)

    def bar(self, barred: bool) -> None:
        """Do not read the client until what it has sent is answered."""
        if self._barred is not barred:
            self._barred = barred
            self.read_client(not barred)

    def read_client(self, go: bool) -> None:
        if not (go and (self._unread or self._barred)):
            read_on(self._session.transport, go)

    def _hold_s(self) -> float:
        route = self._table.route(self._session.instance)
        return route.hold_s if route is not None else 0.0

    def _wait(self, now: float, in_s: float) -> None:
        self._until = now + in_s
        if self._timer is not None:
            if self._fires_at <= self._until:
                return
            self._timer.cancel()
        self._fires_at = self._until
        self._timer = asyncio.get_running_loop().call_later(in_s, self._waited)

    def _waited(self) -> None:
        self._timer = None
        if self._since is None:
            return
        session, now = self._session, self._now()
        waited_s = now - self._since
        if now < self._until - EARLY_S:
            self._wait(now, self._until - now)
            return
        if session.queued or (session.dialing is not None and waited_s < self._hold_s() + DIAL_MIN_S):
            self._wait(now, DIAL_MIN_S)
            return
        why = "a switchover is under way" if session.connected else self._why
        message = f"no server of {session.instance} to connect to: {why}; waited {waited_s:.1f} s"
        session.refuse(refusals.error("57P03", message, "Try again; `moorctl status` tells what is wrong."), message)
