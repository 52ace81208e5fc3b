"""Where messages end in the stream from server to client, told from their headers.

Everything that concerns a session depends on it: whether an answer is over, so that the session is at rest, and whether
a word of the proxy's own (57P01 when a fence falls) can be put in now. So every header is looked at. The last bytes of
a buffer tell nothing: what a client has stored may end like a ReadyForQuery.

Every ReadyForQuery is counted, because a client may ask ahead.
"""

from __future__ import annotations

import struct

HEADER_BYTES = 5  # type, then length, which counts itself but not the type
READY = frozenset(b"Z\0\0\0\x05" + state for state in (b"I", b"T", b"E"))
READY_BYTES = 6
ERROR, READY_KIND, COPY_IN = b"EZG"
PARAMETER = ord("S")
REPORTED_BYTES_MAX = 4096  # of a parameter that is read; a longer one is not remembered
_NOTABLE = frozenset((READY_KIND, COPY_IN, ERROR, PARAMETER))
_SQLSTATE, _SQLSTATE_CHARS = b"\0C", 5
_LENGTH_BYTES = 4
_header = struct.Struct("!BI").unpack_from


class Boundary:
    """Follows one stream from its first byte. One that turns out to be no such stream is `lost` for ever."""

    __slots__ = ("_head", "_left", "copy_asked", "kind", "lost", "readies", "reported", "sqlstates", "state")

    def __init__(self) -> None:
        self.kind = 0  # type of the latest message seen
        self.readies = 0  # ReadyForQuery messages in the latest buffer
        self.state = 0  # `I`, `T` or `E`: of the latest ReadyForQuery
        self.copy_asked = False  # the server has asked for COPY data since the latest ReadyForQuery
        self.lost = False
        self.sqlstates: list[str] = []  # of errors; whoever reads them clears them
        self.reported: list[bytes] = []  # bodies of ParameterStatus; likewise
        self._left = 0  # bytes that are missing of it
        self._head = b""  # the beginning of a header that is not whole yet, or of a ReadyForQuery

    @property
    def between(self) -> bool:
        """All that was forwarded so far is whole messages."""
        return self._left == 0 and not self._head and not self.lost

    @property
    def after_error(self) -> bool:
        """The last thing said was an error: a server that closes now has said why itself."""
        return self.between and self.kind == ERROR

    @property
    def left(self) -> int:
        """Bytes of the latest message that are missing."""
        return self._left

    def joined(self, data: bytes) -> tuple[bytes, int]:
        """With the beginning of a message that was fed before, and how long that is."""
        return self._head + data, len(self._head)

    def feed(self, data: bytes) -> None:
        self.readies = 0
        at = self._left
        if at >= len(data):  # the inside of a long message
            self._left = at - len(data)
            return
        if self._head:
            data = self._head + data
            self._head = b""
        if self.lost:
            return
        end, kind = len(data), self.kind
        while at + HEADER_BYTES <= end:
            kind, length = _header(data, at)
            if length < _LENGTH_BYTES:
                self.lost, self._left = True, 0
                return
            if kind in _NOTABLE and not self._note(kind, length, data, at):
                break
            at += length + 1
        self.kind = kind
        if at > end:
            self._left = at - end
        else:
            self._left, self._head = 0, data[at:]

    def _note(self, kind: int, length: int, data: bytes, at: int) -> bool:
        """Whether it is there as far as it matters."""
        if kind == COPY_IN:
            self.copy_asked = True
        elif kind == ERROR:
            self.sqlstates.append(_sqlstate(data, at, length))
        elif kind == PARAMETER:
            if length <= REPORTED_BYTES_MAX:
                if at + 1 + length > len(data):
                    return False
                self.reported.append(data[at + HEADER_BYTES : at + 1 + length])
        elif length == READY_BYTES - 1:
            if at + READY_BYTES > len(data):  # its halves are kept together
                return False
            self.readies, self.state, self.copy_asked = self.readies + 1, data[at + HEADER_BYTES], False
        return True


def _sqlstate(data: bytes, at: int, length: int) -> str:
    """Of an ErrorResponse; empty when that part of it has not come yet. The severity stands before it."""
    found = data.find(_SQLSTATE, at + HEADER_BYTES, at + 1 + length)
    code = data[found + len(_SQLSTATE) : found + len(_SQLSTATE) + _SQLSTATE_CHARS] if found >= 0 else b""
    return code.decode(errors="replace") if len(code) == _SQLSTATE_CHARS else ""
