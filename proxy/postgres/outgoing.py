"""What the server is sent in place of client words, and what its connection is made to have before. See `renaming`."""

from __future__ import annotations

import struct
from functools import partial

from proxy.postgres.messages import HEADER_BYTES, close, message, parse
from proxy.postgres.prepared import (
    CLOSED,
    COMPLETE,
    EVERYTHING,
    NAME_PREFIX,
    PARSED,
    UNNAMED,
    Awaited,
    Held,
    Prepared,
    Statements,
)

GONE = NAME_PREFIX + b"deallocated"  # made to be deallocated
REFUSED = NAME_PREFIX + b"refused"  # no statement of SQL
_make_header = struct.Struct("!BI").pack


class Outgoing:
    """One buffer on its way to the server. What stands before `begin` is in `out`, as far as it is sent."""

    __slots__ = ("_begin", "_data", "_held", "_out", "_owed", "_statements")

    def __init__(self, statements: Statements, held: Held, owed: int) -> None:
        self._statements = statements
        self._held = held
        self._owed = owed  # ReadyForQuery messages, if nothing else is awaited
        self._data, self._begin = b"", 0
        self._out: list[bytes] = []

    # --- what the connection must have --------------------------------------------------------------------------------

    def _provide(self, prepared: Prepared, at: int) -> bool:
        if self._statements.conflicts(prepared):
            return False
        if self._held.names.get(prepared):
            self._held.names.move_to_end(prepared)
        else:
            self._flush(at)
            self._prepare(prepared)
        return True

    def _provide_unnamed(self, at: int) -> bool:
        statements = self._statements
        if statements.at_home(self._held) or UNNAMED in statements.current:
            return True
        if UNNAMED in statements.pending:
            return False
        self._flush(at)
        body = statements.unnamed
        if body is None:
            self._out.append(close(UNNAMED))
            self._owe(Awaited(CLOSED, shown=False, keys=(UNNAMED,), mirrors=True))
        else:
            self._out.append(message(b"P", b"\0" + body))
            self._owe(Awaited(PARSED, shown=False, keys=(UNNAMED,), mirrors=True))
        return True

    def _prepare(self, prepared: Prepared, key: bytes | None = None) -> None:
        """At the server; under this name of the client's, if it asks for that."""
        statements, held = self._statements, self._held
        if prepared in held.names:
            self._send_close(prepared)
        while len(held.names) >= held.limit:
            oldest = next((one for one in held.names if one not in statements.pending), None)
            if oldest is None:
                break
            self._send_close(oldest)
        self._out.append(message(b"P", prepared.name + b"\0" + prepared.body))

        def make() -> None:
            held.put(prepared, True)
            if key is not None:
                statements.put(key, prepared)

        def undo() -> None:
            held.put(prepared, None)
            if key is not None:
                statements.put(key, None)

        keys = (prepared,) if key is None else (prepared, key)
        self._owe(Awaited(PARSED, shown=key is not None, keys=keys, make=make, undo=undo))

    def _send_close(self, prepared: Prepared) -> None:
        held = self._held
        self._out.append(close(prepared.name))
        make, undo = partial(held.put, prepared, None), partial(held.put, prepared, held.names[prepared])
        self._owe(Awaited(CLOSED, shown=False, keys=(prepared,), make=make, undo=undo))

    def _watch(self, target: bytes | None, *, clears: bool) -> None:
        """A statement that may deallocate is run next."""
        statements, held = self._statements, self._held
        if target is not None and target in statements.names:  # else the server says that it does not exist
            self._out += [close(GONE), parse(GONE, b"")]
            self._owe(Awaited(CLOSED, shown=False))
            self._owe(Awaited(PARSED, shown=False))
            make = partial(statements.put, target, None)
            undo = partial(statements.put, target, statements.names[target])
            self._owe(Awaited(COMPLETE, keys=(EVERYTHING,), make=make, undo=undo, name=target))
            return
        item = Awaited(COMPLETE, keys=(EVERYTHING,))
        if clears:
            names, here = dict(statements.names), list(held.names.items())
            item.undo = partial(_restore, statements, held, names, here)
            statements.clear()
            held.names.clear()
        self._owe(item)

    def _refuse(self, error: bytes) -> None:
        self._out.append(parse(REFUSED, REFUSED))
        self._owe(Awaited(PARSED, refusal=error))

    # --- bytes --------------------------------------------------------------------------------------------------------

    def _owe(self, item: Awaited) -> None:
        self._statements.owe(item, self._owed)

    def _flush(self, at: int) -> None:
        """What stands before `at` is sent as it is."""
        self._out.append(self._data[self._begin : at])
        self._begin = at

    def _replace(self, at: int, behind: int) -> None:
        self._flush(at)
        self._begin = behind

    def _rename(self, at: int, behind: int, begin: int, zero: int, name: bytes) -> None:
        length = behind - at - 1 + len(name) - (zero - begin)
        self._flush(at)
        self._out += [_make_header(self._data[at], length), self._data[at + HEADER_BYTES : begin], name]
        self._begin = zero


def _restore(
    statements: Statements, held: Held, names: dict[bytes, Prepared], here: list[tuple[Prepared, bool]]
) -> None:
    for name, prepared in names.items():
        statements.put(name, prepared)
    for prepared, fresh in here:
        held.put(prepared, fresh)
