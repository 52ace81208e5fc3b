"""Tries every 50 ms to write to every engine itself, past all proxies, to catch a second primary in the act.

The way in is the one the agent has: the engine's Unix socket, as its superuser. The write is a real transaction on an
unlogged table, with `synchronous_commit = local`, so that it tells whether the engine accepts writes at all, not
whether it would acknowledge them. No client has this way in; a write accepted here by an engine whose successor is
writable already is told apart from one accepted through a proxy.
"""

from __future__ import annotations

import asyncio
import time

import psycopg

from tests.faults import judge
from tests.faults.line import Line
from tests.faults.machines import Machine
from tests.faults.site import Site
from tests.faults.workload import WHO

EVERY_S = 0.05
TABLE = "moorage_fault_probe"
NO_WAIT = "-c synchronous_commit=local"


class Prober:
    """`accepted` holds every write that an engine took."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._stopping = asyncio.Event()
        self._lines: set[Line] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self.accepted: list[judge.Accepted] = []

    async def prepare(self) -> None:
        dsn = self._site.local_dsn(await self._site.primary())
        assert dsn is not None, "the primary's engine does not listen"
        line = await Line.open(f"{dsn} options='{NO_WAIT}'")
        try:
            await line.rows(f"CREATE UNLOGGED TABLE IF NOT EXISTS {TABLE} (at timestamptz)")
        finally:
            await line.close()

    def start(self, group: asyncio.TaskGroup) -> None:
        for node in self._site.nodes.values():
            self._tasks.append(group.create_task(self._probe(node), name=f"prober {node.name}"))

    async def stop(self) -> None:
        self._stopping.set()
        for line in self._lines:
            line.shut()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5.0)

    async def _probe(self, node: Machine) -> None:
        while not self._stopping.is_set():
            dsn = self._site.local_dsn(node)
            try:
                line = await Line.open(f"{dsn} options='{NO_WAIT}'") if dsn else None
            except (psycopg.Error, OSError):
                line = None
            if line is None:
                await asyncio.sleep(EVERY_S)
                continue
            self._lines.add(line)
            try:
                while not self._stopping.is_set():
                    await self._try(node, line)
                    await asyncio.sleep(EVERY_S)
            except (psycopg.Error, OSError):
                await asyncio.sleep(EVERY_S)
            finally:
                self._lines.discard(line)
                await line.close()

    async def _try(self, node: Machine, line: Line) -> None:
        began = time.monotonic()
        if (await line.rows("SELECT pg_is_in_recovery()"))[0][0]:
            return
        who = (await line.rows(f"INSERT INTO {TABLE} VALUES (now()) RETURNING {WHO}"))[0]
        acked = time.monotonic()
        self.accepted.append(judge.Accepted(member=node.address, timeline=int(who[1]), began=began, acked=acked))
