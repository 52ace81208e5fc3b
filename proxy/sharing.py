"""Transaction mode: a session that has a server for each transaction anew.

At rest it gives the connection back at once, and takes a free one when its client speaks again: in the same step in
which the bytes come, if there is one. What it carries are settings; a connection that carries the same is preferred,
another one is reset and made to carry them. After a statement that may have changed something it keeps its connection
until the server has said what it carries now.

What no other connection could be made to carry *pins* the session: temporary objects, advisory locks, cursors WITH
HOLD, channels listened to, statements of PREPARE, a library, settings whose names are not known. A pinned session keeps
its connection as in session mode; it is asked again when its client pauses, and let go once the obstacle is gone.
"""

from __future__ import annotations

from typing import Protocol, cast

from core.routes import Endpoint, Route
from proxy.attaching import Offer, Traveller
from proxy.gate import Gate
from proxy.parting import drop
from proxy.pool import Open, Use
from proxy.pools import Link, Place, ServerPool, Signature
from proxy.postgres import refusals
from proxy.postgres.carried import Carried
from proxy.postgres.renaming import LOST, translate
from proxy.postgres.startup import Startup
from proxy.routing import Forward, admit
from proxy.server import ServerLink
from proxy.splitting import Divided, Splitting
from proxy.told import Told

NO = frozenset({"", "0", "f", "false", "n", "no", "of", "off"})


def shares_servers(route: Route | None, startup: Startup) -> bool:
    """Whether this client will be in transaction mode, for as long as it stays."""
    if route is None or replicates(startup):
        return False
    return route.pooling_of(startup.user, startup.database).mode == "transaction"


def replicates(startup: Startup) -> bool:
    return startup.parameters.get("replication", "off").lower() not in NO


class Sharer(Traveller, Divided, Protocol):
    """The session."""

    holding: bool
    told: Told

    @property
    def looking(self) -> bool:
        """It is on its way to a server already."""

    @property
    def server(self) -> ServerLink | None: ...
    def adopt(self, link: ServerLink) -> None: ...
    def go_on(self) -> None: ...
    def let_go(self) -> None: ...
    def end_with(self, farewell: bytes) -> None: ...
    def close(self) -> None: ...
    def look_for_server(self, offer: Offer | None = None) -> None: ...


class Sharing:
    """One a session."""

    __slots__ = ("_gate", "_place", "_queue", "_session", "_version", "pinned", "since_s", "splitting")

    def __init__(self, session: Sharer, gate: Gate) -> None:
        self.pinned = ""  # why it keeps its connection
        self.since_s = 0.0
        self.splitting = Splitting(session, gate, self._give_back)
        self._session = session
        self._gate = gate
        self._place: ServerPool | None = None  # where its transactions run, by the table of this version
        self._version = -1
        self._queue: ServerPool | None = None  # in which it waits

    @property
    def queued(self) -> bool:
        return self._queue is not None

    @property
    def signature(self) -> Signature:
        return self._session.asking.signature

    # --- a transaction begins -----------------------------------------------------------------------------------------

    def take(self, data: bytes, now: float) -> ServerLink | None:
        """For what the client says now. None: it is held, and a connection is looked for."""
        session = self._session
        if self._queue is not None or session.looking:
            return None
        place = self._replica(now) if self.splitting.wanted(data) else None
        if place is not None:
            self.splitting.begin()
        else:
            place = self._chosen(now)
        if place is None:
            session.look_for_server()  # nobody to go to just now
            return None
        self._bind(place)
        link = place.core.exactly(session.asking.signature)
        if link is not None:
            taken = cast(ServerLink, link)
            session.adopt(taken)
            if self.splitting.active:
                self.splitting.sent(taken)
            return taken
        self.since_s = now
        answer = place.ask(self)
        if answer is None:
            self._queue = place
        else:
            self._set_out(place, answer)
        return None

    def _chosen(self, now: float) -> ServerPool | None:
        """By the route of the moment; a primary's is good until there is another table."""
        table, session = self._gate.table, self._session
        place, fence = self._place, table.fence(session.instance)
        if place is not None and self._version == table.version:
            return place if fence is not None and not fence.paused and now < fence.until_s else None
        self._place = None
        verdict = admit(
            table.route(session.instance),
            read_only=session.read_only,
            client=session.address,
            sessions=table.loads(session.instance),
            now=now,
            turn=table.next_turn(),
        )
        if self._gate.stopping or not isinstance(verdict, Forward) or (verdict.fenced and fence is None):
            return None
        place = self._gate.pools.of(self._place_at(verdict.endpoint))
        if verdict.fenced:
            self._place, self._version = place, table.version
        return place

    def _replica(self, now: float) -> ServerPool | None:
        """For a read. None when no replica serves."""
        table, session = self._gate.table, self._session
        loads, turn = table.loads(session.instance), table.next_turn()
        route = table.route(session.instance)
        verdict = admit(route, read_only=True, client=session.address, sessions=loads, now=now, turn=turn)
        if self._gate.stopping or not isinstance(verdict, Forward) or verdict.fenced:
            return None
        return self._gate.pools.of(self._place_at(verdict.endpoint))

    def _place_at(self, endpoint: Endpoint) -> Place:
        session = self._session
        return Place(session.instance, endpoint, session.login.user, session.database)

    def _bind(self, place: ServerPool) -> None:
        self._gate.table.bind(self._session, place.place.endpoint, fenced=self._place is place)

    def _set_out(self, place: ServerPool, answer: Use[Link] | Open[Link]) -> None:
        link = answer.connection if isinstance(answer, Use) else None
        self._session.look_for_server(Offer(place, cast("ServerLink | None", link), fenced=self._place is place))

    # --- as one who waits ---------------------------------------------------------------------------------------------

    def granted(self, link: Link | None) -> None:
        session, place = self._session, self._queue
        assert place is not None, "nobody else is told"
        self._queue = None
        if link is not None and link.signature is session.asking.signature and not session.ended:
            session.adopt(cast(ServerLink, link))
            session.go_on()
        else:
            self._set_out(place, Open() if link is None else Use(link))

    def waited_in_vain(self) -> None:
        place, self._queue = self._queue, None
        if place is not None:
            why = "its connections to the server are all in use"
            self._session.refuse(refusals.pool_full(place.pooling.queue_timeout_s), why)

    def withdraw(self) -> bool:
        """Out of the queue; whether it was in one."""
        place, self._queue = self._queue, None
        if place is not None:
            place.leave(self)
            self._gate.table.unbind(self._session)
        return place is not None

    # --- a transaction has ended --------------------------------------------------------------------------------------

    def rested(self) -> bool:
        """All is answered; whether the connection has been given back."""
        session = self._session
        link, requests = session.server, session.requests
        if self.splitting.active and not requests.resting:
            return self.splitting.go_on()
        if link is None or requests.changed or self.pinned or session.holding or session.waiting.holds:
            return False
        if not (requests.resting and link.quiet) or link.home is None:
            return False
        self._give_back(link)
        behind = self.splitting.end() if self.splitting.active else b""
        if behind:
            session.data_received(behind)
        elif requests.leaving:
            session.close()
        return True

    def left(self) -> bool:
        """The server has gone, and the client stays. Whether it had said something that goes elsewhere now."""
        session = self._session
        behind = self.splitting.end() if self.splitting.active else b""
        if behind:
            session.data_received(behind + session.waiting.end())
        return bool(behind)

    def _give_back(self, link: ServerLink) -> None:
        """It is at rest, and as its signature says."""
        home = link.home
        self._session.let_go()
        if home is None:
            drop(link)
            return
        if home.pooling.reset == "always":
            home.renew(link, self._gate.pools.bare(link.signature))
        else:
            home.give_back(link)

    def carries(self, carried: Carried) -> None:
        """The server has said so."""
        reasons = [*carried.obstacles]
        reasons += ["listens to a channel"] if carried.channels else []
        reasons += ["has a statement of PREPARE"] if carried.by_sql else []
        self.pinned = " and ".join(reasons) or self._session.requests.obstacle or ""
        if self.pinned and self.splitting.active and self._session.fence is None:
            self._session.end_with(refusals.pinned_at_replica(" and ".join(reasons) or "has left what cannot be told"))

    def barred(self) -> None:
        """What the client has sent must wait for the answers to what it sent before, or cannot be followed."""
        session = self._session
        if session.statements is not None and session.statements.lost:
            session.end_with(LOST)
        else:
            session.waiting.bar(True)

    def let_on(self, link: ServerLink) -> None:
        """That is answered now."""
        session, statements = self._session, self._session.statements
        if statements is None or session.server is not link or not (statements.waits and statements.may_go_on):
            return
        link.write(translate(statements, link.held, b"", session.requests))
        if statements.waits or statements.lost:
            self.barred()
        else:
            session.waiting.bar(False)

    # --- login --------------------------------------------------------------------------------------------------------

    def greeted(self, now: float) -> bool:
        """Whether the client could be let in without a server: others of the same login have one."""
        place, session = self._chosen(now), self._session
        if place is None or not place.links:
            return False
        self._bind(place)  # for its fence, which the signature depends on
        parameters = place.greetings.get(session.asking.signature.variant)
        self._gate.table.unbind(session)
        session.fence = None
        if parameters is None:
            return False
        some = cast(ServerLink, next(iter(place.links)))
        session.told.greet(parameters, some.cancel_key[1] if some.cancel_key is not None else 0)
        return True
