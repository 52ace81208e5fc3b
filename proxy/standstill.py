"""Pure: what a client is at, since when it has stood there, and whether that is too long.

Clients are looked at now and then, all in one go, and nothing is noted while they are served: who has moved on between
two looks shows it by its position. So a client is ended late, by at most the time between two looks, and never early.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from core.routes import Route
from proxy.postgres import refusals

LOOKS = 10  # at least so many within the shortest bound
LOOK_MIN_S, LOOK_MAX_S = 0.1, 2.0


class Stance(Enum):
    BUSY = "busy"  # it is owed something, or in the middle of a message
    IDLE = "idle"  # all is answered, no transaction is open
    IN_TRANSACTION = "in transaction"  # all is answered, and one is open
    UNREAD = "unread"  # it does not take what it was sent, and its server waits for it


@dataclass(frozen=True, slots=True)
class Sight:
    """`position`: bytes that it has sent so far; where it does not read, those that wait for it."""

    stance: Stance
    position: int


K = TypeVar("K", bound=Hashable)


class Standstills(Generic[K]):
    """Since when each stands where it stands, from round to round of looks."""

    def __init__(self) -> None:
        self._before: dict[K, tuple[Sight, float]] = {}
        self._since: dict[K, tuple[Sight, float]] = {}

    def begin(self) -> None:
        """Another round: who was not looked at in the one before is forgotten."""
        self._before, self._since = self._since, {}

    def look(self, who: K, sight: Sight, now: float) -> float:
        """Seconds since it was first seen so."""
        known = self._before.get(who)
        if known is None or known[0] != sight:
            known = sight, now
        self._since[who] = known
        return now - known[1]


def bound_s(route: Route, stance: Stance) -> float:
    """For how long a client may stand so; 0 = for ever."""
    match stance:
        case Stance.BUSY:
            return 0.0
        case Stance.IDLE:
            return route.client_idle_s
        case Stance.IN_TRANSACTION:
            return route.idle_transaction_s
        case Stance.UNREAD:
            return route.client_unread_s


def farewell(route: Route, stance: Stance) -> bytes:
    """In PostgreSQL's words; empty where the client does not read them anyway."""
    match stance:
        case Stance.IDLE:
            detail = f"It asked nothing for {route.client_idle_s:g} s (proxy.limits.idle_s)."
            return refusals.error("57P05", "terminating connection due to idle-session timeout", detail=detail)
        case Stance.IN_TRANSACTION:
            detail = f"It asked nothing for {route.idle_transaction_s:g} s (proxy.limits.idle_transaction_s)."
            return refusals.error("25P03", "terminating connection due to idle-in-transaction timeout", detail=detail)
        case Stance.BUSY | Stance.UNREAD:
            return b""


def look_every_s(routes: Iterable[Route]) -> float:
    bounds = (
        bound
        for route in routes
        for bound in (route.client_idle_s, route.idle_transaction_s, route.client_unread_s)
        if bound
    )
    return max(LOOK_MIN_S, min(LOOK_MAX_S, min(bounds, default=math.inf) / LOOKS))
