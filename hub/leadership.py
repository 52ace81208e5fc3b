"""Leadership on the agents' behalf: what they ask becomes one etcd transaction, whose compares are the rules.

The hub judges nothing by itself. It fills the transactions of `hub.etcd.txns` with the revisions of its mirror, and the
mirror may lag. So a transaction that fails proves only that the mirror was old: when it has caught up, the same request
is looked at again, and either the rule still allows it (nobody leads, the term is the one the agent decided on) or the
answer is no, with who leads instead. Three rounds at most; somebody else's progress made each of them fail.

A request whose answer was lost may be repeated. `acquire` by the member that already leads in exactly the term it asks
for renews the lease and says yes again; `release` of what is released already says no, and nothing is lost by that.

A lease that an acquired leadership hangs on was granted or kept alive after the request arrived, so it has its full time
to live counted from when the agent sent it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from core.clock import Clock
from core.errors import ConflictError, DeniedError, NotFoundError, UnavailableError
from core.ids import InstanceRef, MemberRef
from core.log import EventLog
from core.records import HISTORY_MAX, Ballot, HaRecord, LeaderRecord, LeadershipChange, SyncRecord
from hub.etcd import keys, txns
from hub.etcd.client import EtcdClient
from hub.etcd.errors import LeaseGone
from hub.etcd.mirror import Mirror, Versioned
from hub.etcd.store import Store
from hub.leases import BallotLeases, LeaseBook, Renewal

ROUNDS = 3

log = EventLog("hub.leadership")


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquired:
    """`term` is the new term, or the one that stood in the way; `leader` is who leads instead (empty = nobody)."""

    acquired: bool
    term: int
    lease_id: int = 0
    leader: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The leadership of one instance, for a node that has a member of it. `term` 0 = nobody leads."""

    instance: InstanceRef
    term: int = 0
    member: str = ""
    remaining_s: float = 0.0  # that the leader's lease lasts at least; 0 = unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class HaChange:
    """What a leader may change of its instance's ha record. None = leave as it is."""

    sync: SyncRecord | None = None
    system_id: str | None = None
    end_switchover: str | None = None  # id of the request that is over
    note: str = ""  # for the history, with end_switchover


class Leadership:
    """The agents' leadership calls. Keeps no state but the leases of ballots."""

    def __init__(
        self,
        *,
        clock: Clock,
        client: EtcdClient,
        mirror: Mirror,
        store: Store,
        leases: LeaseBook,
        ballot_leases: BallotLeases,
    ) -> None:
        self._clock = clock
        self._client = client
        self._mirror = mirror
        self._store = store
        self._leases = leases
        self._ballot_leases = ballot_leases

    # --- taking and giving up ---

    async def acquire(
        self, me: MemberRef, node: str, *, after_term: int, lease_id: int, change: LeadershipChange
    ) -> Acquired:
        """Make `me` the leader after `after_term`, on the node's lease (0, or one that is gone: a new one)."""
        self._refuse_foreign_lease(node, lease_id)
        lease_id = await self._fresh_lease(lease_id)
        for _ in range(ROUNDS):
            leader, ha = self._present(me.instance)
            if leader is not None and _is(leader.record, me, node, after_term + 1):
                return await self._again(me.instance, leader)
            if leader is not None or ha.record.term != after_term:
                break
            if await self._commit_acquire(me, node, ha=ha, lease_id=lease_id, change=change):
                log.info("leadership_acquired", instance=str(me.instance), member=me.member, term=after_term + 1)
                return Acquired(acquired=True, term=after_term + 1, lease_id=lease_id)
        leader, ha = self._present(me.instance)
        in_the_way = leader.record.member if leader is not None else ""
        return Acquired(acquired=False, term=ha.record.term, leader=in_the_way)
