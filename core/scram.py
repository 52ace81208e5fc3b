"""SCRAM-SHA-256 verifiers as PostgreSQL stores them: enough to check a password, not to log in with.

`SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>` (RFC 5802, RFC 7677). The hub sends only verifiers to nodes,
so a node that is stolen gives no user's password away. Standard library only.

Passwords are printable ASCII, which SASLprep leaves as it is; others are refused rather than prepared half-way.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field

ITERATIONS = 4096  # PostgreSQL's default; the passwords are random, so more would only slow every login down
SALT_BYTES = 16
PARSED_MAX = 4096
_VERIFIER = re.compile(r"SCRAM-SHA-256\$(\d{1,9}):([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+):([A-Za-z0-9+/=]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verifier:
    """A verifier taken apart. No repr of the keys: ServerKey lets its holder pose as the server."""

    iterations: int
    salt: bytes
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)

    @staticmethod
    def parse(text: str) -> Verifier:
        """ValueError, which does not repeat the text, when it is not a verifier."""
        return _parsed(text)

    def text(self) -> str:
        salt, stored, server = (base64.b64encode(raw).decode() for raw in (self.salt, self.stored_key, self.server_key))
        return f"SCRAM-SHA-256${self.iterations}:{salt}${stored}:{server}"


@functools.lru_cache(maxsize=PARSED_MAX)  # asked at each login, of the same few
def _parsed(text: str) -> Verifier:
    match = _VERIFIER.fullmatch(text)
    if match is None:
        raise ValueError("not a SCRAM-SHA-256 verifier")
    salt, stored, server = (base64.b64decode(match[part]) for part in (2, 3, 4))
    if len(stored) != 32 or len(server) != 32:
        raise ValueError("not a SCRAM-SHA-256 verifier: keys must have 32 bytes")
    return Verifier(iterations=int(match[1]), salt=salt, stored_key=stored, server_key=server)


def make_verifier(password: str, *, salt: bytes | None = None, iterations: int = ITERATIONS) -> str:
    """The verifier of a password as text, with a fresh salt unless one is given. ValueError for odd passwords."""
    if not password or not password.isascii() or not password.isprintable():
        raise ValueError("a password must be printable ASCII and not empty")
    salt = secrets.token_bytes(SALT_BYTES) if salt is None else salt
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    return Verifier(iterations=iterations, salt=salt, stored_key=stored, server_key=server).text()


def password_fits(password: str, verifier: str) -> bool:
    """Whether the verifier is of this password."""
    known = Verifier.parse(verifier)
    return hmac.compare_digest(make_verifier(password, salt=known.salt, iterations=known.iterations), known.text())
