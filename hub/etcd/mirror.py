"""All of Moorage's etcd in memory: one list, then one watch, for every reader of this hub.

A poll, a heartbeat or a page never asks etcd: it reads the dictionaries of `hub.etcd.contents`, which change only
between awaits, one watch batch at a time. Subscribers are told what was touched.

Invariant: after `synced`, the contents are etcd's as of `revision`, and every later change arrives. When history was
compacted under the watch, everything is listed again and `Changes.everything` says so.

A hub that serves the past is the worst hub. So `_check` asks etcd itself now and then, and ends the process when the
watch stays behind an etcd that answers, or when etcd has gone back behind what was seen (it was restored from a
snapshot; its revision numbers are used a second time, and no watch tells).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import aclosing

from core.errors import MoorageError, TimedOutError
from core.log import EventLog
from hub.etcd import keys
from hub.etcd.client import EtcdClient, KeyValue
from hub.etcd.contents import Changes, Contents, Versioned
from hub.etcd.errors import Compacted, EtcdUnavailable
from hub.etcd.watch import Reading

__all__ = ["Changes", "Mirror", "StaleMirror", "Versioned"]

log = EventLog("hub.mirror")
CHECK_EVERY_S = 30.0
BEHIND_MAX_S = 15.0  # a watch this far behind an answering etcd is dead, whatever its stream says
LIST_PAUSE_S = 0.5
REOPEN_AFTER_S = 1.5  # what etcd has and the watch has not brought by then is looked for at another member
PROBE_EVERY_S = 2.0  # with up to five members each is asked at least every 10 s, which keeps its pings harmless
REOPEN_PAUSE_MAX_S = 60.0


class StaleMirror(MoorageError):
    """The watch has stopped bringing changes, or etcd's history is not the one that was followed."""


class Mirror(Contents):
    """Contents that follow etcd while `run` runs."""

    def __init__(
        self, client: EtcdClient, *, check_every_s: float = CHECK_EVERY_S, behind_max_s: float = BEHIND_MAX_S
    ) -> None:
        super().__init__()
        self._client = client
        self._check_every_s = check_every_s
        self._behind_max_s = behind_max_s
        self._subscribers: list[Callable[[Changes], None]] = []
        self._waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self.synced = asyncio.Event()
        self.revision = 0
        self._reading = Reading()
        self._reopened_at = -REOPEN_AFTER_S

    def subscribe(self, callback: Callable[[Changes], None]) -> Callable[[], None]:
        """Call back after each batch, synchronously; returns the way to stop."""
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    async def reached(self, revision: int, timeout_s: float = 5.0) -> None:
        """Until the contents are of this revision or later; TimedOutError."""
        await self._until(lambda: self.revision >= revision, revision, timeout_s)

    async def shows(self, seen: Mapping[str, int], revision: int, timeout_s: float = 5.0) -> None:
        """Until nothing here is older than what was seen in etcd at `revision`: mod_revisions by key, 0 = absent.

        For deletions seen by a read, whose own revision nobody tells. TimedOutError.
        """

        def shown() -> bool:
            return all(
                self.revision >= mod if mod else not 0 < self._revisions.get(key, 0) <= revision
                for key, mod in seen.items()
            )

        await self._until(shown, revision, timeout_s)

    async def _until(self, shown: Callable[[], bool], revision: int, timeout_s: float) -> None:
        if shown():
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (shown, future)
        self._waiting.append(entry)
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.wait([future], timeout=REOPEN_AFTER_S)
                if not future.done():
                    self._reopen()
                await future
        except TimeoutError as error:
            raise TimedOutError(
                f"the hub's copy of etcd did not reach revision {revision} within {timeout_s} s", object="mirror"
            ) from error
        finally:
            self._waiting.remove(entry)

    async def run(self) -> None:
        """For ever; an error ends the hub."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(), name="mirror watch")
            group.create_task(self._check(), name="mirror check")
            group.create_task(self._probe(), name="mirror probe")

    # --- following ------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        while True:
            found, revision = await self._listed()
            self._publish(revision, self.replace_all(found, revision))
            del found  # the watch lasts for ever; a second copy of everything need not
            self.synced.set()
            try:
                batches = self._client.watch(keys.ROOT, after=self.revision, reading=self._reading)
                async with aclosing(batches):
                    async for batch in batches:
                        self._publish(max(self.revision, batch.revision), self.apply_all(batch.events))
            except Compacted as error:
                log.warning("watch_compacted", revision=error.revision)

    async def _listed(self) -> tuple[list[KeyValue], int]:
        """List until etcd answers; the old contents are served meanwhile."""
        while True:
            try:
                return await self._client.list(keys.ROOT)
            except (EtcdUnavailable, Compacted) as error:
                log.warning("list_failed", error=str(error))
                await asyncio.sleep(LIST_PAUSE_S)

    def _publish(self, revision: int, changes: Changes) -> None:
        self.revision = revision
        if changes.everything or changes.nodes or changes.instances or changes.events:
            for subscriber in tuple(self._subscribers):
                subscriber(changes)
        for shown, future in self._waiting:
            if not future.done() and shown():
                future.set_result(None)

    def _reopen(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._reopened_at >= REOPEN_AFTER_S:
            self._reopened_at = now
            self._reading.reopen()

    async def _probe(self) -> None:
        """Find a watch that has gone quiet long before its connection is given up: a leader's lease may be expiring
        unseen. Writes of others in the same etcd look like a quiet watch, so the pause grows while reopening is in
        vain."""
        await self.synced.wait()
        pause_s, again_at = PROBE_EVERY_S, 0.0
        while True:
            await asyncio.sleep(PROBE_EVERY_S)
            try:
                _, revision = await self._client.read([keys.STORE_ID])
            except EtcdUnavailable:
                continue
            if self.revision < revision:
                await asyncio.sleep(REOPEN_AFTER_S)
            now = asyncio.get_running_loop().time()
            if self.revision >= revision:
                pause_s = PROBE_EVERY_S
            elif now >= again_at:
                self._reopen()
                again_at, pause_s = now + pause_s, min(2 * pause_s, REOPEN_PAUSE_MAX_S)

    # --- checking -------------------------------------------------------------------------------------------------

    async def _check(self) -> None:
        await self.synced.wait()
        while True:
            await asyncio.sleep(self._check_every_s)
            try:
                await self._examine()
            except EtcdUnavailable:
                continue  # away, not hidden: calls and the watch say so themselves

    async def _examine(self) -> None:
        """Compare with a linearizable read. Deletions leave no revision to ask for, hence the count of keys."""
        before = self.revision
        there = await self._client.survey(keys.ROOT)
        if there.revision < before:
            raise StaleMirror(f"etcd went back from revision {before} to {there.revision}", object="mirror")
        moved = self.revision != before
        if self.revision >= there.newest and (moved or len(self._revisions) == there.count):
            return
        await asyncio.sleep(self._behind_max_s)
        if self.revision < there.newest:
            told = f"etcd was at revision {there.newest}, the watch has brought {self.revision} only"
            raise StaleMirror(told, object="mirror")
        if self.revision == before and (await self._client.survey(keys.ROOT)).count != len(self._revisions):
            raise StaleMirror(f"the watch brings no deletions since revision {before}", object="mirror")
