"""From the mirror to one node's whole desired state: the answer of a poll.

The state of a node is its members with their secrets, and a view of each instance that has a member there: leader, ha
record, ballots of the running election, and every member with its node's address. It is a pure function of what lies in
etcd, so every hub assembles the same bytes at the same etcd revision.

The poll's `revision` is a hash of those bytes (`fingerprint`), not an etcd revision. So all hubs agree on it, an agent
may change hubs without being sent anything, a write that changes nothing for a node does not wake it, and an etcd that
was restored to an older revision answers right. It is compared for equality only.

For the same reason `InstanceView.revision` is the newest mod_revision among the instance's own keys, not etcd's: it
stands still while the instance does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from core.ids import InstanceRef, MemberRef
from core.records import (
    Ballot,
    HaRecord,
    InstanceView,
    LeaderRecord,
    LeadershipChange,
    MemberDesired,
    MemberSecrets,
    NodeRecord,
    NodeState,
    ObservedMember,
    PeerMember,
)

T_co = TypeVar("T_co", covariant=True)


class Versioned(Protocol[T_co]):
    """A record with the etcd revisions of its key."""

    @property
    def record(self) -> T_co: ...
    @property
    def mod_revision(self) -> int: ...
    @property
    def create_revision(self) -> int: ...


class Contents(Protocol):
    """What `assemble` reads of the mirror."""

    @property
    def nodes(self) -> Mapping[str, Versioned[NodeRecord]]: ...
    @property
    def leaders(self) -> Mapping[InstanceRef, Versioned[LeaderRecord]]: ...
    @property
    def ha(self) -> Mapping[InstanceRef, Versioned[HaRecord]]: ...
    @property
    def members(self) -> Mapping[tuple[str, MemberRef], Versioned[MemberDesired]]: ...
    @property
    def observed(self) -> Mapping[tuple[str, MemberRef], Versioned[ObservedMember]]: ...
    @property
    def ballots(self) -> Mapping[InstanceRef, Mapping[str, Versioned[Ballot]]]: ...
    @property
    def silent(self) -> Set[str]: ...


@dataclass(frozen=True, slots=True)
class Places:
    """Which member lives where, both ways, in a stable order."""

    on_node: Mapping[str, tuple[MemberRef, ...]]
    of_instance: Mapping[InstanceRef, tuple[tuple[str, MemberRef], ...]]

    def neighbours(self, node: str) -> frozenset[str]:
        """All nodes that share an instance with this one, itself included."""
        return frozenset({node}).union(*(self.nodes_of(ref.instance) for ref in self.on_node.get(node, ())))

    def nodes_of(self, instance: InstanceRef) -> frozenset[str]:
        """All nodes with a member of the instance."""
        return frozenset(node for node, _ in self.of_instance.get(instance, ()))


def places(members: Iterable[tuple[str, MemberRef]]) -> Places:
    """The index over all (node, member) pairs."""
    on_node: dict[str, list[MemberRef]] = {}
    of_instance: dict[InstanceRef, list[tuple[str, MemberRef]]] = {}
    for node, ref in members:
        on_node.setdefault(node, []).append(ref)
        of_instance.setdefault(ref.instance, []).append((node, ref))
    return Places(
        {node: tuple(sorted(refs)) for node, refs in on_node.items()},
        {instance: tuple(sorted(pairs, key=_by_member)) for instance, pairs in of_instance.items()},
    )


def _by_member(pair: tuple[str, MemberRef]) -> tuple[MemberRef, str]:
    return pair[1], pair[0]


def assemble(contents: Contents, where: Places, node: str, secrets: Mapping[str, MemberSecrets]) -> NodeState:
    """The whole desired state of `node`. `secrets` are the node's members' (by MemberRef.key), opened by the shell."""
    refs = where.on_node.get(node, ())
    instances = sorted({ref.instance for ref in refs})
    views = (instance_view(contents, where, instance) for instance in instances)
    return NodeState(
        members=tuple(contents.members[node, ref].record for ref in refs),
        secrets={ref.key: secrets[ref.key] for ref in refs if ref.key in secrets},
        views=tuple(view for view in views if view is not None),
    )


def instance_view(contents: Contents, where: Places, instance: InstanceRef) -> InstanceView | None:
    """What the members of an instance need to know of it; None while it has no ha record, so nobody can lead it."""
    ha = contents.ha.get(instance)
    if ha is None:
        return None
    leader = contents.leaders.get(instance)
    ballots = _running_election(contents, instance, ha.record.term + 1)
    pairs = where.of_instance.get(instance, ())
    keys: list[Versioned[object]] = [ha, *ballots]
    keys += [contents.members[pair] for pair in pairs]
    keys += [contents.observed[pair] for pair in pairs if pair in contents.observed]
    if leader is not None:
        keys.append(leader)
    return InstanceView(
        project=instance.project,
        instance=instance.instance,
        leader=leader.record if leader is not None else None,
        ha=_remembered(ha.record),
        ballots=tuple(ballot.record for ballot in ballots),
        members=tuple(_peer(contents, node, ref) for node, ref in pairs),
        revision=max(key.mod_revision for key in keys),
    )


def _remembered(ha: HaRecord) -> HaRecord:
    """Of the history only what decisions rest on: who led or let go where. The stories are for people, and long."""
    lines = tuple(
        LeadershipChange(
            term=line.term, member=line.member, reason="", timeline=line.timeline, lsn=line.lsn, kind=line.kind
        )
        for line in ha.history
        if line.timeline
    )
    return replace(ha, history=lines)


def _running_election(contents: Contents, instance: InstanceRef, term: int) -> list[Versioned[Ballot]]:
    """The ballots for `term`, by member; those of earlier elections say nothing any more."""
    cast = contents.ballots.get(instance, {}).values()
    return sorted((b for b in cast if b.record.term == term), key=lambda ballot: ballot.record.member)


def _peer(contents: Contents, node: str, ref: MemberRef) -> PeerMember:
    desired = contents.members[node, ref].record
    known = contents.nodes.get(node)
    seen = contents.observed.get((node, ref))
    facts = known.record if known is not None else NodeRecord(name=node)
    observed = seen.record if seen is not None else _unseen(desired)
    return PeerMember(
        member=ref.member,
        node=node,
        address=facts.address,
        engine_port=desired.engine_port,
        peer_port=facts.peer_port,
        alive=known is not None and node not in contents.silent,
        state=observed.state,
        role=observed.role,
        timeline=observed.timeline,
        engine_tls=observed.engine_tls,
        streaming_from=observed.streaming_from,
        unfit=observed.unfit,
        late=observed.late,
        no_failover=desired.no_failover,
        priority=desired.priority,
        no_load_balance=desired.no_load_balance,
        clone_source=desired.clone_source,
        read_weight=desired.read_weight,
        upstream=desired.upstream,
    )


def _unseen(desired: MemberDesired) -> ObservedMember:
    return ObservedMember(project=desired.project, instance=desired.instance, member=desired.member, node=desired.node)


def fingerprint(state_json: bytes) -> int:
    """The poll's `revision` of a state: 64 bits of its SHA-256, never 0 (which means: the agent knows nothing)."""
    return int.from_bytes(hashlib.sha256(state_json).digest()[:8], "big") or 1
