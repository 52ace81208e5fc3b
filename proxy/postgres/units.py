"""What a client sends, taken apart as far as splitting needs it: units, each of which is answered by one ReadyForQuery.

A unit is a Query message, or Parse, Bind, Describe and Execute messages up to their Sync. Only one that has come whole
and alone is read (`unit_of`). Where a transaction is under way at a replica, its units go there one at a time: `Cutter`
finds where each of them ends, whatever they are.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from proxy.postgres.messages import HEADER_BYTES, SYNC
from proxy.postgres.prepared import NAME_BYTES_MAX, Statements

_PARSE, _BIND, _DESCRIBE, _EXECUTE, _SYNC, _QUERY, _CALL = b"PBDESQF"
_ANSWERED = frozenset((_SYNC, _QUERY, _CALL))
_header = struct.Struct("!BI").unpack_from


@dataclass(frozen=True, slots=True)
class Unit:
    """`texts`: of the statements that it runs, in their order. `prepares`: names that it gives to statements."""

    texts: tuple[bytes, ...]
    prepares: tuple[bytes, ...] = ()


def unit_of(data: bytes, statements: Statements) -> Unit | None:
    """None when it is not one unit, whole and alone, all of whose statements are known; or if it runs none."""
    if data[:1] == b"Q":
        whole = len(data) > HEADER_BYTES and _header(data, 0)[1] + 1 == len(data)
        return Unit((data[HEADER_BYTES:-1],)) if whole else None
    if data[-len(SYNC) :] != SYNC:
        return None
    at, last = 0, len(data) - len(SYNC)
    texts: list[bytes] = []
    parsed: dict[bytes, bytes] = {}
    executes = False
    while at + HEADER_BYTES <= last:
        kind, length = _header(data, at)
        behind = at + 1 + length
        if length < HEADER_BYTES - 1 or behind > last:
            return None
        body = data[at + HEADER_BYTES : behind]
        if kind == _PARSE:
            name, _, rest = body.partition(b"\0")
            if name and (name[:NAME_BYTES_MAX] in statements.names or name[:NAME_BYTES_MAX] in parsed):
                return None
            parsed[name[:NAME_BYTES_MAX]] = rest
        elif kind == _BIND:
            name = body[body.find(0) + 1 :].partition(b"\0")[0]
            text = _text_of(name[:NAME_BYTES_MAX], parsed, statements)
            if text is None:
                return None
            texts.append(text)
        elif kind == _EXECUTE:
            executes = True
        elif kind != _DESCRIBE:
            return None
        at = behind
    if at != last or not (executes and texts):
        return None
    return Unit(tuple(texts), tuple(name for name in parsed if name))


def _text_of(name: bytes, parsed: dict[bytes, bytes], statements: Statements) -> bytes | None:
    body = parsed.get(name)
    if body is None:
        if name:
            prepared = statements.names.get(name)
            body = prepared.body if prepared is not None else None
        else:
            body = statements.unnamed
    if body is None:
        return None
    text, zero, _ = body.partition(b"\0")
    return text if zero else None


class Cutter:
    """Follows a client from the beginning of a message on."""

    __slots__ = ("_ends", "_head", "_left")

    def __init__(self) -> None:
        self._left = 0  # bytes of a message that have not come yet
        self._ends = False  # that message ends its unit
        self._head = b""  # a header that has not come whole

    @property
    def inside(self) -> bool:
        """A message has come in part."""
        return self._left > 0

    def cut(self, data: bytes) -> tuple[bytes, bytes]:
        """What belongs to the present unit, and what comes behind its end."""
        if self._head:
            data, self._head = self._head + data, b""
        at, end = self._left, len(data)
        if at > end:
            self._left = at - end
            return data, b""
        self._left = 0
        if at and self._ends:
            return data[:at], data[at:]
        while at + HEADER_BYTES <= end:
            kind, length = _header(data, at)
            if length < HEADER_BYTES - 1:
                return data, b""  # the server says what is wrong with it
            at += 1 + length
            self._ends = kind in _ANSWERED
            if at > end:
                self._left = at - end
                return data, b""
            if self._ends:
                return data[:at], data[at:]
        self._head = data[at:]
        return data[:at], b""
