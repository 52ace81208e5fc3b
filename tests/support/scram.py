"""The client's end of SCRAM-SHA-256 with a password: what drivers do, for tests of the other end."""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass

from core.scram import Verifier


def salted_password(password: str, salt: bytes, iterations: int) -> bytes:
    return hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)


def client_key(password: str, verifier: Verifier) -> bytes:
    return hmac.digest(salted_password(password, verifier.salt, verifier.iterations), b"Client Key", "sha256")


@dataclass(slots=True)
class ScramClient:
    """One exchange; `channel` is what it believes its channel to be."""

    password: str
    gs2: str
    channel: bytes
    nonce: str
    signature: bytes = b""

    def first(self) -> bytes:
        return f"{self.gs2}n=,r={self.nonce}".encode()

    def final(self, asked: bytes) -> bytes:
        parts = dict(part.split("=", 1) for part in asked.decode().split(","))
        salted = salted_password(self.password, base64.b64decode(parts["s"]), int(parts["i"]))
        key = hmac.digest(salted, b"Client Key", "sha256")
        unproved = f"c={base64.b64encode(self.gs2.encode() + self.channel).decode()},r={parts['r']}"
        signed = f"n=,r={self.nonce},{asked.decode()},{unproved}".encode()
        mask = hmac.digest(hashlib.sha256(key).digest(), signed, "sha256")
        proof = bytes(a ^ b for a, b in zip(key, mask, strict=True))
        self.signature = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), signed, "sha256")
        return f"{unproved},p={base64.b64encode(proof).decode()}".encode()

    def check(self, told: bytes) -> None:
        assert told == b"v=" + base64.b64encode(self.signature)


def scram_client(password: str, *, gs2: str = "n,,", channel: bytes = b"", nonce: str = "fyko+d2lbbFgONRv9qkxdawL"):
    return ScramClient(password, gs2, channel, nonce)
