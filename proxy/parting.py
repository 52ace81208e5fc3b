"""How a session and its server part: the client leaves and its connection serves the next one, or the server goes and
the client is kept, if it can be."""

from __future__ import annotations

import asyncio
from typing import Protocol

from core.log import EventLog
from proxy.account import Account
from proxy.asking import Asking
from proxy.attaching import Lease
from proxy.gate import Gate
from proxy.postgres.messages import before_goodbye
from proxy.postgres.requests import Requests
from proxy.server import ServerLink
from proxy.waiting import Waiting

log = EventLog("proxy.session")


class Queued(Protocol):
    """Its part in transaction mode."""

    pinned: str

    def withdraw(self) -> bool: ...
    def left(self) -> bool: ...


class Leaver(Protocol):
    """The session."""

    instance: str
    address: str
    requests: Requests
    transport: asyncio.Transport | None
    waiting: Waiting
    asking: Asking
    holding: bool
    lease: Lease | None
    bytes_in: int
    account: Account

    @property
    def ended(self) -> bool: ...
    @property
    def server(self) -> ServerLink | None: ...
    @property
    def sharing(self) -> Queued | None: ...
    @property
    def looking(self) -> bool: ...
    def look_for_server(self) -> None: ...
    def data_received(self, data: bytes) -> None: ...
    def let_go(self) -> None: ...
    def end_with(self, farewell: bytes) -> None: ...
    def close(self) -> None: ...


def said_goodbye(session: Leaver, gate: Gate, data: bytes) -> bool:
    """For data that ends like a Terminate: whether that was all there was to do. Else the goodbye goes to the server,
    which ends by it."""
    requests = session.requests
    words = before_goodbye(data) if requests.between else None
    if words is None or session.waiting.holds or session.holding or session.ended:
        return False
    if session.sharing is None:
        if words or not left_server(session, gate):
            return False
        requests.leaving = True
        session.close()
        return True
    if words:
        session.data_received(words)  # is answered first
    requests.leaving = True
    leave_if_rested(session, gate)
    return True


def leave_if_rested(session: Leaver, gate: Gate) -> None:
    """One in transaction mode that has said goodbye. A transaction that is open then, an extended query without its
    Sync and a COPY whose data will not come end with their connection, as they do at the server."""
    requests = session.requests
    if requests.leaving and not session.waiting.holds and (requests.outstanding == 0 or requests.copy_asked):
        _ = left_server(session, gate)
        session.close()


def left_server(session: Leaver, gate: Gate) -> bool:
    """The client leaves in good order: whether its connection could be kept for others."""
    link, requests = session.server, session.requests
    home = link.home if link is not None else None
    if link is None or home is None or session.ended or gate.stopping or session.holding:
        return False
    if not (requests.resting and link.quiet) or link.lost or link.dismissal:
        return False
    if requests.muted or requests.loaded or requests.unclear or home.pooling.idle_max == 0:
        return False
    session.let_go()
    link.signature = gate.pools.bare(link.signature)
    if session.bytes_in or home.pooling.reset == "always":
        home.renew(link, link.signature)
    else:
        home.give_back(link)
    return True


def obstacle(session: Leaver, gate: Gate) -> str | None:
    """Why the session cannot go to another server: None when it can, empty when its client knows best."""
    requests, link = session.requests, session.server
    if link is None or not requests.resting or requests.leaving or session.transport is None or not link.may_be_told:
        return ""
    if gate.table.route(session.instance) is None or gate.stopping:
        return ""
    if session.asking.carried.obstacles:
        why: str | None = f"The session {' and '.join(session.asking.carried.obstacles)}, which cannot be moved."
    else:
        why = requests.obstacle
    if why:
        log.info("session_not_moved", client=session.address, instance=session.instance, why=why)
    return why


def drop(link: ServerLink) -> None:
    """Close it, whatever it is in the middle of."""
    home = link.home
    link.abort()
    if home is not None:
        home.drop(link)


def dismiss(session: Leaver, gate: Gate, farewell: bytes) -> None:
    """It has been silent for too long. Outside of a transaction its connection serves the next one."""
    _ = left_server(session, gate)
    session.end_with(farewell)


def give_up(session: Leaver, sqlstate: str) -> None:
    """It does not read, so it cannot be told, and counts under this."""
    session.account.meter.told(sqlstate)
    session.close()
    if session.transport is not None:
        session.transport.abort()


def go_on_without(session: Leaver, link: ServerLink) -> None:
    """The server goes and the client stays."""
    session.let_go()
    session.holding = False
    session.asking.stop()
    drop(link)
    sharing = session.sharing
    if sharing is not None and sharing.left():
        return
    if sharing is None or sharing.pinned or session.waiting.holds:
        session.look_for_server()


def turn_back(session: Leaver, gate: Gate) -> None:
    """The server that the session waits for is not the one any more."""
    if session.lease is not None:
        session.lease.withdraw()
        return
    sharing = session.sharing
    if sharing is None or session.looking or session.ended:
        return
    if sharing.withdraw() or gate.table.route(session.instance) is None:
        session.look_for_server()
