"""The short way of a client's buffer to the server: whole messages that need no answers of their own. See `renaming`.

Nearly all buffers are a Bind of a known name and what belongs to it, a simple query, or an unnamed statement that is
prepared and run at once.
"""

from __future__ import annotations

import struct

from proxy.postgres.messages import HEADER_BYTES
from proxy.postgres.prepared import Held, Statements, may_deallocate
from proxy.postgres.requests import Requests

_PARSE, _BIND, _DESCRIBE, _EXECUTE, _SYNC, _QUERY = b"PBDESQ"
_TEXTS = frozenset((_PARSE, _QUERY))
_PASSING = frozenset(b"Hdcf")
_PORTAL = b"P"
_header = struct.Struct("!BI").unpack_from
_make_header = struct.Struct("!BI").pack


def shortened(  # noqa: C901 - one loop without calls: each transaction pays for it
    statements: Statements, held: Held, data: bytes, requests: Requests
) -> bytes | None:
    """None: it is more than whole messages that need no answers of their own."""
    names, here, find = statements.names, held.names, data.find
    opened, owed, unnamed_here = requests.open, requests.outstanding, statements.at_home(held)
    unnamed: bytes | None = None
    pieces: list[bytes] = []
    at, begin, end = 0, 0, len(data)
    while at + HEADER_BYTES <= end:
        kind, length = _header(data, at)
        behind = at + 1 + length
        if kind == _BIND:
            portal = find(0, at + HEADER_BYTES)
            zero = find(0, portal + 1)
            if portal < 0 or zero < 0 or zero >= behind:
                return None
            name = data[portal + 1 : zero]
            if name:
                prepared = names.get(name)
                if prepared is None or not here.get(prepared):
                    return None
                here.move_to_end(prepared)
                known = prepared.name
                new = _make_header(_BIND, length + len(known) - len(name))
                pieces += (data[begin:at], new, data[at + HEADER_BYTES : portal + 1], known)
                begin = zero
            elif not unnamed_here:
                return None
            opened = True
        elif kind == _SYNC:
            owed += 1
            opened = False
        elif kind == _EXECUTE or (kind == _DESCRIBE and data.startswith(_PORTAL, at + HEADER_BYTES)):
            opened = True
        elif kind in _TEXTS:
            unnamed = None if opened or behind > end else _unnamed(kind, data[at + HEADER_BYTES : behind], owed)
            if unnamed is None:
                return None
            unnamed_here = True
            opened = kind == _PARSE
            owed += kind == _QUERY
        elif kind not in _PASSING:
            return None
        at = behind
    if at != end:
        return None
    if unnamed is not None:
        statements.keep_unnamed(unnamed or None)
        statements.at_risk = bool(unnamed)
        statements.settle_at(held)
    if not pieces:
        return data
    pieces.append(data[begin:])
    return b"".join(pieces)


def run(statements: Statements, held: Held, data: bytes) -> bytes | None:
    """Of one Bind and what belongs to it."""
    length = _header(data, 0)[1]
    portal = data.find(0, HEADER_BYTES)
    zero = data.find(0, portal + 1)
    if zero > length:
        return None
    name = data[portal + 1 : zero]
    if not name:
        return data if statements.at_home(held) else None
    prepared = statements.names.get(name)
    if prepared is None or not held.names.get(prepared):
        return None
    held.names.move_to_end(prepared)
    known = prepared.name
    header = _make_header(_BIND, length + len(known) - len(name))
    return b"".join((header, data[HEADER_BYTES : portal + 1], known, data[zero:]))


def _unnamed(kind: int, body: bytes, owed: int) -> bytes | None:
    """What a message at the beginning of a batch leaves under no name: empty for nothing, None if it is more than that.
    A Parse that others wait before may be skipped."""
    if may_deallocate(body):
        return None
    if kind == _QUERY:
        return b""
    return body[1:] if not owed and body[:1] == b"\0" else None
