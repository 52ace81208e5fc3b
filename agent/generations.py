"""Pure: which processes of the proxy must be started, and which have to leave.

The newest generation is in charge if nothing is to be changed; else the next one is. All of its processes are started;
once each of them serves on every port, the older ones are told to leave, and end with their last client. A process that
dies is started again alone. So whoever looks, at whatever moment, finds what remains to be done.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Of a process of the proxy on its node."""

    generation: int
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A living process."""

    place: Place
    fits: bool = True  # it runs with the settings, and of the release, that it would be started with now
    ready: bool = True  # it listens on every port of the routes
    draining: bool = False  # it takes no new clients


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What remains to be done, each at once."""

    start: tuple[Place, ...] = ()
    leave: tuple[Place, ...] = ()


def plan(seen: Iterable[Seen], *, processes: int, at_least: int = 1) -> Plan:
    """`at_least`: an older generation must not be in charge, by an operator's wish."""
    living = {one.place: one for one in seen}
    newest = max((place.generation for place in living), default=0)
    of_newest = [one for place, one in living.items() if place.generation == newest]
    stays = all(one.fits and not one.draining for one in of_newest)
    current = max(newest if newest and stays else newest + 1, at_least)
    places = [Place(current, index) for index in range(processes)]
    complete = all(place in living and living[place].ready for place in places)
    return Plan(
        start=tuple(place for place in places if place not in living),
        leave=tuple(sorted(place for place in living if place.generation < current)) if complete else (),
    )
