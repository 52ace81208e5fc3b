"""Leadership on the agents' behalf: what they ask becomes one etcd transaction, whose compares are the rules.

The hub judges nothing by itself. It fills the transactions of `hub.etcd.txns` with the revisions of its mirror, and the
mirror may lag. So a transaction that fails proves only that the mirror was old, and so may a refusal: it is given only
when etcd says that the mirror is right. Then the request is looked at again, and either the rule still allows it
(nobody leads, the term is the one the agent decided on) or the answer is no, with who leads instead. A few rounds at
most; somebody else's progress made each of them fail.

A request whose answer was lost may be repeated. `acquire` by the member that already leads in exactly the term it asks
for renews the lease and says yes again; `release` of what is released already says no, and nothing is lost by that.

A lease that an acquired leadership hangs on was granted or kept alive after the request arrived, so it has its full
time to live counted from when the agent sent it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from core.clock import Clock
from core.errors import ConflictError, DeniedError, NotFoundError, UnavailableError
from core.ids import InstanceRef, MemberRef
from core.log import EventLog
from core.records import Ballot, HaRecord, LeaderRecord, LeadershipChange, SyncRecord
from hub import history
from hub.etcd import keys, txns
from hub.etcd.client import EtcdClient
from hub.etcd.errors import LeaseGone
from hub.etcd.mirror import Mirror, Versioned
from hub.etcd.store import Store
from hub.leases import BallotLeases, LeaseBook, Renewal

ROUNDS = 4

log = EventLog("hub.leadership")


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquired:
    """`term` is the new term, or the one that stood in the way; `leader` is who leads instead (empty = nobody)."""

    acquired: bool
    term: int
    lease_id: int = 0
    leader: str = ""
    sync: SyncRecord | None = None  # what the transaction put on record; None = an earlier one did


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
    opened: LeadershipChange | None = None  # for the history: commits are acknowledged in this term


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
        self,
        me: MemberRef,
        node: str,
        *,
        after_term: int,
        lease_id: int,
        change: LeadershipChange,
        knows_eras: bool = False,
    ) -> Acquired:
        """Make `me` the leader after `after_term`, on the node's lease (0, or one that is gone: a new one)."""
        self._refuse_foreign_lease(node, lease_id)
        fresh_lease = 0
        for _ in range(ROUNDS):
            leader, ha = self._present(me.instance)
            if leader is not None and _is(leader.record, me, node, after_term + 1):
                return await self._acquired_before(me.instance, leader)
            if leader is not None or ha.record.term != after_term:
                if await self._is_current(me.instance, leader, ha):
                    return _not_acquired(leader, ha)
                continue
            fresh_lease = fresh_lease or await self._fresh_lease(lease_id)
            known = self._mirror.nodes[node]
            txn = txns.acquire(
                me.instance,
                ha=ha.record,
                ha_revision=ha.mod_revision,
                member=me.member,
                node=node,
                lease_id=fresh_lease,
                change=self._line(me.instance, ha.record, change),
                node_revision=known.mod_revision,
                knows_eras=knows_eras,
            )
            try:
                acquired = await self._store.commit(txn)
            except LeaseGone:
                acquired, fresh_lease = False, 0
            if acquired:
                log.info("leadership_acquired", instance=str(me.instance), member=me.member, term=after_term + 1)
                sync = txns.sync_of_new_leader(ha.record, me.member, knows_eras=knows_eras)
                return Acquired(acquired=True, term=after_term + 1, lease_id=fresh_lease, sync=sync)
        return _not_acquired(*self._present(me.instance))

    async def release(self, me: MemberRef, node: str, *, term: int, handover: str, change: LeadershipChange) -> bool:
        """Give up the leadership of `term`; False when it is not this member's any more."""
        for _ in range(ROUNDS):
            leader, ha = self._present(me.instance)
            if leader is None or not _is(leader.record, me, node, term):
                if await self._is_current(me.instance, leader, ha):
                    return False
                continue
            note = replace(change, term=term, member=me.member, kind="released", at=self._clock.wall())
            txn = txns.release(
                me.instance,
                leader=leader.record,
                leader_revision=leader.mod_revision,
                ha=history.with_line(ha.record, note),
                ha_revision=ha.mod_revision,
                handover=handover,
            )
            if await self._store.commit(txn):
                log.info("leadership_released", instance=str(me.instance), member=me.member, term=term)
                return True
        raise _contended(me.instance)

    async def cast_ballot(self, me: MemberRef, node: str, ballot: Ballot) -> bool:
        """Publish a candidate's position; False when somebody leads or the term has moved on."""
        for _ in range(ROUNDS):
            leader, ha = self._present(me.instance)
            if leader is not None or ha.record.term + 1 != ballot.term:
                if await self._is_current(me.instance, leader, ha):
                    return False
                continue
            lease_id = await self._ballot_leases.lease_for(node)
            txn = txns.cast_ballot(me.instance, ballot=ballot, ha_revision=ha.mod_revision, lease_id=lease_id)
            try:
                if await self._store.commit(txn):
                    return True
            except LeaseGone:
                self._ballot_leases.forget(node)
        raise _contended(me.instance)

    async def update(self, me: MemberRef, node: str, *, term: int, change: HaChange) -> bool:
        """Write leadership facts as the leader of `term`; False when the caller is not."""
        for _ in range(ROUNDS):
            leader, ha = self._present(me.instance)
            if leader is None or not _is(leader.record, me, node, term):
                if await self._is_current(me.instance, leader, ha):
                    return False
                continue
            next_ha = _changed(ha.record, change, me, wall=self._clock.wall())
            if next_ha == ha.record:
                if await self._is_current(me.instance, leader, ha):
                    return True
                continue
            txn = txns.update_ha(
                me.instance, leader_created=leader.create_revision, ha_revision=ha.mod_revision, next_ha=next_ha
            )
            if await self._store.commit(txn):
                return True
        raise _contended(me.instance)

    # --- heartbeats ---

    async def renew(self, node: str, instances: Sequence[InstanceRef], lease_id: int) -> Renewal:
        """Renew the node's lease; `instances` are those with a member on it. UNCONFIRMED while etcd is away."""
        leading = []
        for instance in instances:
            leader = self._mirror.leaders.get(instance)
            if leader is not None and leader.record.lease_id == lease_id:
                if leader.record.node != node:
                    raise _foreign_lease(node)
                leading.append(_key_of(instance, leader))
        try:
            return await self._leases.renew(lease_id, leading)
        except UnavailableError:
            return Renewal.UNCONFIRMED

    async def look_up(self, instances: Sequence[InstanceRef]) -> None:
        """Ask etcd about the leaders' leases that other hubs renew, for `standings`. May be cut short."""
        for instance in instances:
            leader = self._mirror.leaders.get(instance)
            if leader is not None:
                await self._leases.look_up(leader.record.lease_id, _key_of(instance, leader))

    def standings(self, instances: Sequence[InstanceRef]) -> list[Standing]:
        """Who leads each instance, and for how long at least as far as is known."""
        return [self._standing(instance) for instance in instances]

    def _standing(self, instance: InstanceRef) -> Standing:
        leader = self._mirror.leaders.get(instance)
        if leader is None:
            return Standing(instance=instance)
        remaining_s = self._leases.remaining_s(leader.record.lease_id)
        return Standing(
            instance=instance, term=leader.record.term, member=leader.record.member, remaining_s=remaining_s
        )

    # --- the inside ---

    def _line(self, instance: InstanceRef, ha: HaRecord, told: LeadershipChange) -> LeadershipChange:
        """The history line of an acquire after `ha.term`."""
        nodes = [node for node, ref in self._mirror.members if ref.instance == instance and ref.member == ha.leader]
        silent = any(node in self._mirror.silent for node in nodes)
        return history.acquired(ha, replace(told, at=self._clock.wall()), last_is_silent=silent)

    def _present(self, instance: InstanceRef) -> tuple[Versioned[LeaderRecord] | None, Versioned[HaRecord]]:
        """The mirror's leader and ha record; NotFoundError when the instance has no ha record."""
        ha = self._mirror.ha.get(instance)
        if ha is None:
            raise NotFoundError("has no leadership record: it is not placed yet, or deleted", object=str(instance))
        return self._mirror.leaders.get(instance), ha

    async def _acquired_before(self, instance: InstanceRef, leader: Versioned[LeaderRecord]) -> Acquired:
        """The same request again: its first answer was lost. Yes, if the lease can be renewed and the key is there."""
        lease_id, term = leader.record.lease_id, leader.record.term
        confirmed = await self._leases.renew(lease_id, [_key_of(instance, leader)]) is Renewal.CONFIRMED
        return Acquired(acquired=confirmed, term=term, lease_id=lease_id if confirmed else 0)

    async def _fresh_lease(self, lease_id: int) -> int:
        """The lease with its full time to live from now, or a new one."""
        if lease_id:
            try:
                await self._client.keepalive(lease_id)
            except LeaseGone:
                log.info("lease_replaced", lease_id=lease_id)
            else:
                return lease_id
        return await self._leases.grant()

    async def _is_current(
        self, instance: InstanceRef, leader: Versioned[LeaderRecord] | None, ha: Versioned[HaRecord]
    ) -> bool:
        """Whether etcd has just these records now (a linearizable read); if not, the mirror has caught up on return."""
        revision = leader.mod_revision if leader is not None else 0
        same = [txns.ModIs(keys.leader(instance), revision), txns.ModIs(keys.ha(instance), ha.mod_revision)]
        read = txns.all_of(same, [])
        # The store waits for the mirror, which a read that finds nothing new must not: it makes no revision of its own.
        return (await self._client.commit(read)).succeeded or await self._store.commit(read)

    def _refuse_foreign_lease(self, node: str, lease_id: int) -> None:
        """No node may hang its leadership on another node's life."""
        if lease_id and any(
            leader.record.lease_id == lease_id and leader.record.node != node
            for leader in self._mirror.leaders.values()
        ):
            raise _foreign_lease(node)


def _is(leader: LeaderRecord, me: MemberRef, node: str, term: int) -> bool:
    return leader.member == me.member and leader.node == node and leader.term == term


def _key_of(instance: InstanceRef, leader: Versioned[LeaderRecord]) -> txns.CreatedIs:
    """The leader key in the life the mirror has seen."""
    return txns.CreatedIs(keys.leader(instance), leader.create_revision)


def _not_acquired(leader: Versioned[LeaderRecord] | None, ha: Versioned[HaRecord]) -> Acquired:
    return Acquired(acquired=False, term=ha.record.term, leader=leader.record.member if leader is not None else "")


def _changed(ha: HaRecord, change: HaChange, me: MemberRef, *, wall: float) -> HaRecord:
    """The ha record with the change made. ConflictError for a sync record that a later one of its term has overtaken,
    and for another system identifier: that is another database."""
    if change.sync is not None and change.sync != ha.sync:
        with_it = txns.with_sync(ha, change.sync)
        if with_it is None:
            raise ConflictError(
                f"the sync record {change.sync.seq} comes late: {ha.sync.seq} is in force", object=str(me.instance)
            )
        ha = with_it
    if change.system_id and change.system_id != ha.system_id:
        if ha.system_id:
            raise ConflictError(
                f"the system identifier is {ha.system_id} and is set once; {change.system_id} is another database",
                object=str(me.instance),
                hint="Remove the member's data directory so that it is cloned anew.",
            )
        ha = replace(ha, system_id=change.system_id)
    if change.end_switchover and ha.switchover is not None and ha.switchover.id == change.end_switchover:
        ended = LeadershipChange(term=ha.term, member=me.member, reason=change.note, at=wall, kind="switchover_ended")
        ha = history.with_line(replace(ha, switchover=None), ended)
    if change.opened is not None and not any(c.kind == "opened" and c.term == ha.term for c in ha.history):
        ha = history.with_line(ha, replace(change.opened, term=ha.term, member=me.member, kind="opened", at=wall))
    return ha


def _contended(instance: InstanceRef) -> ConflictError:
    return ConflictError("its leadership record keeps changing", object=str(instance), hint="Try again.")


def _foreign_lease(node: str) -> DeniedError:
    return DeniedError("the lease is another node's", object=f"node/{node}", hint="Acquire with lease_id 0.")
