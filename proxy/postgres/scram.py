"""SCRAM-SHA-256 (RFC 5802, RFC 7677): its arithmetic, and its messages taken apart and put together.

The proxy stands at both ends. Towards a client it is the server, and needs the verifier only. A client that proves its
password thereby shows its *ClientKey*, and whoever holds ClientKey and verifier can log in where the same verifier is
kept: that is how the proxy becomes the client of the engine, without the password ever being here.

One number in these messages is secret to begin with (the ClientKey inside the proof); it is kept in a `Login`, which
does not show it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from dataclasses import dataclass, field

from core.scram import ITERATIONS, SALT_BYTES, Verifier

__all__ = ["END_POINT", "PLAIN", "PLUS", "ClientFinal", "ClientFirst", "Login", "ScramError", "Verifier"]

PLAIN, PLUS = "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"
END_POINT = "tls-server-end-point"  # the one kind of channel binding that PostgreSQL knows (RFC 5929)
KEY_BYTES = 32
UNBOUND = "biws"  # base64 of "n,,": no channel binding
MAX_ITERATIONS = 10_000_000  # only for what a server asks to be repeated; nothing is iterated here
_NONCE = re.compile(r"[!-~]+")


class ScramError(Exception):
    """The other side broke the rules of the exchange, or its keys do not fit; the sentence may be shown to it."""

    def __init__(self, message: str, sqlstate: str = "08P01") -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


@dataclass(frozen=True, slots=True)
class Login:
    """What it takes to log in as a user where this verifier is kept. No password can be made of it."""

    user: str
    client_key: bytes = field(repr=False)
    verifier: Verifier = field(repr=False)


# --- keys -----------------------------------------------------------------------------------------------------------


def proof_of(client_key: bytes, verifier: Verifier, auth_message: bytes) -> bytes:
    """ClientProof: the ClientKey, hidden by what only holders of the StoredKey can work out."""
    return _xor(client_key, hmac.digest(verifier.stored_key, auth_message, "sha256"))


def client_key_in(proof: bytes, verifier: Verifier, auth_message: bytes) -> bytes | None:
    """The ClientKey in a proof; None when it is of another password."""
    key = proof_of(proof, verifier, auth_message)
    return key if hmac.compare_digest(hashlib.sha256(key).digest(), verifier.stored_key) else None


def server_signature(verifier: Verifier, auth_message: bytes) -> bytes:
    return hmac.digest(verifier.server_key, auth_message, "sha256")


def mock_verifier(user: str, secret: bytes) -> Verifier:
    """Of a user that has none, always the same one: a stranger cannot tell it from that of a user with a password."""
    name = user.encode(errors="surrogateescape")

    def derived(what: bytes) -> bytes:
        return hmac.digest(secret, what + b"\0" + name, "sha256")

    return Verifier(
        iterations=ITERATIONS,
        salt=derived(b"salt")[:SALT_BYTES],
        stored_key=derived(b"stored"),
        server_key=derived(b"server"),
    )


def _xor(one: bytes, other: bytes) -> bytes:
    """Of equal length."""
    return (int.from_bytes(one) ^ int.from_bytes(other)).to_bytes(len(one))


# --- messages of a client -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClientFirst:
    """`gs2`: what it says of channel binding, which its last message repeats. `bare`: what is signed of it."""

    gs2: str
    bare: str
    nonce: str

    @property
    def binding_flag(self) -> str:
        """`n`: cannot; `y`: could, but was not offered it; `p`: does."""
        return self.gs2[0]


def read_client_first(raw: bytes) -> ClientFirst:
    text = _text(raw)
    flag, _, after_flag = text.partition(",")
    authorization, _, bare = after_flag.partition(",")
    if flag not in ("n", "y") and not flag.startswith("p="):
        raise ScramError("malformed SCRAM message: unexpected channel-binding flag")
    if flag.startswith("p=") and flag != f"p={END_POINT}":
        raise ScramError("unsupported SCRAM channel-binding type")
    if authorization:
        raise ScramError("client uses authorization identity, but it is not supported", "0A000")
    if bare.startswith("m="):
        raise ScramError("client requires an unsupported SCRAM extension", "0A000")
    # The user's name in it is not looked at, as the server does not: the startup packet has said it.
    parts = bare.split(",")
    if len(parts) < 2 or not parts[0].startswith("n="):
        raise ScramError("malformed SCRAM message: attribute n expected")
    return ClientFirst(f"{flag},,", bare, _nonce(parts[1]))


@dataclass(frozen=True, slots=True)
class ClientFinal:
    """`binding`: base64 of the gs2 header and the channel's data. `unproved`: the part of it that is signed."""

    binding: str
    nonce: str
    unproved: str
    proof: bytes = field(repr=False)


def read_client_final(raw: bytes) -> ClientFinal:
    unproved, mark, proof = _text(raw).rpartition(",p=")
    parts = unproved.split(",")
    if not mark or len(parts) < 2 or not parts[0].startswith("c="):
        raise ScramError("malformed SCRAM message: attributes c, r and p expected")
    return ClientFinal(parts[0][2:], _nonce(parts[1]), unproved, _decoded(proof, KEY_BYTES))


def bound_to(gs2: str, channel: bytes) -> str:
    """What a client's last message must say of its first one and of the channel."""
    return base64.b64encode(gs2.encode() + channel).decode()


# --- messages of a server -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ServerFirst:
    """What a server asks to be proved."""

    nonce: str
    salt: bytes
    iterations: int


def write_server_first(nonce: str, verifier: Verifier) -> str:
    return f"r={nonce},s={base64.b64encode(verifier.salt).decode()},i={verifier.iterations}"


def read_server_first(raw: bytes) -> ServerFirst:
    parts = _text(raw).split(",")
    if len(parts) < 3 or not parts[1].startswith("s=") or not parts[2].startswith("i="):
        raise ScramError("malformed SCRAM message: attributes r, s and i expected")
    iterations = parts[2][2:]
    if not (iterations.isascii() and iterations.isdecimal() and 0 < int(iterations[:9]) <= MAX_ITERATIONS):
        raise ScramError("malformed SCRAM message: iteration count expected")
    return ServerFirst(_nonce(parts[0]), _decoded(parts[1][2:]), int(iterations[:9]))


def read_server_final(raw: bytes) -> bytes:
    """The server's signature."""
    text = _text(raw)
    if text.startswith("e="):
        raise ScramError(f"the server refused the SCRAM exchange: {text[2:80]}", "28P01")
    if not text.startswith("v="):
        raise ScramError("malformed SCRAM message: attribute v expected")
    return _decoded(text[2:].partition(",")[0], KEY_BYTES)


# --- parts ----------------------------------------------------------------------------------------------------------


def _text(raw: bytes) -> str:
    """A client may name itself in any encoding; all that counts is ASCII."""
    if b"\0" in raw:
        raise ScramError("malformed SCRAM message: it has a zero byte")
    return raw.decode("ascii", errors="surrogateescape")


def _nonce(part: str) -> str:
    """Printable ASCII without a comma, RFC 5802."""
    nonce = part[2:]
    if not part.startswith("r=") or _NONCE.fullmatch(nonce) is None:
        raise ScramError("malformed SCRAM message: nonce expected")
    return nonce


def _decoded(text: str, size: int | None = None) -> bytes:
    try:
        raw = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ScramError("malformed SCRAM message: base64 expected") from error
    if size is not None and len(raw) != size:
        raise ScramError(f"malformed SCRAM message: {size} bytes expected")
    return raw


def encoded(text: str) -> bytes:
    """A message, or the part of one that is signed, as it came."""
    return text.encode("ascii", errors="surrogateescape")
