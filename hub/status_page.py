"""What operators are shown: plain dictionaries, made from the mirror and the heartbeats. Pure.

The fields are described in docs/reference/status.md; names there and here are the same. Times are ISO text in UTC,
sizes bytes, ages seconds. What this hub does not know is null rather than a guess: figures that come by heartbeat are
known only to the hub that the node talks to.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

from core.clock import iso
from core.ids import InstanceRef, MemberRef
from core.positions import Lsn
from core.records import (
    REMOTE,
    HaRecord,
    HubRecord,
    InstanceRecord,
    InstanceStatus,
    LeaderRecord,
    LeadershipChange,
    MemberDesired,
    NodeRecord,
    ObservedMember,
    ProjectRecord,
)
from hub.admission import usage
from hub.judges.assemble import Places, places
from hub.liveness import MemberSample, NodeSample

T_co = TypeVar("T_co", covariant=True)
Page = dict[str, Any]


class Versioned(Protocol[T_co]):
    """A record as the mirror keeps it."""

    @property
    def record(self) -> T_co: ...


class Contents(Protocol):
    """What is read of the mirror."""

    @property
    def store_id(self) -> str: ...
    @property
    def revision(self) -> int: ...
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
    def members(self) -> Mapping[tuple[str, MemberRef], Versioned[MemberDesired]]: ...
    @property
    def observed(self) -> Mapping[tuple[str, MemberRef], Versioned[ObservedMember]]: ...
    @property
    def silent(self) -> Set[str]: ...
    @property
    def hubs(self) -> Mapping[str, Versioned[HubRecord]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Everything a page is made from. `samples` are the last heartbeats by node, their `at` on the clock of `now`."""

    contents: Contents
    where: Places
    samples: Mapping[str, NodeSample]
    now: float  # monotonic
    wall: float


def scene(contents: Contents, samples: Mapping[str, NodeSample], *, now: float, wall: float) -> Scene:
    """The scene of this moment."""
    return Scene(contents=contents, where=places(contents.members), samples=samples, now=now, wall=wall)


def overview(scene: Scene) -> Page:
    """Everything at a glance."""
    contents = scene.contents
    return {
        "at": iso(scene.wall),
        "store_id": contents.store_id,
        "revision": contents.revision,
        "hubs": [hub_page(contents.hubs[name].record) for name in sorted(contents.hubs)],
        "nodes": [{"name": name, **node_page(scene, name)} for name in sorted(contents.nodes)],
        "projects": [{"name": name, **project_page(scene, name)} for name in sorted(contents.projects)],
        "instances": [{"name": str(ref), **instance_page(scene, ref)} for ref in sorted(contents.instances)],
    }


def hub_page(hub: HubRecord) -> Page:
    return {
        "name": hub.hub,
        "agent_address": hub.agent_address,
        "operator_address": hub.operator_address,
        "nodes": sorted(hub.nodes),
    }


# --- nodes ----------------------------------------------------------------------------------------------------------


def node_spec(node: NodeRecord) -> Page:
    """The Node document that would make the node as it is."""
    return {
        "kind": "Node",
        "version": 1,
        "name": node.name,
        "labels": dict(node.labels),
        "price_per_hour": node.price_per_hour,
        "cordoned": node.cordoned,
    }


def node_page(scene: Scene, name: str) -> Page:
    """State of a node: what it has, what is taken, how it is."""
    node = scene.contents.nodes[name].record
    members = [scene.contents.members[name, ref].record for ref in scene.where.on_node.get(name, ())]
    taken = {
        "cpu": sum(member.cpu for member in members),
        "memory_bytes": sum(member.memory_bytes for member in members),
        "disk_bytes": sum(member.disk_bytes for member in members),
    }
    capacity = {"cpu": node.cpu, "memory_bytes": node.memory_bytes, "disk_bytes": node.disk_bytes}
    return {
        "address": node.address,
        "peer_port": node.peer_port,
        "zone": node.zone,
        "region": node.region,
        "cordoned": node.cordoned,
        "silent": name in scene.contents.silent,
        "last_heard_s": _last_heard_s(scene, name),
        "heard_by": sorted(hub.record.hub for hub in scene.contents.hubs.values() if name in hub.record.nodes),
        "capacity": capacity,
        "free": {what: capacity[what] - taken[what] for what in capacity},
        "load": _load(scene.samples.get(name)),
        "engines": [asdict(offer) for offer in node.engines],
        "members": [f"{member.project}/{member.instance}/{member.member}" for member in members],
        "agent_version": node.agent_version,
        "certificate_serial": node.certificate_serial,
        "enrolled_at": _time(node.enrolled_at),
    }


def _last_heard_s(scene: Scene, node: str) -> float | None:
    sample = scene.samples.get(node)
    return round(max(0.0, scene.now - sample.at), 1) if sample is not None else None


def _load(sample: NodeSample | None) -> Page | None:
    if sample is None:
        return None
    return {
        "cpu_used": round(sample.cpu_used, 3),
        "memory_used_bytes": sample.memory_used_bytes,
        "disk_used_bytes": sample.disk_used_bytes,
    }


# --- projects -------------------------------------------------------------------------------------------------------


def project_page(scene: Scene, name: str) -> Page:
    """State of a project: its instances and what they take."""
    instances = {ref: known.record for ref, known in scene.contents.instances.items() if ref.project == name}
    return {"instances": [str(ref) for ref in sorted(instances)], "usage": asdict(usage(instances.values()))}


# --- instances ------------------------------------------------------------------------------------------------------


def instance_page(scene: Scene, ref: InstanceRef) -> Page:
    """State of an instance: phase, conditions, members, ways in, leadership."""
    record = scene.contents.instances[ref].record
    known = scene.contents.status.get(ref)
    status = known.record if known is not None else InstanceStatus(project=ref.project, name=ref.instance)
    leader = scene.contents.leaders.get(ref)
    ha = scene.contents.ha.get(ref)
    placed = scene.where.of_instance.get(ref, ())
    return {
        "phase": status.phase.value,
        "since": _time(status.since or record.created_at),
        "created_at": _time(record.created_at),
        "deleting": record.deleting,
        "generation": record.generation,
        "observed_generation": status.observed_generation,
        "restart_id": record.restart_id,
        "conditions": [
            {**asdict(condition), "type": condition.type.value, "since": _time(condition.since)}
            for condition in status.conditions
        ],
        "primary": status.primary,
        "standby": _standby(scene, ref, record, ha.record if ha is not None else None),
        "leader": _leader(leader.record) if leader is not None else None,
        "members": [member_page(scene, node, member) for node, member in placed],
        "endpoints": _endpoints(status, hosts(scene, ref)),
        "ha": _ha(ha.record) if ha is not None else None,
    }


def _standby(scene: Scene, ref: InstanceRef, record: InstanceRecord, ha: HaRecord | None) -> Page | None:
    """Whom a standby instance follows, through which member and how far behind; None of any other instance."""
    if ha is None or not ha.standby:
        return None
    leader = scene.contents.leaders.get(ref)
    placed = scene.where.of_instance.get(ref, ())
    leads = [pair for pair in placed if leader is not None and pair[1].member == leader.record.member]
    page = member_page(scene, *leads[0]) if leads else {}
    return {
        "hosts": list((record.spec.get("standby") or {}).get("hosts") or ()),
        "member": page.get("name", ""),
        "streaming": page.get("streaming_from") == REMOTE,
        "lag_bytes": page.get("lag_bytes"),
    }


def hosts(scene: Scene, ref: InstanceRef) -> list[str]:
    """Addresses of the nodes with a member of the instance, the leader's first: each runs the proxy for it."""
    leader = scene.contents.leaders.get(ref)
    first = leader.record.node if leader is not None else ""
    nodes = sorted(scene.where.nodes_of(ref), key=lambda node: (node != first, node))
    addresses = [scene.contents.nodes[node].record.address for node in nodes if node in scene.contents.nodes]
    return [address for address in dict.fromkeys(addresses) if address]


def member_page(scene: Scene, node: str, ref: MemberRef) -> Page:
    """State of one member: as its agent last reported it, with the figures of the last heartbeat where we have one."""
    desired = scene.contents.members[node, ref].record
    known = scene.contents.observed.get((node, ref))
    seen = known.record if known is not None else None
    where = scene.contents.nodes.get(node)
    page: Page = {
        "name": ref.member,
        "node": node,
        "address": where.record.address if where is not None else "",
        "zone": where.record.zone if where is not None else "",
        "silent": node in scene.contents.silent,
        "desired": desired.desired,
        "tags": member_tags(desired),
        "state": seen.state.value if seen is not None else "absent",
        "role": seen.role.value if seen is not None else "unknown",
        "timeline": seen.timeline if seen is not None else 0,
        "streaming_from": seen.streaming_from if seen is not None else "",
        "generation": seen.generation if seen is not None else 0,
        "restart_id": seen.restart_id if seen is not None else 0,
        "engine_version": seen.engine_version if seen is not None else "",
        "engine_tls": seen.engine_tls if seen is not None else False,
        "pending_restart": list(seen.pending_restart) if seen is not None else [],
        "reason": seen.reason if seen is not None else "",
        "message": seen.message if seen is not None else "",
        "notices": [{"reason": n.reason, "message": n.message} for n in seen.notices] if seen is not None else [],
        "since": _time(seen.since) if seen is not None else None,
    }
    return {**page, **_figures(_sample_of(scene, node, ref))}


def member_tags(desired: MemberDesired) -> Page:
    """What is particular to the member; what is not is left out."""
    weight = desired.read_weight
    tags: Page = {
        "no_failover": desired.no_failover,
        "priority": desired.priority,
        "no_load_balance": desired.no_load_balance,
        "clone_source": desired.clone_source,
        "read_weight": weight if weight != 1 else 0,
        "upstream": desired.upstream,
    }
    return {name: value for name, value in tags.items() if value}


def _sample_of(scene: Scene, node: str, ref: MemberRef) -> MemberSample | None:
    sample = scene.samples.get(node)
    if sample is None or node in scene.contents.silent:
        return None
    return next((member for member in sample.members if member.ref == ref), None)


def _figures(sample: MemberSample | None) -> Page:
    if sample is None:
        return {"lsn": None, "lag_bytes": None, "connections": None, "data_bytes": None}
    return {
        "timeline": sample.timeline,
        "lsn": str(Lsn(sample.lsn)) if sample.lsn else None,
        "lag_bytes": sample.lag_bytes,
        "connections": sample.connections,
        "data_bytes": sample.data_bytes or None,
    }


def _leader(leader: LeaderRecord) -> Page:
    return {"member": leader.member, "node": leader.node, "term": leader.term}


def _endpoints(status: InstanceStatus, addresses: list[str]) -> Page | None:
    if not status.rw_port or not addresses:
        return None
    return {
        "rw": {"hosts": addresses, "port": status.rw_port},
        "ro": {"hosts": addresses, "port": status.ro_port},
        "engine_port": status.engine_port,
    }


def _ha(ha: HaRecord) -> Page:
    request, wish, order = ha.switchover, ha.scheduled, ha.forced
    return {
        "term": ha.term,
        "last_leader": ha.leader,
        "system_id": ha.system_id,
        "sync": {"mode": ha.sync.mode, "k": ha.sync.k, "names": list(ha.sync.names)},
        "paused": ha.paused,
        "paused_by": ha.paused_by,
        "paused_at": _time(ha.paused_at),
        "pause_reason": ha.pause_reason,
        "switchover": {**asdict(request), "requested_at": _time(request.requested_at)} if request is not None else None,
        "scheduled": {**asdict(wish), "requested_at": _time(wish.requested_at), "at": _time(wish.at)}
        if wish is not None
        else None,
        "forced": {**asdict(order), "requested_at": _time(order.requested_at)}
        if order is not None and order.after_term == ha.term
        else None,
        "history": [change_page(change) for change in ha.history],
    }


def change_page(change: LeadershipChange) -> Page:
    """One line of the history."""
    steps = [asdict(step) for step in change.steps]
    return {**asdict(change), "at": _time(change.at), "ballots": list(change.ballots), "steps": steps}


def _time(wall_s: float) -> str | None:
    return iso(wall_s) if wall_s else None
