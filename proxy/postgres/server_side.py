"""What the proxy must understand of a server's words: the first answer, the cancel key, whether a transaction is open.

Only the start of a session is read message by message. Where messages end afterwards is for `frames` to tell.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from proxy.postgres.frames import READY, READY_BYTES

TERMINATE = b"X\0\0\0\x04"  # the client's last message
MAX_GREETING_BYTES = 64 << 10  # of one message before the first ReadyForQuery; more is no server of ours
NOT_YET = frozenset({"57P01", "57P02", "57P03"})  # going down, crashed, not accepting connections yet
PRELUDE = frozenset(b"vN")  # what may come before the answer that counts: NegotiateProtocolVersion, notices
LAST_OF_GREETING = frozenset(b"ZE")  # ready for queries, or an error, after which the server closes


def ready_state(data: bytes) -> int:
    """`I`, `T` or `E` (idle, in a transaction, in a failed one) when the buffer ends in ReadyForQuery, else 0.

    Other data can end in the same six bytes; then a session that is being cut gets a last message it cannot read,
    before it is closed all the same.
    """
    tail = data[-READY_BYTES:]
    return tail[5] if tail in READY else 0


@dataclass(slots=True)
class Greeting:
    """Reads the server's messages up to the first ReadyForQuery.

    `answered` with the first message that says whether the server takes the client: what it offers instead of a newer
    protocol (`v`), or a notice, does not.
    """

    answered: bool = False
    done: bool = False
    refusal: str = ""  # SQLSTATE of an error that came before anything else
    pid: int = 0
    key: bytes = field(default=b"", repr=False)
    _buffer: bytearray = field(default_factory=bytearray)
    _last: int = 0

    def feed(self, data: bytes | bytearray) -> None:
        """Take what came; does nothing once `done`."""
        if self.done:
            return
        self._buffer += data
        at = 0
        while len(self._buffer) - at >= 5:
            (length,) = struct.unpack_from("!I", self._buffer, at + 1)
            if length < 4 or length > MAX_GREETING_BYTES:
                self.answered = self.done = True  # whatever it is, it is the client's to understand
                break
            end = at + 1 + length
            if len(self._buffer) < end:
                break
            self._message(self._buffer[at], bytes(self._buffer[at + 5 : end]))
            at = end
            if self._last in LAST_OF_GREETING:
                break
        del self._buffer[:at]

    def _message(self, kind: int, body: bytes) -> None:
        self._last = kind
        if kind in PRELUDE:
            return
        if kind == ord("K") and len(body) >= 8:
            (self.pid,) = struct.unpack_from("!I", body)
            self.key = body[4:]
        elif kind == ord("E") and not self.answered:
            self.refusal = sqlstate_of(body)
        self.done = kind in LAST_OF_GREETING
        self.answered = True


def sqlstate_of(body: bytes) -> str:
    """Of an ErrorResponse's body; empty when it has none."""
    for part in body.split(b"\0"):
        if part[:1] == b"C":
            return part[1:].decode(errors="replace")
    return ""
