"""Everything one judgement on an instance rests on, as of one moment of the mirror: frozen, gathered once, never
changed.

`gather` picks it out of the mirror; `members`, `conditions`, `lifecycle` and `steps` judge it. Each record comes with
the mod_revision at which it was read (0 = absent), so that a step may compare that the world is still the one judged.

A member is one key below members/. It *leaves* once its desired state is `absent`; that is never taken back, so an
agent that has begun to delete can go on without asking. It is *gone* when its agent has reported DELETED after it was
told to leave (an older report may be of a former member of that name), or when its whole node has been removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Protocol

from core.ids import InstanceRef, MemberRef
from core.records import (
    HaRecord,
    InstanceRecord,
    InstanceStatus,
    LeaderRecord,
    MemberDesired,
    MemberNotice,
    NodeRecord,
    ObservedMember,
    ProjectRecord,
)
from core.specs.instance import InstanceSpec
from core.status import MemberState, Phase
from hub.judges.assemble import Versioned

Pair = tuple[str, MemberRef]  # node and member: what a key below members/ and observed/ names


class Contents(Protocol):
    """What is read of the mirror."""

    @property
    def nodes(self) -> Mapping[str, Versioned[NodeRecord]]: ...
    @property
    def projects(self) -> Mapping[str, Versioned[ProjectRecord]]: ...
    @property
    def instances(self) -> Mapping[InstanceRef, Versioned[InstanceRecord]]: ...
    @property
    def status(self) -> Mapping[InstanceRef, Versioned[InstanceStatus]]: ...
    @property
    def leaders(self) -> Mapping[InstanceRef, Versioned[LeaderRecord]]: ...
    @property
    def ha(self) -> Mapping[InstanceRef, Versioned[HaRecord]]: ...
    @property
    def members(self) -> Mapping[Pair, Versioned[MemberDesired]]: ...
    @property
    def observed(self) -> Mapping[Pair, Versioned[ObservedMember]]: ...
    @property
    def silent(self) -> Set[str]: ...
    @property
    def ports(self) -> Mapping[int, str]: ...
    @property
    def secrets(self) -> Mapping[InstanceRef, Mapping[str, object]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Current:
    """A member as desired and as last observed, with the revisions of both keys."""

    desired: MemberDesired
    revision: int = 0
    observed: ObservedMember | None = None
    observed_revision: int = 0

    @property
    def name(self) -> str:
        return self.desired.member

    @property
    def node(self) -> str:
        return self.desired.node

    @property
    def pair(self) -> Pair:
        return self.node, member_ref(self.desired)

    @property
    def place(self) -> str:
        """For sentences: `m2 on n2`."""
        return f"{self.name} on {self.node}"

    @property
    def state(self) -> MemberState:
        """As observed; DELETED without having left is a report about a former member of this name: nothing is there."""
        if self.observed is None or (self.observed.state is MemberState.DELETED and not self.leaving):
            return MemberState.ABSENT
        return self.observed.state

    @property
    def notices(self) -> tuple[MemberNotice, ...]:
        return self.observed.notices if self.observed is not None else ()

    @property
    def leaving(self) -> bool:
        return self.desired.desired == "absent"

    @property
    def deleted(self) -> bool:
        """Its agent has removed everything since it was told to."""
        return self.leaving and self.state is MemberState.DELETED and self.observed_revision > self.revision

    @property
    def joining(self) -> bool:
        """It has never done its work yet."""
        return self.observed is None or self.observed.generation == 0

    @property
    def restart_due(self) -> bool:
        done = self.observed.restart_id if self.observed is not None else 0
        return done < self.desired.restart_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """One instance. `spec` is None when the stored document is not valid by today's rules; `spec_problem` says why."""

    ref: InstanceRef
    record: InstanceRecord
    record_revision: int = 0
    spec: InstanceSpec | None = None
    spec_problem: str = ""
    members: tuple[Current, ...] = ()  # by number
    nodes: frozenset[str] = frozenset()  # those of the members' nodes that are enrolled
    silent: frozenset[str] = frozenset()  # those of the members' nodes that no hub hears of
    leader: LeaderRecord | None = None
    leader_revision: int = 0
    ha: HaRecord | None = None
    ha_revision: int = 0
    status: InstanceStatus | None = None
    status_revision: int = 0

    @property
    def phase(self) -> Phase:
        return self.status.phase if self.status is not None else Phase.PENDING

    @property
    def staying(self) -> tuple[Current, ...]:
        return tuple(current for current in self.members if not current.leaving)

    @property
    def leader_name(self) -> str:
        """Member name; empty while nobody leads."""
        return self.leader.member if self.leader is not None else ""

    @property
    def handed_over_at(self) -> float:
        """Wall seconds at which the leader before the present one handed over to it as asked; 0 = it did not. Only a
        handover tells steps with its release."""
        ha = self.ha or HaRecord()
        let_go = (c.at for c in reversed(ha.history) if c.kind == "released" and c.steps and c.term == ha.term - 1)
        return next(let_go, 0.0)

    @property
    def initialised(self) -> bool:
        """There is data that must not be lost."""
        return self.ha is not None and self.ha.system_id != ""

    @property
    def wanted(self) -> int:
        """Number of members by the spec; as many as there are when the spec cannot be read."""
        return 1 + self.spec.replicas if self.spec is not None else len(self.staying)

    @property
    def missing(self) -> int:
        """How many members have no node yet."""
        return max(0, self.wanted - len(self.staying))

    @property
    def may_join(self) -> bool:
        """A newcomer copies from the leader; before anything was initialised there is nothing to copy."""
        return self.leader is not None or not self.initialised

    def is_gone(self, current: Current) -> bool:
        """Nothing of the member is left, or nothing that could ever be reached."""
        return current.deleted or current.node not in self.nodes

    def is_lost(self, current: Current) -> bool:
        """Its node has been removed, or is not heard of."""
        return current.node not in self.nodes or current.node in self.silent


def member_ref(desired: MemberDesired) -> MemberRef:
    return MemberRef.from_key(f"{desired.project}.{desired.instance}.{desired.member}")


def member_number(name: str) -> int:
    """3 for m3; 0 for a name that was not made here."""
    digits = name.removeprefix("m")
    return int(digits) if digits.isdecimal() else 0


def gather(
    contents: Contents, ref: InstanceRef, pairs: Iterable[Pair], *, spec: InstanceSpec | None, spec_problem: str = ""
) -> Situation:
    """The situation of an instance that has a record. `pairs` are its keys below members/."""
    record = contents.instances[ref]
    leader, ha, status = contents.leaders.get(ref), contents.ha.get(ref), contents.status.get(ref)
    members = [_current(contents, pair) for pair in pairs]
    at = {current.node for current in members}
    return Situation(
        ref=ref,
        record=record.record,
        record_revision=record.mod_revision,
        spec=spec,
        spec_problem=spec_problem,
        members=tuple(sorted(members, key=lambda current: (member_number(current.name), current.node))),
        nodes=frozenset(at & contents.nodes.keys()),
        silent=frozenset(at & contents.silent),
        leader=leader.record if leader is not None else None,
        leader_revision=leader.mod_revision if leader is not None else 0,
        ha=ha.record if ha is not None else None,
        ha_revision=ha.mod_revision if ha is not None else 0,
        status=status.record if status is not None else None,
        status_revision=status.mod_revision if status is not None else 0,
    )


def _current(contents: Contents, pair: Pair) -> Current:
    desired, observed = contents.members[pair], contents.observed.get(pair)
    return Current(
        desired=desired.record,
        revision=desired.mod_revision,
        observed=observed.record if observed is not None else None,
        observed_revision=observed.mod_revision if observed is not None else 0,
    )
