"""Pure: what the proxy's own database knows of one instance at one moment."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from core.figures import Figures
from core.routes import Route
from proxy.meters import Stretch

DATABASES = ("moorage", "pgbouncer")  # names by which the proxy's own database is known


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """Of a connection: where the other side is, and where it meets us."""

    address: str = ""
    port: int = 0
    local_address: str = ""
    local_port: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """A connection to a server."""

    number: int
    user: str
    database: str
    member: str
    state: str  # active: a client has it; idle: it waits for one; login: it is not ready yet
    ends: Ends
    connected_at: float  # wall clock
    used_at: float
    pid: int = 0  # of the server's process
    tls: bool = False
    application: str = ""
    prepared: int = 0
    client: int = 0  # number of the client that has it


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientFacts:
    """A client that was let in."""

    number: int
    user: str
    database: str
    state: str  # active: it has a server; waiting: it needs one; idle: it needs none now
    ends: Ends
    connected_at: float  # wall clock
    asked_at: float
    waits_s: float = 0.0
    read_only: bool = False
    replication: bool = False
    tls: bool = False
    application: str = ""
    prepared: int = 0
    server: int = 0  # number of the connection that it has


class Standing(NamedTuple):
    """What matters of a client or a server where they are only counted. An empty state: there is none of the two."""

    database: str
    user: str
    client: str
    server: str
    waits_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Metered:
    """What was counted for one user and database. `stretch`: over the last period."""

    user: str
    database: str
    figures: Figures
    stretch: Stretch


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """`clients`, `servers`, and `standings`, which are both at a lower price, are made as they are read: they are
    many."""

    route: Route
    now: float  # monotonic
    process: int
    address: str  # that the proxy listens at
    clients_max: int  # of the process
    splitting: str = "off"  # or statements; unavailable: they should be split off, and there is no parser
    logins: int = 0  # clients that have not been let in yet, of the process
    clients: Iterable[ClientFacts] = ()
    servers: Iterable[ServerFacts] = ()
    standings: Iterable[Standing] = ()
    metered: tuple[Metered, ...] = ()
    total: Figures = field(default_factory=Figures)  # of the instance


class Shown(Protocol):
    """A client that was let in, and its server. Times are told as now (monotonic) and as wall clock at that moment."""

    instance: str

    def settle(self) -> None:
        """What it has counted by itself goes to its meter."""

    def standing(self, now: float) -> Standing: ...
    def client_facts(self, now: float, wall: float) -> ClientFacts: ...
    def server_facts(self, now: float, wall: float) -> ServerFacts | None: ...
