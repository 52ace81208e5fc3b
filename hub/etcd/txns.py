"""Etcd transactions as values, made by pure functions: the rules of leadership are the compares written here.

The hub sends these values to etcd, the simulator evaluates the very same ones against its model of etcd; neither adds
judgement. Why they are safe:

- At most one leader key: `acquire` compares that the key is absent, and etcd orders transactions.
- Terms only grow, by one at each leader: `acquire` compares the mod_revision of the ha record it read and writes term+1
  in the same transaction, so of two candidates that saw the same record one loses.
- A leader's writes to the ha record (`update_ha`) compare its own leader key's create_revision, so a leader whose lease
  has gone changes nothing any more, however late its request arrives.
- `release` deletes only the key it was made for.

Every record that a transaction compares is named with the mod_revision at which it was read; 0 means absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from core.ids import InstanceRef
from core.records import (
    ERAS_MAX,
    HISTORY_MAX,
    Ballot,
    Era,
    HaRecord,
    LeaderRecord,
    LeadershipChange,
    SyncRecord,
    to_json,
)
from hub.etcd import keys


@dataclass(frozen=True, slots=True)
class ModIs:
    """The key's mod_revision is exactly this; 0 = the key is absent."""

    key: str
    revision: int


@dataclass(frozen=True, slots=True)
class CreatedIs:
    """The key's create_revision is exactly this: the same life of the key, however often rewritten."""

    key: str
    revision: int


Compare = ModIs | CreatedIs


@dataclass(frozen=True, slots=True)
class Put:
    key: str
    value: bytes
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    key: str


@dataclass(frozen=True, slots=True)
class DeletePrefix:
    prefix: str


Op = Put | Delete | DeletePrefix


@dataclass(frozen=True, slots=True)
class Txn:
    """If all compares hold, all of `then` happens at one revision; else nothing. No key may be touched twice."""

    compares: tuple[Compare, ...]
    then: tuple[Op, ...]


# --- leadership -----------------------------------------------------------------------------------------------------


def acquire(
    ref: InstanceRef,
    *,
    ha: HaRecord,
    ha_revision: int,
    member: str,
    node: str,
    lease_id: int,
    change: LeadershipChange,
    node_revision: int,
    knows_eras: bool = False,
) -> Txn:
    """Take the leadership after `ha.term`. `change` is written to the history; its term and kind are set here.
    `node_revision` is the mod_revision of the node's record: a node that was removed meanwhile leads nothing.

    An order to force a failover is over with it: whoever leads now was elected after it, by it or against it.
    `knows_eras`: the member acknowledges nothing before its own era is on record (agents of older versions do)."""
    term = ha.term + 1
    leader = LeaderRecord(member=member, node=node, term=term, lease_id=lease_id)
    line = replace(change, term=term, member=member, kind="forced" if _by_force(ha, member) else "led")
    history = (*ha.history, line)[-HISTORY_MAX:]
    ended = ha.switchover is not None and ha.switchover.target in ("", member) and ha.leader != member
    next_ha = replace(
        ha,
        term=term,
        leader=member,
        handover="",
        switchover=None if ended else ha.switchover,
        forced=None,
        sync=sync_of_new_leader(ha, member, knows_eras=knows_eras),
        history=history,
    )
    return Txn(
        compares=(
            ModIs(keys.leader(ref), 0),
            ModIs(keys.ha(ref), ha_revision),
            ModIs(keys.node(node), node_revision),
        ),
        then=(
            Put(keys.leader(ref), to_json(leader), lease_id),
            Put(keys.ha(ref), to_json(next_ha)),
            DeletePrefix(keys.ballots_of_term(ref, term)),
        ),
    )


def _by_force(ha: HaRecord, member: str) -> bool:
    return ha.forced is not None and ha.forced.target == member and ha.forced.after_term == ha.term


def sync_of_new_leader(ha: HaRecord, member: str, *, knows_eras: bool) -> SyncRecord:
    """In async mode the record says nothing. In the other modes it goes on saying where the commits of before are, for
    the new leader acknowledges none before it has added its own era. So one that dies before that is followed by
    whoever could have led instead of it. The last leader itself leads on with its own log: its record stays true.

    A leader that was forced may lack commits, and what it has counts from then on: nobody but itself is on record.
    """
    sync = ha.sync
    if sync.mode == "async" or not ha.system_id or not knows_eras or _by_force(ha, member):
        return SyncRecord(mode=sync.mode)
    if member == ha.leader:
        return sync
    eras = sync.eras or (Era(leader=ha.leader, k=sync.k, names=sync.names),)
    return SyncRecord(mode=sync.mode, eras=eras if len(eras) <= ERAS_MAX else ())


def release(
    ref: InstanceRef,
    *,
    leader: LeaderRecord,
    leader_revision: int,
    ha: HaRecord,
    ha_revision: int,
    handover: str,
) -> Txn:
    """Give up the leadership of `leader`, whose engine has stopped writing: nobody need wait for its lease."""
    next_ha = replace(ha, released_term=leader.term, handover=handover)
    return Txn(
        compares=(ModIs(keys.leader(ref), leader_revision), ModIs(keys.ha(ref), ha_revision)),
        then=(Delete(keys.leader(ref)), Put(keys.ha(ref), to_json(next_ha))),
    )


def cast_ballot(ref: InstanceRef, *, ballot: Ballot, ha_revision: int, lease_id: int) -> Txn:
    """Publish a candidate's position while nobody leads and the term has not moved."""
    return Txn(
        compares=(ModIs(keys.leader(ref), 0), ModIs(keys.ha(ref), ha_revision)),
        then=(Put(keys.ballot(ref, ballot.term, ballot.member), to_json(ballot), lease_id),),
    )


def update_ha(ref: InstanceRef, *, leader_created: int, ha_revision: int, next_ha: HaRecord) -> Txn:
    """Write `next_ha` as the leader whose key was created at `leader_created`."""
    return Txn(
        compares=(CreatedIs(keys.leader(ref), leader_created), ModIs(keys.ha(ref), ha_revision)),
        then=(Put(keys.ha(ref), to_json(next_ha)),),
    )


def with_sync(ha: HaRecord, sync: SyncRecord) -> HaRecord | None:
    """The record with `sync` for `update_ha`; None when a later one of this term is there already.

    A request may be held up on its way for seconds, while its sender has gone on to another set and told the engine so.
    What comes late must not bring the old claim back: it would be false by then.
    """
    if sync.seq < ha.sync.seq or (sync.seq == ha.sync.seq and sync != ha.sync):
        return None
    return replace(ha, sync=sync)


def request_on_ha(ref: InstanceRef, *, ha_revision: int, next_ha: HaRecord) -> Txn:
    """Write `next_ha` on an operator's behalf (switchover request, pause)."""
    return Txn(compares=(ModIs(keys.ha(ref), ha_revision),), then=(Put(keys.ha(ref), to_json(next_ha)),))


# --- plain compare-and-swap -------------------------------------------------------------------------------------------


def put_if(key: str, value: bytes, *, revision: int, lease_id: int = 0) -> Txn:
    """Write one key that is still at `revision` (0 = absent)."""
    return Txn(compares=(ModIs(key, revision),), then=(Put(key, value, lease_id),))


def delete_if(key: str, *, revision: int) -> Txn:
    """Delete one key that is still at `revision`."""
    return Txn(compares=(ModIs(key, revision),), then=(Delete(key),))


def all_of(compares: Sequence[Compare], then: Sequence[Op]) -> Txn:
    """Several changes as one."""
    return Txn(tuple(compares), tuple(then))
