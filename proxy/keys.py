"""Cancel keys of the proxy's own: a client keeps one for life, whichever server its session is on.

The process id is that of the session's first server process, so that clients find themselves in `pg_stat_activity` and
in the notifications they send; only a session that was moved has another one there. The key is random: those of two
proxies of one instance practically never meet.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Protocol

from core.routes import Endpoint

KEY_BYTES = 4  # all that protocol 3.0 has room for
LONG_KEY_BYTES = 32  # for protocol 3.2; as long as the server's own
Key = tuple[int, bytes]


class Holder(Protocol):
    """Who was given a key."""

    def present_server(self) -> tuple[Endpoint, int, bytes] | None:
        """The server it is on, and the process id and key by which that server knows it."""

    def cancelling(self) -> Callable[[bool], None]:
        """A cancel request goes there now; to be told at its end whether it was taken."""


class Keys:
    """All keys that were given out and not taken back."""

    def __init__(self) -> None:
        self._holders: dict[Key, Holder] = {}

    def issue(self, holder: Holder, pid: int, *, long: bool) -> Key:
        while True:
            key = (pid, secrets.token_bytes(LONG_KEY_BYTES if long else KEY_BYTES))
            if key not in self._holders:
                self._holders[key] = holder
                return key

    def withdraw(self, key: Key | None) -> None:
        if key is not None:
            self._holders.pop(key, None)

    def holder(self, key: Key) -> Holder | None:
        return self._holders.get(key)
