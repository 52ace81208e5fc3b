"""What an agent tells the proxy beside it, and what the proxy answers: one JSON object a line over a Unix socket.

A route is complete and replaces the former one of its instance; an instance that is not in the table is served no more.
`expires_at_s` is the fence: past it the proxy neither sends a write session to that primary nor leaves one connected,
even if nobody tells it so. It is monotonic time of this host, shared by agent and proxy.

Beside tables go *verifiers*, by which the proxy checks passwords: those of the declared users are told (`Declared`), of
any other role the proxy asks (`VerifierAsk`), which only an agent that has told some is asked. A line of these has one
key, which says what it is. They are secrets: nothing here shows one.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import cache
from typing import Any, Literal, cast

from core.figures import Figures, unpacked

CLIENT_UNREAD_S = 600.0  # longer than a program thinks about a part of its result
MAX_LINE_BYTES = 16 << 20  # 10,000 routes of 1.6 KB; longer is a bug, not a table


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An engine to connect to. `tls`: the engine speaks TLS on this port. `node`: whose certificate it shows then."""

    member: str
    host: str
    port: int
    tls: bool = False
    node: str = ""
    weight: int = 1  # of reads, among replicas


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooling:
    """How the clients of one user and database share server connections, at the proxies of one node together.

    `session`: a client has its server connection until it leaves; `transaction`: for each transaction anew."""

    mode: Literal["session", "transaction"] = "session"
    size: int = 0  # connections in use at most, to each server; 0 = as many as the server takes
    reserve: int = 0  # beyond `size`, once a client has waited `reserve_after_s`
    reserve_after_s: float = 3.0
    queue_timeout_s: float = 30.0  # for a connection that others have; then the client is told 53300
    idle_max: int = 20  # connections kept for the next client, to each server; 0 = none is used again
    idle_s: float = 2.0  # one that nobody wanted for so long is closed
    life_s: float = 3600.0  # one that is older is closed as soon as it is free
    statements_max: int = 500  # prepared statements kept on each connection (transaction mode)
    reset: Literal["changed", "always"] = "changed"  # when a connection is made like new: if need be, or each time


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRule:
    """Another pooling for some clients. The first rule that fits counts."""

    pooling: Pooling
    user: str = ""  # empty = any
    database: str = ""  # empty = any


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
    strict: bool = False  # a commit whose wait for standbys was cut short is told as 40003, not as success
    pooling: Pooling = Pooling()
    pools: tuple[PoolRule, ...] = ()
    clients_max: int = 0  # of this instance, at the proxies of one node together; 0 = no bound of its own
    clients_per_user_max: int = 0  # the same, of each user but observers
    client_idle_s: float = 0.0  # a client that asks nothing, outside of a transaction, is ended then; 0 = never
    idle_transaction_s: float = 0.0  # the same, inside of one; 0 = never
    client_unread_s: float = CLIENT_UNREAD_S  # a client that takes nothing of what it was sent is ended then; 0 = never
    slow_query_ms: int = 0  # what took longer is logged; 0 = nothing is
    observers: tuple[str, ...] = ()  # users that may ask the proxy's own database
    follows: str = ""  # the remote primary of a standby instance: no member accepts writes
    splits: bool = False  # reads of clients in transaction mode go to replicas though they come by `rw_port`
    split_functions: tuple[str, ...] = ()  # of the instance's own: calls of these are reads

    def pooling_of(self, user: str, database: str) -> Pooling:
        for rule in self.pools:
            if rule.user in ("", user) and rule.database in ("", database):
                return rule.pooling
        return self.pooling


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
    busy: dict[str, int] = field(default_factory=dict)  # by instance: write sessions that a switchover must wait for
    bytes_in: int = 0
    bytes_out: int = 0
    refused: int = 0
    figures: dict[str, Figures] = field(default_factory=dict)  # by instance; those that have any
    release: str = ""  # of the program it runs
    generation: int = 0  # grows with each restart of all proxies of the node
    draining: bool = False  # takes no new clients, and ends when its own have gone
    unopened: int = 0  # ports of its routes on which it does not listen (yet)


@dataclass(frozen=True, slots=True, kw_only=True)
class Passwords:
    """How the declared users of one instance are checked. `mock_secret` (hexadecimal) makes the questions to users that
    do not exist; it is the same at all proxies of the instance, and known to no client."""

    mock_secret: str = field(repr=False)
    verifiers: dict[str, str] = field(default_factory=dict, repr=False)  # by user


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """Of all instances of the node; replaces what was told before."""

    passwords: dict[str, Passwords]  # by instance


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifierAsk:
    """The proxy wants to know by what the instance's engine checks this user."""

    instance: str
    user: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifierAnswer:
    """`found`: the engine was asked. `verifier`: what it keeps; None when there is no such role, or it has no
    password."""

    instance: str
    user: str
    found: bool
    verifier: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Take no new clients, serve those there are, and end when they have gone, or within the time. Told again it
    changes nothing."""

    within_s: float


Note = Declared | Drain | VerifierAsk | VerifierAnswer
_NOTES: dict[str, type[Note]] = {"declared": Declared, "drain": Drain, "ask": VerifierAsk, "answer": VerifierAnswer}
_NOTE_NAMES = {kind: name for name, kind in _NOTES.items()}


def encode(message: RouteTable | ProxyReport | Note) -> bytes:
    """One line, newline included."""
    raw: object
    if isinstance(message, ProxyReport):
        packed = {name: figures.packed() for name, figures in message.figures.items()}
        raw = {**asdict(replace(message, figures={})), "figures": packed}
    else:
        raw = _told(message) if isinstance(message, RouteTable) else asdict(message)
    if isinstance(message, Note):
        raw = {_NOTE_NAMES[type(message)]: raw}
    return json.dumps(raw, separators=(",", ":")).encode() + b"\n"


def _told(table: RouteTable) -> object:
    """A table without routes has them said nevertheless: without the word it would be a question."""
    return {"seq": table.seq, "routes": _lean(table.routes)}


def _lean(value: object) -> object:
    """Without what is at its default, which reading puts back: tables are long, and mostly defaults."""
    if isinstance(value, tuple):
        return [_lean(part) for part in value]
    if not isinstance(value, Endpoint | Pooling | PoolRule | Route):
        return value
    parts = ((name, getattr(value, name), default) for name, default in _defaults(cast(Hashable, type(value))))
    return {name: _lean(part) for name, part, default in parts if part != default}


@cache
def _defaults(kind: Hashable) -> tuple[tuple[str, object], ...]:
    """Of a dataclass; a field without one equals nothing."""
    parts = fields(cast(type[Endpoint], kind))
    return tuple((part.name, object() if part.default is MISSING else part.default) for part in parts)


def encode_question(seq: int) -> bytes:
    """A line that changes nothing and only asks for a report, which repeats `seq`."""
    return json.dumps({"seq": seq}, separators=(",", ":")).encode() + b"\n"


def decode_note(line: bytes) -> Note | None:
    """None when the line is a table, a question or a report. ValueError, without a word of the line, when it is a note
    that cannot be read."""
    if not any(line.startswith(b'{"%b":' % name.encode()) for name in _NOTES):  # as `encode` writes them
        return None
    ((name, fields),) = _object(line).items()
    try:
        note = _NOTES[name](**fields)
        if isinstance(note, Declared):
            return Declared(passwords={instance: Passwords(**raw) for instance, raw in fields["passwords"].items()})
        if isinstance(note, Drain):
            return Drain(within_s=max(0.0, float(note.within_s)))
        if not all(isinstance(fields[part], str) for part in ("instance", "user")):
            raise TypeError(name)
        return note
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"a line of kind {name!r} is not of the expected form") from None


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
        figures = {name: unpacked(packed) for name, packed in cast(dict[str, Any], raw.pop("figures", {})).items()}
        return ProxyReport(sessions=sessions, figures=figures, **raw)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"proxy report is not of the expected form: {error!r}") from error


def _object(line: bytes) -> dict[str, Any]:
    raw = json.loads(line)
    if not isinstance(raw, dict):
        raise ValueError("expected one JSON object a line")
    return cast(dict[str, Any], raw)


def _route(raw: dict[str, Any]) -> Route:
    primary = raw.pop("primary", None)
    replicas = raw.pop("replicas", ())
    rules = raw.pop("pools", ())
    return Route(
        primary=Endpoint(**primary) if primary else None,
        replicas=tuple(Endpoint(**item) for item in replicas),
        allow=tuple(raw.pop("allow", ())),
        observers=tuple(raw.pop("observers", ())),
        split_functions=tuple(raw.pop("split_functions", ())),
        pooling=Pooling(**raw.pop("pooling", {})),
        pools=tuple(PoolRule(**(rule | {"pooling": Pooling(**rule["pooling"])})) for rule in rules),
        **raw,
    )
