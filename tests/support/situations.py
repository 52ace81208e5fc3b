"""Situations of an instance, built by hand: what the judges are asked about in tests.

`healthy()` is demo/orders of three members on n1, n2, n3 that all do their work, m1 leading in term 1. Tests change
what they are about with `dataclasses.replace`, `with_member` and `observed`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from core.ids import InstanceRef
from core.records import (
    EngineOffer,
    HaRecord,
    InstanceRecord,
    InstanceStatus,
    LeaderRecord,
    NodeRecord,
    ObservedMember,
    SyncRecord,
)
from core.specs.instance import InstanceSpec
from core.status import MemberState, Phase, Role
from hub.judges.members import Ports, desired_member
from hub.judges.situation import Current, Situation

ORDERS = InstanceRef("demo", "orders")
GIB = 1 << 30
PORTS = Ports(engine=15000, rw=15001, ro=15002)


def node(name: str, **facts: Any) -> NodeRecord:
    """A node of 4 cores, 8 GiB memory, 100 GiB disk that offers PostgreSQL 15 and 18, in a zone named after it."""
    record = NodeRecord(
        name=name,
        zone=f"zone-{name}",
        region="north",
        cpu=4.0,
        memory_bytes=8 * GIB,
        disk_bytes=100 * GIB,
        engines=(offer(15, "15.12"), offer(18, "18.6", tls=False)),
    )
    return replace(record, **facts)


def offer(version: int, full_version: str = "", *, tls: bool = True, engine: str = "postgresql") -> EngineOffer:
    text = full_version or f"{version}.1"
    return EngineOffer(
        engine=engine, version=version, full_version=text, tls=tls, bin_dir=f"/opt/{engine}/{version}/bin"
    )


def spec(**fields: Any) -> InstanceSpec:
    return InstanceSpec.model_validate({"project": "demo", "name": "orders", "replicas": 2, **fields})


def record(of: InstanceSpec, **fields: Any) -> InstanceRecord:
    return replace(InstanceRecord(project=of.project, name=of.name, spec=of.model_dump(mode="json")), **fields)


def current(
    number: int, of: InstanceSpec, instance: InstanceRecord, *, leader: str = "m1", **observed_facts: Any
) -> Current:
    """m<number> on n<number>, doing its work."""
    name, where = f"m{number}", f"n{number}"
    desired = desired_member(
        instance, of, name=name, node=where, engine_version=18, ports=PORTS, restart_id=instance.restart_id
    )
    leads = name == leader
    seen = ObservedMember(
        project=of.project,
        instance=of.name,
        member=name,
        node=where,
        state=MemberState.RUNNING,
        role=Role.PRIMARY if leads else Role.REPLICA,
        timeline=1,
        generation=instance.generation,
        restart_id=instance.restart_id,
        streaming_from="" if leads else leader,
        engine_version="18.6",
        engine_tls=True,
    )
    return Current(desired=desired, revision=10, observed=replace(seen, **observed_facts), observed_revision=20)


def healthy(phase: Phase = Phase.RUNNING, of: InstanceSpec | None = None, **record_fields: Any) -> Situation:
    """Everything as it should be."""
    of = of or spec()
    instance = record(of, **record_fields)
    members = tuple(current(number, of, instance) for number in range(1, of.replicas + 2))
    return Situation(
        ref=ORDERS,
        record=instance,
        record_revision=5,
        spec=of,
        members=members,
        nodes=frozenset(member.node for member in members),
        leader=LeaderRecord(member="m1", node="n1", term=1),
        leader_revision=30,
        ha=HaRecord(term=1, leader="m1", bootstrap="m1", system_id="7", sync=SyncRecord(mode=of.replication.mode)),
        ha_revision=31,
        status=InstanceStatus(project="demo", name="orders", phase=phase, observed_generation=1, since=100.0),
        status_revision=40,
    )


def member(s: Situation, name: str) -> Current:
    return next(one for one in s.members if one.name == name)


def with_member(s: Situation, name: str, **fields: Any) -> Situation:
    """The situation with fields of one `Current` changed."""
    changed = tuple(replace(one, **fields) if one.name == name else one for one in s.members)
    return replace(s, members=changed)


def observed(s: Situation, name: str, **facts: Any) -> Situation:
    """The situation with one member observed differently."""
    seen = member(s, name).observed
    assert seen is not None
    return with_member(s, name, observed=replace(seen, **facts))


def desired(s: Situation, name: str, **wishes: Any) -> Situation:
    """The situation with one member desired differently."""
    return with_member(s, name, desired=replace(member(s, name).desired, **wishes))


def unobserved(s: Situation, name: str) -> Situation:
    return with_member(s, name, observed=None, observed_revision=0)


def leaderless(s: Situation) -> Situation:
    return replace(s, leader=None, leader_revision=0)
