"""A client proves its password to the proxy: SCRAM-SHA-256, bound to the channel where there is TLS. Without I/O.

Strict as the server is, for the same reasons:
- a client that could bind its channel and was not offered it (`y`) is refused where the proxy did offer it: somebody
  between them has taken the offer out;
- a user without a verifier goes through the whole exchange with one that fits no password, so that neither the words
  nor the work of the exchange tell a stranger who exists.

After `Accepted` the client waits for AuthenticationOk, which is sent when the session has its server: until then an
error is still a refused login to every driver.
"""

from __future__ import annotations

import base64
import struct
from dataclasses import dataclass, field

from proxy.postgres import refusals, scram
from proxy.postgres.scram import Login, ScramError, Verifier

AUTHENTICATION_OK = b"R\0\0\0\x08\0\0\0\0"
MAX_MESSAGE_BYTES = 1024  # of one SASL message; the server's own limit
SASL, SASL_CONTINUE, SASL_FINAL = 10, 11, 12
PASSWORD, TERMINATE = ord("p"), ord("X")


@dataclass(frozen=True, slots=True)
class Accepted:
    """The client is who it says; with this the proxy logs in for it."""

    login: Login


@dataclass(frozen=True, slots=True)
class Rejected:
    """`reply_error`: for the client, empty when it left by itself. `wrong_password`: counts against its address, and
    makes the verifier worth asking for anew."""

    reply_error: bytes
    why: str
    wrong_password: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """`reply`: to be sent to the client in any case, before an outcome's own error. `rest`: what the client sent
    behind an exchange that has come to its end."""

    reply: bytes = field(default=b"", repr=False)
    outcome: Accepted | Rejected | None = None
    rest: bytes = field(default=b"", repr=False)


class ClientAuthentication:
    """One exchange. `nonce`: printable, fresh and not to be guessed; `channel_binding`: of the client's TLS
    (tls-server-end-point), None without TLS; `mock_secret`: the same for all proxies of the instance."""

    def __init__(
        self,
        user: str,
        verifier: Verifier | None,
        *,
        nonce: str,
        channel_binding: bytes | None,
        mock_secret: bytes,
    ) -> None:
        self._user = user
        self._known = verifier is not None
        self._verifier = verifier or scram.mock_verifier(user, mock_secret)
        self._own_nonce = nonce
        self._channel = channel_binding
        self._buffer = bytearray()
        self._first: scram.ClientFirst | None = None
        self._asked = ""  # the server's first message; empty until the client's first one has come
        self._ended = False

    def begin(self) -> bytes:
        """AuthenticationSASL, the mechanism that is wanted most first."""
        mechanisms = (scram.PLUS, scram.PLAIN) if self._channel is not None else (scram.PLAIN,)
        return _request(SASL, b"".join(name.encode() + b"\0" for name in mechanisms) + b"\0")

    def feed(self, data: bytes) -> Progress:
        """Take what came from the client."""
        self._buffer += data
        reply = bytearray()
        outcome: Accepted | Rejected | None = None
        while outcome is None and not self._ended:
            try:
                body = self._next_message()
                if body is None:
                    break
                said, outcome = self._take(body)
                reply += said
            except ScramError as error:
                outcome = Rejected(refusals.error(error.sqlstate, str(error)), str(error))
            except _Left:
                outcome = Rejected(b"", "the client left while it was asked for its password")
        if outcome is None:
            return Progress(bytes(reply))
        self._ended = True
        rest, self._buffer = bytes(self._buffer), bytearray()
        return Progress(bytes(reply), outcome, rest)

    def _next_message(self) -> bytes | None:
        """The body of a whole password message; None while there is none."""
        if len(self._buffer) < 5:
            return None
        kind, length = struct.unpack_from("!BI", self._buffer)
        if kind == TERMINATE:
            raise _Left
        if kind != PASSWORD:
            raise ScramError(f"expected SASL response, got message type {kind}")
        if not 4 <= length <= 4 + MAX_MESSAGE_BYTES:
            raise ScramError("invalid length of SASL response")
        if len(self._buffer) < 1 + length:
            return None
        body = bytes(self._buffer[5 : 1 + length])
        del self._buffer[: 1 + length]
        return body

    def _take(self, body: bytes) -> tuple[bytes, Accepted | Rejected | None]:
        if self._first is None:
            return self._take_first(body), None
        return self._take_final(self._first, body)

    def _take_first(self, body: bytes) -> bytes:
        mechanism, raw = _initial_response(body)
        first = scram.read_client_first(raw)
        self._check_binding(mechanism, first.binding_flag)
        self._first = first
        self._asked = scram.write_server_first(first.nonce + self._own_nonce, self._verifier)
        return _request(SASL_CONTINUE, self._asked.encode())

    def _check_binding(self, mechanism: str, flag: str) -> None:
        if mechanism == scram.PLUS and self._channel is not None:
            if flag != "p":
                raise ScramError("SCRAM-SHA-256-PLUS was chosen, but the SCRAM message has no channel binding data")
        elif mechanism != scram.PLAIN:
            raise ScramError("client selected an invalid SASL authentication mechanism")
        elif flag == "p":
            raise ScramError("SCRAM-SHA-256 without channel binding was chosen, but the SCRAM message has its data")
        elif flag == "y" and self._channel is not None:
            raise ScramError(
                "SCRAM channel binding negotiation error: the client supports channel binding and believes that"
                " it was not offered, which it was",
                "28000",
            )

    def _take_final(self, first: scram.ClientFirst, body: bytes) -> tuple[bytes, Accepted | Rejected]:
        final = scram.read_client_final(body)
        if final.nonce != first.nonce + self._own_nonce:
            raise ScramError("invalid SCRAM response: nonce does not match")
        channel = self._channel if first.binding_flag == "p" and self._channel is not None else b""
        if final.binding != scram.bound_to(first.gs2, channel):
            raise ScramError("SCRAM channel binding check failed", "28000")
        signed = scram.encoded(f"{first.bare},{self._asked},{final.unproved}")
        key = scram.client_key_in(final.proof, self._verifier, signed)
        if key is None or not self._known:
            why = f'password authentication failed for user "{_shown(self._user)}"'
            return b"", Rejected(refusals.error("28P01", why), why, wrong_password=True)
        signature = base64.b64encode(scram.server_signature(self._verifier, signed))
        return _request(SASL_FINAL, b"v=" + signature), Accepted(Login(self._user, key, self._verifier))


class _Left(Exception):
    """Its goodbye instead of a password: what psql does before it asks its user."""


def _initial_response(body: bytes) -> tuple[str, bytes]:
    """Mechanism and first message of a SASLInitialResponse."""
    name, zero, rest = body.partition(b"\0")
    if not zero or len(rest) < 4:
        raise ScramError("malformed SASL initial response")
    (length,) = struct.unpack_from("!i", rest)
    if length != len(rest) - 4:
        raise ScramError("malformed SASL initial response: its length does not fit")
    return name.decode("ascii", errors="replace"), rest[4:]


def _request(code: int, body: bytes) -> bytes:
    return b"R" + struct.pack("!II", 8 + len(body), code) + body


def _shown(user: str) -> str:
    """As it came, as far as UTF-8 goes: for an error message."""
    return user.encode(errors="surrogateescape").decode(errors="replace")
