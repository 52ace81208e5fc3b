"""A client, as its server's side sees it (`server`)."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from proxy.account import Account
from proxy.postgres.carried import Carried
from proxy.postgres.prepared import Statements
from proxy.postgres.requests import Requests
from proxy.table import Fence


class Sharer(Protocol):
    """Its part in transaction mode."""

    def let_on(self, link: Any) -> None: ...
    def carries(self, carried: Carried) -> None: ...


class Client(Protocol):
    """The other side, as the server's side sees it."""

    transport: asyncio.Transport | None
    fence: Fence | None
    requests: Requests
    bytes_out: int
    account: Account
    statements: Statements | None  # of one that shares servers with others

    @property
    def sharing(self) -> Sharer | None:
        """Not None: it gives its server back between transactions."""

    def reported(self, parameters: dict[str, str]) -> None: ...

    def cut(self) -> None: ...
    def rested(self) -> None: ...
    def server_lost(self, link: Any) -> None: ...
    def read_client(self, go: bool) -> None: ...
