"""Prepared statements of clients that share server connections: client to server. `answering` is the way back.

Names of statements in Parse, Bind, Describe and Close become names that mean the same text at every server, and what
the connection of the moment does not have is prepared there first, by messages of the proxy's own whose answers the
client does not see (`prepared`). A client that prepares is always answered by the server, which looks at the text then
and there: a statement that is there already, from another client, is closed and prepared anew. So errors are the
server's own. The exceptions are a name that the client has already (42P05) and too many statements (53200): there a
message that must fail is sent, and the error is put in its answer's place, because the server must skip what follows.

The unnamed statement keeps having no name: what the server has under it is either this client's, or replaced before
it is used.

A DEALLOCATE of one of the client's names becomes one of a statement made for the purpose.

Nearly all buffers are a Bind of a known name and what belongs to it; those take the short way (`shortcut`).
"""

from __future__ import annotations

import struct
from enum import Enum, auto
from functools import partial

from proxy.postgres import refusals
from proxy.postgres.messages import HEADER_BYTES, message
from proxy.postgres.outgoing import GONE, Outgoing
from proxy.postgres.prepared import (
    CLOSED,
    EVERYTHING,
    NAME_BYTES_MAX,
    NAME_PREFIX,
    PARSED,
    READY,
    UNNAMED,
    Awaited,
    Deallocation,
    Held,
    Statements,
    deallocated,
    deallocates_all,
    may_deallocate,
)
from proxy.postgres.requests import Requests, runs_once
from proxy.postgres.shortcut import run, shortened
from proxy.postgres.statements import READ_BYTES_MAX

STATEMENT_BYTES_MAX = 1 << 20  # of one that can be prepared
HELD_BACK_BYTES_MAX = 4 << 20
AWAITED_MAX = 20_000  # answers
NEVER = NAME_PREFIX + b"none"  # no server has it
FULL = refusals.error(
    "53200", "too many prepared statements", "Deallocate some, or use session pooling.", severity="ERROR"
)
TOO_LONG = refusals.error(
    "53200", "the statement is too long to be prepared by name", "Use the unnamed statement.", severity="ERROR"
)
LOST = refusals.error("08P01", "these messages cannot be followed in transaction pooling", "Use session pooling.")
_PARSE, _BIND, _DESCRIBE, _CLOSE, _SYNC, _FLUSH, _QUERY, _CALL = b"PBDCSHQF"
_COPY = frozenset(b"dcf")
_STATEMENT = ord("S")
_header = struct.Struct("!BI").unpack_from


def translate(statements: Statements, held: Held, data: bytes, requests: Requests) -> bytes:
    """What of it the server is sent now: `data` itself if nothing need be changed. `requests` has not seen it yet."""
    if not statements.slow:
        quick = run(statements, held, data) if runs_once(data) else shortened(statements, held, data, requests)
        if quick is not None:
            return quick
    return _Walk(statements, held, requests).run(data)


class _Next(Enum):
    """What comes of a message."""

    DONE = auto()
    MORE = auto()  # it must come further first
    WAIT = auto()  # what was sent must be answered first


_DONE, _MORE, _WAIT = _Next.DONE, _Next.MORE, _Next.WAIT


class _Walk(Outgoing):
    """Through one buffer, message by message."""

    __slots__ = ("_end", "_open", "_syncs_ignored")

    def __init__(self, statements: Statements, held: Held, requests: Requests) -> None:
        super().__init__(statements, held, requests.outstanding)
        self._open = requests.open
        self._syncs_ignored = requests.syncs_ignored
        self._end = 0

    def run(self, data: bytes) -> bytes:
        statements = self._statements
        if statements.held_back:
            data = statements.held_back + data
            if not statements.may_go_on:
                statements.held_back = data
                statements.lost |= len(data) > HELD_BACK_BYTES_MAX
                return b""
            self._owed, self._open = 0, statements.opened
            statements.held_back = b""
        if statements.part:
            data, statements.part = statements.part + data, b""
        self._data, self._end = data, len(data)
        at = min(statements.left, self._end)
        statements.left -= at
        if statements.dropping:
            self._begin = at
            statements.dropping = statements.left > 0
        self._messages(at)
        self._out.append(data[self._begin : self._end])
        statements.settle()
        return b"".join(self._out) if len(self._out) > 1 or self._begin or self._end < len(data) else data

    def _messages(self, at: int) -> None:
        statements, data, end = self._statements, self._data, len(self._data)
        while at + HEADER_BYTES <= end:
            kind, length = _header(data, at)
            behind = at + 1 + length
            if length < HEADER_BYTES - 1:
                statements.lost = True
                return
            step = self._message(kind, at, behind) if len(statements.queue) < AWAITED_MAX else self._many()
            if step is not _DONE:
                self._end = at
                if step is _MORE:
                    statements.part = data[at:]
                else:
                    self._hold_back(data[at:])
                return
            at = behind
        if at > end:
            statements.left = at - end
        elif at < end:
            statements.part, self._end = data[at:], at

    def _message(self, kind: int, at: int, behind: int) -> _Next:
        if kind == _BIND:
            return self._bind(at, behind)
        if kind == _PARSE:
            return self._parse(at, behind)
        if kind in (_DESCRIBE, _CLOSE):
            return self._describe_or_close(kind, at, behind)
        if kind == _QUERY:
            return self._query(at, behind)
        if kind == _SYNC:
            self._ready(certain=True)
        elif kind == _CALL:
            self._ready(certain=not self._open)
        elif kind in _COPY:
            self._owed -= self._syncs_ignored
            self._syncs_ignored = 0
        elif kind != _FLUSH:
            self._open = True
        return _DONE

    def _many(self) -> _Next:
        """More is awaited than is kept in mind."""
        self._statements.lost |= self._open
        return _WAIT

    def _hold_back(self, data: bytes) -> bytes:
        self._statements.held_back, self._statements.opened = data, self._open
        self._statements.lost |= len(data) > HELD_BACK_BYTES_MAX
        return b""

    # --- messages -----------------------------------------------------------------------------------------------------

    def _parse(self, at: int, behind: int) -> _Next:
        data, statements = self._data, self._statements
        zero = data.find(0, at + HEADER_BYTES, behind)
        if behind - at > STATEMENT_BYTES_MAX:
            return self._parse_long(at, behind, zero)
        if behind > len(data):
            return _MORE
        if zero < 0:
            return _DONE  # the server says what is wrong with it
        name, body = data[at + HEADER_BYTES : zero], data[zero + 1 : behind]
        key = name[:NAME_BYTES_MAX]
        text = body[: max(0, body.find(0))]
        talks = may_deallocate(text)
        target = deallocated(text) if talks else None
        if target is not None and statements.conflicts(target):
            return _WAIT
        if target is not None and target in statements.names:
            body = b"DEALLOCATE " + GONE + body[len(text) :]
        else:
            target = None  # what the server calls so, if anything
        if not name:
            self._parse_unnamed(at, behind, body, changed=target is not None)
        elif not self._parse_named(at, behind, name, body):
            return _WAIT
        if talks:
            statements.watched[key] = Deallocation(target, deallocates_all(text))
        else:
            statements.watched.pop(key, None)
        self._open = True
        return _DONE

    def _parse_named(self, at: int, behind: int, name: bytes, body: bytes) -> bool:
        statements, key = self._statements, name[:NAME_BYTES_MAX]
        prepared = statements.library.take(body)
        if statements.conflicts(key) or statements.conflicts(prepared):
            return False
        self._replace(at, behind)
        if key in statements.names:
            self._prepare(prepared)
            known = name.decode(errors="replace")
            self._refuse(
                refusals.error("42P05", f'prepared statement "{known}" already exists', severity="ERROR"),
            )
        elif statements.full:
            self._refuse(FULL)
        else:
            self._prepare(prepared, key)
        return True

    def _parse_unnamed(self, at: int, behind: int, body: bytes, *, changed: bool) -> None:
        statements = self._statements
        if changed:
            self._replace(at, behind)
            self._out.append(message(b"P", b"\0" + body))
        if not self._open:
            statements.settle_at(self._held)  # it is reached, whatever comes of it
        self._owe(Awaited(PARSED, keys=(UNNAMED,), make=partial(statements.keep_unnamed, body), mirrors=True))

    def _parse_long(self, at: int, behind: int, zero: int) -> _Next:
        statements = self._statements
        if zero < 0:
            return self._incomplete(at, behind)
        if zero > at + HEADER_BYTES:
            self._replace(at, behind)
            self._refuse(TOO_LONG)
            statements.dropping = behind > len(self._data)
        else:
            if not self._open:
                statements.settle_at(self._held)
            make = partial(statements.keep_unnamed, None)
            self._owe(Awaited(PARSED, keys=(UNNAMED,), make=make, mirrors=True))
        self._open = True
        return _DONE

    def _bind(self, at: int, behind: int) -> _Next:
        data = self._data
        portal = data.find(0, at + HEADER_BYTES, behind)
        zero = data.find(0, portal + 1, behind) if portal >= 0 else -1
        if zero < 0:
            return self._incomplete(at, behind)
        return self._use(at, behind, portal + 1, zero)

    def _describe_or_close(self, kind: int, at: int, behind: int) -> _Next:
        data, begin = self._data, at + HEADER_BYTES + 1
        zero = data.find(0, begin, behind)
        if zero < 0:
            return self._incomplete(at, behind)
        if kind == _CLOSE:
            return self._close(at, behind, zero)
        if data[begin - 1] != _STATEMENT:
            self._open = True
            return _DONE
        return self._use(at, behind, begin, zero)

    def _use(self, at: int, behind: int, begin: int, zero: int) -> _Next:
        """A Bind or Describe, with the statement's name from `begin` to `zero`."""
        data, statements = self._data, self._statements
        name = data[begin:zero]
        key = name[:NAME_BYTES_MAX]
        watched = statements.watched.get(key) if data[at] == _BIND else None
        target = watched.name if watched is not None else None
        if (key and statements.conflicts(key)) or (target is not None and statements.conflicts(target)):
            return _WAIT
        if watched is not None and (statements.conflicts(EVERYTHING) or (watched.everything and statements.unsure)):
            return _WAIT
        prepared = statements.names.get(key) if key else None
        known = name
        if not name:
            if not self._provide_unnamed(at):
                return _WAIT
        elif prepared is not None:
            if not self._provide(prepared, at):
                return _WAIT
            known = prepared.name
        elif name.startswith(NAME_PREFIX):
            known = NEVER
        if watched is not None:
            self._flush(at)
            self._watch(target, clears=watched.everything)
        if known != name:
            self._rename(at, behind, begin, zero, known)
        self._open = True
        return _DONE

    def _close(self, at: int, behind: int, zero: int) -> _Next:
        data, statements = self._data, self._statements
        begin = at + HEADER_BYTES + 1
        name = data[begin:zero]
        key = name[:NAME_BYTES_MAX]
        if data[begin - 1] != _STATEMENT:
            self._owe(Awaited(CLOSED))
        elif not name:
            self._owe(Awaited(CLOSED, keys=(UNNAMED,), make=partial(statements.keep_unnamed, None), mirrors=True))
        else:
            if statements.conflicts(key):
                return _WAIT
            prepared = statements.names.get(key)
            if prepared is not None:
                make, undo = partial(statements.put, key, None), partial(statements.put, key, prepared)
                self._rename(at, behind, begin, zero, NEVER)
                self._owe(Awaited(CLOSED, keys=(key,), make=make, undo=undo))
            else:
                if name.startswith(NAME_PREFIX):
                    self._rename(at, behind, begin, zero, NEVER)
                self._owe(Awaited(CLOSED))
        self._open = True
        return _DONE

    def _query(self, at: int, behind: int) -> _Next:
        data, statements = self._data, self._statements
        readable = behind - at <= READ_BYTES_MAX
        if readable and behind > len(data):
            return _MORE
        text = data[at + HEADER_BYTES : behind - 1] if readable else b""
        if not readable or may_deallocate(text):
            target = deallocated(text)
            if statements.conflicts(EVERYTHING) or (target is not None and statements.conflicts(target)):
                return _WAIT
            if target is not None and target in statements.names:
                self._replace(at, behind)
                self._watch(target, clears=False)
                self._out.append(message(b"Q", b"DEALLOCATE " + GONE + b"\0"))
            else:
                self._watch(None, clears=False)
        certain = not self._open
        statements.at_risk = False
        statements.watched.pop(UNNAMED, None)
        if certain:
            statements.settle_at(self._held)
        self._ready(certain=certain, query=True)
        return _DONE

    def _ready(self, *, certain: bool, query: bool = False) -> None:
        statements = self._statements
        self._open = False
        if statements.queue:
            forget = partial(statements.keep_unnamed, None) if query else None
            statements.owe(Awaited(READY, certain=certain, make=forget))
            statements.current.clear()
        else:
            self._owed += 1
            if query:
                statements.keep_unnamed(None)

    def _incomplete(self, at: int, behind: int) -> _Next:
        """Its names have not come; or have no end, of which the server complains."""
        if behind <= len(self._data):
            return _DONE
        self._statements.lost |= len(self._data) - at > READ_BYTES_MAX
        return _MORE
