"""Node leases: granting, renewing, and how long somebody else's lease will last at least.

Why a confirmed renewal may be relied on. The agent counts its lease from when it sent the heartbeat, so from before
anything happens here. Here the lease is kept alive, and only after that answer has come a linearizable read is
*started* that must find every leader key of the lease in the same life as before. A keepalive alone proves nothing: an
etcd leader that hangs goes on confirming keepalives which its successor does not honour (etcd #15247); such a leader
cannot answer a linearizable read, and when the read goes to another member its raft term is another. The read is a
transaction of compares without writes: one request however many keys, and no disk write. A confirmation speaks for the
leader keys that this hub knows to hang on the lease, and no others.

A lease that carries no leader key is not renewed. Nobody has a reason to rely on it, and somebody who does so all the
same (its key was deleted under it) is told nothing that would let him go on; the lease runs out, and the next
leadership gets a new one.

Why `remaining_s` is a lower bound. For a lease renewed here it is counted from before the confirmed keepalive was sent,
when the lease had its full time to live at the earliest. For a lease renewed at another hub etcd is asked for the time
left, and the answer is counted from before the question, again only if a later linearizable read still finds the leader
key. An agent adds the figure to the time it *sent* its heartbeat, which was earlier still. Whatever is not known is 0.

Leases of ballots are the hub's own: they need only outlive one election, and nobody relies on them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from core.clock import Clock
from core.errors import UnavailableError
from hub.etcd.client import EtcdClient
from hub.etcd.errors import LeaseGone
from hub.etcd.txns import CreatedIs, Txn

ASK_EVERY_S = 1.0  # of etcd, for a lease that another hub renews; agents beat every TTL/3 = 2 s
FORGET_AFTER_S = 60.0
COMPARES_MAX = 100  # etcd takes at most 128 in one transaction


class Renewal(Enum):
    """What became of a renewal."""

    CONFIRMED = "etcd renewed it, and the leader keys were still there afterwards"
    UNCONFIRMED = "not shown: a leader key has gone or changed, or there is none"
    GONE = "the lease does not exist any more"


@dataclass(frozen=True, slots=True)
class _Line:
    until: float  # monotonic time the lease lasts at least
    ask_after: float  # before this time the line is good without asking etcd


class LeaseBook:
    """What this hub knows of the leases of nodes. One line a lease; lines of leases long over are dropped."""

    def __init__(self, client: EtcdClient, clock: Clock, *, ttl_s: int) -> None:
        self._client = client
        self._clock = clock
        self._ttl_s = ttl_s
        self._lines: dict[int, _Line] = {}
        self._asking: dict[int, asyncio.Lock] = {}

    @property
    def known(self) -> int:
        """How many leases there is something to say about."""
        return len(self._lines)

    async def grant(self) -> int:
        """A new node lease with its full time to live from now."""
        return await self._client.grant(self._ttl_s)

    async def renew(self, lease_id: int, leader_keys: Sequence[CreatedIs]) -> Renewal:
        """Renew a node's lease. `leader_keys` are the leader keys it carries, each in the life it was seen in."""
        if not leader_keys:
            return Renewal.UNCONFIRMED if await self._client.time_to_live(lease_id) > 0 else Renewal.GONE
        started = self._clock.now()
        try:
            kept = await self._client.renew(lease_id)
        except LeaseGone:
            self._lines.pop(lease_id, None)
            return Renewal.GONE
        if not await self._still_there(leader_keys, raft_term=kept.raft_term):
            return Renewal.UNCONFIRMED
        self._lines[lease_id] = _Line(until=started + kept.ttl_s, ask_after=started + kept.ttl_s / 2)
        return Renewal.CONFIRMED

    def remaining_s(self, lease_id: int) -> float:
        """Seconds from now that the lease lasts at least; 0 = unknown, or over. Call `look_up` before."""
        line = self._lines.get(lease_id)
        return max(0.0, line.until - self._clock.now()) if line is not None else 0.0

    async def look_up(self, lease_id: int, leader_key: CreatedIs) -> None:
        """Ask etcd about the lease under `leader_key`, unless what is known is fresh. Never raises for etcd's sake; may
        take long when etcd is away, so bound it."""
        line = self._lines.get(lease_id)
        if line is not None and self._clock.now() < line.ask_after:
            return
        # Held over the question to etcd: of many heartbeats that want to know one lease, one asks, the others wait.
        lock = self._asking.setdefault(lease_id, asyncio.Lock())
        async with lock:
            line = self._lines.get(lease_id)
            if line is None or self._clock.now() >= line.ask_after:
                await self._ask(lease_id, leader_key)

    async def _ask(self, lease_id: int, leader_key: CreatedIs) -> None:
        started = self._clock.now()
        known = self._lines.get(lease_id)
        until = known.until if known is not None else 0.0
        try:
            left_s = await self._client.time_to_live(lease_id)
            until = max(until, started + left_s) if await self._still_there([leader_key]) else 0.0
        except UnavailableError:
            pass  # what was known before still holds: it runs out by itself
        self._lines[lease_id] = _Line(until, started + ASK_EVERY_S)

    async def _still_there(self, leader_keys: Sequence[CreatedIs], *, raft_term: int = 0) -> bool:
        """Whether a linearizable read, started now, finds all keys in the life given; in this raft term, unless 0."""
        for start in range(0, len(leader_keys), COMPARES_MAX):
            read = Txn(compares=tuple(leader_keys[start : start + COMPARES_MAX]), then=())
            found = await self._client.commit(read)
            if not found.succeeded or raft_term not in (0, found.raft_term):
                return False
        return True

    def forget_old(self) -> None:
        """Drop what is long over. Call it now and then."""
        before = self._clock.now() - FORGET_AFTER_S
        for lease_id in [lease_id for lease_id, line in self._lines.items() if line.until < before]:
            del self._lines[lease_id]
        for lease_id in [lease_id for lease_id, lock in self._asking.items() if not lock.locked()]:
            if lease_id not in self._lines:
                del self._asking[lease_id]


class BallotLeases:
    """One short lease a node for its ballots, used again while more than half of its life remains."""

    def __init__(self, client: EtcdClient, clock: Clock, *, ttl_s: int) -> None:
        self._client = client
        self._clock = clock
        self._ttl_s = ttl_s
        self._granted: dict[str, tuple[int, float]] = {}  # node -> lease, when it was asked for

    async def lease_for(self, node: str) -> int:
        """A lease that lives for another ttl_s / 2 at least."""
        now = self._clock.now()
        lease_id, granted_at = self._granted.get(node, (0, 0.0))
        if lease_id and now - granted_at < self._ttl_s / 2:
            return lease_id
        lease_id = await self._client.grant(self._ttl_s)
        self._granted[node] = (lease_id, now)
        return lease_id

    def forget(self, node: str) -> None:
        """The lease turned out to be gone (etcd was restored), or the node has left."""
        self._granted.pop(node, None)
