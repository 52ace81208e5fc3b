"""Pure: who gets which server connection of one pool, whether one more may be opened, who waits, and what is closed.

A pool is what the clients of one instance, user and database share to one server. Nothing here looks at a clock or
touches a socket: each step is told the time, changes the counts, and says what is to be done. A connection is *free* or
in use; one that is being opened counts as in use from the moment in which it is allowed.

Who waits is served in order of arrival: a newcomer never overtakes, because nobody waits while a connection is free or
may be opened. A connection that comes back goes to the first in line or to nobody. Free ones are taken last in, first
out, so that those that are not needed grow old and are closed.

A connection of another `variant` (other startup parameters, another password) is of no use to a client: one that is
free is closed to make room. One of the same variant that carries other settings is, at the price of a reset.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from core.routes import Pooling

EXTRA_IDLE_S = 1.0  # a free connection beyond `idle_max` is kept so long: a moment's lull closes nothing
CEILING_S = 5.0  # a server that has no room is not asked again for so long, while others may give theirs back


class Signature(Protocol):
    """What a connection is, as its client sees it; the same object for the same."""

    @property
    def variant(self) -> object:
        """The part of it that only a new login can make."""


class Connection(Protocol):
    opened_s: float
    freed_s: float

    @property
    def signature(self) -> Signature: ...


class Ticket(Protocol):
    """One who asks."""

    since_s: float

    @property
    def signature(self) -> Signature: ...


C = TypeVar("C", bound=Connection)
T = TypeVar("T", bound=Ticket)


@dataclass(frozen=True, slots=True)
class Use(Generic[C]):
    """It is free, and yours."""

    connection: C


@dataclass(frozen=True, slots=True)
class Open(Generic[C]):
    """One may be opened; first close this one, which was free."""

    instead_of: C | None = None


@dataclass(frozen=True, slots=True)
class Grant(Generic[C, T]):
    """To one who has waited: this connection, or leave to open one."""

    ticket: T
    connection: C | None = None


@dataclass(frozen=True, slots=True)
class Returned(Generic[C, T]):
    """Of one that came back: who gets it or its place, and whether it is to be closed."""

    grant: Grant[C, T] | None = None
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Due(Generic[C, T]):
    """What time has brought."""

    closed: list[C] = field(default_factory=list)
    expired: list[T] = field(default_factory=list)
    grants: list[Grant[C, T]] = field(default_factory=list)


def share_of(pooling: Pooling, processes: int) -> tuple[int, int]:
    """Size and reserve of one process: rounded up, so that each has at least one."""
    return -(-pooling.size // processes), -(-pooling.reserve // processes)


class Pool(Generic[C, T]):
    """`count`: connections open or being opened."""

    __slots__ = ("_ceiling", "_ceiling_until_s", "_reserve", "_size", "count", "free", "pooling", "queue")

    def __init__(self, pooling: Pooling, processes: int = 1) -> None:
        self.free: list[C] = []  # the last is the next to be used; the first was freed first
        self.queue: dict[T, None] = {}  # the first is the next to be served
        self.count = 0
        self._ceiling = 0
        self._ceiling_until_s = -math.inf
        self.bound(pooling, processes)

    def bound(self, pooling: Pooling, processes: int) -> None:
        """Other bounds, from now on."""
        self.pooling = pooling
        self._size, self._reserve = share_of(pooling, processes)

    # --- asking -------------------------------------------------------------------------------------------------------

    def exactly(self, signature: Signature) -> C | None:
        """A free one that needs nothing done to it."""
        free = self.free
        if free:
            if free[-1].signature is signature:
                return free.pop()
            for at in range(len(free) - 2, -1, -1):
                if free[at].signature is signature:
                    return free.pop(at)
        return None

    def ask(self, ticket: T, now: float) -> Use[C] | Open[C] | None:
        """None: the ticket is in the queue."""
        signature = ticket.signature
        if not self.queue:
            found = self.exactly(signature) or self._alike(signature)
            if found is not None:
                return Use(found)
            if self._room(now):
                self.count += 1
                return Open()
            if self.free:
                return Open(self.free.pop(0))
        self.queue[ticket] = None
        return None

    def _alike(self, signature: Signature) -> C | None:
        """The one that was used last of those that can be made to fit."""
        for at in range(len(self.free) - 1, -1, -1):
            if self.free[at].signature.variant is signature.variant:
                return self.free.pop(at)
        return None

    def _room(self, now: float, *, reserve: bool = False) -> bool:
        if now < self._ceiling_until_s and self.count >= self._ceiling:
            return False
        return self._size == 0 or self.count < self._size + (self._reserve if reserve else 0)

    def leave(self, ticket: T) -> bool:
        """Whether it was waiting still."""
        if ticket in self.queue:
            del self.queue[ticket]
            return True
        return False

    # --- what becomes of connections ----------------------------------------------------------------------------------

    def give_back(self, connection: C, now: float) -> Returned[C, T] | None:
        """None: it is free now, and nobody has waited for it."""
        too_many = 0 < self._size < self.count and (not self.queue or self.count > self._size + self._reserve)
        if too_many or now - connection.opened_s >= self.pooling.life_s:
            return Returned(self.gone(now), closed=True)
        if self.queue:
            ticket = self._next()
            if ticket.signature.variant is connection.signature.variant:
                return Returned(Grant(ticket, connection))
            return Returned(Grant(ticket), closed=True)
        connection.freed_s = now
        self.free.append(connection)
        return None

    def gone(self, now: float) -> Grant[C, T] | None:
        """One that was in use, or being opened, is no more."""
        self.count -= 1
        return self._grant(now)

    def lost(self, connection: C) -> bool:
        """It has ended. Whether it was free; else it was in use, and is `gone`."""
        if connection not in self.free:
            return False
        self.free.remove(connection)
        self.count -= 1
        return True

    def evict(self) -> C | None:
        """A free one, to be closed for others' sake."""
        if not self.free:
            return None
        self.count -= 1
        return self.free.pop(0)

    def refused(self, now: float) -> bool:
        """The server has no room for the one that was being opened, which is still counted. Whether others have one
        that may come back."""
        self._ceiling, self._ceiling_until_s = self.count - 1, now + CEILING_S
        return self.count > 1

    def _grant(self, now: float, *, reserve: bool = False) -> Grant[C, T] | None:
        """To the first in line, if there is room."""
        if self.queue and self._room(now, reserve=reserve):
            self.count += 1
            return Grant(self._next())
        return None

    def _next(self) -> T:
        ticket = next(iter(self.queue))
        del self.queue[ticket]
        return ticket

    def _waited(self, now: float, seconds: float) -> bool:
        """Whether the first in line has waited so long."""
        return bool(self.queue) and now >= next(iter(self.queue)).since_s + seconds

    # --- what time brings ---------------------------------------------------------------------------------------------

    def due(self, now: float) -> Due[C, T]:
        """To be asked when `next_due_s` has come, and after other bounds."""
        due: Due[C, T] = Due()
        while self._waited(now, self.pooling.queue_timeout_s):
            due.expired.append(self._next())
        while (grant := self._grant(now)) is not None:
            due.grants.append(grant)
        while self._waited(now, self.pooling.reserve_after_s) and (grant := self._grant(now, reserve=True)):
            due.grants.append(grant)
        extra = len(self.free) - self.pooling.idle_max
        kept: list[C] = []
        for connection in self.free:
            if now >= self._over_s(connection, extra=extra > 0):
                due.closed.append(connection)
                extra -= 1
            else:
                kept.append(connection)
        self.free[:] = kept
        self.count -= len(due.closed)
        return due

    def _over_s(self, connection: C, *, extra: bool) -> float:
        """When a free one is to be closed."""
        idle_s = self.pooling.idle_s
        idle_s = min(EXTRA_IDLE_S, idle_s) if extra else idle_s
        return min(connection.freed_s + idle_s, connection.opened_s + self.pooling.life_s)

    def next_due_s(self, now: float) -> float:
        """When `due` is to be asked next; infinity when nothing will happen by itself."""
        extra = len(self.free) > self.pooling.idle_max
        times = [self._over_s(one, extra=extra and at == 0) for at, one in enumerate(self.free)]
        if self.queue:
            since_s = next(iter(self.queue)).since_s
            times.append(since_s + self.pooling.queue_timeout_s)
            if self._reserve and self._room(now, reserve=True):
                times.append(since_s + self.pooling.reserve_after_s)
            if now < self._ceiling_until_s:
                times.append(self._ceiling_until_s)
        return min(times, default=math.inf)
