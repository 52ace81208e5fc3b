"""From what the process holds to what the proxy's own database shows of one instance, at this moment.

Clients and servers are described one by one as they are asked for: there may be twenty thousand, and a long answer must
not keep everybody else waiting.
"""

from __future__ import annotations

import os
from asyncio import BaseTransport
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Generic, Protocol, TypeVar, cast

from core.routes import Endpoint
from proxy.admin.facts import ClientFacts, Ends, Facts, Metered, ServerFacts, Shown, Standing
from proxy.gate import Gate
from proxy.pools import Place, ServerPool

T = TypeVar("T")


class IdleServer(Protocol):
    """A connection that no client has just now."""

    opened_s: float  # monotonic
    freed_s: float

    @property
    def transport(self) -> BaseTransport | None: ...
    @property
    def cancel_key(self) -> tuple[Endpoint, int, bytes] | None: ...


def gather(gate: Gate, instance: str) -> Facts | None:
    """None when the instance is served no more."""
    route, now = gate.table.route(instance), gate.clock.now()
    if route is None:
        return None
    gate.settle()
    gate.meters.roll(now)
    return Facts(
        route=route,
        now=now,
        process=os.getpid(),
        address=gate.local_address,
        clients_max=gate.limits.clients_max,
        splitting="off" if not route.splits else "unavailable" if gate.no_parser else "statements",
        logins=sum(guest.shown is None for guest in gate.guests if not guest.ended),
        clients=_Again(lambda: _clients(gate, instance)),
        servers=_Again(lambda: _servers(gate, instance)),
        standings=_Again(lambda: _standings(gate, instance, now)),
        metered=tuple(
            Metered(user=meter.user, database=meter.database, figures=meter.figures(), stretch=stretch)
            for meter, stretch in gate.meters.last_period(instance, now)
        ),
        total=gate.meters.figures_of(instance),
    )


class _Again(Generic[T]):
    """Described anew each time it is read."""

    def __init__(self, begin: Callable[[], Iterator[T]]) -> None:
        self._begin = begin

    def __iter__(self) -> Iterator[T]:
        return self._begin()


def _shown(gate: Gate, instance: str) -> list[Shown]:
    found = (guest.shown for guest in gate.guests if not guest.ended)
    return [one for one in found if one is not None and one.instance == instance]


def _clients(gate: Gate, instance: str) -> Iterator[ClientFacts]:
    for one in _shown(gate, instance):
        yield one.client_facts(gate.clock.now(), gate.clock.wall())


def _servers(gate: Gate, instance: str) -> Iterator[ServerFacts]:
    for one in _shown(gate, instance):
        server = one.server_facts(gate.clock.now(), gate.clock.wall())
        if server is not None:
            yield server
    for pool in _pools(gate, instance):
        for link in tuple(pool.core.free):
            yield _idle(cast(IdleServer, link), pool.place, gate.clock.now(), gate.clock.wall())


def _idle(server: IdleServer, place: Place, now: float, wall: float) -> ServerFacts:
    return ServerFacts(
        number=number_of(server),
        user=place.user,
        database=place.database,
        member=place.endpoint.member,
        state="idle",
        ends=ends_of(server.transport),
        connected_at=wall - (now - server.opened_s),
        used_at=wall - (now - server.freed_s),
        pid=server.cancel_key[1] if server.cancel_key is not None else 0,
        tls=place.endpoint.tls,
    )


def _standings(gate: Gate, instance: str, now: float) -> Iterator[Standing]:
    for one in _shown(gate, instance):
        yield one.standing(now)
    for pool in _pools(gate, instance):
        place = pool.place
        for state, count in (("idle", len(pool.core.free)), ("login", max(0, pool.core.count - len(pool.links)))):
            yield from repeat(Standing(place.database, place.user, "", state), count)


def _pools(gate: Gate, instance: str) -> list[ServerPool]:
    return [pool for pool in gate.pools.all() if pool.place.instance == instance]


def ends_of(transport: BaseTransport | None) -> Ends:
    """Nothing of a connection that has just gone."""
    if transport is None:
        return Ends()
    peer, own = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
    address, port = peer[:2] if peer else ("", 0)
    local_address, local_port = own[:2] if own else ("", 0)
    return Ends(address=address, port=port, local_address=local_address, local_port=local_port)


def number_of(one: object) -> int:
    """Names it as long as it lives; fits a column of four bytes."""
    return id(one) >> 4 & 0x7FFFFFFF
