"""A client that writes all the time and remembers what was acknowledged, to count it afterwards.

It goes through the ordinary connection string, with nothing special for failures: when a statement or the connection
fails, it connects again and goes on with the next number. A number counts as acknowledged only when its commit was
confirmed; whether one in between was written or not, nobody has promised.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from itertools import pairwise

import psycopg

from core.clock import Clock
from core.errors import TimedOutError

WRITE_EVERY_S = 0.005
STATEMENT_WITHIN_S = 40.0  # above the time the proxy holds a client while there is no primary
RECONNECT_AFTER_S = 0.02
CREATE = "create table moorage_demo_check (id bigint primary key)"
INSERT = "insert into moorage_demo_check (id) values (%s)"
PROBE = "create table moorage_demo_probe (id bigint)"  # refused by a replica, whatever it has replayed so far
SELECT = "select id from moorage_demo_check"


@dataclass(slots=True)
class Writer:
    """Run `run` as a task and cancel it to stop."""

    uri: str
    clock: Clock
    acknowledged: list[tuple[int, float]] = field(default_factory=list)  # number and monotonic time
    failures: list[str] = field(default_factory=list)
    _next: int = 1
    _moved: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(STATEMENT_WITHIN_S):
                    connection = await psycopg.AsyncConnection.connect(self.uri, autocommit=True)
                try:
                    await self._write(connection)
                finally:
                    await connection.close()
            except (psycopg.Error, OSError, TimeoutError) as error:
                self.failures.append(str(error).strip() or repr(error))
                await asyncio.sleep(RECONNECT_AFTER_S)

    async def _write(self, connection: psycopg.AsyncConnection[tuple[object, ...]]) -> None:
        while True:
            number, self._next = self._next, self._next + 1
            async with asyncio.timeout(STATEMENT_WITHIN_S):
                await connection.execute(INSERT, (number,))
            self.acknowledged.append((number, self.clock.now()))
            self._moved.set()
            await asyncio.sleep(WRITE_EVERY_S)

    async def until_written(self, count: int, within_s: float) -> None:
        """Until `count` more writes are acknowledged. TimedOutError tells how far it came, and the last failure."""
        wanted = len(self.acknowledged) + count
        try:
            async with asyncio.timeout(within_s):
                while len(self.acknowledged) < wanted:
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError as error:
            got = count - (wanted - len(self.acknowledged))
            last = self.failures[-1] if self.failures else "none, it hangs"
            what = f"{got} of {count} writes within {within_s:g} s; last failure: {last}"
            raise TimedOutError(what, object="writer") from error

    def longest_gap_s(self, since: float) -> float:
        """The longest time without an acknowledged write that ended after `since`."""
        times = [when for _, when in self.acknowledged]
        gaps = (later - earlier for earlier, later in pairwise(times) if later >= since)
        return max(gaps, default=0.0)
