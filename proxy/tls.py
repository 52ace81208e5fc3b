"""TLS towards a client, or towards an engine, as a transport over the plain one.

Made of OpenSSL on memory buffers instead of the loop's own TLS transport, for three reasons: a ClientHello that has
been read already (direct TLS) can be fed to it; it holds nothing back, so a server that does not read stops its client
as it does without TLS; and an idle client costs no second set of buffers.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Any

ALPN = "postgresql"  # what libpq 17 and later offers inside TLS; direct TLS must
CHUNK_BYTES = 64 << 10


class ShownContext(ssl.SSLContext):
    """Of a certificate that is shown to clients. `end_point`: its hash, to which a client may bind its proof."""

    end_point: bytes = b""


class TlsTransport(asyncio.Transport, asyncio.Protocol):
    """The server's end, or with `server_hostname`, which the certificate must be for, the client's. To the plain
    transport below it is the protocol, to `upper` the transport."""

    def __init__(
        self,
        plain: asyncio.Transport,
        context: ssl.SSLContext,
        upper: asyncio.Protocol,
        *,
        server_hostname: str | None = None,
    ) -> None:
        super().__init__()
        self._plain = plain
        self._upper = upper
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._context = context  # that of the handshake, whatever comes to be in force later
        self._begins = server_hostname is not None
        self._object = context.wrap_bio(
            self._in, self._out, server_side=not self._begins, server_hostname=server_hostname
        )
        self._established: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._said_goodbye = False
        plain.set_protocol(self)

    async def handshake(self, hello: bytes = b"") -> None:
        """`hello`: what the client has sent already. ssl.SSLError when it is no TLS, or not ours."""
        if hello or self._begins:
            self.data_received(hello)
        await self._established

    @property
    def speaks_postgresql(self) -> bool:
        """The client named the protocol by ALPN."""
        return self._object.selected_alpn_protocol() == ALPN

    @property
    def channel_binding(self) -> bytes:
        """tls-server-end-point (RFC 5929) of the certificate that was shown; empty when it has none."""
        return self._context.end_point if isinstance(self._context, ShownContext) else b""

    # --- the protocol below -------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._said_goodbye:
            return
        self._in.write(data)
        try:
            plain = self._decrypt() if self._established.done() or self._shake() else b""
        except ssl.SSLError as error:
            self._send_out()  # the alert
            if self._established.done():
                self._plain.abort()
            else:
                self._established.set_exception(error)
            return
        self._send_out()
        if plain:
            self._upper.data_received(plain)

    def _shake(self) -> bool:
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        self._established.set_result(None)
        return True

    def _decrypt(self) -> bytes:
        chunks = []
        with contextlib.suppress(ssl.SSLWantReadError):
            # Raising is dear: OpenSSL is not asked when nothing is left to be decrypted.
            while self._in.pending or self._object.pending():
                chunk = self._object.read(CHUNK_BYTES)
                if not chunk:  # close_notify: the client will send no more
                    asyncio.get_running_loop().call_soon(self._client_ended)
                    break
                chunks.append(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _client_ended(self) -> None:
        if not self.is_closing() and not self.eof_received():
            self.close()

    def _send_out(self) -> None:
        if self._out.pending:
            self._plain.write(self._out.read())

    def eof_received(self) -> bool | None:
        return self._upper.eof_received()

    def pause_writing(self) -> None:
        self._upper.pause_writing()

    def resume_writing(self) -> None:
        self._upper.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._established.done():
            self._established.set_exception(exc or ConnectionResetError("the client went during the handshake"))
        if not self._established.cancelled():
            self._established.exception()  # looked at, whether or not anybody waits for it
        self._upper.connection_lost(exc)

    # --- the transport above ------------------------------------------------------------------------------------------

    def write(self, data: Any) -> None:
        if not self._said_goodbye:
            self._object.write(data)
            self._send_out()

    def write_eof(self) -> None:
        self._say_goodbye()
        self._plain.write_eof()

    def close(self) -> None:
        if not self._plain.is_closing():
            self._say_goodbye()
        self._plain.close()

    def abort(self) -> None:
        self._plain.abort()

    def is_closing(self) -> bool:
        return self._plain.is_closing()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._upper = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._upper

    def pause_reading(self) -> None:
        self._plain.pause_reading()

    def resume_reading(self) -> None:
        self._plain.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._plain.set_write_buffer_limits(high=high, low=low)

    def get_write_buffer_size(self) -> int:
        return self._plain.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._plain.get_extra_info(name, default)

    def _say_goodbye(self) -> None:
        """close_notify; after it nothing can be written."""
        if not self._said_goodbye and self._established.done():
            self._said_goodbye = True
            with contextlib.suppress(ssl.SSLError):
                self._object.unwrap()
            self._send_out()
