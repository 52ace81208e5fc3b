"""Prepared statements of clients that share server connections: server to client. See `renaming`.

Answers to the proxy's own messages are taken out; what the client's messages were to change is settled by the others.
While nothing of that kind is awaited, buffers pass at a glance: only errors are looked at, for they may tell that the
server does not have a statement that it should (26000), or has it no more in the form that the client knows (0A000),
and they may name one as the client does not know it.
"""

from __future__ import annotations

import re
import struct

from proxy.postgres.frames import Boundary
from proxy.postgres.messages import HEADER_BYTES, error_fields, message
from proxy.postgres.outgoing import REFUSED
from proxy.postgres.prepared import CLOSED, COMPLETE, NAME_PREFIX, PARSED, READY, UNNAMED, Held, Statements

PARSE_COMPLETE = b"1\0\0\0\x04"
KEPT_BYTES_MAX = 64 << 10  # of a message that has not come whole
_ERROR = ord("E")
_ANY_ERROR = b"\0VERROR\0C"
_VANISHED, _CHANGED = "26000", "0A000"
_CHANGED_ROUTINE = "RevalidateCachedQuery"  # the same in every language
_ALL_TAGS = (b"DEALLOCATE ALL\0", b"DISCARD ALL\0")
_ONE_TAG = b"DEALLOCATE\0"
_AWAITED = frozenset((PARSED, CLOSED, READY, COMPLETE, _ERROR))
_NAMES = re.compile(re.escape(NAME_PREFIX.decode()) + r"\d+")
_header = struct.Struct("!BI").unpack_from


def answers(statements: Statements, held: Held, data: bytes, boundary: Boundary) -> bytes:
    """What of it the client gets: `data` itself if all of it as it is. `boundary` follows what the client got."""
    if not statements.queue:
        if statements.at_risk and data[:HEADER_BYTES] == PARSE_COMPLETE and boundary.between:
            statements.risked(well=True)
        if not statements.at_risk and data.find(_ANY_ERROR) < 0:
            return data
    return _walk(statements, held, data, boundary)


def _walk(statements: Statements, held: Held, data: bytes, boundary: Boundary) -> bytes:
    if statements.following:
        data, sent, at = statements.kept + data, 0, statements.skip
    else:
        (data, sent), at = boundary.joined(data), boundary.left
    end, begin = len(data), sent
    out: list[bytes] = []
    while at + HEADER_BYTES <= end:
        kind, length = _header(data, at)
        behind = at + 1 + length
        if length < HEADER_BYTES - 1:
            statements.lost = True
            break
        if kind in _AWAITED:
            if behind > end:
                if length > KEPT_BYTES_MAX:
                    at = behind
                break
            shown = _take(statements, held, kind, data[at:behind])
            if shown is not None:
                out += (data[begin:at], shown)
                begin = behind
        at = behind
    if at < sent:  # its beginning has gone to the client already: `boundary` knows where it ends
        statements.following, statements.kept, statements.skip = False, b"", 0
        return data[sent:]
    statements.settle()
    statements.following = bool(statements.queue)
    stop = min(at, end) if statements.following else end
    statements.kept, statements.skip = data[stop:], max(0, at - stop)
    out.append(data[begin:stop])
    return b"".join(out)


def _take(statements: Statements, held: Held, kind: int, answer: bytes) -> bytes | None:
    """One message; what the client gets in its place, None: itself."""
    queue = statements.queue
    if statements.at_risk and kind != COMPLETE:
        statements.risked(well=kind == PARSED)
    if kind == _ERROR:
        return _failed(statements, held, answer)
    if kind == COMPLETE:
        if queue and queue[0].answer == COMPLETE:
            _deallocated(statements, held, queue[0].name, answer[HEADER_BYTES:])
        return None
    if kind == READY:
        statements.drop()
        if queue:
            _ = statements.done(held)
        return None
    _pass_over(statements)
    if queue and queue[0].answer == kind:
        return None if statements.done(held).shown else b""
    return None


def _pass_over(statements: Statements) -> None:
    """What comes is the answer to something later than a statement that might have deallocated."""
    queue = statements.queue
    while queue and queue[0].answer == COMPLETE:
        item = statements.take_first()
        if item.undo is not None:
            item.undo()


def _deallocated(statements: Statements, held: Held, name: bytes | None, tag: bytes) -> None:
    if tag in _ALL_TAGS:
        statements.queue[0].undo = None
        statements.cleared(held)
    elif tag == _ONE_TAG and name is not None:
        statements.queue[0].undo = None


def _failed(statements: Statements, held: Held, answer: bytes) -> bytes | None:
    queue = statements.queue
    refusal, lapses = b"", False
    first = next((item for item in queue if item.answer != COMPLETE), None)
    if first is not None:
        refusal = first.refusal if REFUSED in answer else b""
        lapses = first.answer == PARSED and first.keys == (UNNAMED,) and first.shown
    statements.drop()
    if lapses:  # the server forgets the former one before it looks at the new one
        statements.keep_unnamed(None)
        statements.home = held if statements.at_home(held) else None
    if queue and not queue[0].certain:
        statements.lost = True
    return refusal or _understood(statements, held, answer)


def _understood(statements: Statements, held: Held, answer: bytes) -> bytes | None:
    fields = error_fields(answer[HEADER_BYTES:])
    code, routine = fields.get("C"), fields.get("R")
    text = answer[HEADER_BYTES:].decode("latin-1")
    found = set(_NAMES.findall(text))
    if code == _VANISHED:
        for name in found:
            held.vanished(name.encode())
    elif code == _CHANGED and routine == _CHANGED_ROUTINE:
        for prepared in statements.names.values():
            if prepared in held.names:
                held.names[prepared] = False
    if not found:
        return None
    known = {prepared.name.decode(): name.decode("latin-1") for name, prepared in statements.names.items()}
    return message(b"E", _NAMES.sub(lambda name: known.get(name[0], name[0]), text).encode("latin-1"))
