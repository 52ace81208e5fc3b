"""What a client has asked and not been answered, told from its own messages: whether its session may be moved now.

Only headers are looked at, but for statements that leave something behind in the session: their texts go to
`statements`, and the Parse messages of prepared statements are kept, to be repeated on another server. What the server
does with them is not followed: what it keeps in the end, it is asked (`carried`).

A session is at rest when every request has had its ReadyForQuery and nothing was sent since; then, and only then, it
may go to another server. Where that cannot be told any more (`unclear`), it is never said to be.
"""

from __future__ import annotations

import struct

from proxy.postgres.messages import HEADER_BYTES
from proxy.postgres.statements import READ_BYTES_MAX, UNREAD, effect_of

KEPT_BYTES_MAX = 1 << 20  # of prepared statements, of one session
NAMES_MAX = 64  # settings of its own, of one session
IDLE = ord("I")
_QUERY, _PARSE, _EXECUTE, _SYNC, _CLOSE, _CALL, _FLUSH, _TERMINATE = b"QPESCFHX"
_COPY = frozenset(b"dcf")
_COPY_DATA = ord("d")
_STEPS = frozenset(b"BD")  # of an extended query, and without contents that matter
_READ_WHOLE = frozenset(b"PCQ")  # their contents matter, unless they are too long to be read
_header = struct.Struct("!BI").unpack_from


class Requests:
    """Follows one client from its first message behind the startup."""

    __slots__ = (
        "_copying",
        "_kept_bytes",
        "_left",
        "_part",
        "_syncs",
        "changed",
        "copy_asked",
        "hidden",
        "leaving",
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
    )

    def __init__(self) -> None:
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
        self.names: set[bytes] = set()
        self.prepared: dict[bytes, bytes] = {}  # Parse messages by name
        self.unconfirmed: set[bytes] = set()  # names that the server was not asked about yet
        self.unnamed = b""  # the last Parse message without a name
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
            and not (self._left or self._part or self.unclear or self._copying)
        )

    def feed(self, data: bytes) -> None:
        """What the client sent."""
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
            elif kind == _SYNC:
                self.outstanding += 1
                self._syncs += 1
                self.open = False
            elif kind == _QUERY:
                self.open = False  # it ends what no Sync has ended
                self.outstanding += 1
                self._syncs = 0
                self.unnamed = b""
                self._examine(data[at + HEADER_BYTES : behind - 1] if behind <= end else None)
            elif kind != _FLUSH and (kind != _COPY_DATA or not self._copying):
                self._other(kind, data, at, behind)
            at = behind
        if at > end:
            self._left = at - end
        elif at < end:
            self._part = data[at:]

    def _other(self, kind: int, data: bytes, at: int, behind: int) -> None:
        if kind in _COPY:
            self._copy(kind)
            return
        if kind == _CALL:
            self.open = False
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
        """A server that takes COPY data ignores Sync, so those behind the Execute are never answered."""
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
        if effect.changes:
            self.changed = True
            if effect.forgets:
                self.names.clear()
                self.hidden = False
            self.names |= effect.names
            self.hidden |= effect.hidden or len(self.names) > NAMES_MAX

    def _keep(self, message: bytes | None) -> None:
        if message is None:
            self.overflowed = self.changed = self.hidden = True
            return
        zero = message.find(b"\0", HEADER_BYTES)
        statement_end = message.find(b"\0", zero + 1)
        self._examine(message[zero + 1 : statement_end])
        name = message[HEADER_BYTES:zero]
        if not name:
            self.unnamed = message
            return
        self._forget(name)
        self.unconfirmed.add(name)
        if self._kept_bytes + len(message) > KEPT_BYTES_MAX:
            self.overflowed = True
        else:
            self.prepared[name] = message
            self._kept_bytes += len(message)

    def _close(self, body: bytes) -> None:
        if body[:1] == b"S":
            name = body[1:].partition(b"\0")[0]
            if name:
                self._forget(name)
            else:
                self.unnamed = b""

    def _forget(self, name: bytes) -> None:
        self.unconfirmed.discard(name)
        message = self.prepared.pop(name, None)
        if message is not None:
            self._kept_bytes -= len(message)

    # --- the server's side --------------------------------------------------------------------------------------------

    def ready(self, count: int, state: int) -> None:
        """So many ReadyForQuery messages have come, the last of them with this state."""
        self.outstanding = max(0, self.outstanding - count)
        self.state = state
        self.copy_asked = False

    def stirred(self) -> None:
        """The server said something that only an answer can be, when no answer was owed."""
        self.outstanding = max(1, self.outstanding)

    def confirm(self, names: frozenset[bytes]) -> bool:
        """The server has said which statements it keeps by the protocol; whether we have them all."""
        for name in self.prepared.keys() - names:
            self._forget(name)
        self.unconfirmed.clear()
        self.touched = self.changed = False
        self.overflowed = bool(names - self.prepared.keys())
        return not self.overflowed
