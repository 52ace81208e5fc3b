"""A client that writes a growing number every few milliseconds through the proxies, and remembers what was confirmed.

It reconnects with the same connection string when its session ends, as an application's pool would. An id whose commit
was not acknowledged is never written again under the same number, so a lost acknowledged write shows as a missing id.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass, field
from typing import Any

import psycopg

INTERVAL_S = 0.005
CONNECT_TIMEOUT_S = 15


@dataclass(slots=True)
class Writer:
    """`run()` until cancelled or `stop`ped; `acknowledged` holds id -> monotonic time of the acknowledgement."""

    dsn: str
    table: str = "written"
    acknowledged: dict[int, float] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _next: int = 1

    async def prepare(self) -> None:
        async with await self._connect() as connection:
            await connection.execute(f"CREATE TABLE IF NOT EXISTS {self.table} (id bigint PRIMARY KEY)")

    async def run(self) -> None:
        while not self.stopping.is_set():
            try:
                async with await self._connect() as connection:
                    await self._write(connection)
            except (psycopg.Error, OSError, TimeoutError) as error:
                self.errors.append(f"{type(error).__name__}: {str(error).strip()}")
                await asyncio.sleep(INTERVAL_S)

    async def _connect(self) -> psycopg.AsyncConnection[Any]:
        return await psycopg.AsyncConnection.connect(self.dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S)

    async def _write(self, connection: psycopg.AsyncConnection[Any]) -> None:
        while not self.stopping.is_set():
            number = self._next
            self._next += 1
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await connection.execute(f"INSERT INTO {self.table} VALUES (%s)", (number,))
            self.acknowledged[number] = time.monotonic()
            await asyncio.sleep(INTERVAL_S)

    def gap_after(self, at: float) -> float:
        """Seconds without an acknowledged write around `at` (monotonic): from the last before to the first after."""
        before = max((when for when in self.acknowledged.values() if when <= at), default=at)
        after = min((when for when in self.acknowledged.values() if when > at), default=float("inf"))
        return after - before

    def longest_gap(self, since: float) -> float:
        """The longest pause between two acknowledged writes after `since`."""
        times = sorted(when for when in self.acknowledged.values() if when >= since)
        return max((later - earlier for earlier, later in itertools.pairwise(times)), default=0.0)

    async def lost(self) -> list[int]:
        """Acknowledged ids that are not in the table."""
        async with await self._connect() as connection:
            rows = await (await connection.execute(f"SELECT id FROM {self.table}")).fetchall()
        present = {row[0] for row in rows}
        return sorted(set(self.acknowledged) - present)
