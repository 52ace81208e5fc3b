"""The TLS context of the certificate on disk: made anew when a file of it changes, kept when the new one is broken."""

from __future__ import annotations

import ssl
from pathlib import Path

from core.log import EventLog
from proxy.tls import ALPN

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
        except OSError as error:  # ssl.SSLError is one
            if str(error) != self._said:
                self._said = str(error)
                log.error("certificate_unusable", path=str(self._files[0]), error=self._said)
        return self._context


def _load(cert: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols([ALPN])
    context.load_cert_chain(cert, key)
    return context
