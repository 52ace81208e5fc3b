"""What a client has asked and not been answered, told from its own messages: whether its session may be moved now.

Only headers are looked at, but for statements that leave something behind in the session: their texts go to
`statements`, and the Parse messages of prepared statements are kept, to be repeated on another server. What the server
does with them is not followed: what it keeps in the end, it is asked (`carried`). A name that is used again, with other
contents, counts as a change: the server may have refused it (42P05) and keep the former statement.

A session is at rest when every request has had its ReadyForQuery and nothing was sent since; then, and only then, it
may go to another server. Where that cannot be told any more (`unclear`), it is never said to be.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from proxy.postgres.messages import HEADER_BYTES
from proxy.postgres.statements import READ_BYTES_MAX, UNREAD, effect_of

KEPT_BYTES_MAX = 1 << 20  # of prepared statements, of one session
POOL_BYTES_MAX = 256 << 20  # of those of all sessions of a process
ENTRY_BYTES = 200  # that a kept statement costs beside its own
CLOSED_MAX = 256  # names remembered
NAMES_MAX = 64  # settings of its own, of one session
IDLE = ord("I")
_QUERY, _PARSE, _EXECUTE, _SYNC, _CLOSE, _CALL, _FLUSH, _TERMINATE = b"QPESCFHX"
_COPY = frozenset(b"dcf")
_COPY_DATA = ord("d")
_STEPS = frozenset(b"BD")  # of an extended query, and without contents that matter
_READ_WHOLE = frozenset(b"PCQ")  # their contents matter, unless they are too long to be read
_header = struct.Struct("!BI").unpack_from
# What drivers send behind the Bind of a prepared statement: Describe, Execute, Sync; and without Describe. Most buffers
# are just that, so that one look at the end shows all that the headers between would tell.
_EXECUTE_SYNC = b"E\0\0\0\x09\0\0\0\0\0S\0\0\0\x04"
_TAILS = frozenset((b"D\0\0\0\x06P\0" + _EXECUTE_SYNC, _EXECUTE_SYNC))


def runs_once(data: bytes) -> bool:
    """It is one Bind and one of these tails."""
    return data[:1] == b"B" and len(data) > HEADER_BYTES and data[_header(data, 0)[1] + 1 :] in _TAILS


@dataclass(slots=True)
class Pool:
    """What the sessions of a process keep together. Who finds it full keeps nothing more, and cannot be moved."""

    bytes_max: int = POOL_BYTES_MAX
    bytes: int = 0

    @property
    def full(self) -> bool:
        return self.bytes >= self.bytes_max


class Requests:
    """Follows one client from its first message behind the startup."""

    __slots__ = (
        "_closed",
        "_copying",
        "_keeps",
        "_kept_bytes",
        "_left",
        "_part",
        "_pool",
        "_syncs",
        "changed",
        "copy_asked",
        "hidden",
        "leaving",
        "loaded",
        "locks",
        "muted",
        "names",
        "open",
        "outstanding",
        "overflowed",
        "prepared",
        "state",
        "touched",
        "unclear",
        "unconfirmed",
        "unnamed",
        "unnamed_lost",
    )

    def __init__(self, pool: Pool | None = None, *, keeps: bool = True) -> None:
        self._keeps = keeps  # prepared statements; else somebody else does
        self.outstanding = 0  # ReadyForQuery messages that the server owes
        self.open = False  # something was sent that no Sync has ended yet
        self.state = IDLE  # of the transaction, by the last ReadyForQuery
        self.leaving = False  # it has said goodbye
        self.copy_asked = False  # the server has asked for COPY data since it was last ready
        self.unclear = False  # it cannot be told what the server owes
        self.touched = False  # anything was asked since the server was last asked what the session carries
        self.changed = False  # something that may have changed what the session carries, since then
        self.hidden = False  # a setting whose name is not known
        self.overflowed = False  # more statements than are kept
        self.loaded = False  # a library, which no server tells of
        self.locks = False  # it may have taken an advisory lock, ever
        self.muted = False  # the server may say no warnings, or may not have done so for a while
        self.names: set[bytes] = set()
        self.prepared: dict[bytes, bytes] = {}  # Parse messages by name
        self.unconfirmed: set[bytes] = set()  # names that the server was not asked about yet
        self.unnamed = b""  # the last Parse message without a name
        self.unnamed_lost = False  # there is one, and it is not kept
        self._pool = pool or Pool()
        self._closed: set[bytes] = set()  # names of statements that were closed, unless the server skipped that
        self._kept_bytes = 0
        self._left = 0  # bytes of a message that have not come yet, and do not matter
        self._part = b""  # a message that has not come whole, and matters
        self._syncs = 0  # since the last Execute
        self._copying = False

    @property
    def resting(self) -> bool:
        """Nothing is under way in either direction, and no transaction is open."""
        return (
            self.outstanding == 0
            and not self.open
            and self.state == IDLE
            and not (self._left or self._part or self.unclear)
        )

    @property
    def between(self) -> bool:
        """What the client has sent so far is whole messages."""
        return not self._left and not self._part

    @property
    def syncs_ignored(self) -> int:
        """That the server has ignored, if COPY data comes next."""
        return self._syncs if self.copy_asked and not self._copying else 0

    @property
    def obstacle(self) -> str | None:
        """Why it is not known, or cannot be, what the session carries."""
        if self.hidden:
            return "The session may have set settings whose names are not known to the proxy."
        if self.loaded:
            return "The session has loaded a library, which cannot be moved."
        if self.overflowed or self.unnamed_lost:
            return "The session has more prepared statements than the proxy keeps."
        if self.changed:
            return "What the session carries was not known yet."
        return None

    def feed(self, data: bytes) -> None:
        """What the client sent."""
        if runs_once(data) and not (self._left or self._part):
            self._run()
        else:
            self._walk(data)

    def _walk(self, data: bytes) -> None:
        at, end = self._left, len(data)
        if at >= end:
            self._left = at - end
            return
        if self._part:
            data, at = self._part + data, 0
            self._part, end = b"", len(data)
        self._left = 0
        self.touched = True
        while at + HEADER_BYTES <= end:
            kind, length = _header(data, at)
            behind = at + 1 + length
            if behind > end and kind in _READ_WHOLE and length <= READ_BYTES_MAX:
                break
            if kind in _STEPS:
                self.open = True
            elif kind == _EXECUTE:
                self.open = True
                self._syncs = 0
                self._copying = False
            elif kind == _SYNC:
                self.outstanding += 1
                self._syncs += 1
                self.open = False
            elif kind == _QUERY:
                self._query(data[at + HEADER_BYTES : behind - 1] if behind <= end else None)
            elif kind != _FLUSH and (kind != _COPY_DATA or not self._copying):
                self._other(kind, data, at, behind)
            at = behind
        if at > end:
            self._left = at - end
        elif at < end:
            self._part = data[at:]

    def _run(self) -> None:
        """Bind, Execute, Sync."""
        self.touched = True
        self.outstanding += 1
        self._syncs = 1
        self.open = self._copying = False

    def _query(self, statement: bytes | None) -> None:
        self.open = False  # it ends what no Sync has ended
        self.outstanding += 1
        self._syncs = 0
        self._copying = False
        if self.unnamed or self.unnamed_lost:
            self._keep_unnamed(b"")
        self._examine(statement)

    def _other(self, kind: int, data: bytes, at: int, behind: int) -> None:
        if kind in _COPY:
            self._copy(kind)
            return
        if kind == _CALL:
            self.open = self._copying = False
            self.outstanding += 1
            self.changed = self.hidden = True
            return
        if kind == _TERMINATE:
            self.leaving = True
            return
        self.open = True
        if kind == _PARSE:
            self._keep(data[at:behind] if behind <= len(data) else None)
        elif kind == _CLOSE:
            self._close(data[at + HEADER_BYTES : behind])

    def _copy(self, kind: int) -> None:
        """A server that takes COPY data ignores Sync, so those behind the Execute are never answered. One that owes
        nothing has broken the COPY off, and drops the data."""
        if self.outstanding == 0 and not self.open:
            return
        if not self._copying and self._syncs:
            if self.copy_asked:
                self.outstanding -= self._syncs
                self.open = True
                self._syncs = 0
            else:
                self.unclear = True  # it did not wait to be asked: how the server took its Sync is not known
        self._copying = kind == _COPY_DATA

    def _examine(self, statement: bytes | None) -> None:
        effect = effect_of(statement) if statement is not None else UNREAD
        self.muted |= effect.mutes
        self.locks |= effect.locks
        if effect.changes:
            self.changed = True
            self.loaded |= effect.loads
            if effect.forgets and self.state == IDLE:  # in a transaction it may be rolled back
                self.names.clear()
                self.hidden = False
            if not self.hidden:
                self.names |= effect.names
                self.hidden = effect.hidden
                if len(self.names) > NAMES_MAX:
                    self.hidden = True
                    self.names.clear()

    def _keep(self, message: bytes | None) -> None:
        if message is None:  # of a name that is not known: maybe that of one that is kept, maybe none
            self.changed = self.hidden = True
            if self._keeps:
                self.overflowed = True
                self._keep_unnamed(None)
            return
        zero = message.find(b"\0", HEADER_BYTES)
        statement_end = message.find(b"\0", zero + 1)
        self._examine(message[zero + 1 : statement_end])
        if not self._keeps:
            return
        name = message[HEADER_BYTES:zero]
        if not name:
            self._keep_unnamed(message)
            return
        former = self.prepared.get(name)
        if former == message:
            return
        if former is not None or name in self._closed:
            self.changed = True
        self._forget(name)
        self._store(name, message)
        if not self.overflowed:
            self.unconfirmed.add(name)

    def _store(self, name: bytes, message: bytes) -> None:
        size = len(message) + ENTRY_BYTES
        if self._kept_bytes + size > KEPT_BYTES_MAX or self._pool.full:
            self.overflowed = True
        else:
            self.prepared[name] = message
            self._kept_bytes += size
            self._pool.bytes += size

    def _keep_unnamed(self, message: bytes | None) -> None:
        self._pool.bytes -= len(self.unnamed)
        self.unnamed_lost = message is None or (bool(message) and self._pool.full)
        self.unnamed = message if message is not None and not self.unnamed_lost else b""
        self._pool.bytes += len(self.unnamed)

    def _close(self, body: bytes) -> None:
        if body[:1] == b"S":
            name = body[1:].partition(b"\0")[0]
            if not name:
                self._keep_unnamed(b"")
            elif name in self.prepared:
                self._forget(name)
                if len(self._closed) < CLOSED_MAX:
                    self._closed.add(name)
                else:
                    self.changed = True

    def _forget(self, name: bytes) -> None:
        self.unconfirmed.discard(name)
        message = self.prepared.pop(name, None)
        if message is not None:
            self._kept_bytes -= len(message) + ENTRY_BYTES
            self._pool.bytes -= len(message) + ENTRY_BYTES

    def release(self) -> None:
        """The session has ended: what it keeps is no more."""
        for name in tuple(self.prepared):
            self._forget(name)
        self._keep_unnamed(b"")

    # --- the server's side --------------------------------------------------------------------------------------------

    def ready(self, count: int, state: int) -> None:
        """So many ReadyForQuery messages have come, the last of them with this state."""
        self.outstanding = max(0, self.outstanding - count)
        self.state = state
        self.copy_asked = False
        if self.outstanding == 0:
            self._copying = False

    def stirred(self) -> None:
        """The server said something that only an answer can be, when no answer was owed."""
        self.outstanding = max(1, self.outstanding)

    def known(self) -> None:
        """The server has said what the session carries; statements are kept elsewhere."""
        self.touched = self.changed = False

    @property
    def doubtful(self) -> bool:
        """The server should be asked also for the texts of the statements that it keeps."""
        return bool(self.unconfirmed) or self.overflowed

    def confirm(self, statements: dict[bytes, bytes] | None) -> bool:
        """The server has said which statements it keeps by the protocol, by name: as a Parse message, or empty where it
        was not asked for the text; None: they are too many to be told. Whether we have them all now."""
        if statements is not None:
            for name in self.prepared.keys() - statements.keys():
                self._forget(name)
            self.overflowed = False
            for name, message in statements.items():
                if message:
                    self._forget(name)
                    self._store(name, message)
                elif name not in self.prepared or name in self.unconfirmed:
                    self.overflowed = True
            self.unconfirmed.clear()
            self._closed.clear()
        else:
            self.overflowed = True
        self.touched = self.changed = False
        return not self.overflowed
