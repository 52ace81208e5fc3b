"""The proxy as the client of an engine: logs in for a user by the ClientKey that the user has shown. Without I/O.

The engine must ask for SCRAM with the salt of the very verifier that the user was checked against, and must sign with
its ServerKey: one that does not know the verifier is not taken for the engine. All that comes up to the first
ReadyForQuery is collected: the parameters that the engine reports, its cancel key, its notices.

The proxy speaks protocol 3.0 to the engine, without options. To a client it speaks 3.2 if asked to, whatever its
engine knows: 3.2 differs in the length of cancel keys, and these are the proxy's own. What a client asks for beyond
that is answered by the proxy itself (`negotiation`).
"""

from __future__ import annotations

import base64
import hmac
import struct
from dataclasses import dataclass, field

from proxy.postgres import refusals, scram
from proxy.postgres.authentication import PASSWORD, SASL, SASL_CONTINUE, SASL_FINAL
from proxy.postgres.scram import Login, ScramError

PROTOCOL_3_0, PROTOCOL_3_2 = 3 << 16, 3 << 16 | 2
OPTION_PREFIX = "_pq_."  # of a startup parameter that is an option of the protocol itself
MAX_GREETING_BYTES = 256 << 10  # of everything up to the first ReadyForQuery; no server of ours says more
AUTHENTICATED = 0
_OTHER_METHODS = {2: "Kerberos", 3: "a password in clear", 5: "MD5", 7: "GSSAPI", 9: "SSPI"}


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """`rest`: what came behind the first ReadyForQuery. `notices`: whole messages for the client, such as a warning
    about the database's collation."""

    parameters: dict[str, str]
    pid: int
    key: bytes = field(repr=False)
    rest: bytes = field(default=b"", repr=False)
    notices: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class LoginRefused:
    """`packet`: the ErrorResponse to hand to the client. `stale`: the engine keeps another verifier than we know."""

    sqlstate: str
    message: str
    packet: bytes = field(repr=False)
    stale: bool = False


@dataclass(frozen=True, slots=True)
class LoginProgress:
    """`send`: to the engine, in any case."""

    send: bytes = field(default=b"", repr=False)
    outcome: LoggedIn | LoginRefused | None = None


class ServerLogin:
    """One login. `parameters`: of the client's startup packet; `nonce`: printable, fresh and not to be guessed."""

    def __init__(self, login: Login, parameters: tuple[tuple[str, str], ...], nonce: str) -> None:
        self._login = login
        self._parameters = parameters
        self._bare = f"n=,r={nonce}"  # the server takes the user's name from the startup packet
        self._nonce = nonce
        self._signature = b""  # that the server owes us; empty until we have proved ourselves
        self._signed = False  # it has given it
        self._authenticated = False
        self._buffer = bytearray()
        self._taken = 0  # bytes of whole messages so far
        self._told: dict[str, str] = {}
        self._pid = 0
        self._key = b""
        self._notices = bytearray()

    def begin(self) -> bytes:
        """The startup packet."""
        pairs = [("user", self._login.user), *(pair for pair in self._parameters if is_ordinary(*pair))]
        words = b"".join(_zero_ended(name) + _zero_ended(value) for name, value in pairs)
        return struct.pack("!II", 9 + len(words), PROTOCOL_3_0) + words + b"\0"

    def feed(self, data: bytes) -> LoginProgress:
        """Take what came from the engine. Does not look behind the first ReadyForQuery."""
        self._buffer += data
        send = bytearray()
        outcome: LoggedIn | LoginRefused | None = None
        try:
            while outcome is None and (message := self._next_message()) is not None:
                kind, body = message
                said, outcome = self._take(kind, body)
                send += said
        except ScramError as error:
            why = f"cannot log in to the engine: {error}"
            outcome = LoginRefused(error.sqlstate, why, refusals.error(error.sqlstate, why))
        return LoginProgress(bytes(send), outcome)

    def _next_message(self) -> tuple[int, bytes] | None:
        if len(self._buffer) < 5:
            return None
        kind, length = struct.unpack_from("!BI", self._buffer)
        if length < 4 or self._taken + length > MAX_GREETING_BYTES:
            raise ScramError("its answer is not PostgreSQL's protocol")
        if len(self._buffer) < 1 + length:
            return None
        body = bytes(self._buffer[5 : 1 + length])
        del self._buffer[: 1 + length]
        self._taken += 1 + length
        return kind, body

    def _take(self, kind: int, body: bytes) -> tuple[bytes, LoggedIn | LoginRefused | None]:
        match chr(kind):
            case "R":
                return self._take_request(body)
            case "E":
                return b"", _refused(body)
            case "N":
                self._notices += b"N" + struct.pack("!I", 4 + len(body)) + body
            case "v":
                pass  # nothing was asked for that it could decline
            case "S" | "K" | "Z" if not self._authenticated:
                raise ScramError("it skipped authentication")
            case "S":
                name, _, value = body.partition(b"\0")
                self._told[_word(name)] = _word(value.removesuffix(b"\0"))
            case "K" if len(body) >= 8:
                (self._pid,), self._key = struct.unpack_from("!I", body), body[4:]
            case "Z":
                rest, self._buffer = bytes(self._buffer), bytearray()
                return b"", LoggedIn(self._told, self._pid, self._key, rest, bytes(self._notices))
            case other:
                raise ScramError(f"unexpected message {other!r} before it was ready")
        return b"", None

    def _take_request(self, body: bytes) -> tuple[bytes, LoginRefused | None]:
        if len(body) < 4:
            raise ScramError("malformed authentication request")
        (code,) = struct.unpack_from("!I", body)
        match code:
            case _ if code == AUTHENTICATED:
                # Straight away is fine: its access rules trust us. Half-way through SCRAM it is not.
                if self._signature and not self._signed:
                    raise ScramError("it has not proved that it knows the user's verifier", "28P01")
                self._authenticated = True
                return b"", None
            case _ if code == SASL:
                return self._introduce(body[4:]), None
            case _ if code == SASL_CONTINUE:
                return self._prove(body[4:])
            case _ if code == SASL_FINAL:
                if not self._signature or not hmac.compare_digest(scram.read_server_final(body[4:]), self._signature):
                    raise ScramError("it does not know the user's verifier", "28P01")
                self._signed = True
                return b"", None
        name = _OTHER_METHODS.get(code, f"method {code}")
        raise ScramError(f"it asks for {name}, which the proxy has not got: only SCRAM-SHA-256 serves", "28000")

    def _introduce(self, offered: bytes) -> bytes:
        if scram.PLAIN.encode() not in offered.split(b"\0"):
            raise ScramError("it does not offer SCRAM-SHA-256", "28000")
        first = f"n,,{self._bare}".encode()
        return _password(scram.PLAIN.encode() + b"\0" + struct.pack("!I", len(first)) + first)

    def _prove(self, raw: bytes) -> tuple[bytes, LoginRefused | None]:
        asked, login = scram.read_server_first(raw), self._login
        if not asked.nonce.startswith(self._nonce) or len(asked.nonce) == len(self._nonce) or self._signature:
            raise ScramError("its SCRAM nonce does not continue ours")
        if (asked.salt, asked.iterations) != (login.verifier.salt, login.verifier.iterations):
            why = f'password authentication failed for user "{login.user}"'  # changed since, or its time is over
            return b"", LoginRefused("28P01", why, refusals.error("28P01", why), stale=True)
        unproved = f"c={scram.UNBOUND},r={asked.nonce}"
        signed = f"{self._bare},".encode() + raw + f",{unproved}".encode()
        self._signature = scram.server_signature(login.verifier, signed)
        proof = scram.proof_of(login.client_key, login.verifier, signed)
        return _password(f"{unproved},p={base64.b64encode(proof).decode()}".encode()), None


# --- what a client may ask for ----------------------------------------------------------------------------------------


def is_ordinary(name: str, _value: str = "") -> bool:
    """A startup parameter that goes to the engine beside the user's name: no option of the protocol."""
    return name != "user" and not name.startswith(OPTION_PREFIX)


def spoken(packet: bytes) -> int:
    """The protocol that is spoken with the client of this startup packet."""
    (asked,) = struct.unpack_from("!I", packet, 4)
    return PROTOCOL_3_2 if asked >= PROTOCOL_3_2 else PROTOCOL_3_0


def negotiation(packet: bytes, parameters: dict[str, str]) -> bytes:
    """NegotiateProtocolVersion for a client whose startup packet asks for more than the proxy knows, else nothing. It
    comes before anything else that the client is told."""
    (asked,) = struct.unpack_from("!I", packet, 4)
    options = [name for name in parameters if name.startswith(OPTION_PREFIX)]
    if asked == spoken(packet) and not options:
        return b""
    body = struct.pack("!II", spoken(packet), len(options)) + b"".join(map(_zero_ended, options))
    return b"v" + struct.pack("!I", 4 + len(body)) + body


# --- parts ----------------------------------------------------------------------------------------------------------


def _refused(body: bytes) -> LoginRefused:
    fields = {part[:1]: _word(part[1:]) for part in body.split(b"\0") if part}
    sqlstate, packet = fields.get(b"C", ""), b"E" + struct.pack("!I", 4 + len(body)) + body
    return LoginRefused(sqlstate, fields.get(b"M", ""), packet, stale=sqlstate == "28P01")


def _password(body: bytes) -> bytes:
    return bytes((PASSWORD,)) + struct.pack("!I", 4 + len(body)) + body


def _zero_ended(text: str) -> bytes:
    """Bytes that were no UTF-8 come out as they came in."""
    return text.encode(errors="surrogateescape") + b"\0"


def _word(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape")
