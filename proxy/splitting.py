"""Reads of a session in transaction mode that came by the read-write port, at a replica.

Outside a transaction a *unit* (one that is whole and alone: see `units`) goes to a replica when all it runs are reads,
or when it begins a transaction READ ONLY, which then runs there to its end. While the replica has not answered, what
the client says further is kept here: it may be a write. When the unit is answered, and no transaction is open, the
connection goes back and what was kept is looked at as if it came now.

What the replica refuses because it is a replica, or knows less than the primary yet, runs at the primary instead, if
the client has not seen anything of the answer. That is not run twice: it was a read, and it failed. A replica that is
lost in the middle of an answer ends the session, as any server does.
"""

from __future__ import annotations

import importlib
import struct
from collections.abc import Callable
from enum import Enum, auto
from typing import Protocol

from core.log import EventLog
from proxy.gate import Gate
from proxy.postgres import refusals
from proxy.postgres.answering import answers
from proxy.postgres.frames import ERROR, READY_KIND, Boundary
from proxy.postgres.messages import HEADER_BYTES, error_fields
from proxy.postgres.prepared import Statements
from proxy.postgres.requests import IDLE, Requests
from proxy.postgres.units import Cutter, unit_of
from proxy.postgres.verdicts import Kind, Verdicts
from proxy.server import ServerLink
from proxy.table import Fence
from proxy.waiting import Waiting

log = EventLog("proxy.splitting")
KEPT_BYTES_MAX = 64 << 10  # of an answer that may not be shown
UNIT_BYTES_MAX = 64 << 10  # of one that a replica gets: it is kept for the primary
# A replica refuses by these, or does not know yet what was made at the primary: writes, conflicts with what it replays,
# serializable, what is told of the log; syntax and names, schemas.
_PRIMARYS = ("25006", "40001", "0A000", "55000", "42", "3F")
_ANY_ERROR = b"\0VERROR\0C"
_ORDINARY = frozenset(b"123CDEINTZnst")  # what else comes is for the client, whatever follows
_header = struct.Struct("!BI").unpack_from


def verdicts_of(gate: Gate) -> Verdicts | None:
    """None when there is no parser, which is told once."""
    if gate.verdicts is None and not gate.no_parser:
        try:
            gate.verdicts = Verdicts(importlib.import_module("pglast.parser").parse_sql_json)
        except ImportError as error:
            gate.no_parser = True
            log.error("splitting_unavailable", why=str(error))
    return gate.verdicts


def speaks_amiss(session: Divided, sharing: Shared | None) -> bool:
    """Whether the client has said what it may not say at its server, and is ended by that. Asked when it has ever said
    one of these things."""
    fence, requests = session.fence, session.requests
    if requests.muted and fence is not None and fence.strict:
        session.end_with(refusals.MUTED)
        return True
    if requests.locks and fence is None and sharing is not None and sharing.splitting.transaction:
        session.end_with(refusals.LOCKS)
        return True
    return False


class Shared(Protocol):
    """Its part in transaction mode."""

    splitting: Splitting


class Divided(Protocol):
    """The session."""

    instance: str
    read_only: bool
    fence: Fence | None
    holding: bool
    requests: Requests
    waiting: Waiting
    statements: Statements | None

    @property
    def server(self) -> ServerLink | None: ...
    def end_with(self, farewell: bytes) -> None: ...
    def data_received(self, data: bytes) -> None: ...
    def rested(self) -> None: ...


class Splitting:
    """One a session."""

    __slots__ = (
        "_again",
        "_behind",
        "_cutter",
        "_functions",
        "_gate",
        "_give_back",
        "_kept",
        "_prepares",
        "_session",
        "_unit",
        "_unsent",
        "_verdicts",
        "_version",
        "active",
        "transaction",
    )

    def __init__(self, session: Divided, gate: Gate, give_back: Callable[[ServerLink], None]) -> None:
        self.active = False  # a unit is at a replica, or on its way to one
        self.transaction = False  # the last one that was wanted there begins a transaction
        self._session = session
        self._gate = gate
        self._give_back = give_back
        self._version = -1  # of the table by which these two hold:
        self._verdicts: Verdicts | None = None  # None: nothing is split off
        self._functions: frozenset[str] = frozenset()
        self._again = False  # what comes next is for the primary, whatever it is
        self._unit = b""  # until the client has seen something of its answer
        self._prepares: tuple[bytes, ...] = ()  # names that it gives to statements
        self._unsent = False  # it has no connection yet
        self._cutter = Cutter()
        self._behind = b""  # what the client has said behind it
        self._kept = b""  # what the replica has said, if it may be that the client is not to see it

    # --- from the client ----------------------------------------------------------------------------------------------

    def wanted(self, data: bytes) -> bool:
        """Whether what the client says at rest may go to a replica."""
        if self._version != self._gate.table.version:
            self._look_up()
        again, self._again = self._again, False
        if self._verdicts is None or again or len(data) > UNIT_BYTES_MAX:
            return False
        session = self._session
        unit = unit_of(data, session.statements) if session.statements is not None else None
        if unit is None:
            return False
        verdicts = [self._verdicts.of(text) for text in unit.texts]
        begins = verdicts[0].kind is Kind.BEGINS
        if begins and session.requests.locks:
            return False
        if not all(one.kind is Kind.READS and one.calls <= self._functions for one in verdicts[begins:]):
            return False
        self._unit, self._prepares, self.transaction = data, unit.prepares, begins
        return True

    def _look_up(self) -> None:
        table, session = self._gate.table, self._session
        route, self._version = table.route(session.instance), table.version
        splits = route is not None and route.splits and not session.read_only
        self._verdicts = verdicts_of(self._gate) if splits else None
        self._functions = frozenset(route.split_functions) if route is not None else frozenset()

    def begin(self) -> None:
        """What was wanted last goes to a replica."""
        self.active = self._unsent = True
        self._cutter = Cutter()

    def sent(self, link: ServerLink) -> None:
        """The unit goes over this connection now."""
        self._unsent = False
        if link.quiet:
            link.let_hear(self._hear)
        else:
            self._unit = b""

    def next(self, link: ServerLink, data: bytes) -> bytes:
        """Of what the client says while this is active: what the server gets now."""
        session, requests = self._session, self._session.requests
        if session.holding:
            return data  # the session keeps it
        if session.fence is not None and not self._behind:
            self.end()  # it has come to the primary after all, or its replica has become that
            return data
        if self._unsent:
            self.sent(link)
        elif requests.resting and link.quiet:
            return self._rested(data)
        elif requests.resting or self._behind or (requests.outstanding and not self._cutter.inside):
            self._keep(data)
            return b""
        passed, behind = self._cutter.cut(data)
        if behind:
            self._keep(behind)
        return passed

    def _keep(self, data: bytes) -> None:
        self._behind += data
        self._session.waiting.bar(True)

    def _rested(self, data: bytes) -> bytes:
        """It was answered, and the connection is still here because the server was asked what the session carries."""
        session = self._session
        data, self._behind = self._behind + data, b""
        session.rested()
        if session.server is not None:
            return data
        session.data_received(data)
        return b""

    def go_on(self) -> bool:
        """A unit has been answered, in a transaction. Whether there is another one."""
        session = self._session
        if not self._behind or session.requests.outstanding or session.holding:
            return False
        session.data_received(self._released())
        return True

    def _released(self) -> bytes:
        behind, self._behind = self._behind, b""
        if behind:
            self._session.waiting.bar(False)
        return behind

    def end(self) -> bytes:
        """Its connection is not this session's any more. What the client has said since."""
        self.active = self._unsent = self.transaction = False
        self._unit, self._kept, self._prepares = b"", b"", ()
        return self._released()

    # --- from the replica ---------------------------------------------------------------------------------------------

    def _hear(self, data: bytes) -> bool:
        """The first that it says. False: it says more to who hears it then."""
        link, kept = self._session.server, self._kept + data
        if link is None:
            return False
        match _meant(kept):
            case _Meant.UNCLEAR:
                self._kept = kept
            case _Meant.CLIENT:
                self._unit = self._kept = b""
                link.pass_on(kept)
            case _Meant.PRIMARY:
                self._run_again(link, kept)
        return False

    def _run_again(self, link: ServerLink, answer: bytes) -> None:
        """At the primary, as if nothing had been sent."""
        session, statements = self._session, self._session.statements
        assert statements is not None, "it is in transaction mode"
        _ = answers(statements, link.held, answer, Boundary())
        session.requests.ready(1, IDLE)
        for name in self._prepares:
            if name in statements.names:
                statements.put(name, None)
        unit = self._unit
        self._give_back(link)
        self._again = True
        session.data_received(unit + self.end())


class _Meant(Enum):
    """Whom an answer is for."""

    CLIENT = auto()
    PRIMARY = auto()  # it is to be asked in the replica's place
    UNCLEAR = auto()  # that tells what is missing


def _meant(answer: bytes) -> _Meant:
    """From its beginning on."""
    if answer.find(_ANY_ERROR) < 0:
        return _Meant.CLIENT
    refused, at = False, 0
    while at + HEADER_BYTES <= len(answer):
        kind, length = _header(answer, at)
        behind = at + 1 + length
        if behind > len(answer) or kind not in _ORDINARY:
            break
        if kind == ERROR:
            code = error_fields(answer[at + HEADER_BYTES : behind]).get("C", "")
            if not code.startswith(_PRIMARYS):
                return _Meant.CLIENT
            refused = True
        elif kind == READY_KIND:
            return _Meant.PRIMARY if refused and answer[behind - 1] == IDLE else _Meant.CLIENT
        at = behind
    whole = at == len(answer) or at + HEADER_BYTES > len(answer)
    return _Meant.UNCLEAR if refused and whole and len(answer) <= KEPT_BYTES_MAX else _Meant.CLIENT
