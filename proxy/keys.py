"""Cancel keys of the proxy's own: a client keeps one for life, whichever server its session is on.

Process id and key are random: those of two proxies of one instance practically never meet.
"""

from __future__ import annotations

import secrets
from typing import Protocol

from core.routes import Endpoint

KEY_BYTES = 4  # protocol 3.0
PID_MAX = 0x7FFFFFFF  # drivers keep it in a signed number
Key = tuple[int, bytes]


class Holder(Protocol):
    """Who was given a key."""

    def present_server(self) -> tuple[Endpoint, int, bytes] | None:
        """The server it is on, and the process id and key by which that server knows it."""


class Keys:
    """All keys that were given out and not taken back."""

    def __init__(self) -> None:
        self._holders: dict[Key, Holder] = {}

    def issue(self, holder: Holder) -> Key:
        while True:
            key = (1 + secrets.randbelow(PID_MAX), secrets.token_bytes(KEY_BYTES))
            if key not in self._holders:
                self._holders[key] = holder
                return key

    def withdraw(self, key: Key) -> None:
        self._holders.pop(key, None)

    def holder(self, key: Key) -> Holder | None:
        return self._holders.get(key)
