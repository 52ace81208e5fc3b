"""What the proxy must see of a server's words: the first answer, the cancel key, whether it stands between two.

Only the start of a session is read message by message. Afterwards one look at the end of each buffer is enough: a
buffer that ends in ReadyForQuery leaves the client between messages, where an error of the proxy's own can be told.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

READY = frozenset(b"Z\0\0\0\x05" + state for state in (b"I", b"T", b"E"))
MAX_GREETING_BYTES = 64 << 10  # parameters, key and notices before the first ReadyForQuery; more is no server of ours
NOT_YET = frozenset({"57P01", "57P02", "57P03"})  # going down, crashed, not accepting connections yet


def ends_ready(data: bytes) -> bool:
    """Whether the buffer's last message is ReadyForQuery.

    Other data can end in the same six bytes; then a session that is being cut gets a last message it cannot read,
    before it is closed all the same.
    """
    return data[-6:] in READY


@dataclass(slots=True)
class Greeting:
    """Reads the server's messages up to the first ReadyForQuery."""

    done: bool = False
    refusal: str = ""  # SQLSTATE of an error that came before anything else
    pid: int = 0
    key: bytes = field(default=b"", repr=False)
    _buffer: bytearray = field(default_factory=bytearray)
    _seen: int = 0

    def feed(self, data: bytes | bytearray) -> None:
        """Take what came; does nothing once `done`."""
        if self.done:
            return
        self._buffer += data
        while len(self._buffer) >= 5:
            (length,) = struct.unpack_from("!I", self._buffer, 1)
            if length < 4 or length > MAX_GREETING_BYTES:
                self.done = True  # whatever it is, it is the client's to understand
                return
            if len(self._buffer) < length + 1:
                return
            self._message(self._buffer[0], bytes(self._buffer[5 : length + 1]))
            del self._buffer[: length + 1]
            if self.done:
                return

    def _message(self, kind: int, body: bytes) -> None:
        if kind == ord("K") and len(body) >= 8:
            (self.pid,) = struct.unpack_from("!I", body)
            self.key = body[4:]
        elif kind == ord("E") and self._seen == 0:
            self.refusal = sqlstate_of(body)
            self.done = True
        elif kind == ord("Z"):
            self.done = True
        self._seen += 1


def sqlstate_of(body: bytes) -> str:
    """Of an ErrorResponse's body; empty when it has none."""
    for part in body.split(b"\0"):
        if part[:1] == b"C":
            return part[1:].decode(errors="replace")
    return ""
