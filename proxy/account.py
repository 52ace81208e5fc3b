"""What one session's client is given, and how long it takes: kept for the meters, the slow-query log, and for who asks.

The session tells when its client asks, is held and is answered. Where slow queries are logged, the beginning of what
was asked last is kept; elsewhere nothing is.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from core.routes import Endpoint
from proxy.admin.facts import ClientFacts, ServerFacts, Standing
from proxy.admin.gathering import ends_of, number_of
from proxy.gate import Gate
from proxy.meters import NEVER, Stopwatch
from proxy.postgres.messages import HEADER_BYTES, error_fields
from proxy.postgres.prepared import Statements
from proxy.postgres.requests import Requests
from proxy.postgres.startup import Startup
from proxy.slow_queries import beginning, statement_of

IN_DOUBT = "40003"  # what the proxy says in a server's place (`doubt`)


class ShownServer(Protocol):
    """The session's connection to a server."""

    opened_s: float  # monotonic

    @property
    def transport(self) -> asyncio.BaseTransport | None: ...
    @property
    def cancel_key(self) -> tuple[Endpoint, int, bytes] | None: ...


class Holder(Protocol):
    """The session."""

    instance: str
    address: str
    read_only: bool
    endpoint: Endpoint | None
    transport: asyncio.Transport | None
    requests: Requests
    statements: Statements | None  # of one that shares servers with others
    bytes_in: int
    bytes_out: int

    @property
    def server(self) -> ShownServer | None: ...


class Account(Stopwatch):
    """One a session."""

    __slots__ = (
        "_application",
        "_asked",
        "_asked_for",
        "_came_at",
        "_received",
        "_sent",
        "_session",
        "_slow",
        "_tls",
        "instance",
        "wishes",
    )

    def __init__(self, session: Holder, gate: Gate, startup: Startup, *, tls: bool) -> None:
        self.instance = session.instance
        super().__init__(gate.meters.of(session.instance, startup.user, startup.database))
        self.meter.logins += 1
        self.wishes = self.meter.wishes
        self._session = session
        self._slow = gate.slow_queries
        self._application = startup.parameters.get("application_name", "")
        self._tls = tls
        self._came_at = self.asked_at = gate.clock.now()
        self._received = self._sent = 0  # bytes that the meter knows of
        self._asked = b""  # where slow queries are logged: how what was asked begins,
        self._asked_for = 0.0  # and when that was

    # --- while it is served ---------------------------------------------------------------------------------------

    def remember(self, data: bytes) -> None:
        """What is asked begins like this; only where slow queries are logged."""
        self._asked, self._asked_for = beginning(data), self.asked_at

    def held(self, data: bytes, now: float) -> None:
        """It has asked, and there is no server for it."""
        if not self.running:
            self.start(now)
            if self.wishes.slow_s < NEVER:
                self.remember(data)
        self.hold(now)

    def was_slow(self, took_s: float) -> None:
        """What was answered last has taken so long, which is to be told. Its statement is known unless others were
        asked behind it, or nobody wanted to know yet when it was asked."""
        self.meter.slow += 1
        session = self._session
        self._slow.note(
            statement_of(self._asked, self._text_of) if self._asked_for == self.asked_at else "",
            client=session.address,
            user=self.meter.user,
            database=self.meter.database,
            instance=session.instance,
            server=session.endpoint.member if session.endpoint is not None else "",
            duration_s=took_s,
            waited_s=self.held_s,
        )

    def _text_of(self, name: bytes) -> bytes:
        """Of a statement that the client has prepared."""
        statements, requests = self._session.statements, self._session.requests
        if statements is not None:
            found = statements.names.get(name)
            return found.body if found is not None else (not name and statements.unnamed) or b""
        message = requests.prepared.get(name, b"") if name else requests.unnamed
        return message[HEADER_BYTES:].partition(b"\0")[2]

    def settle(self) -> None:
        """Bytes are counted by the session, and brought to its meter now and then."""
        received, sent = self._session.bytes_in, self._session.bytes_out
        self.meter.bytes_in += received - self._received
        self.meter.bytes_out += sent - self._sent
        self._received, self._sent = received, sent

    def failed(self, sqlstates: list[str]) -> None:
        """Errors that went to the client."""
        for sqlstate in sqlstates:
            if sqlstate == IN_DOUBT:
                self.meter.told(sqlstate)
            else:
                self.meter.failed(sqlstate)

    def told(self, farewell: bytes) -> None:
        """The ErrorResponse by which the proxy ends a client that it had let in."""
        self.meter.told(error_fields(farewell[HEADER_BYTES:]).get("C", ""))

    # --- for who asks ---------------------------------------------------------------------------------------------

    def standing(self, now: float) -> Standing:
        waits_since, server = self.held_since(), self._session.server
        state = "waiting" if waits_since else "active" if server is not None else "idle"
        waits_s = now - waits_since if waits_since else 0.0
        return Standing(self.meter.database, self.meter.user, state, "active" if server is not None else "", waits_s)

    def client_facts(self, now: float, wall: float) -> ClientFacts:
        session, standing = self._session, self.standing(now)
        server = session.server
        return ClientFacts(
            number=number_of(session),
            user=self.meter.user,
            database=self.meter.database,
            state=standing.client,
            ends=ends_of(session.transport),
            connected_at=wall - (now - self._came_at),
            asked_at=wall - (now - self.asked_at),
            waits_s=standing.waits_s,
            read_only=session.read_only,
            tls=self._tls,
            application=self._application,
            prepared=len(session.requests.prepared if session.statements is None else session.statements.names),
            server=number_of(server) if server is not None else 0,
        )

    def server_facts(self, now: float, wall: float) -> ServerFacts | None:
        server = self._session.server
        if server is None or server.cancel_key is None:
            return None
        endpoint, pid, _ = server.cancel_key
        return ServerFacts(
            number=number_of(server),
            user=self.meter.user,
            database=self.meter.database,
            member=endpoint.member,
            state="active",
            ends=ends_of(server.transport),
            connected_at=wall - (now - server.opened_s),
            used_at=wall - (now - self.asked_at),
            pid=pid,
            tls=endpoint.tls,
            application=self._application,
            client=number_of(self._session),
        )
