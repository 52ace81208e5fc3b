"""Server connections that clients share, by instance, server, user and database: the shell around `pool`.

A connection is logged in by the keys of one client, and serves others of the same user after it: those whose password
was checked by the same verifier, and whose startup parameters are the same to the byte (`Variant`). So whoever changes
a password leaves the old connections to nobody but those who were let in by the old one. What else a connection
carries, settings, makes it the better or worse choice (`Signature`).

Between two clients a connection hears its server alone: one that ends is out of the pool at once. A fence that drops
closes those to its primary, and a connection for which a cancel request is under way goes to nobody until the server
has taken that: it would hit the next client's statement.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakValueDictionary

from core.clock import Clock
from core.log import EventLog
from core.routes import Endpoint, Pooling
from core.scram import Verifier
from proxy.pool import Grant, Open, Pool, Returned, Use
from proxy.postgres.messages import Garbled
from proxy.postgres.prepared import Held
from proxy.postgres.statements import names_mute
from proxy.routing import same_server
from proxy.table import Table

log = EventLog("proxy.pools")
RESET_S = 5.0  # a server that does not make a connection like new for so long is lost
TICK_S = 0.5  # between two looks at what is idle and who waits
Settings = tuple[tuple[bytes, bytes], ...]
Parameters = tuple[tuple[str, str], ...]


class Variant:
    """What only a login can make. One object for the same."""

    __slots__ = ("__weakref__", "parameters", "verifier")

    def __init__(self, parameters: Parameters, verifier: Verifier) -> None:
        self.parameters = parameters
        self.verifier = verifier


class Signature:
    """A variant, and the settings that were made since the login. One object for the same."""

    __slots__ = ("__weakref__", "settings", "variant")

    def __init__(self, variant: Variant, settings: Settings) -> None:
        self.variant = variant
        self.settings = settings


class Link(Protocol):
    """A connection to a server, as the pool sees it."""

    signature: Signature
    opened_s: float
    freed_s: float
    cancels: int  # requests under way for what it runs
    home: ServerPool | None
    parameters: dict[str, str]
    held: Held

    @property
    def lost(self) -> bool: ...
    def wait_for_client(self) -> None: ...
    async def make_like_new(self) -> None: ...
    def release(self) -> None: ...
    def abort(self) -> None: ...


class Asker(Protocol):
    """Who waits for a connection."""

    since_s: float

    @property
    def signature(self) -> Signature: ...

    def granted(self, link: Link | None) -> None:
        """It is yours, or None: open one."""

    def waited_in_vain(self) -> None:
        """The time in the queue is over."""


@dataclass(frozen=True, slots=True)
class Place:
    """Whose connections, and where to."""

    instance: str
    endpoint: Endpoint
    user: str
    database: str


def sent_parameters(own: Parameters, *, strict: bool) -> Parameters:
    """Where the proxy must hear the server's warnings, no setting of the role or database may forbid them."""
    if not strict or any(names_mute(name, value) for name, value in own):
        return own
    return (*own, ("client_min_messages", "notice"))


class ServerPool:
    """One pool and its connections."""

    def __init__(self, pools: Pools, place: Place, pooling: Pooling, processes: int) -> None:
        self.place = place
        self.core: Pool[Link, Asker] = Pool(pooling, processes)
        self.links: set[Link] = set()  # logged in
        self.greetings: dict[Variant, dict[str, str]] = {}  # parameters as the server reports them after the login
        self.retired = False  # nobody goes there any more
        self._aside: set[Link] = set()  # that came back while a cancel was under way
        self._renewed: set[Link] = set()  # that are being made like new
        self._pools = pools
        self._now = pools.now

    @property
    def pooling(self) -> Pooling:
        return self.core.pooling

    def ask(self, asker: Asker) -> Use[Link] | Open[Link] | None:
        """None: it waits, and will be told."""
        answer = self.core.ask(asker, self._now())
        if isinstance(answer, Open) and answer.instead_of is not None:
            self._close(answer.instead_of)
        elif answer is None:
            self._pools.look_soon()
        return answer

    def leave(self, asker: Asker) -> None:
        _ = self.core.leave(asker)

    def opened(self, link: Link) -> None:
        """The one that was allowed is logged in."""
        link.home = self
        link.opened_s = self._now()
        link.held.limit = self.pooling.statements_max
        self.links.add(link)
        known = self.greetings.setdefault(link.signature.variant, link.parameters)
        if known == link.parameters:
            link.parameters = known  # one object for all: `Session.adopt` need not compare them each time

    def not_opened(self) -> None:
        """It could not be opened, or nobody wants it."""
        self._grant(self.core.gone(self._now()))

    def give_back(self, link: Link) -> None:
        """It is as its signature says, and at rest."""
        if link.cancels or self.retired:
            link.wait_for_client()
            self._aside.add(link)
            if self.retired:
                self.drop(link)
            return
        returned = self.core.give_back(link, self._now())
        if returned is None:
            link.wait_for_client()
            self._pools.look_soon()
        else:
            self._returned(link, returned)

    def _returned(self, link: Link, returned: Returned[Link, Asker]) -> None:
        if returned.closed:
            self._close(link)
        self._grant(returned.grant)

    def cancelled(self, link: Link, *, taken: bool) -> None:
        """A cancel request for it has ended."""
        link.cancels -= 1
        if not taken:
            link.opened_s = -math.inf  # it may still come: nobody else gets it
        if not link.cancels and link in self._aside:
            self._aside.discard(link)
            self.give_back(link)

    def renew(self, link: Link, fresh: Signature) -> None:
        """Make it like new, then give it back."""
        link.wait_for_client()
        self._renewed.add(link)
        self._pools.spawn(self._renew(link, fresh), f"reset {self.place.instance}")

    async def _renew(self, link: Link, fresh: Signature) -> None:
        try:
            async with asyncio.timeout(RESET_S):
                await link.make_like_new()
        except (OSError, TimeoutError, Garbled) as error:
            if link in self.links:
                log.info("reset_failed", instance=self.place.instance, error=str(error) or type(error).__name__)
            self.drop(link)
            return
        if link in self.links:
            self._renewed.discard(link)
            link.signature = fresh
            self.give_back(link)

    def close_for_another(self, link: Link) -> None:
        """One that is in use; its place is kept for one that is being opened."""
        self._close(link)

    def drop(self, link: Link) -> None:
        """Close one that is in use. Does nothing the second time."""
        if link in self.links:
            self._close(link)
            self._grant(self.core.gone(self._now()))

    def died(self, link: Link) -> None:
        """Its server has ended it. Does nothing when it was closed from here."""
        if link in self.links:
            self._forget(link)
            if not self.core.lost(link):
                self._grant(self.core.gone(self._now()))

    def retire(self) -> None:
        """The server is not to be used any more."""
        self.retired = True
        for link in tuple(self.core.free):
            _ = self.core.lost(link)
            self._close(link)
        for link in (*self._aside, *self._renewed):
            self.drop(link)

    def evict(self) -> bool:
        link = self.core.evict()
        if link is not None:
            self._close(link)
        return link is not None

    def look(self) -> None:
        """What time has brought."""
        due = self.core.due(self._now())
        for link in due.closed:
            self._close(link)
        for asker in due.expired:
            asker.waited_in_vain()
        for grant in due.grants:
            self._grant(grant)

    def _close(self, link: Link) -> None:
        self._forget(link)
        link.release()

    def _forget(self, link: Link) -> None:
        self.links.discard(link)
        self._aside.discard(link)
        self._renewed.discard(link)
        link.home = None
        if not self.links:
            self.greetings.clear()

    def _grant(self, grant: Grant[Link, Asker] | None) -> None:
        if grant is not None:
            grant.ticket.granted(grant.connection)


class Pools:
    """All of a process."""

    def __init__(
        self, clock: Clock, table: Table, processes: int, spawn: Callable[[Coroutine[Any, Any, None], str], object]
    ) -> None:
        self.now = clock.now
        self.spawn = spawn
        self._table = table
        self._processes = processes
        self._pools: dict[Place, ServerPool] = {}
        self._variants: WeakValueDictionary[tuple[Parameters, Verifier], Variant] = WeakValueDictionary()
        self._signatures: WeakValueDictionary[tuple[int, Settings], Signature] = WeakValueDictionary()
        self._timer: asyncio.TimerHandle | None = None
        table.on_routes = self.routes_changed
        table.on_dropped = self.fence_dropped

    def all(self) -> tuple[ServerPool, ...]:
        return tuple(self._pools.values())

    def of(self, place: Place) -> ServerPool:
        found = self._pools.get(place)
        if found is None:
            pooling = self._pooling(place) or Pooling()
            found = self._pools[place] = ServerPool(self, place, pooling, self._processes)
        return found

    def signature(self, parameters: Parameters, verifier: Verifier, settings: Settings = ()) -> Signature:
        variant = self._variants.get((parameters, verifier))
        if variant is None:
            variant = self._variants[(parameters, verifier)] = Variant(parameters, verifier)
        key = (id(variant), settings)  # it lives as long as the signature that names it
        found = self._signatures.get(key)
        if found is None or found.variant is not variant:
            found = self._signatures[key] = Signature(variant, settings)
        return found

    def bare(self, signature: Signature) -> Signature:
        """As after the login."""
        variant = signature.variant
        return self.signature(variant.parameters, variant.verifier) if signature.settings else signature

    def make_room(self, endpoint: Endpoint) -> bool:
        """The server has no room for one more: whether a free connection of others was closed."""
        return any(same_server(one.place.endpoint, endpoint) and one.evict() for one in self._pools.values())

    # --- what changes -------------------------------------------------------------------------------------------------

    def fence_dropped(self, instance: str, endpoint: Endpoint) -> None:
        """What was open to that primary may be written to no more."""
        for one in self.all():
            if one.place.instance == instance and same_server(one.place.endpoint, endpoint):
                one.retire()

    def routes_changed(self) -> None:
        for place, one in tuple(self._pools.items()):
            route = self._table.route(place.instance)
            known = () if route is None else (route.primary, *route.replicas)
            one.retired = False
            if not any(endpoint is not None and same_server(endpoint, place.endpoint) for endpoint in known):
                one.retire()
                if not one.core.count and not one.core.queue:
                    del self._pools[place]
            elif (pooling := self._pooling(place)) is not None and pooling != one.pooling:
                one.core.bound(pooling, self._processes)
                one.look()

    def _pooling(self, place: Place) -> Pooling | None:
        route = self._table.route(place.instance)
        return route.pooling_of(place.user, place.database) if route is not None else None

    # --- time ---------------------------------------------------------------------------------------------------------

    def look_soon(self) -> None:
        """Something is free, or somebody waits."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self._timer = None
        for one in self.all():
            if one.core.free or one.core.queue:
                one.look()
                self.look_soon()
