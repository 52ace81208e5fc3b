"""A client's first words: TLS wish, cancel, or who it wants to be.

The first packets have no type byte: length (of everything, itself included), then a code. A startup packet of the
server's own limit of 10,000 bytes is all that is ever kept; what claims to be longer is refused before it is read.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import Enum

MAX_STARTUP_BYTES = 10_000  # the server's own limit (MAX_STARTUP_PACKET_LENGTH)
MAX_CANCEL_KEY_BYTES = 256  # protocol 3.2
SSL_REQUEST = 80877103
GSSENC_REQUEST = 80877104
CANCEL_REQUEST = 80877102
PROTOCOL_MAJOR = 3


class Wish(Enum):
    """A request before the startup message; each is answered with one byte."""

    TLS = "tls"
    GSSENC = "gssenc"


@dataclass(frozen=True, slots=True)
class Cancel:
    """End the query of this backend. `packet` is the whole request, to be sent on as it is."""

    pid: int
    key: bytes = field(repr=False)
    packet: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Startup:
    """Who wants to connect. `packet` is the whole message, to be sent on as it is."""

    parameters: dict[str, str]
    packet: bytes = field(repr=False)

    @property
    def user(self) -> str:
        return self.parameters.get("user", "")

    @property
    def database(self) -> str:
        return self.parameters.get("database") or self.user


@dataclass(frozen=True, slots=True)
class Malformed:
    """Not this protocol, or not well-formed; the sentence is for the client."""

    why: str


First = Wish | Cancel | Startup | Malformed


def read_first(buffer: bytes | bytearray) -> tuple[First, int] | None:
    """The first packet of `buffer` and how many bytes it took; None while it is not whole yet."""
    if len(buffer) < 4:
        return None
    (length,) = struct.unpack_from("!I", buffer)
    if not 8 <= length <= MAX_STARTUP_BYTES:
        return Malformed(f"invalid length of startup packet: {length}"), len(buffer)
    if len(buffer) < length:
        return None
    packet = bytes(buffer[:length])
    (code,) = struct.unpack_from("!I", packet, 4)
    return _interpret(code, packet), length


def _interpret(code: int, packet: bytes) -> First:
    if code in (SSL_REQUEST, GSSENC_REQUEST):
        if len(packet) != 8:
            return Malformed("a TLS or GSS request has 8 bytes")
        return Wish.TLS if code == SSL_REQUEST else Wish.GSSENC
    if code == CANCEL_REQUEST:
        return _cancel(packet)
    if code >> 16 != PROTOCOL_MAJOR:
        return Malformed(f"unsupported frontend protocol {code >> 16}.{code & 0xFFFF}: this proxy speaks 3.x")
    return _startup(packet)


def _cancel(packet: bytes) -> First:
    key = packet[12:]
    if not 4 <= len(key) <= MAX_CANCEL_KEY_BYTES:
        return Malformed("a cancel request has a process id and a key of 4 to 256 bytes")
    (pid,) = struct.unpack_from("!I", packet, 8)
    return Cancel(pid, key, packet)


def _startup(packet: bytes) -> First:
    """Pairs of zero-terminated strings, ended by one more zero."""
    body = packet[8:]
    if not body.endswith(b"\0"):
        return Malformed("startup parameters are not terminated")
    words = body[:-1].split(b"\0")
    if words and words[-1] == b"":
        words.pop()
    if len(words) % 2:
        return Malformed("a startup parameter has no value")
    try:
        texts = [word.decode() for word in words]
    except UnicodeDecodeError:
        return Malformed("startup parameters are not UTF-8")
    parameters = dict(zip(texts[::2], texts[1::2], strict=True))
    if not parameters.get("user"):
        return Malformed("no PostgreSQL user name specified in startup packet")
    return Startup(parameters, packet)
