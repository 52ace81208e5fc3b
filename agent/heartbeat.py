"""The sign of life: one call carries the node's load, its members' positions and the renewal of the node's lease.

The lease counts from when the heartbeat that the hub confirmed was *sent*, on this host's monotonic clock. The answer
also tells how long, at least, the leaders of the other instances' routes may be relied upon.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import psutil

from agent.link import HubLink
from agent.local import LocalFiles
from core.clock import Clock
from core.errors import MoorageError, words
from core.ids import InstanceRef
from core.log import EventLog
from protos.v1 import agent_pb2 as pb

log = EventLog("agent.heartbeat")
FIRST_INTERVAL_S = 2.0  # until the hub tells its own
CALL_TIMEOUT_S = 1.8  # under TTL/3: a lost renewal leaves time for two more before the fence
RETRY_S = 0.4  # after a failure while a lease is held
DEFAULT_TTL_S = 6.0  # the hub tells the true one in every answer


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderLease:
    """How long the leader of `term` may be relied upon, at least. Monotonic seconds."""

    term: int
    member: str
    until: float


Leaders = dict[InstanceRef, LeaderLease]


class NodeLease:
    """The one etcd lease of this node that all its leaderships hang on. Whoever leads listens for renewals."""

    def __init__(self, files: LocalFiles) -> None:
        self._files = files
        self.lease_id = files.lease_id()
        self.ttl_s = DEFAULT_TTL_S
        self.acquiring = asyncio.Lock()  # held over the call: two instances must not be granted two leases at once
        self._on_renewed: list[Callable[[float, Leaders], None]] = []
        self._on_gone: list[Callable[[], None]] = []

    def listen(self, renewed: Callable[[float, Leaders], None], gone: Callable[[], None]) -> Callable[[], None]:
        """Call `renewed(sent_at, leaders)` and `gone()`; returns the way to stop listening."""
        self._on_renewed.append(renewed)
        self._on_gone.append(gone)

        def stop() -> None:
            self._on_renewed.remove(renewed)
            self._on_gone.remove(gone)

        return stop

    def take(self, lease_id: int) -> None:
        if lease_id != self.lease_id:
            self.lease_id = lease_id
            try:
                self._files.keep_lease_id(lease_id)
            except OSError as error:  # a full disk: the next agent takes another lease, and this one goes on
                log.error("lease_not_kept", error=words(error))

    def renewed(self, sent_at: float, leaders: Leaders) -> None:
        """The lease was confirmed for these leaders: one whose key is gone meanwhile is not among them."""
        for callback in tuple(self._on_renewed):
            callback(sent_at, leaders)

    def gone(self, lease_id: int) -> None:
        """The hub says this lease does not exist; a lease taken meanwhile is not meant."""
        if lease_id != self.lease_id:
            return
        self.take(0)
        for callback in tuple(self._on_gone):
            callback()


class Heartbeat:
    """Sends heartbeats for ever; `kick()` sends the next one at once."""

    def __init__(
        self,
        *,
        node: str,
        data_root: str,
        link: HubLink,
        lease: NodeLease,
        clock: Clock,
        samples: Callable[[], Iterable[pb.MemberSample]],
        applied_revision: Callable[[], int],
        on_leaders: Callable[[Leaders], None],
        on_resync: Callable[[], None],
    ) -> None:
        self._node = node
        self._data_root = data_root
        self._link = link
        self._lease = lease
        self._clock = clock
        self._samples = samples
        self._applied_revision = applied_revision
        self._on_leaders = on_leaders
        self._on_resync = on_resync
        self._boot_id = uuid.uuid4().hex
        self._seq = 0
        self._kick = asyncio.Event()
        self._failed = False
        self.answered_at = 0.0  # monotonic; when the last answered heartbeat was sent

    def kick(self) -> None:
        self._kick.set()

    async def run(self) -> None:
        psutil.cpu_percent()  # the first call only starts the measurement
        while True:
            pause_s = await self._beat()
            self._kick.clear()
            try:
                async with asyncio.timeout(pause_s):
                    await self._kick.wait()
            except TimeoutError:
                pass

    async def _beat(self) -> float:
        """One heartbeat; seconds until the next."""
        request = self._request()
        sent_at = self._clock.now()
        try:
            answer = await self._link.call(lambda stub: stub.Heartbeat, request, timeout_s=CALL_TIMEOUT_S)
        except MoorageError as error:
            if not self._failed:
                log.warning("heartbeat_failed", hub=self._link.hub, error=str(error))
            self._failed = True
            return RETRY_S if self._lease.lease_id else random.uniform(0.5, FIRST_INTERVAL_S)
        self._failed = False
        self.answered_at = sent_at
        return self._take(answer, request.lease_id, sent_at)

    def _take(self, answer: pb.HeartbeatResponse, lease_id: int, sent_at: float) -> float:
        if answer.lease_ttl_s:
            self._lease.ttl_s = float(answer.lease_ttl_s)
        leaders = {
            InstanceRef(leader.project, leader.instance): LeaderLease(
                term=leader.term, member=leader.member, until=sent_at + leader.remaining_ms / 1000
            )
            for leader in answer.leaders
        }
        if lease_id and answer.lease_gone:
            log.warning("lease_gone", lease_id=lease_id)
            self._lease.gone(lease_id)
        elif lease_id and answer.lease_confirmed and lease_id == self._lease.lease_id:
            self._lease.renewed(sent_at, leaders)
        self._on_leaders(leaders)
        if answer.resync:
            self._on_resync()
        next_s = answer.next_ms / 1000 if answer.next_ms else FIRST_INTERVAL_S
        unconfirmed = lease_id and not answer.lease_confirmed and not answer.lease_gone
        if self._lease.lease_id:
            next_s = min(next_s, self._lease.ttl_s / 3)
        return RETRY_S if unconfirmed else max(0.1, next_s - (self._clock.now() - sent_at))

    def _request(self) -> pb.HeartbeatRequest:
        self._seq += 1
        memory = psutil.virtual_memory()
        return pb.HeartbeatRequest(
            node_id=self._node,
            boot_id=self._boot_id,
            seq=self._seq,
            lease_id=self._lease.lease_id,
            cpu_used=psutil.cpu_percent() / 100,
            memory_used_bytes=memory.total - memory.available,
            disk_used_bytes=psutil.disk_usage(self._data_root).used,
            members=list(self._samples()),
            applied_revision=self._applied_revision(),
        )
