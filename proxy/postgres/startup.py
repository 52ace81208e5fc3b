"""A client's first words: TLS wish, cancel, or who it wants to be.

The first packets have no type byte: length (of everything, itself included), then a code. A startup packet of the
server's own limit is all that is ever kept; what claims to be longer is refused before it is read. Parameters are read
as the server reads them, so that both understand the same; bytes that are no UTF-8 are the server's to judge, and come
out as they came in (errors="surrogateescape").
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import Enum

MAX_STARTUP_BYTES = 10_004  # the server's own limit (MAX_STARTUP_PACKET_LENGTH, which does not count the length itself)
MAX_NAME_BYTES = 63  # of a role (NAMEDATALEN)
MAX_CANCEL_KEY_BYTES = 256  # protocol 3.2
SSL_REQUEST = 80877103
GSSENC_REQUEST = 80877104
CANCEL_REQUEST = 80877102
PROTOCOL_MAJOR = 3
TLS_HANDSHAKE_RECORD = 0x16  # first byte of a ClientHello; of a length it would make 369 MB


@dataclass(frozen=True, slots=True)
class DirectTls:
    """A TLS handshake without a request before it (sslnegotiation=direct). `hello`: what has come of it."""

    hello: bytes = field(repr=False)


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
        """Cut to a name's length, as the server does."""
        name = self.parameters.get("user", "").encode(errors="surrogateescape")
        return name[:MAX_NAME_BYTES].decode(errors="surrogateescape")

    @property
    def database(self) -> str:
        return self.parameters.get("database") or self.user


@dataclass(frozen=True, slots=True)
class Malformed:
    """Not this protocol, or not well-formed; the sentence is for the client."""

    why: str


First = Wish | Cancel | Startup | DirectTls | Malformed


def read_first(buffer: bytes | bytearray) -> tuple[First, int] | None:
    """The first packet of `buffer` and how many bytes it took; None while it is not whole yet."""
    if buffer[:1] == bytes((TLS_HANDSHAKE_RECORD,)):
        return DirectTls(bytes(buffer)), len(buffer)
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
    """Pairs of zero-terminated strings, ended by an empty name."""
    parameters: dict[str, str] = {}
    at = 8
    while name := _word(packet, at):
        value = _word(packet, at + len(name) + 1)
        if value is None:
            return Malformed("a startup parameter has no value")
        parameters[name.decode(errors="surrogateescape")] = value.decode(errors="surrogateescape")
        at += len(name) + len(value) + 2
    if at != len(packet) - 1 or packet[at] != 0:
        return Malformed("invalid startup packet layout: expected terminator as last byte")
    if not parameters.get("user"):
        return Malformed("no PostgreSQL user name specified in startup packet")
    return Startup(parameters, packet)


def _word(packet: bytes, at: int) -> bytes | None:
    """The zero-terminated string that begins there; None when it is not terminated."""
    end = packet.find(b"\0", at)
    return None if end < 0 else packet[at:end]
