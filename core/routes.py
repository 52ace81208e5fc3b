"""What an agent tells the proxy beside it, and what the proxy answers: one JSON object a line over a Unix socket.

A route is complete and replaces the former one of its instance; an instance that is not in the table is served no more.
`expires_at_s` is the fence: past it the proxy neither sends a write session to that primary nor leaves one connected,
even if nobody tells it so. It is monotonic time of this host, shared by agent and proxy.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast

MAX_LINE_BYTES = 4 << 20  # 10,000 routes of 400 bytes; longer is a bug, not a table


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An engine to connect to. `tls`: the engine speaks TLS on this port."""

    member: str
    host: str
    port: int
    tls: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where the clients of one instance go."""

    instance: str  # project/instance
    rw_port: int
    ro_port: int
    term: int = 0
    primary: Endpoint | None = None
    expires_at_s: float = 0.0  # monotonic; meaningful only with a primary
    replicas: tuple[Endpoint, ...] = ()  # healthy ones only
    hold_s: float = 30.0  # how long a client may wait for a primary
    paused: bool = False  # switchover: let no new session through, hold it
    client_tls: Literal["off", "prefer", "require"] = "prefer"
    allow: tuple[str, ...] = ()  # client networks; empty = any


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteTable:
    """The whole table. `seq` grows with each one sent; the answer repeats it."""

    seq: int
    routes: tuple[Route, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionCounts:
    """Sessions of one instance at this proxy."""

    read_write: int = 0
    read_only: int = 0
    waiting: int = 0  # held until there is a primary


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyReport:
    """The proxy's answer to a table: it is in force, and this is what the proxy holds now."""

    seq: int
    pid: int
    sessions: dict[str, SessionCounts] = field(default_factory=dict)  # by instance
    bytes_in: int = 0
    bytes_out: int = 0
    refused: int = 0


def encode(message: RouteTable | ProxyReport) -> bytes:
    """One line, newline included."""
    return json.dumps(asdict(message), separators=(",", ":")).encode() + b"\n"


def decode_table(line: bytes) -> RouteTable:
    """ValueError when the line is not a table of this shape."""
    raw = _object(line)
    try:
        routes = tuple(_route(item) for item in cast(list[dict[str, Any]], raw["routes"]))
        return RouteTable(seq=int(raw["seq"]), routes=routes)
    except (KeyError, TypeError) as error:
        raise ValueError(f"route table is not of the expected form: {error!r}") from error


def decode_report(line: bytes) -> ProxyReport:
    """ValueError when the line is not a report of this shape."""
    raw = _object(line)
    try:
        sessions = {name: SessionCounts(**counts) for name, counts in cast(dict[str, Any], raw.pop("sessions")).items()}
        return ProxyReport(sessions=sessions, **raw)
    except (KeyError, TypeError) as error:
        raise ValueError(f"proxy report is not of the expected form: {error!r}") from error


def _object(line: bytes) -> dict[str, Any]:
    raw = json.loads(line)
    if not isinstance(raw, dict):
        raise ValueError("expected one JSON object a line")
    return cast(dict[str, Any], raw)


def _route(raw: dict[str, Any]) -> Route:
    primary = raw.pop("primary", None)
    replicas = raw.pop("replicas", ())
    allow = tuple(raw.pop("allow", ()))
    return Route(
        primary=Endpoint(**primary) if primary else None,
        replicas=tuple(Endpoint(**item) for item in replicas),
        allow=allow,
        **raw,
    )
