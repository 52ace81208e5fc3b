"""A commit whose wait for standbys was cut short is not passed on as success.

PostgreSQL, when such a wait is cancelled, says a warning and then acknowledges the commit all the same. In strict
synchronous modes that acknowledgement would be a promise that a failover breaks, so the client gets an error instead:
40003, completion of the statement is unknown.

By the extended protocol the acknowledgement (CommandComplete) comes before the commit and its warning, so it is held
until the server goes on: to other results, which shows that it was not the last word, or to ReadyForQuery. It is not
held while the server owes no ReadyForQuery: the client may wait for it before it sends the Sync that commits.

A session that sets client_min_messages above `warning` would hide the warning from the proxy as well, so it is ended
where the route is strict (`statements`, `session`).
"""

from __future__ import annotations

import struct

from proxy.postgres import refusals
from proxy.postgres.frames import READY, READY_BYTES
from proxy.postgres.messages import HEADER_BYTES

# "canceling wait for synchronous replication due to user request", and "canceling the wait for synchronous replication
# and terminating connection": both with the same detail. The name of the routine is the same in every language.
WARNINGS = (
    b"\0RSyncRepWaitForLSN\0",
    b"wait for synchronous replication",
    b"might not have been replicated to the standby",
)
HELD_BYTES_MAX = 64 << 10
NOT_REPLICATED = refusals.error(
    "40003",
    "the transaction has committed at the primary, but its wait for standbys was cut short",
    "Look whether it is there before repeating it: a failover may still lose it.",
    severity="ERROR",
)
_ROW, _NOTICE, _COMPLETE, _READY = b"DNCZ"
_ASIDE = frozenset(b"NSA")  # may come at any time, and say nothing about what was acknowledged
_HELD_IN_PART = frozenset(b"NCZSA")
_LENGTH = struct.Struct("!I")


class Doubt:
    """Stands in the stream from server to client."""

    __slots__ = ("_dropping", "_held", "_left", "doubtful")

    def __init__(self) -> None:
        self.doubtful = False  # since the warning; until the next ReadyForQuery
        self._held = b""
        self._left = 0  # of a long message that passes in parts, or is dropped so
        self._dropping = False

    @property
    def holds(self) -> bool:
        return bool(self._held) or self.doubtful

    def feed(self, data: bytes, *, awaited: bool) -> bytes:
        """What of it is for the client now. `awaited`: the server owes a ReadyForQuery."""
        if self._held:
            data, self._held = self._held + data, b""
        elif self._left >= len(data):
            self._left -= len(data)
            return b"" if self._dropping else data
        elif data[-READY_BYTES:] in READY and not self.doubtful and not _warns(data) and _is_whole(data, self._left):
            self._left = 0
            return data
        return self._walk(data, awaited=awaited)

    def _walk(self, data: bytes, *, awaited: bool) -> bytes:
        at, end = self._left, len(data)
        out: list[bytes] = []
        begin = at if self._dropping else 0  # of what is not in `out` yet
        complete = -1  # where acknowledgements begin that nothing else has followed
        while at + HEADER_BYTES <= end:
            kind = data[at]
            behind = at + 1 + _LENGTH.unpack_from(data, at + 1)[0]
            if behind > end:
                break
            if kind == _ROW and not self.doubtful:
                complete = -1
            elif kind == _NOTICE and _warns(data[at:behind]):
                out += [data[begin : complete if complete >= 0 else at], data[at:behind]]
                out += [] if self.doubtful else [NOT_REPLICATED]
                self.doubtful, complete, begin = True, -1, behind
            elif self.doubtful:
                if kind == _READY:
                    self.doubtful = False
                    out.append(data[at:behind])
                elif kind in _ASIDE:
                    out.append(data[at:behind])
                begin = behind
            elif kind == _COMPLETE:
                complete = at if complete < 0 else complete
            elif kind not in _ASIDE:
                complete = -1
            at = behind
        return b"".join([*out, self._keep_back(data, begin, at, complete, awaited=awaited)])

    def _keep_back(self, data: bytes, begin: int, at: int, complete: int, *, awaited: bool) -> bytes:
        """The rest of it: what passes, with `at` the end of whole messages. Sets aside what does not."""
        end = len(data)
        self._left, self._dropping = 0, False
        hold = complete if complete >= 0 and awaited else at
        partial = end - at
        if partial >= HEADER_BYTES and data[at] not in _HELD_IN_PART:
            self._left = at + 1 + _LENGTH.unpack_from(data, at + 1)[0] - end
            self._dropping = self.doubtful
            return data[begin:at] if self.doubtful else data[begin:]
        if end - hold > HELD_BYTES_MAX:
            hold = at
        self._held = data[hold:]
        return data[begin:hold]


def _warns(data: bytes) -> bool:
    return data.find(WARNINGS[0]) >= 0 or data.find(WARNINGS[1]) >= 0 or data.find(WARNINGS[2]) >= 0


def _is_whole(data: bytes, at: int) -> bool:
    """From the beginning of a message on. Rows may end in the bytes of a ReadyForQuery."""
    end = len(data)
    while at + HEADER_BYTES <= end:
        at += 1 + _LENGTH.unpack_from(data, at + 1)[0]
    return at == end
