"""The pull loop: always one poll under way, the answer is the node's whole desired state.

Level-triggered: a lost answer costs one more poll and nothing else. What was pulled last lies on disk, so the node runs
on when the hub is away.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from agent.link import HubLink
from agent.local import LocalFiles, Pulled
from core.backoff import Backoff
from core.codec import from_json
from core.errors import DeniedError, MoorageError, UserError, words
from core.log import EventLog
from core.records import NodeState
from protos.v1 import agent_pb2 as pb

log = EventLog("agent.pull")
PROTOCOL_VERSION = 1
POLL_TIMEOUT_S = 65.0  # the hub holds at most 55 s; a poll should end by its answer, not by our deadline
UNREADABLE_PAUSE_S = 10.0
DENIED_PAUSE_S = 60.0  # a node that is not allowed in does not hammer


class Puller:
    """`on_state(state, store_id)` is called with every new desired state, and at the start with the one from disk."""

    def __init__(self, node: str, link: HubLink, files: LocalFiles, on_state: Callable[[NodeState, str], None]) -> None:
        self._node = node
        self._link = link
        self._files = files
        self._on_state = on_state
        self._pulled = Pulled()
        self._unkept = asyncio.Event()
        self._backoff = Backoff(base_s=0.2, cap_s=3.0, uniform=random.uniform)

    @property
    def revision(self) -> int:
        """Mark of the state that is in force here."""
        return self._pulled.revision

    async def run(self) -> None:
        self._pulled = self._files.pulled()
        if self._pulled.revision:
            self._on_state(self._pulled.state, self._pulled.store_id)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep(), name="keep what was pulled")
            while True:
                pause_s = await self._poll_once()
                if pause_s > 0:
                    await asyncio.sleep(pause_s)

    async def _keep(self) -> None:
        """Beside the polls: no failover waits for a disk. Whoever ends before the newest is written is told again."""
        while True:
            await self._unkept.wait()
            self._unkept.clear()
            try:
                await asyncio.to_thread(self._files.keep_pulled, self._pulled)
            except OSError as error:  # a full disk: the hub tells it again
                log.error("state_not_kept", error=words(error))

    async def _poll_once(self) -> float:
        """Seconds to wait before the next poll."""
        request = pb.PollRequest(
            node_id=self._node,
            store_id=self._pulled.store_id,
            known_revision=self._pulled.revision,
            protocol_version=PROTOCOL_VERSION,
        )
        try:
            answer = await self._link.call(lambda stub: stub.Poll, request, timeout_s=POLL_TIMEOUT_S)
        except DeniedError as error:
            log.error("poll_denied", error=str(error), next_try_s=DENIED_PAUSE_S)
            return DENIED_PAUSE_S
        except MoorageError as error:
            delay = self._backoff.next_delay()
            if self._backoff.failures == 1:
                log.warning("poll_failed", hub=self._link.hub, error=str(error))
            return delay
        if self._backoff.failures:
            log.info("hub_back", hub=self._link.hub, failed_polls=self._backoff.failures)
        self._backoff.reset()
        return await self._take(answer)

    async def _take(self, answer: pb.PollResponse) -> float:
        if answer.draining:
            await self._link.rotate()
        if answer.kind == pb.PollResponse.KIND_FULL and not self._applied(answer):
            return UNREADABLE_PAUSE_S
        return answer.retry_after_ms / 1000

    def _applied(self, answer: pb.PollResponse) -> bool:
        try:
            state = from_json(NodeState, answer.state_json, where="poll answer")
        except UserError as error:
            # A hub of a version we do not understand: keep running what we run, and say so.
            log.error("desired_state_unreadable", error=str(error), next_try_s=UNREADABLE_PAUSE_S)
            return False
        self._pulled = Pulled(store_id=answer.store_id, revision=answer.revision, state=state)
        self._unkept.set()
        self._on_state(state, answer.store_id)
        return True
