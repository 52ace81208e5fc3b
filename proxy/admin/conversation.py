"""Pure: a client of the proxy's own database, from behind its login to its goodbye; bytes in, bytes out.

Both protocols are spoken, since many drivers use the extended one for everything. Statements have no parameters.
What was asked is answered from the facts of that moment, at Execute, or at once in the simple protocol. Long answers
come in pieces, so that whoever sends them can attend to others in between.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from proxy.admin.answers import Page, Value, complete, description, notice, row
from proxy.admin.statements import Control, Show, Statement, Unknown, read
from proxy.postgres.messages import Garbled, Stream, message
from proxy.postgres.refusals import error

KEPT_MAX = 100  # prepared statements, and portals, of one client
MESSAGE_BYTES_MAX = 64 << 10
ROWS_AT_ONCE = 50  # in one piece of an answer
_EMPTY, _NO_DATA, _PARSED, _BOUND, _CLOSED, _SUSPENDED = (
    message(kind) for kind in (b"I", b"n", b"1", b"2", b"3", b"s")
)
Answerer = Callable[[str], Page | None]  # what SHOW shows; None when there is no such thing


@dataclass(slots=True)
class _Portal:
    statement: Statement | None
    formats: tuple[int, ...]
    page: Page | None = None  # once it was begun, or described
    rows: Iterator[Sequence[Value]] | None = None  # those that were not sent yet


class _Refused(Exception):
    """ErrorResponse in `args`."""


class Conversation:
    """One a client."""

    def __init__(self, answer: Answerer) -> None:
        self._answer = answer
        self._stream = Stream()
        self._open = False  # a transaction is, in the client's mind
        self._failed = False  # it is, and something has failed in it
        self._skipping = False  # an extended query has failed: until Sync
        self._statements: dict[bytes, Statement | None] = {}
        self._portals: dict[bytes, _Portal] = {}
        self.ended = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What to answer. Garbled when it is not the protocol."""
        for kind, body in self._stream.feed(data):
            if not self.ended:
                yield from self._take(bytes((kind,)), body)
        if len(self._stream.rest) > MESSAGE_BYTES_MAX:
            raise Garbled("a message that is too long for this database")

    def ready(self) -> bytes:
        state = b"I" if not self._open else b"E" if self._failed else b"T"
        return message(b"Z", state)

    def _take(self, letter: bytes, body: bytes) -> Iterator[bytes]:
        if letter == b"X":
            self.ended = True
        elif letter == b"Q":
            self._skipping = False
            yield from self._query(_string(body))
            yield self.ready()
        elif letter == b"S":
            self._skipping = False
            if not self._open:
                self._portals.clear()
            yield self.ready()
        elif letter != b"H" and not self._skipping:
            yield from self._step(letter, body)

    def _step(self, letter: bytes, body: bytes) -> Iterator[bytes]:
        try:
            if letter == b"E":
                name, _, rest = body.partition(b"\0")
                yield from self._run(self._portal(name), *struct.unpack("!I", rest))
            else:
                yield self._extended(letter, body)
        except _Refused as refused:
            self._skipping, self._failed = True, self._open
            yield bytes(refused.args[0])
        except struct.error as odd:
            raise Garbled(f"message {letter!r} is shorter than it says") from odd

    # --- simple protocol ------------------------------------------------------------------------------------------

    def _query(self, text: str) -> Iterator[bytes]:
        statements = read(text)
        if not statements:
            yield _EMPTY
        try:
            for statement in statements:
                page = self._page(statement)
                if page is not None and page.columns:
                    yield description(page.columns, ())
                yield from self._run(_Portal(statement, (), page), 0)
        except _Refused as refused:
            self._failed = self._open
            yield bytes(refused.args[0])

    # --- extended protocol ----------------------------------------------------------------------------------------

    def _extended(self, letter: bytes, body: bytes) -> bytes:
        match letter:
            case b"P":
                return self._parse(body)
            case b"B":
                return self._bind(body)
            case b"D":
                return self._describe(body)
            case b"C":
                (self._statements if body[:1] == b"S" else self._portals).pop(body[1:].partition(b"\0")[0], None)
                return _CLOSED
            case _:
                raise _Refused(
                    _error("0A000", "this message is not supported here", "SHOW HELP lists what can be asked.")
                )

    def _parse(self, body: bytes) -> bytes:
        name, _, rest = body.partition(b"\0")
        statements = read(_string(rest))
        if len(statements) > 1:
            raise _Refused(_error("42601", "cannot insert multiple commands into a prepared statement"))
        if name and name in self._statements:
            raise _Refused(_error("42P05", f"prepared statement {_string(name)} already exists"))
        if len(self._statements) >= KEPT_MAX and name not in self._statements:
            raise _Refused(_error("54000", f"more than {KEPT_MAX} prepared statements", "Close some."))
        statement = statements[0] if statements else None
        if isinstance(statement, Unknown):
            raise _Refused(_unknown(statement))
        self._statements[name] = statement
        return _PARSED

    def _bind(self, body: bytes) -> bytes:
        portal, _, rest = body.partition(b"\0")
        name, _, rest = rest.partition(b"\0")
        if name not in self._statements:
            raise _Refused(_error("26000", f"prepared statement {_string(name)} does not exist"))
        (count,) = struct.unpack_from("!H", rest)
        (values,) = struct.unpack_from("!H", rest, 2 + 2 * count)
        if values:
            raise _Refused(_error("08P01", f"{values} parameters for a statement that has none"))
        (forms,) = struct.unpack_from("!H", rest, 4 + 2 * count)
        formats = struct.unpack_from(f"!{forms}H", rest, 6 + 2 * count)
        if len(self._portals) >= KEPT_MAX and portal not in self._portals:
            raise _Refused(_error("54000", f"more than {KEPT_MAX} portals", "Close some."))
        self._portals[portal] = _Portal(self._statements[name], formats)
        return _BOUND

    def _describe(self, body: bytes) -> bytes:
        what, name = body[:1], body[1:].partition(b"\0")[0]
        if what == b"P":
            portal = self._portal(name)
            return self._described(self._begun(portal), portal.formats)
        if name not in self._statements:
            raise _Refused(_error("26000", f"prepared statement {_string(name)} does not exist"))
        parameters = message(b"t", struct.pack("!H", 0))
        return parameters + self._described(self._page(self._statements[name]), ())

    def _described(self, page: Page | None, formats: tuple[int, ...]) -> bytes:
        if page is None or not page.columns:
            return _NO_DATA
        if len(formats) not in (0, 1, len(page.columns)) or not set(formats) <= {0, 1}:
            raise _Refused(_error("08P01", f"{len(formats)} formats for {len(page.columns)} columns"))
        return description(page.columns, formats)

    def _portal(self, name: bytes) -> _Portal:
        if name not in self._portals:
            raise _Refused(_error("34000", f"portal {_string(name)} does not exist"))
        return self._portals[name]

    def _begun(self, portal: _Portal) -> Page | None:
        if portal.page is None:
            portal.page = self._page(portal.statement)
        return portal.page

    # --- both -----------------------------------------------------------------------------------------------------

    def _page(self, statement: Statement | None) -> Page | None:
        """None of what has no answer. _Refused when it cannot be answered."""
        if isinstance(statement, Unknown):
            raise _Refused(_unknown(statement))
        if self._failed and not (isinstance(statement, Control) and statement.open is False):
            raise _Refused(_error("25P02", "current transaction is aborted, commands ignored until end of transaction"))
        if not isinstance(statement, Show):
            return None
        page = self._answer(statement.what)
        if page is None:
            name = statement.what.replace("_", " ").upper()
            raise _Refused(_error("42704", f"there is no SHOW {name}", "SHOW HELP lists what there is."))
        return page

    def _run(self, portal: _Portal, rows_max: int) -> Iterator[bytes]:
        """`rows_max`: 0 = all of them."""
        statement = portal.statement
        page = self._begun(portal)
        if statement is None:
            yield _EMPTY
        elif isinstance(statement, Control):
            yield self._control(statement)
        elif page is not None and page.notice:
            yield notice("Console usage", page.notice) + complete("SHOW")
        elif page is not None:
            yield from self._rows(portal, page, rows_max)

    def _rows(self, portal: _Portal, page: Page, rows_max: int) -> Iterator[bytes]:
        _ = self._described(page, portal.formats)
        rows = portal.rows if portal.rows is not None else iter(page.rows)
        sent = 0
        while some := list(islice(rows, min(ROWS_AT_ONCE, rows_max - sent) if rows_max else ROWS_AT_ONCE)):
            sent += len(some)
            yield b"".join(row(page.columns, values, portal.formats) for values in some)
        left = next(rows, None) if rows_max and sent == rows_max else None
        portal.rows = iter(()) if left is None else chain([left], rows)
        yield complete("SHOW") if left is None else _SUSPENDED

    def _control(self, statement: Control) -> bytes:
        tag = "ROLLBACK" if self._failed and statement.tag == "COMMIT" else statement.tag
        if statement.open is not None:
            self._open, self._failed = statement.open, False
        return complete(tag)


def _string(body: bytes) -> str:
    return body.partition(b"\0")[0].decode(errors="replace")


def _unknown(statement: Unknown) -> bytes:
    return _error(statement.sqlstate, statement.message, statement.hint)


def _error(sqlstate: str, text: str, hint: str = "") -> bytes:
    return error(sqlstate, text, hint, severity="ERROR")
