"""The TLS context of the certificate on disk: made anew when a file of it changes, kept when the new one is broken."""

from __future__ import annotations

import hashlib
import ssl
from pathlib import Path

from core.log import EventLog
from proxy.tls import ALPN, ShownContext

log = EventLog("proxy.certificate")
Stamp = tuple[int, ...]


class Certificate:
    """Looked at with every TLS client. Certificate and key are two files: between the two of a renewal they do not fit,
    which is tried again with the next change of either."""

    def __init__(self, cert: Path | None, key: Path | None) -> None:
        self._files = (cert, key) if cert is not None and key is not None else None
        self._tried: Stamp = ()
        self._said = ""  # of the last failure: told once, not with every client
        self._context: ssl.SSLContext | None = None

    def reload(self) -> None:
        """Read the files even if they look unchanged."""
        self._tried = ()
        self.context()

    def context(self) -> ssl.SSLContext | None:
        """None when there is none, or none that could ever be read."""
        if self._files is None:
            return None
        try:
            stamp = tuple(part for file in self._files for part in (file.stat().st_mtime_ns, file.stat().st_ino))
            if stamp != self._tried:
                self._tried = stamp
                self._context = _load(*self._files)
                self._said = ""
                log.info("certificate_loaded", path=str(self._files[0]))
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            if str(error) != self._said:
                self._said = str(error)
                log.error("certificate_unusable", path=str(self._files[0]), error=self._said)
        return self._context


def _load(cert: Path, key: Path) -> ssl.SSLContext:
    context = ShownContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols([ALPN])
    context.load_cert_chain(cert, key)
    context.end_point = end_point(cert.read_text())
    return context


# --- channel binding ------------------------------------------------------------------------------------------------

_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
_SEQUENCE, _OBJECT_IDENTIFIER = 0x30, 0x06
# Contents of the signature algorithms' object identifiers that hash with something longer than SHA-256.
_LONGER = {
    bytes.fromhex("2a8648ce3d040303"): "sha384",  # ecdsa-with-SHA384
    bytes.fromhex("2a8648ce3d040304"): "sha512",  # ecdsa-with-SHA512
    bytes.fromhex("2a864886f70d01010c"): "sha384",  # sha384WithRSAEncryption
    bytes.fromhex("2a864886f70d01010d"): "sha512",  # sha512WithRSAEncryption
}
_NO_HASH = frozenset({bytes.fromhex("2b6570"), bytes.fromhex("2b6571"), bytes.fromhex("2a864886f70d01010a")})


def end_point(pem: str) -> bytes:
    """tls-server-end-point of the first certificate in the PEM: its hash by the hash of its signature, SHA-256 at
    least. Empty where that is not defined (Ed25519, Ed448, RSA-PSS): clients are then not offered it. ValueError when
    there is no certificate."""
    begins = pem.index(_BEGIN)
    der = ssl.PEM_cert_to_DER_cert(pem[begins : pem.index(_END, begins) + len(_END)])
    algorithm = _signature_algorithm(der)
    if algorithm in _NO_HASH:
        return b""
    return hashlib.new(_LONGER.get(algorithm, "sha256"), der).digest()


def _signature_algorithm(der: bytes) -> bytes:
    """Certificate ::= SEQUENCE { tbsCertificate SEQUENCE, signatureAlgorithm SEQUENCE { OBJECT IDENTIFIER, … }, … }"""
    _, inside, _ = _element(der, 0, _SEQUENCE)
    _, _, behind_body = _element(der, inside, _SEQUENCE)
    _, algorithm, _ = _element(der, behind_body, _SEQUENCE)
    length, content, _ = _element(der, algorithm, _OBJECT_IDENTIFIER)
    return der[content : content + length]


def _element(der: bytes, at: int, tag: int) -> tuple[int, int, int]:
    """Length, where the contents begin, and where they end. ValueError when it is something else."""
    if len(der) < at + 2 or der[at] != tag:
        raise ValueError("not a certificate in DER")
    length, begins = der[at + 1], at + 2
    if length & 0x80:
        size = length & 0x7F
        length, begins = int.from_bytes(der[begins : begins + size], "big"), begins + size
    return length, begins, begins + length
