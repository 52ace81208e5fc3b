"""A session on its way to a server: by the route of the moment, held while there is none, at a pace that servers bear.

The same way leads a new client to its first server and a kept session to its next one. A kept session may wait as long
as its client is silent; a client that waits for an answer waits `hold_s` (the session sees to that). After a failover
all sessions of an instance set out at once: only so many log in at a time.

A server's connection comes out of a pool (`pools`): a free one, leave to open one, or a place in the queue. What was
offered and is not used goes back, whatever happens on the way (`Offer`).
"""

from __future__ import annotations

import asyncio
import random
import secrets
from dataclasses import dataclass
from typing import Protocol, cast

from core.backoff import Backoff
from core.errors import words
from core.routes import Endpoint
from proxy.asking import Asking
from proxy.client import Client
from proxy.gate import Gate
from proxy.pool import Use
from proxy.pools import Link, Place, ServerPool, Signature
from proxy.postgres import refusals
from proxy.postgres.carried import SETTINGS_LIKE_NEW, Restoring
from proxy.postgres.login import LoginRefused, ServerLogin
from proxy.postgres.messages import Garbled
from proxy.postgres.scram import Login
from proxy.postgres.server_side import NOT_YET, TOO_MANY_CLIENTS
from proxy.routing import Forward, Hold, Refuse, admit
from proxy.server import ServerLink
from proxy.table import Bound, Fence
from proxy.waiting import Waiting

DIAL_TIMEOUT_S = 5.0  # for connection, login and what the session carries
RETRY_BASE_S, RETRY_CAP_S = 0.05, 0.5  # between two tries of a server that is not up yet
FOREVER_S = 3600.0  # until there is another table; a look in between does no harm
NONCE_BYTES = 18


@dataclass(frozen=True, slots=True)
class Departure:
    """By what a server has ended a session, and which one it was."""

    dismissal: bytes
    endpoint: Endpoint
    fence: Fence | None


class Traveller(Client, Bound, Protocol):
    """A session, as its way sees it."""

    address: str
    login: Login
    database: str
    kept: bool  # it has had a server before
    departure: Departure | None
    dialing: asyncio.Timeout | None
    lease: Lease | None
    waiting: Waiting
    asking: Asking

    @property
    def ended(self) -> bool: ...
    def refuse(self, message: bytes, why: str) -> None: ...
    def relay(self, link: ServerLink, notices: bytes) -> None: ...


class Offer:
    """What a pool has given: a connection, or leave to open one (`link` is None). The session is bound already."""

    __slots__ = ("fenced", "link", "opened", "place", "taken")

    def __init__(self, place: ServerPool, link: ServerLink | None, *, fenced: bool) -> None:
        self.place = place
        self.link = link
        self.fenced = fenced
        self.opened = link is not None
        self.taken = False  # the session has it, or it has gone back

    def settle(self) -> None:
        """It goes back, unless it was taken."""
        if self.taken:
            return
        self.taken = True
        if self.link is not None:
            self.link.abort()
        if self.opened and self.link is not None:
            self.place.drop(self.link)
        else:
            self.place.not_opened()


class Lease:
    """A session's place in a pool's queue."""

    __slots__ = ("_answered", "_place", "_session", "since_s")

    def __init__(self, session: Traveller, place: ServerPool, now: float) -> None:
        self.since_s = now
        self._session = session
        self._place = place
        self._answered: asyncio.Future[Link | bool] = asyncio.get_running_loop().create_future()

    @property
    def signature(self) -> Signature:
        return self._session.asking.signature

    def granted(self, link: Link | None) -> None:
        self._answer(link or True)

    def waited_in_vain(self) -> None:
        self._answer(False)
        why = "its connections to the server are all in use"
        self._session.refuse(refusals.pool_full(self._place.pooling.queue_timeout_s), why)

    def withdraw(self) -> None:
        """The way has changed."""
        self._place.leave(self)
        self._answer(False)

    def _answer(self, answer: Link | bool) -> None:
        if not self._answered.done():
            self._answered.set_result(answer)

    async def answered(self) -> Link | bool:
        """A connection, True for leave to open one, or False. The pool bounds the time."""
        try:
            return await self._answered
        except asyncio.CancelledError:
            self._place.leave(self)
            if self._answered.done() and not self._answered.cancelled() and (answer := self._answered.result()):
                _offered(self._place, answer, fenced=False).settle()
            raise


def _offered(place: ServerPool, answer: Link | bool, *, fenced: bool) -> Offer:
    return Offer(place, None if isinstance(answer, bool) else cast(ServerLink, answer), fenced=fenced)


async def attach(session: Traveller, gate: Gate, offer: Offer | None = None) -> None:
    """Until the session has a server, or has ended. `offer`: what it was given already."""
    table = gate.table
    backoff = Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S, uniform=random.uniform)
    avoid: set[str] = set()
    while not session.ended:
        seen = table.version
        if offer is None:
            verdict = _admit(session, gate, avoid)
            if isinstance(verdict, Refuse):
                session.refuse(refusals.error(verdict.sqlstate, verdict.message, verdict.hint), verdict.message)
                return
            if isinstance(verdict, Hold):
                session.waiting.for_server(verdict.why)
                session.departure = None
                await table.changed(seen, backoff.next_delay() if avoid else FOREVER_S)
                avoid.clear()
                continue
            offer = await _ask(session, gate, verdict)
        if offer is None:
            continue
        why = await _use(session, gate, offer)
        if why == "":
            return
        fenced, member, offer = offer.fenced, offer.place.place.endpoint.member, None
        if why is None:
            continue
        session.departure = None
        # Another replica may answer at once; a primary is tried again a little later.
        avoid = set() if fenced else avoid | {member}
        session.waiting.for_server(why)
        await table.changed(seen, backoff.next_delay() if fenced else 0.0)


def took_free_one(session: Traveller, gate: Gate) -> bool:
    """For a new client: whether a connection was there at once."""
    verdict = _admit(session, gate, set())
    if not isinstance(verdict, Forward):
        return False
    place = gate.pools.of(Place(session.instance, verdict.endpoint, session.login.user, session.database))
    if not place.core.free:
        return False
    gate.table.bind(session, verdict.endpoint, fenced=verdict.fenced)
    link = place.core.exactly(session.asking.signature)
    if link is None:
        gate.table.unbind(session)
        return False
    taken = cast(ServerLink, link)
    taken.serve(session)
    session.relay(taken, b"")
    return True


def _admit(session: Traveller, gate: Gate, avoid: set[str]) -> Forward | Hold | Refuse:
    if gate.stopping:
        return Refuse("57P03", "the proxy is stopping", "Connect to another node's proxy.")
    return admit(
        gate.table.route(session.instance),
        read_only=session.read_only,
        client=session.address,
        sessions=gate.table.loads(session.instance),
        now=gate.clock.now(),
        avoid=avoid,
        turn=gate.table.next_turn(),
    )


async def _ask(session: Traveller, gate: Gate, forward: Forward) -> Offer | None:
    """The session is bound then. None when the way has changed before there was anything for it."""
    place = gate.pools.of(Place(session.instance, forward.endpoint, session.login.user, session.database))
    gate.table.bind(session, forward.endpoint, fenced=forward.fenced)
    lease = Lease(session, place, gate.clock.now())
    answer = place.ask(lease)
    if answer is not None:
        return _offered(place, answer.connection if isinstance(answer, Use) else True, fenced=forward.fenced)
    session.lease = lease
    granted: Link | bool = False
    try:
        granted = await lease.answered()
    finally:
        session.lease = None
        if not granted:
            gate.table.unbind(session)
    return _offered(place, granted, fenced=forward.fenced) if granted else None


async def _use(session: Traveller, gate: Gate, offer: Offer) -> str | None:
    """Empty when the session has its server or has ended; else why this server cannot serve just now. None when it has
    stood in line to log in, and the route has changed."""
    member = offer.place.place.endpoint.member
    try:
        if offer.link is not None:
            return await _dial(session, gate, offer)
        async with gate.logins(session.instance, read_only=session.read_only):
            return await _dial(session, gate, offer) if _still(session, gate, offer) else None
    except (OSError, TimeoutError, Garbled) as error:
        return f"{member} does not answer ({words(error)})"
    finally:
        session.dialing = None
        if not offer.taken:
            gate.table.unbind(session)
            offer.settle()


async def _dial(session: Traveller, gate: Gate, offer: Offer) -> str:
    endpoint, notices = offer.place.place.endpoint, b""
    if session.departure is not None and offer.link is not None:
        # Whether a server still takes logins is not seen by a connection that was open.
        offer.place.close_for_another(offer.link)
        offer.link, offer.opened = None, False
    async with asyncio.timeout(DIAL_TIMEOUT_S) as session.dialing:
        if offer.link is None:
            link = offer.link = ServerLink(session, gate)
            bare = gate.pools.bare(session.asking.signature)
            login = ServerLogin(session.login, bare.variant.parameters, secrets.token_urlsafe(NONCE_BYTES))
            answer = await link.log_in(endpoint, login)
            if isinstance(answer, LoginRefused):
                return _refused(session, gate, answer, offer.place)
            notices, link.signature = answer.notices, bare
            offer.place.opened(link)
            offer.opened = True
        else:
            link = offer.link
            link.serve(session)
        if _expired(session, gate):
            return f"nobody vouches for {endpoint.member} as primary any more"
        failed = await _restore(session, link)
    if session.ended:
        return ""
    if failed and _is_split_off(session):
        return f"{endpoint.member}: {failed}"
    if failed or _was_sent_away(session, endpoint):
        _end(session, failed)
        return ""
    if _expired(session, gate):
        return f"nobody vouches for {endpoint.member} as primary any more"
    offer.taken = True
    session.dialing = None
    session.relay(link, notices)
    return ""


def _is_split_off(session: Traveller) -> bool:
    """It is at a replica by the proxy's choice. A role or password may not have come there yet: the primary decides."""
    return session.fence is None and not session.read_only


def _expired(session: Traveller, gate: Gate) -> bool:
    return session.fence is not None and gate.clock.now() >= session.fence.until_s


def _still(session: Traveller, gate: Gate, offer: Offer) -> bool:
    """Whether it may go where it is bound to."""
    if session.ended:
        return False
    if session.fence is not None:
        return not session.fence.paused and not _expired(session, gate)
    route = gate.table.route(session.instance)
    return not offer.fenced and route is not None and offer.place.place.endpoint in route.replicas


def _refused(session: Traveller, gate: Gate, answer: LoginRefused, place: ServerPool) -> str:
    member = place.place.endpoint.member
    if answer.sqlstate == TOO_MANY_CLIENTS and (
        gate.pools.make_room(place.place.endpoint)
        or (session.sharing is not None and place.core.refused(gate.clock.now()))
    ):
        return f"{member} has no room for more connections"
    if answer.sqlstate in NOT_YET or (session.kept and answer.sqlstate == TOO_MANY_CLIENTS):
        return f"{member} is not accepting connections ({answer.sqlstate})"
    if _is_split_off(session):
        return f"{member} does not let it in ({answer.sqlstate})"
    if answer.stale:
        gate.verifiers.doubt(session.instance, session.login.user)
    session.refuse(answer.packet, f"{member}: {answer.message}")
    return ""


async def _restore(session: Traveller, link: ServerLink) -> str:
    """Why what the session carries could not be made again; empty when it was."""
    shares, wanted = session.sharing is not None, session.asking.signature
    steps = session.asking.steps() if session.kept else []
    if shares and link.signature is not wanted and link.signature.settings:
        steps = [*SETTINGS_LIKE_NEW, *steps]
    if not steps:
        return ""
    restoring = Restoring(steps)
    await link.restore(restoring)
    if shares and not restoring.failed:
        link.signature = wanted
    return restoring.failed


def _was_sent_away(session: Traveller, endpoint: Endpoint) -> bool:
    """The server that ended this session takes new ones, so it has ended this one on purpose."""
    departure = session.departure
    return departure is not None and departure.endpoint == endpoint and departure.fence is session.fence


def _end(session: Traveller, failed: str) -> None:
    if failed:
        session.refuse(refusals.failover(failed), failed)
    elif session.departure is not None:
        session.refuse(session.departure.dismissal, "its server ended it")
