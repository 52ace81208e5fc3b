"""The client of the bench: the same for every system, writing a growing number every 5 ms over one session.

It behaves as a careful application does: a request that has no answer within two seconds ends its session (a driver's
socket timeout), a connection attempt to one address may take two seconds (libpq's own minimum), and after an error it
connects anew with the same connection string. A COMMIT that came with the server's warning that the wait for a standby
was cancelled is not counted as acknowledged: that server said itself that the write may be lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from dataclasses import dataclass, field
from typing import Any

import psycopg

INTERVAL_S = 0.005
RETRY_AFTER_S = 0.02
ANSWER_WITHIN_S = 2.0
CONNECT_WITHIN_S = 2
PATIENCE_S = 20.0  # for reading back, which is not measured
WAIT_CANCELLED = "canceling"  # "canceling (the) wait for synchronous replication"


@dataclass(slots=True)
class Client:
    """`acknowledged`: id -> when; `errors`: when and what, `failed` of them while a write was on its way."""

    dsn: str
    table: str = "ha_peers"
    acknowledged: dict[int, float] = field(default_factory=dict)
    errors: list[tuple[float, str]] = field(default_factory=list)
    failed: list[float] = field(default_factory=list)
    doubtful: set[int] = field(default_factory=set)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _next: int = 1
    _warned: bool = False

    async def prepare(self) -> None:
        async with await self._connect(int(PATIENCE_S)) as connection:
            await connection.execute(f"CREATE TABLE IF NOT EXISTS {self.table} (id bigint PRIMARY KEY)")

    async def run(self) -> None:
        """Until `stopping`."""
        while not self.stopping.is_set():
            try:
                async with await self._connect(CONNECT_WITHIN_S) as connection:
                    connection.add_notice_handler(self._notice)
                    await self._write(connection)
            except (psycopg.Error, OSError) as error:
                self.errors.append((time.monotonic(), f"{type(error).__name__}: {str(error).strip()}"))
                await asyncio.sleep(RETRY_AFTER_S)

    async def present(self) -> set[int]:
        """The ids that are there, read where one writes."""
        async with await self._connect(int(PATIENCE_S)) as connection:
            deadline = asyncio.get_running_loop().call_later(PATIENCE_S, hang_up, connection)
            try:
                rows = await (await connection.execute(f"SELECT id FROM {self.table}")).fetchall()
            finally:
                deadline.cancel()
        return {row[0] for row in rows}

    def last_acknowledged(self) -> float:
        """When; 0 when nothing was yet. Ids are acknowledged in order, so the last one is the latest."""
        return next(reversed(self.acknowledged.values()), 0.0)

    async def _connect(self, within_s: int) -> psycopg.AsyncConnection[Any]:
        return await psycopg.AsyncConnection.connect(self.dsn, autocommit=True, connect_timeout=within_s)

    async def _write(self, connection: psycopg.AsyncConnection[Any]) -> None:
        loop = asyncio.get_running_loop()
        while not self.stopping.is_set():
            number, self._warned = self._next, False
            self._next += 1
            deadline = loop.call_later(ANSWER_WITHIN_S, hang_up, connection)
            try:
                await connection.execute(f"INSERT INTO {self.table} VALUES (%s)", (number,))
            except psycopg.Error:
                self.failed.append(time.monotonic())
                raise
            finally:
                deadline.cancel()
            if self._warned:
                self.doubtful.add(number)
            else:
                self.acknowledged[number] = time.monotonic()
            await asyncio.sleep(INTERVAL_S)

    def _notice(self, notice: psycopg.errors.Diagnostic) -> None:
        self._warned |= WAIT_CANCELLED in (notice.message_primary or "")


def hang_up(connection: psycopg.AsyncConnection[Any]) -> None:
    """End the session from below: a cancelled query would first ask the frozen server to stop, and wait for it."""
    with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)
