"""Messages of the proxy's own, and the taking apart of a stream where every message counts.

Only what is said before and between a client's requests is read this way; what passes between client and server is
followed by `frames` and `requests`, at a lower price.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

HEADER_BYTES = 5  # type, then length, which counts itself but not the type
SYNC = b"S\0\0\0\x04"
TERMINATE = b"X\0\0\0\x04"
READY_IDLE = b"Z\0\0\0\x05I"
MAX_MESSAGE_BYTES = 4 << 20  # of one message that is read whole
TEXT_RESULT = b"\0\0"
_LENGTH = struct.Struct("!I")
_COUNT = struct.Struct("!H")


class Garbled(Exception):
    """The stream is not this protocol, or has a message that is longer than anything expected."""


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + _LENGTH.pack(4 + len(body)) + body


def parse(name: bytes, statement: bytes) -> bytes:
    """Prepare a statement, its parameters' types left to the server."""
    return message(b"P", name + b"\0" + statement + b"\0\0\0")


def run(name: bytes, values: Sequence[bytes] = ()) -> bytes:
    """Bind a prepared statement to values in text form, and execute it."""
    bound = b"".join(_LENGTH.pack(len(value)) + value for value in values)
    bind = b"\0" + name + b"\0" + _COUNT.pack(0) + _COUNT.pack(len(values)) + bound + TEXT_RESULT
    return message(b"B", bind) + message(b"E", b"\0\0\0\0\0")


def close(name: bytes) -> bytes:
    """Forget a prepared statement."""
    return message(b"C", b"S" + name + b"\0")


def parameter_status(name: str, value: str) -> bytes:
    words = f"{name}\0{value}\0".encode(errors="surrogateescape")
    return message(b"S", words)


def parameter_of(body: bytes) -> tuple[str, str]:
    """Name and value, of a ParameterStatus's body."""
    name, _, value = body.decode(errors="surrogateescape").partition("\0")
    return name, value.removesuffix("\0")


def backend_key(pid: int, key: bytes) -> bytes:
    return message(b"K", _LENGTH.pack(pid) + key)


def before_goodbye(data: bytes) -> bytes | None:
    """From the beginning of a message on, and it ends in the bytes of Terminate: what stands before it. None when they
    are part of something else."""
    at, last = 0, len(data) - len(TERMINATE)
    while at < last:
        at += 1 + int(_LENGTH.unpack_from(data, at + 1)[0])
    return data[:last] if at == last else None


def columns(body: bytes) -> list[bytes | None]:
    """Of a DataRow's body. Garbled when they do not fill it."""
    try:
        (count,) = _COUNT.unpack_from(body)
        at, found = 2, list[bytes | None]()
        for _ in range(count):
            (size,) = _LENGTH.unpack_from(body, at)
            at += 4
            if size == 0xFFFFFFFF:
                found.append(None)
                continue
            found.append(body[at : at + size])
            at += size
    except struct.error as error:
        raise Garbled("a row is shorter than it says") from error
    return found


class Stream:
    """Bytes in, whole messages out."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Type and body of each message that is whole now. Garbled when one can be none."""
        buffer = self._buffer
        buffer += data
        at = 0
        try:
            while at + HEADER_BYTES <= len(buffer):
                (length,) = _LENGTH.unpack_from(buffer, at + 1)
                if not _LENGTH.size <= length <= MAX_MESSAGE_BYTES:
                    raise Garbled(f"a message of {length} bytes")
                end = at + 1 + length
                if end > len(buffer):
                    break
                kind, body = buffer[at], bytes(buffer[at + HEADER_BYTES : end])
                at = end
                yield kind, body
        finally:
            del buffer[:at]

    def push(self, data: bytes) -> None:
        """The beginning of a message."""
        self._buffer += data

    @property
    def rest(self) -> bytes:
        """What is not a whole message yet."""
        return bytes(self._buffer)


def error_fields(body: bytes) -> dict[str, str]:
    """Of an ErrorResponse or a notice: `C` SQLSTATE, `M` message and so on."""
    parts = (part for part in body.split(b"\0") if part)
    return {chr(part[0]): part[1:].decode(errors="replace") for part in parts}
