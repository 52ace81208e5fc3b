"""What a client has been told: that it is in, by which key its requests are cancelled, and its server's parameters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from core.log import EventLog
from core.routes import Endpoint
from proxy.account import Account
from proxy.gate import Gate
from proxy.keys import Key
from proxy.postgres.authentication import AUTHENTICATION_OK
from proxy.postgres.login import PROTOCOL_3_0, spoken
from proxy.postgres.messages import READY_IDLE, backend_key, parameter_status
from proxy.postgres.startup import Startup
from proxy.server import ServerLink

log = EventLog("proxy.session")
ALL_MAX = 256  # greetings remembered
_all: dict[int, tuple[dict[str, str], bytes]] = {}  # what is remembered is alive, so its id is its own


class Hearer(Protocol):
    """The session."""

    instance: str
    address: str
    read_only: bool
    endpoint: Endpoint | None
    transport: asyncio.Transport | None
    account: Account
    kept: bool
    bytes_in: int
    bytes_out: int

    @property
    def server(self) -> ServerLink | None: ...


class Told:
    """One a session."""

    __slots__ = ("_began_s", "_gate", "_key", "_left_s", "_session", "_startup", "_tls", "first", "parameters")

    def __init__(self, session: Hearer, gate: Gate, startup: Startup, *, tls: bool) -> None:
        self.parameters: dict[str, str] = {}  # as the last server had them
        self.first = b""  # to be told before anything else
        self._session = session
        self._gate = gate
        self._startup = startup
        self._tls = tls
        self._key: Key | None = None
        self._began_s = self._left_s = gate.clock.now()

    def looks(self) -> None:
        """It begins to look for its present or next server."""
        self._left_s = self._gate.clock.now()

    def greet(self, parameters: dict[str, str], pid: int, notices: bytes = b"") -> None:
        """The client is let in."""
        session = self._session
        assert session.transport is not None, "its way ends with it"
        self._log("client_connected")
        self._key = self._gate.cancels.issue(self, pid, long=spoken(self._startup.packet) > PROTOCOL_3_0)
        told = self.first + AUTHENTICATION_OK + self._news(parameters) + notices + backend_key(*self._key) + READY_IDLE
        session.bytes_out += len(told)
        session.transport.write(told)
        self.first, session.kept = b"", True

    def tell(self, parameters: dict[str, str]) -> None:
        """What is news of it. The client has not heard it from the server itself."""
        session, told = self._session, self.first + self._news(parameters)
        self.first = b""
        if told and session.transport is not None:
            session.bytes_out += len(told)
            session.transport.write(told)

    def _news(self, parameters: dict[str, str]) -> bytes:
        known, self.parameters = self.parameters, parameters
        if not known:
            return _all_of(parameters)
        news = [pair for pair in parameters.items() if known.get(pair[0]) != pair[1]]
        if not self._session.read_only:  # its reads may come from replicas, but what it talks to is the primary
            news = [pair for pair in news if pair[0] != "in_hot_standby"]
        return b"".join([parameter_status(*pair) for pair in news])

    def moved(self) -> None:
        """To another server, without its client's doing."""
        self._session.account.meter.moved += 1
        self._log("session_moved")

    def _log(self, event: str) -> None:
        session = self._session
        log.info(
            event,
            client=session.address,
            user=self._startup.user,
            database=self._startup.database,
            instance=session.instance,
            server=session.endpoint.member if session.endpoint else "",
            read_only=session.read_only,
            tls=self._tls,
            waited_ms=round((self._gate.clock.now() - self._left_s) * 1000),
        )

    def ended(self) -> None:
        session = self._session
        self._gate.cancels.withdraw(self._key)
        if not session.kept:
            return
        log.info(
            "client_disconnected",
            client=session.address,
            instance=session.instance,
            server=session.endpoint.member if session.endpoint else "",
            lasted_s=round(self._gate.clock.now() - self._began_s, 3),
            bytes_in=session.bytes_in,
            bytes_out=session.bytes_out,
        )

    # --- as the holder of its key -------------------------------------------------------------------------------------

    def present_server(self) -> tuple[Endpoint, int, bytes] | None:
        """Where a cancel request must go, and with which key."""
        link = self._session.server
        return link.cancel_key if link is not None else None

    def cancelling(self) -> Callable[[bool], None]:
        """A cancel request goes there: until it has ended, nobody else gets that server. To be told whether it was
        taken."""
        link = self._session.server
        home = link.home if link is not None else None
        if link is None or home is None:
            return lambda _taken: None
        link.cancels += 1
        return lambda taken: home.cancelled(link, taken=taken)


def _all_of(parameters: dict[str, str]) -> bytes:
    """Connections are given to one client after the other, and their parameters stay the same object."""
    found = _all.get(id(parameters))
    if found is None or found[0] is not parameters:
        if len(_all) >= ALL_MAX:
            _all.clear()
        found = _all[id(parameters)] = parameters, b"".join([parameter_status(*pair) for pair in parameters.items()])
    return found[1]
