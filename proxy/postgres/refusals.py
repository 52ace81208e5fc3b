"""Error messages of the proxy's own, in the server's form."""

from __future__ import annotations

import struct


def error(sqlstate: str, message: str, hint: str = "", *, severity: str = "FATAL") -> bytes:
    """An ErrorResponse; clients show message and hint, drivers look at the SQLSTATE."""
    fields = [("S", severity), ("V", severity), ("C", sqlstate), ("M", message)]
    if hint:
        fields.append(("H", hint))
    body = b"".join(code.encode() + text.encode() + b"\0" for code, text in fields) + b"\0"
    return b"E" + struct.pack("!I", len(body) + 4) + body


FAILOVER = error(
    "57P01", "terminating connection: the primary has changed", "Connect again and repeat the transaction."
)
SERVER_LOST = error(
    "57P01", "terminating connection: the server has ended", "Connect again and repeat the transaction."
)
SHUTDOWN = error("57P01", "terminating connection: the proxy is stopping", "Connect again.")
STARTUP_TIMEOUT = error("08006", "the client did not complete its startup in time")
TOO_MANY = error("53300", "sorry, too many clients at this proxy already", "Connect to another node's proxy.")
TLS_REQUIRED = error("28000", "this instance accepts TLS connections only", "Use sslmode=require or stronger.")
NO_ALPN = error("08P01", "direct TLS must name the protocol `postgresql` by ALPN", "Use sslnegotiation=postgres.")
STUFFED = error("08P01", "received unencrypted data after a TLS request")
TOO_MANY_WAIT = error("53300", "too many clients wait for a primary of this instance already", "Try again later.")
STOPPING = error("57P03", "the proxy is stopping", "Connect to another node's proxy.")
# A TLS record, for who has not spoken PostgreSQL at all: fatal alert "handshake_failure".
TLS_ALERT = b"\x15\x03\x03\x00\x02\x02\x28"


def malformed(why: str) -> bytes:
    return error("08P01", why)
