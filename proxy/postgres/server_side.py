"""What the proxy must understand of a server's refusals."""

from __future__ import annotations

NOT_YET = frozenset({"57P01", "57P02", "57P03"})  # going down, crashed, not accepting connections yet
TOO_MANY_CLIENTS = "53300"


def sqlstate_of(body: bytes) -> str:
    """Of an ErrorResponse's body; empty when it has none."""
    for part in body.split(b"\0"):
        if part[:1] == b"C":
            return part[1:].decode(errors="replace")
    return ""
