"""A session on its way to a server: by the route of the moment, held while there is none, at a pace that servers bear.

The same way leads a new client to its first server and a kept session to its next one. A kept session may wait as long
as its client is silent; a client that waits for an answer waits `hold_s` (the session sees to that). After a failover
all sessions of an instance set out at once: only so many log in at a time.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from dataclasses import dataclass
from typing import Protocol

from core.backoff import Backoff
from core.errors import words
from core.routes import Endpoint
from proxy.gate import Gate
from proxy.postgres import refusals
from proxy.postgres.carried import Restoring, Step
from proxy.postgres.login import LoggedIn, LoginRefused, ServerLogin
from proxy.postgres.messages import Garbled
from proxy.postgres.scram import Login
from proxy.postgres.server_side import NOT_YET, TOO_MANY_CLIENTS
from proxy.postgres.statements import names_mute
from proxy.routing import Forward, Hold, Refuse, admit
from proxy.server import Client, ServerLink
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
    parameters: tuple[tuple[str, str], ...]
    kept: bool  # it has had a server before
    departure: Departure | None
    dialing: asyncio.Timeout | None
    waiting: Waiting

    @property
    def ended(self) -> bool: ...
    def steps(self) -> list[Step]: ...
    def refuse(self, message: bytes, why: str) -> None: ...
    def relay(self, link: ServerLink, answer: LoggedIn) -> None: ...


async def attach(session: Traveller, gate: Gate) -> None:
    """Until the session has a server, or has ended."""
    table = gate.table
    backoff = Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S, uniform=random.uniform)
    avoid: set[str] = set()
    while not session.ended:
        seen = table.version
        verdict = _admit(session, gate, avoid)
        if isinstance(verdict, Refuse):
            session.refuse(refusals.error(verdict.sqlstate, verdict.message, verdict.hint), verdict.message)
            return
        if isinstance(verdict, Hold):
            why = verdict.why
            pause_s = backoff.next_delay() if avoid else FOREVER_S
            avoid.clear()
            session.departure = None
        else:
            async with gate.logins(session.instance, read_only=session.read_only):
                if table.version != seen or session.ended:
                    continue  # it has stood in line; the route may have changed
                why = await _dial(session, gate, verdict)
            if not why:
                return
            session.departure = None
            # Another replica may answer at once; a primary is tried again a little later.
            pause_s = backoff.next_delay() if verdict.fenced else 0.0
            avoid = set() if verdict.fenced else avoid | {verdict.endpoint.member}
        session.waiting.for_server(why)
        await table.changed(seen, pause_s)


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


async def _dial(session: Traveller, gate: Gate, forward: Forward) -> str:
    """Empty when the session has its server or has ended; else why this server cannot serve just now."""
    link = ServerLink(session, gate)
    member = forward.endpoint.member
    gate.table.bind(session, forward.endpoint, fenced=forward.fenced)
    taken = False
    try:
        async with asyncio.timeout(DIAL_TIMEOUT_S) as session.dialing:
            answer = await link.log_in(
                forward.endpoint, ServerLogin(session.login, _parameters(session), secrets.token_urlsafe(NONCE_BYTES))
            )
            if isinstance(answer, LoginRefused):
                return _refused(session, gate, answer, member)
            if _expired(session, gate):
                return f"nobody vouches for {member} as primary any more"
            failed = await _restore(session, link)
        if session.ended:
            return ""
        if failed or _was_sent_away(session, forward.endpoint):
            _end(session, failed)
            return ""
        if _expired(session, gate):
            return f"nobody vouches for {member} as primary any more"
        taken = True
        session.dialing = None
        session.relay(link, answer)
        return ""
    except (OSError, TimeoutError, Garbled) as error:
        return f"{member} does not answer ({words(error)})"
    finally:
        session.dialing = None
        if not taken:
            gate.table.unbind(session)
            link.abort()


def _parameters(session: Traveller) -> tuple[tuple[str, str], ...]:
    """Where the proxy must hear the server's warnings, no setting of the role or database may forbid them."""
    own = session.parameters
    strict = session.fence is not None and session.fence.strict
    if not strict or any(names_mute(name, value) for name, value in own):
        return own
    return (*own, ("client_min_messages", "notice"))


def _expired(session: Traveller, gate: Gate) -> bool:
    return session.fence is not None and gate.clock.now() >= session.fence.until_s


def _refused(session: Traveller, gate: Gate, answer: LoginRefused, member: str) -> str:
    if answer.sqlstate in NOT_YET or (session.kept and answer.sqlstate == TOO_MANY_CLIENTS):
        return f"{member} is not accepting connections ({answer.sqlstate})"
    if answer.stale:
        gate.verifiers.doubt(session.instance, session.login.user)
    session.refuse(answer.packet, f"{member}: {answer.message}")
    return ""


async def _restore(session: Traveller, link: ServerLink) -> str:
    """Why what the session carries could not be made again; empty when it was."""
    steps = session.steps() if session.kept else []
    if not steps:
        return ""
    restoring = Restoring(steps)
    await link.restore(restoring)
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
