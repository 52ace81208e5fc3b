"""Where messages end in the stream from server to client, told at the price of one look a buffer.

A word of the proxy's own (57P01 when a fence falls) may only be put between two messages. Walking every message would
cost more than forwarding them, so the walk is done for small buffers only; a large one that is not the inside of one
long message loses the place, and the next ReadyForQuery finds it again. A lost place costs nothing but the word: the
session is then closed without one.

Every ReadyForQuery is counted, because a client may ask ahead. While it does (`exact`), all buffers are walked. If the
place was lost before that, they are looked for by their bytes and by what follows them, which rows can hardly imitate.
"""

from __future__ import annotations

import re
import struct

HEADER_BYTES = 5  # type, then length, which counts itself but not the type
READY = frozenset(b"Z\0\0\0\x05" + state for state in (b"I", b"T", b"E"))
READY_BYTES = 6
WALK_BYTES_MAX = 2048  # the answers that end short of ReadyForQuery (Flush, COPY, authentication) are smaller than this
LOST = -1
ERROR, READY_KIND, COPY_IN = b"EZG"
_LENGTH = struct.Struct("!I")
_READIES = re.compile(rb"Z\0\0\0\x05[ITE](?=$|[12CDEINSATVZnst]\0)", re.DOTALL)


class Boundary:
    """Follows one stream from its first byte.

    `between` never says yes inside a message, but for one case: data whose buffer ends by chance in the six bytes of a
    ReadyForQuery. The client of a session that is being cut then reads a garbled last message instead of none.
    """

    __slots__ = ("_head", "_left", "copy_asked", "kind", "readies", "state")

    def __init__(self) -> None:
        self.kind = 0  # type of the latest message seen; 0 when it is not known
        self.readies = 0  # ReadyForQuery messages in the latest buffer
        self.state = 0  # `I`, `T` or `E`: of the latest ReadyForQuery
        self.copy_asked = False  # the server has asked for COPY data since the latest ReadyForQuery
        self._left = 0  # bytes that are missing of it
        self._head = b""  # the beginning of a header that is not whole yet; when lost, the last few bytes

    @property
    def between(self) -> bool:
        """All that was forwarded so far is whole messages."""
        return self._left == 0 and not self._head

    @property
    def after_error(self) -> bool:
        """The last thing said was an error: a server that closes now has said why itself."""
        return self.between and self.kind == ERROR

    def feed(self, data: bytes, exact: bool = False) -> None:
        if data[-READY_BYTES:] in READY and not exact:
            self.readies, self.state, self.copy_asked = 1, data[-1], False
            self._left, self.kind, self._head = 0, READY_KIND, b""
            return
        self.readies = 0
        left, size = self._left, len(data)
        if left >= size:  # the inside of a long message
            self._left = left - size
        elif left == LOST:
            self._seek(data, exact=exact)
        elif size > WALK_BYTES_MAX and not exact:
            self._lose(data)
        else:
            self._walk(data, left)

    def _walk(self, data: bytes, at: int) -> None:
        if self._head:
            data, at = self._head + data, 0
        end = len(data)
        while at + HEADER_BYTES <= end:
            (length,) = _LENGTH.unpack_from(data, at + 1)
            if length < _LENGTH.size:
                self._lose(data)
                return
            self.kind = data[at]
            if self.kind == READY_KIND and length == READY_BYTES - 1:
                if at + READY_BYTES > end:  # its halves are kept together
                    self.kind = 0
                    break
                self.readies, self.state, self.copy_asked = self.readies + 1, data[at + HEADER_BYTES], False
            elif self.kind == COPY_IN:
                self.copy_asked = True
            at += length + 1
        self._left = max(at - end, 0)
        self._head = data[at:] if at < end else b""

    def _lose(self, data: bytes) -> None:
        self._left, self.kind, self._head = LOST, 0, data[1 - READY_BYTES :]

    def _seek(self, data: bytes, *, exact: bool) -> None:
        """A ReadyForQuery may come in two halves."""
        tail = self._head + data
        if exact and (found := _READIES.findall(tail)):
            self.readies, self.state = len(found), found[-1][5]
        if tail[-READY_BYTES:] in READY:
            self.readies, self.state, self.copy_asked = max(1, self.readies), tail[-1], False
            self._left, self.kind, self._head = 0, READY_KIND, b""
        else:
            self._head = tail[1 - READY_BYTES :]
