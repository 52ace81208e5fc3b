"""Error messages of the proxy's own, in the server's form."""

from __future__ import annotations

import struct
from collections.abc import Callable


def error(sqlstate: str, message: str, hint: str = "", *, detail: str = "", severity: str = "FATAL") -> bytes:
    """An ErrorResponse; clients show message, detail and hint, drivers look at the SQLSTATE."""
    fields = [("S", severity), ("V", severity), ("C", sqlstate), ("M", message)]
    fields += [(code, text) for code, text in (("D", detail), ("H", hint)) if text]
    body = b"".join(code.encode() + text.encode() + b"\0" for code, text in fields) + b"\0"
    return b"E" + struct.pack("!I", len(body) + 4) + body


Farewell = Callable[[str], bytes]  # from the reason why a session was not taken along
AGAIN = "Connect again and repeat the transaction."


def failover(detail: str = "") -> bytes:
    return error("57P01", "terminating connection: the primary has changed", AGAIN, detail=detail)


def server_lost(detail: str = "") -> bytes:
    return error("57P01", "terminating connection: the server has ended", AGAIN, detail=detail)


MUTED = error(
    "0A000",
    "client_min_messages above warning is not supported here",
    "The instance promises that what it acknowledges is replicated, and a warning is how the server says it is not.",
)
LOCKS = error(
    "0A000",
    "advisory locks are not taken in a READ ONLY transaction here: it runs at a replica, where they lock nothing",
    "Begin the transaction without READ ONLY.",
)
SHUTDOWN = error("57P01", "terminating connection: the proxy is stopping", "Connect again.")
STARTUP_TIMEOUT = error("08006", "the client did not complete its startup in time")
TOO_MANY = error("53300", "sorry, too many clients at this proxy already", "Connect to another node's proxy.")
NO_ALPN = error("08P01", "direct TLS must name the protocol `postgresql` by ALPN", "Use sslnegotiation=postgres.")
STUFFED = error("08P01", "received unencrypted data after a TLS request")
TOO_MANY_WAIT = error("53300", "too many clients wait for a primary of this instance already", "Try again later.")
STOPPING = error("57P03", "the proxy is stopping", "Connect to another node's proxy.")
# A TLS record, for who has not spoken PostgreSQL at all: fatal alert "handshake_failure".
TLS_ALERT = b"\x15\x03\x03\x00\x02\x02\x28"


def malformed(why: str) -> bytes:
    return error("08P01", why)


def pinned_at_replica(why: str) -> bytes:
    hint = "Begin a transaction that leaves such a thing behind without READ ONLY."
    return error("0A000", f"a READ ONLY transaction has run at a replica, and now the session {why}", hint)


def pool_full(waited_s: float) -> bytes:
    hint = "Try again; let transactions end sooner, or let the pool have more connections (pooling.size)."
    return error("53300", f"no server connection became free within {waited_s:g} s", hint)
