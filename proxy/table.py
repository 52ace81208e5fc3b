"""The routes in force, who is connected by them, and who waits for another one.

A new table replaces the old one whole. Sessions that may write are bound to a fence: when their route ends, by a new
table or by its own time, they are cut. The timer for that is set here, so it needs nobody's word.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from core.clock import Clock
from core.log import EventLog
from core.routes import Endpoint, Route, RouteTable, SessionCounts
from proxy.routing import still_valid

log = EventLog("proxy.table")


class Session(Protocol):
    """A connected session, as the table sees it."""

    instance: str
    read_only: bool
    endpoint: Endpoint | None
    fenced: bool

    def cut(self) -> None:
        """End it now: its server may no longer be written to."""


class Table:
    """One a process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._routes: dict[str, Route] = {}
        self._changed: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.sessions: set[Session] = set()
        self.waiting: Counter[str] = Counter()
        self.refused = 0
        self.seq = 0
        self.on_listeners: Callable[[], None] = lambda: None

    # --- routes ---------------------------------------------------------------------------------------------------

    def route(self, instance: str) -> Route | None:
        return self._routes.get(instance)

    def routes(self) -> tuple[Route, ...]:
        return tuple(self._routes.values())

    def replace(self, table: RouteTable) -> None:
        """Put a table in force: listeners, fences and waiters follow at once."""
        before, self._routes = self._routes, {route.instance: route for route in table.routes}
        self.seq = table.seq
        for instance in before.keys() | self._routes.keys():
            _log_change(instance, before.get(instance), self._routes.get(instance))
        self.on_listeners()
        self._fence()
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)
        self._changed = None

    async def changed(self, timeout_s: float) -> None:
        """Until the next table, at most so long."""
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.wait({self._changed}, timeout=max(0.0, timeout_s))

    # --- fences ---------------------------------------------------------------------------------------------------

    def valid(self, session: Session) -> bool:
        """Whether a write of this session may be forwarded at this very moment."""
        assert session.endpoint is not None, "a session without a server forwards nothing"
        return still_valid(self._routes.get(session.instance), session.endpoint, self._clock.now())

    def _fence(self) -> None:
        """Cut every session that can write to what is no longer a valid primary, and look again when the next ends."""
        doomed = [session for session in self.sessions if session.fenced and not self.valid(session)]
        for session in doomed:
            session.cut()
        if doomed:
            by_instance = Counter(session.instance for session in doomed)
            log.warning("sessions_cut", sessions=dict(by_instance))
        if self._timer is not None:
            self._timer.cancel()
        now = self._clock.now()
        ends = [r.expires_at_s for r in self._routes.values() if r.primary is not None and r.expires_at_s > now]
        if ends:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(min(ends) - now + 0.001, self._fence)

    # --- counts ---------------------------------------------------------------------------------------------------

    def per_member(self, instance: str) -> Counter[str]:
        """Sessions of an instance by the member they are connected to."""
        return Counter(s.endpoint.member for s in self.sessions if s.instance == instance and s.endpoint)

    def counts(self) -> dict[str, SessionCounts]:
        """For the report."""
        read_only = Counter(s.instance for s in self.sessions if s.read_only)
        read_write = Counter(s.instance for s in self.sessions if not s.read_only)
        return {
            name: SessionCounts(read_write=read_write[name], read_only=read_only[name], waiting=self.waiting[name])
            for name in self._routes
        }


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
