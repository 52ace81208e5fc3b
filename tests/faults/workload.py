"""The clients of one round: they write and read through the proxies all the time, and remember what they were told.

- Appenders write ids that are never used again, each through a connection string with all proxies, each beginning with
  another one. Their longest silence together is the write gap.
- Pinned appenders do the same through one proxy alone, each 50 ms: the prober of the proxies.
- Transfers move money between accounts in transactions, and note the transfer under an id of its own. The sum of all
  balances never changes, and every balance is what the noted transfers make it.
- Readers ask a replica for the sum of all balances, which must be right in every snapshot.

Each accepted write says which engine served it, for `judge.overlaps`.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import psycopg

from tests.faults import judge
from tests.faults.line import Line, certainly_not_done, spread

APPEND_EVERY_S = 0.02
PINNED_EVERY_S = 0.05
TRANSFER_EVERY_S = 0.08
READ_EVERY_S = 0.04
AGAIN_S = 0.05
HOSTS = 3
ACCOUNTS, EACH = 10, 1000
END_S = 12.0
# The engine's own words on who it is: its address (each member has its own) and the timeline it writes on.
WHO = "host(inet_server_addr()), ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int"


@dataclass(slots=True)
class Memory:
    """What all clients of a round were told."""

    written: list[float] = field(default_factory=list)  # when the appenders' writes were acknowledged
    read: list[float] = field(default_factory=list)
    accepted: list[judge.Accepted] = field(default_factory=list)
    appended: set[int] = field(default_factory=set)
    moved: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)  # certainly not written
    errors: Counter[str] = field(default_factory=Counter)
    wrong_sums: list[str] = field(default_factory=list)


class Workload:
    """`start` in a task group, `stop`, then `verdict`. Tables are the round's own."""

    def __init__(self, dsn: str, read_dsn: str, round_id: int, random: random.Random) -> None:
        self.memory = Memory()
        self._dsn = dsn
        self._read_dsn = read_dsn
        self._random = random
        self._ids = itertools.count(1)
        self._stopping = asyncio.Event()
        self._lines: set[Line] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._appends, self._accounts, self._moves = (f"{kind}_{round_id}" for kind in ("appends", "accounts", "moves"))

    async def prepare(self) -> None:
        line = await Line.open(spread(self._dsn, 0))
        try:
            await line.rows(f"CREATE TABLE {self._appends} (id bigint)")
            await line.rows(f"CREATE TABLE {self._moves} (id bigint, source int, target int, amount int)")
            await line.rows(f"CREATE TABLE {self._accounts} (id int PRIMARY KEY, balance bigint)")
            await line.rows(f"INSERT INTO {self._accounts} SELECT n, {EACH} FROM generate_series(1, {ACCOUNTS}) n")
        finally:
            await line.close()

    def start(self, group: asyncio.TaskGroup) -> None:
        for n in range(HOSTS):
            self._begin(group, f"appender {n}", spread(self._dsn, n), APPEND_EVERY_S, self._append)
            self._begin(group, f"pinned {n}", spread(self._dsn, n, only=True), PINNED_EVERY_S, self._append_pinned)
        for n in range(2):
            self._begin(group, f"transfer {n}", spread(self._dsn, n), TRANSFER_EVERY_S, self._transfer)
            self._begin(group, f"reader {n}", spread(self._read_dsn, n), READ_EVERY_S, self._read)

    async def stop(self) -> None:
        """All clients end; statements under way get a moment."""
        self._stopping.set()
        if self._tasks:
            _, pending = await asyncio.wait(self._tasks, timeout=2.0)
            for line in self._lines:
                line.shut()
            if pending:
                await asyncio.wait(pending, timeout=END_S)

    def _begin(
        self, group: asyncio.TaskGroup, name: str, dsn: str, every: float, work: Callable[[Line], Awaitable[None]]
    ) -> None:
        self._tasks.append(group.create_task(self._client(dsn, every, work), name=name))

    async def _client(self, dsn: str, every: float, work: Callable[[Line], Awaitable[None]]) -> None:
        """Connect, work, and connect again when the connection fails, as an application's pool would."""
        while not self._stopping.is_set():
            try:
                line = await Line.open(dsn)
            except (psycopg.Error, OSError) as error:
                self._note(error)
                await asyncio.sleep(AGAIN_S)
                continue
            self._lines.add(line)
            try:
                while not self._stopping.is_set():
                    await work(line)
                    await asyncio.sleep(every)
            except (psycopg.Error, OSError) as error:
                self._note(error)
                await asyncio.sleep(AGAIN_S)
            finally:
                self._lines.discard(line)
                await line.close()

    def _note(self, error: BaseException) -> None:
        if not self._stopping.is_set():
            state = getattr(error, "sqlstate", None) or "connection"
            self.memory.errors[f"{state} {str(error).strip().splitlines()[0][:80] if str(error).strip() else ''}"] += 1

    # --- what clients do ------------------------------------------------------------------------------------------

    async def _append(self, line: Line) -> None:
        self.memory.written.append(await self._append_one(line))

    async def _append_pinned(self, line: Line) -> None:
        await self._append_one(line)

    async def _append_one(self, line: Line) -> float:
        number, began = next(self._ids), time.monotonic()
        try:
            rows = await line.rows(f"INSERT INTO {self._appends} VALUES (%s) RETURNING {WHO}", (number,))
        except psycopg.Error as error:
            if certainly_not_done(error):
                self.memory.refused.add(number)
            raise
        self.memory.appended.add(number)
        return self._accepted(rows[0], began)

    async def _transfer(self, line: Line) -> None:
        number, began = next(self._ids), time.monotonic()
        source, target = self._random.sample(range(1, ACCOUNTS + 1), 2)
        amount = self._random.randint(1, 9)
        committing = False
        try:
            await line.rows("BEGIN")
            for account, change in sorted(((source, -amount), (target, amount))):
                await line.rows(f"UPDATE {self._accounts} SET balance = balance + %s WHERE id = %s", (change, account))
            rows = await line.rows(
                f"INSERT INTO {self._moves} VALUES (%s, %s, %s, %s) RETURNING {WHO}", (number, source, target, amount)
            )
            committing = True
            await line.rows("COMMIT")
        except psycopg.Error as error:
            if not committing or certainly_not_done(error):
                self.memory.refused.add(number)
            raise
        self.memory.moved.add(number)
        self._accepted(rows[0], began)

    def _accepted(self, who: tuple[object, ...], began: float) -> float:
        now = time.monotonic()
        self.memory.accepted.append(
            judge.Accepted(member=str(who[0]), timeline=int(str(who[1])), began=began, acked=now)
        )
        return now

    async def _read(self, line: Line) -> None:
        rows = await line.rows(f"SELECT sum(balance), host(inet_server_addr()) FROM {self._accounts}")
        self.memory.read.append(time.monotonic())
        if rows[0][0] != ACCOUNTS * EACH:
            self.memory.wrong_sums.append(f"read at {rows[0][1]}: {rows[0][0]}")

    # --- what is true in the end ----------------------------------------------------------------------------------

    async def verdict(self) -> judge.Account:
        """Compare with what is in the tables now. Wrong sums are added to the memory."""
        line = await Line.open(spread(self._dsn, 0))
        try:
            appended = [row[0] for row in await line.rows(f"SELECT id FROM {self._appends}")]
            moves = await line.rows(f"SELECT id, source, target, amount FROM {self._moves}")
            balances = dict(await line.rows(f"SELECT id, balance FROM {self._accounts}"))
        finally:
            await line.close()
        expected = dict.fromkeys(range(1, ACCOUNTS + 1), EACH)
        for _, source, target, amount in moves:
            expected[source] -= amount
            expected[target] += amount
        if balances != expected:
            self.memory.wrong_sums.append(f"balances {balances}, by the transfers {expected}")
        return judge.account(
            acknowledged=self.memory.appended | self.memory.moved,
            refused=self.memory.refused,
            present=[*appended, *(row[0] for row in moves)],
        )
