"""A watch that runs beside a test and keeps all it is told; and writes worth watching."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hub.etcd import txns
from hub.etcd.client import EtcdClient, WatchBatch, WatchEvent
from tests.support.waiting import eventually


class Watched:
    """All that a watch has told."""

    def __init__(self) -> None:
        self.batches: list[WatchBatch] = []

    @property
    def events(self) -> list[WatchEvent]:
        return [event for batch in self.batches for event in batch.events]

    @property
    def revisions(self) -> list[int]:
        return [event.mod_revision for event in self.events]

    @property
    def revision(self) -> int:
        return self.batches[-1].revision if self.batches else 0

    async def has(self, count: int, *, within: float = 20) -> None:
        async def look() -> int:
            return len(self.events)

        await eventually(look, lambda seen: seen >= count, within=within, what=f"{count} events")


@asynccontextmanager
async def watching(client: EtcdClient, prefix: str, *, after: int) -> AsyncIterator[Watched]:
    watched = Watched()

    async def follow() -> None:
        stream = client.watch(prefix, after=after)
        try:
            async for batch in stream:
                watched.batches.append(batch)
        finally:
            await stream.aclose()

    task = asyncio.ensure_future(follow())
    try:
        yield watched
        assert not task.done(), f"the watch has ended: {task}"
    finally:
        task.cancel()
        await asyncio.wait([task])


async def write(client: EtcdClient, prefix: str, count: int, *, size: int = 1) -> list[int]:
    """So many changes, each a revision of its own, in eight at a time; the revisions in order."""

    async def some(first: int) -> list[int]:
        puts = (txns.put_if(f"{prefix}{number:05d}", b"x" * size, revision=0) for number in range(first, count, 8))
        return [(await client.commit(one)).revision for one in puts]

    return sorted(itertools.chain(*await asyncio.gather(*map(some, range(8)))))
