"""Pure: how many clients an instance and each of its users have, and whether one more may come in.

A client is counted from the moment in which its password was right, before it is asked whether there is room: two that
come at once, at two processes, each see the other, so that there are never more than there may be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from core.routes import Route
from proxy.routing import Refuse

RESERVED = 3  # for observers, beyond what everybody may have: as superuser_reserved_connections of PostgreSQL


@dataclass(frozen=True, slots=True)
class Count:
    """Of one instance, and of one of its users."""

    instance: int
    user: int


class Seat:
    """That a client is counted, until it leaves."""

    __slots__ = ("_headcount", "instance", "user")

    def __init__(self, headcount: Headcount, instance: str, user: str) -> None:
        self.instance = instance
        self.user = user
        self._headcount: Headcount | None = headcount

    def leave(self) -> None:
        """Does nothing the second time."""
        headcount, self._headcount = self._headcount, None
        if headcount is not None:
            headcount.left(self)


class Headcount:
    """Of one process."""

    def __init__(self) -> None:
        self._instances: Counter[str] = Counter()
        self._users: Counter[tuple[str, str]] = Counter()

    def enter(self, instance: str, user: str) -> Seat:
        self._instances[instance] += 1
        self._users[instance, user] += 1
        return Seat(self, instance, user)

    def left(self, seat: Seat) -> None:
        """Called by the seat."""
        self._instances[seat.instance] -= 1
        self._users[seat.instance, seat.user] -= 1
        if not self._instances[seat.instance]:
            del self._instances[seat.instance]
        if not self._users[seat.instance, seat.user]:
            del self._users[seat.instance, seat.user]

    def of(self, instance: str, user: str) -> Count:
        return Count(self._instances[instance], self._users[instance, user])


def bounded(route: Route | None) -> bool:
    """Whether anybody has to be counted who is elsewhere."""
    return route is not None and bool(route.clients_max or route.clients_per_user_max)


def no_room(route: Route | None, user: str, counts: Iterable[Count]) -> Refuse | None:
    """`counts`: of all processes of the node, the client itself included. Observers have a few seats of their own: who
    has to look what is wrong must not find the door shut."""
    if route is None:
        return None
    observes, counts = user in route.observers, tuple(counts)
    most = route.clients_max
    if most and sum(count.instance for count in counts) > most + (RESERVED if observes else 0):
        text = f"sorry, too many clients already: {route.instance} may have {most} at this node's proxy"
        return Refuse("53300", text, "End some, connect to another node's proxy, or raise proxy.limits.clients.")
    most = route.clients_per_user_max
    if most and not observes and sum(count.user for count in counts) > most:
        text = f'too many connections for role "{user}": it may have {most} to {route.instance} at this node\'s proxy'
        return Refuse("53300", text, "End some, use another node's proxy, or raise proxy.limits.clients_per_user.")
    return None
