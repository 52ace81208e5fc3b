"""TLS between the proxy and an engine on another node: certificates of the nodes' CA at both ends.

The engine must show the certificate of the node that the route says it lives on, or of the address it is dialled at.
The proxy shows its own node's, which the engine's access rules demand of it. On the node itself nothing crosses a wire,
and the connection stays plain.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

from core.log import EventLog
from core.routes import Endpoint
from proxy.sockets import outgoing
from proxy.tls import TlsTransport

log = EventLog("proxy.inner_tls")
SSL_REQUEST = b"\0\0\0\x08\x04\xd2\x16\x2f"
Stamp = tuple[int, ...]


class InnerTls:
    """One a process. Files are read anew when they have changed; what cannot be read leaves the former in force."""

    def __init__(
        self, *, local_address: str = "", ca: Path | None = None, cert: Path | None = None, key: Path | None = None
    ) -> None:
        self._local_address = local_address
        self._files = (ca, cert, key) if ca is not None and cert is not None and key is not None else None
        self._tried: Stamp = ()
        self._said = ""
        self._context: ssl.SSLContext | None = None

    async def connect(self, upper: asyncio.Protocol, endpoint: Endpoint, local_address: str) -> None:
        """To the engine, by TLS where that must be; `upper` is given its transport. OSError when nobody answers; the
        caller bounds the time."""
        loop = asyncio.get_running_loop()
        sock = outgoing(local_address)
        try:
            context = self.context_for(endpoint)
            await loop.sock_connect(sock, (endpoint.host, endpoint.port))
            plain, _ = await loop.create_connection(lambda: upper, sock=sock)
        except BaseException:
            sock.close()
            raise
        if context is not None:
            upper.connection_made(await secured(plain, context, endpoint, upper))

    def context_for(self, endpoint: Endpoint) -> ssl.SSLContext | None:
        """None where the connection stays plain. ssl.SSLError when it must not, and no certificate can be read."""
        if not endpoint.tls or endpoint.host == self._local_address or self._files is None:
            return None
        context = self._current(*self._files)
        if context is None:
            raise ssl.SSLError(f"TLS to {endpoint.member} is not possible: {self._said}")
        return context

    def _current(self, ca: Path, cert: Path, key: Path) -> ssl.SSLContext | None:
        try:
            stamp = tuple(part for file in (ca, cert, key) for part in (file.stat().st_mtime_ns, file.stat().st_ino))
            if stamp != self._tried:
                self._tried = stamp
                context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(ca))
                context.minimum_version = ssl.TLSVersion.TLSv1_2
                context.load_cert_chain(cert, key)
                self._context, self._said = context, ""
        except OSError as error:  # ssl.SSLError is one
            if str(error) != self._said:
                self._said = str(error)
                log.error("certificate_unusable", path=str(cert), error=self._said)
        return self._context


def name_of(endpoint: Endpoint) -> str:
    """What the engine's certificate must be for."""
    return endpoint.node or endpoint.host


async def secured(
    plain: asyncio.Transport, context: ssl.SSLContext, endpoint: Endpoint, upper: asyncio.Protocol
) -> TlsTransport:
    """The TLS transport of `upper` over a connection on which nothing was said yet. OSError (ssl.SSLError is one) when
    the engine does not want TLS, or is not the one that was meant. The caller bounds the time, and closes `plain` when
    this fails."""
    answer = _Answer()
    plain.set_protocol(answer)
    plain.write(SSL_REQUEST)
    said = await answer.heard
    if said != b"S":
        # More than one byte would be plain bytes that pass for encrypted ones (CVE-2021-23222).
        raise ssl.SSLError(f"{endpoint.member} does not offer TLS as its route says")
    transport = TlsTransport(plain, context, upper, server_hostname=name_of(endpoint))
    await transport.handshake()
    return transport


class _Answer(asyncio.Protocol):
    """The one byte that answers the wish for TLS."""

    def __init__(self) -> None:
        self.heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        if not self.heard.done():
            self.heard.set_result(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.heard.done():
            self.heard.set_exception(exc or ConnectionResetError("the server closed the connection"))
            self.heard.exception()  # looked at, whether or not anybody waits for it
