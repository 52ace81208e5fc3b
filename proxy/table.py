"""The routes in force, who is connected by them, and who waits for another one.

A new table replaces the old one whole. Sessions that can write share a `Fence`, one for each primary: the time at which
their right ends. A renewed route moves that time; another primary, or the time itself, drops the fence for ever and
cuts its sessions off their server. The timer for that is set here, so it needs nobody's word, and every buffer is
checked against the fence before it passes, so it holds for a process that was frozen too.

A replica's sessions are not fenced. When it becomes the primary they can write, and come under its fence.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Protocol

from core.clock import Clock
from core.log import EventLog
from core.routes import Endpoint, Route, RouteTable, SessionCounts
from proxy.routing import same_server, still_valid

log = EventLog("proxy.table")
TIMER_GRAIN_S = 0.001  # timers are this coarse: one that comes early would only be set again


class Fence:
    """Until when sessions may write to `endpoint`; shared by all of them, so that one assignment moves it for all.
    `paused`: whoever is at rest begins nothing new. `strict`: what was not replicated is not acknowledged."""

    __slots__ = ("endpoint", "paused", "strict", "until_s")

    def __init__(self, endpoint: Endpoint, until_s: float, *, paused: bool = False, strict: bool = False) -> None:
        self.endpoint = endpoint
        self.until_s = until_s
        self.paused = paused
        self.strict = strict


class Bound(Protocol):
    """A session on a server, or on its way to one, as the table sees it."""

    instance: str
    read_only: bool
    endpoint: Endpoint | None
    fence: Fence | None

    @property
    def connected(self) -> bool:
        """False on its way."""

    @property
    def busy(self) -> bool:
        """A switchover must wait for it."""

    def cut(self) -> None:
        """Off its server now, which may no longer be written to."""

    def look(self) -> None:
        """Its fence is paused, or is no longer."""


class Table:
    """One a process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._routes: dict[str, Route] = {}
        self._fences: dict[str, Fence] = {}  # by instance; none while there is nobody to write to
        self._sessions: dict[str, set[Bound]] = {}  # by instance
        self._loads: dict[str, Counter[str]] = {}  # by instance: sessions of each member
        self._changed: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.waiting: Counter[str] = Counter()
        self._turns = 0
        self.seq = 0
        self.version = 0  # grows with every table
        self.on_listeners: Callable[[], None] = lambda: None
        self.on_routes: Callable[[], None] = lambda: None
        self.on_dropped: Callable[[str, Endpoint], None] = lambda _instance, _endpoint: None
        self._sharing: dict[str, set[Bound]] = {}  # by instance: those that are bound for a transaction only

    # --- routes ---------------------------------------------------------------------------------------------------

    def route(self, instance: str) -> Route | None:
        return self._routes.get(instance)

    def routes(self) -> tuple[Route, ...]:
        return tuple(self._routes.values())

    def replace(self, table: RouteTable) -> None:
        """Put a table in force: listeners, fences and waiters follow at once."""
        before, self._routes = self._routes, {route.instance: route for route in table.routes}
        self.seq = table.seq
        self.version += 1
        for instance in before.keys() | self._routes.keys():
            _log_change(instance, before.get(instance), self._routes.get(instance))
            self._renew(instance)
        self._set_timer()
        self.on_routes()
        self.on_listeners()
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)
        self._changed = None

    async def changed(self, since: int, timeout_s: float) -> bool:
        """Until there is a newer table than version `since`, at most so long; whether there is one."""
        if self.version == since:
            if self._changed is None:
                self._changed = asyncio.get_running_loop().create_future()
            await asyncio.wait({self._changed}, timeout=max(0.0, timeout_s))
        return self.version != since

    # --- sessions -------------------------------------------------------------------------------------------------

    def bind(self, session: Bound, endpoint: Endpoint, *, fenced: bool) -> None:
        """From now on the session counts for `endpoint` and is cut with its fence."""
        session.endpoint = endpoint
        session.fence = self._fences.get(session.instance) if fenced else None
        assert not fenced or (session.fence is not None and same_server(session.fence.endpoint, endpoint))
        self._sessions.setdefault(session.instance, set()).add(session)
        self._loads.setdefault(session.instance, Counter())[endpoint.member] += 1

    def unbind(self, session: Bound) -> None:
        """The session has ended, or looks for another server. Does nothing the second time."""
        sessions = self._sessions.get(session.instance)
        if sessions is None or session not in sessions or session.endpoint is None:
            return
        sessions.discard(session)
        self._loads[session.instance][session.endpoint.member] -= 1
        if not sessions:
            del self._sessions[session.instance], self._loads[session.instance]

    def share(self, session: Bound) -> None:
        """A session that is bound for each transaction anew counts also in between."""
        self._sharing.setdefault(session.instance, set()).add(session)

    def unshare(self, session: Bound) -> None:
        sessions = self._sharing.get(session.instance, set())
        sessions.discard(session)
        if not sessions:
            self._sharing.pop(session.instance, None)

    def fence(self, instance: str) -> Fence | None:
        """Under which the present primary may be written to."""
        return self._fences.get(instance)

    def loads(self, instance: str) -> Counter[str]:
        """How many sessions each member of an instance has from here."""
        return self._loads.get(instance, Counter())

    def next_turn(self) -> int:
        """For `admit`."""
        self._turns += 1
        return self._turns

    def counts(self) -> dict[str, SessionCounts]:
        """For the report."""
        return {name: self._count(name) for name in self._routes}

    def _count(self, instance: str) -> SessionCounts:
        sharing = self._sharing.get(instance, set())
        bound = (session for session in self._sessions.get(instance, ()) if session.connected)
        kinds = Counter(session.read_only for session in {*bound, *sharing})
        return SessionCounts(read_write=kinds[False], read_only=kinds[True], waiting=self.waiting[instance])

    def busy(self) -> dict[str, int]:
        """For the report: sessions that can write and are busy, of each instance."""
        return {
            name: sum(session.fence is not None and session.busy for session in self._sessions.get(name, ()))
            for name in self._routes
        }

    # --- fences ---------------------------------------------------------------------------------------------------

    def _renew(self, instance: str) -> None:
        """Make the fence what the instance's route says."""
        route, fence, now = self._routes.get(instance), self._fences.get(instance), self._clock.now()
        if fence is not None:
            # A fence whose time has come is gone even if its renewal lies in this table: it is then a matter of
            # milliseconds, and must not depend on whether the timer or the table was looked at first.
            if route is not None and now < fence.until_s and still_valid(route, fence.endpoint, now):
                fence.until_s, fence.strict = route.expires_at_s, route.strict
                self._pause(instance, fence, paused=route.paused)
            else:
                self._drop(instance, fence)
                fence = None
        if route is None:
            self._cut(instance, {*self._sessions.get(instance, ()), *self._sharing.get(instance, ())})
            return
        self._turn_back(instance, route)
        if fence is None and route.primary is not None and now < route.expires_at_s:
            fence = Fence(route.primary, route.expires_at_s, paused=route.paused, strict=route.strict)
            self._fences[instance] = fence
            for session in self._sessions.get(instance, ()):
                if session.endpoint is not None and same_server(session.endpoint, route.primary):
                    session.fence = fence

    def _turn_back(self, instance: str, route: Route) -> None:
        """Whoever is on its way to a replica that is no longer named need not wait for it to answer. One that has
        arrived stays: a replica that is unwell keeps who it has."""
        for session in tuple(self._sessions.get(instance, ())):
            if session.fence is None and not session.connected and session.endpoint not in route.replicas:
                session.cut()

    def _pause(self, instance: str, fence: Fence, *, paused: bool) -> None:
        if fence.paused != paused:
            fence.paused = paused
            for session in tuple(self._sessions.get(instance, ())):
                if session.fence is fence:
                    session.look()

    def _drop(self, instance: str, fence: Fence) -> None:
        del self._fences[instance]
        fence.until_s = -math.inf
        self.on_dropped(instance, fence.endpoint)
        self._cut(instance, [session for session in self._sessions.get(instance, ()) if session.fence is fence])

    def _cut(self, instance: str, doomed: Iterable[Bound]) -> None:
        count = 0
        for session in tuple(doomed):
            session.cut()
            count += 1
        if count:
            log.warning("sessions_cut", instance=instance, sessions=count)

    def _expire(self) -> None:
        now = self._clock.now()
        for instance, fence in tuple(self._fences.items()):
            if now >= fence.until_s:
                self._drop(instance, fence)
        self._set_timer()

    def _set_timer(self) -> None:
        """Look again when the next fence ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._fences:
            first = min(fence.until_s for fence in self._fences.values())
            wait_s = max(0.0, first - self._clock.now()) + TIMER_GRAIN_S
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._expire)


def _log_change(instance: str, before: Route | None, after: Route | None) -> None:
    """One line when clients go elsewhere; renewals of the same route say nothing."""
    if _gist(before) == _gist(after):
        return
    log.info(
        "route_changed",
        instance=instance,
        primary=after.primary.member if after and after.primary else "",
        term=after.term if after else 0,
        replicas=",".join(replica.member for replica in after.replicas) if after else "",
        paused=after.paused if after else False,
        removed=after is None,
    )


def _gist(route: Route | None) -> object:
    return route and (route.primary, route.term, route.replicas, route.paused, route.rw_port, route.ro_port)
