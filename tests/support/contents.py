"""Contents of etcd as the mirror would hold them, built by hand for tests of pure code and of the board."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from core.ids import InstanceRef, MemberName, MemberRef
from core.records import (
    Ballot,
    HaRecord,
    LeaderRecord,
    MemberDesired,
    NodeRecord,
    ObservedMember,
)
from core.status import MemberState, Role

T = TypeVar("T")
ORDERS = InstanceRef("demo", "orders")


@dataclass(frozen=True, slots=True)
class Version(Generic[T]):
    """A record with revisions, as the mirror gives it."""

    record: T
    mod_revision: int
    create_revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Touch:
    """A batch of changes."""

    nodes: set[str] = field(default_factory=set)
    instances: set[InstanceRef] = field(default_factory=set)
    everything: bool = False


def member_ref(instance: InstanceRef, name: str) -> MemberRef:
    return MemberRef(instance, MemberName(name))


@dataclass
class World:
    """The mirror's dictionaries. Every write takes the next revision and returns what it touched."""

    store_id: str = "life-1"
    revision: int = 0
    nodes: dict[str, Version[NodeRecord]] = field(default_factory=dict)
    leaders: dict[InstanceRef, Version[LeaderRecord]] = field(default_factory=dict)
    ha: dict[InstanceRef, Version[HaRecord]] = field(default_factory=dict)
    members: dict[tuple[str, MemberRef], Version[MemberDesired]] = field(default_factory=dict)
    observed: dict[tuple[str, MemberRef], Version[ObservedMember]] = field(default_factory=dict)
    ballots: dict[InstanceRef, dict[str, Version[Ballot]]] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)

    def _put(self, place: dict[Any, Version[Any]], key: object, record: object) -> None:
        self.revision += 1
        before = place.get(key)
        place[key] = Version(record, self.revision, before.create_revision if before else self.revision)

    def node(self, name: str, **facts: Any) -> Touch:
        known = self.nodes.get(name)
        record = known.record if known else NodeRecord(name=name, address=f"10.0.0.{len(self.nodes) + 1}", peer_port=7)
        self._put(self.nodes, name, replace(record, **facts))
        return Touch(nodes={name})

    def member(self, node: str, name: str, instance: InstanceRef = ORDERS, **wishes: Any) -> Touch:
        ref = member_ref(instance, name)
        record = MemberDesired(
            project=instance.project, instance=instance.instance, member=name, node=node, engine_port=15000
        )
        self._put(self.members, (node, ref), replace(record, **wishes))
        return Touch(nodes={node}, instances={instance})

    def remove_member(self, node: str, name: str, instance: InstanceRef = ORDERS) -> Touch:
        self.revision += 1
        del self.members[node, member_ref(instance, name)]
        return Touch(nodes={node}, instances={instance})

    def observe(self, node: str, name: str, instance: InstanceRef = ORDERS, **facts: Any) -> Touch:
        ref = member_ref(instance, name)
        record = ObservedMember(
            project=instance.project,
            instance=instance.instance,
            member=name,
            node=node,
            state=MemberState.RUNNING,
            role=Role.REPLICA,
        )
        self._put(self.observed, (node, ref), replace(record, **facts))
        return Touch(nodes={node}, instances={instance})

    def ha_record(self, instance: InstanceRef = ORDERS, **facts: Any) -> Touch:
        known = self.ha.get(instance)
        self._put(self.ha, instance, replace(known.record if known else HaRecord(), **facts))
        return Touch(instances={instance})

    def lead(self, node: str, name: str, term: int, instance: InstanceRef = ORDERS, lease_id: int = 77) -> Touch:
        self._put(self.leaders, instance, LeaderRecord(member=name, node=node, term=term, lease_id=lease_id))
        return Touch(instances={instance})

    def cast(self, node: str, name: str, term: int, instance: InstanceRef = ORDERS) -> Touch:
        ballot = Ballot(member=name, node=node, term=term, timeline=1, lsn=100)
        self._put(self.ballots.setdefault(instance, {}), name, ballot)
        return Touch(instances={instance})

    def mark_silent(self, node: str) -> Touch:
        self.revision += 1
        self.silent.add(node)
        return Touch(nodes={node})
