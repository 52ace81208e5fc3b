"""Where members go, and why not elsewhere: pure, deterministic, complete.

`place` filters, then scores. The filter holds the hard rules, each a function that gives the refusal in words, so that
`explain` can print every reason against every node. The score only orders what has passed: spread over zones first
(fewest members of this instance), then free memory, then price, then the name, so equal facts give equal answers.

Complete means: if any choice of nodes satisfies all rules, one is found. No search is needed for that. The members of
an instance are alike, so whether a node fits does not depend on which member it is, nor on where the others went,
except that no two may share a node (or zone). Hence a choice exists exactly if enough distinct fitting nodes (or
zones with a fitting node) exist, and taking the best one left, each time from another node (or zone), never runs into
a dead end.

An engine version that the spec leaves open is the newest major that enough fitting nodes offer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from core.records import MemberDesired, NodeRecord
from core.specs.instance import InstanceSpec

# Cores are shared fairly and databases idle most of the time: too much promised makes all slower, and breaks nothing.
CPU_OVERCOMMIT = 4.0
# Memory that is not there kills an engine: the kernel ends a process rather than wait.
MEMORY_OVERCOMMIT = 1.0
# A full disk stops every engine on the node at once.
DISK_OVERCOMMIT = 1.0
GIB = 1 << 30
_ROUNDING = 1e-9  # sums of fractional cores, such as ten times 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What members take of a node, leaving ones included: they hold their space until they are gone."""

    cpu: float = 0.0
    memory_bytes: int = 0
    disk_bytes: int = 0


NO_USAGE = Usage()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """`count` members to be placed beside the `existing` ones (node -> member name) of the same instance."""

    count: int
    cpu: float
    memory_bytes: int
    disk_bytes: int
    region: str | None = None
    zones: tuple[str, ...] = ()
    node_labels: Mapping[str, str] = field(default_factory=dict)
    allowed_regions: tuple[str, ...] = ()  # of the project; empty = any
    spread: Literal["node", "zone"] = "node"
    engine: str = "postgresql"
    engine_version: int | None = None
    existing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Placement:
    """One node for each member asked for, best first, and the engine's major version."""

    nodes: tuple[str, ...]
    engine_version: int


class Refusal(Enum):
    """Why a node cannot take a member; the value is stable, for programs."""

    HOLDS_MEMBER = "HoldsMember"
    CORDONED = "Cordoned"
    SILENT = "Silent"
    REGION = "Region"
    PROJECT_REGION = "ProjectRegion"
    ZONE = "Zone"
    ZONE_TAKEN = "ZoneTaken"
    LABELS = "Labels"
    CPU = "Cpu"
    MEMORY = "Memory"
    DISK = "Disk"
    ENGINE = "Engine"


@dataclass(frozen=True, slots=True)
class Refused:
    reason: Refusal
    message: str


@dataclass(frozen=True, slots=True)
class Unplaceable:
    """`summary` is one clause; `refusals` has every node that does not fit, with all its reasons."""

    summary: str
    refusals: Mapping[str, tuple[Refused, ...]]

    @property
    def message(self) -> str:
        """Summary and reasons per node, bounded: a fleet has thousands of nodes, a sentence a few."""
        shown = [f"{node}: {'; '.join(r.message for r in why)}" for node, why in sorted(self.refusals.items())]
        more = f" | and {len(shown) - 5} more nodes" if len(shown) > 5 else ""
        return f"{self.summary}{' | '.join(['', *shown[:5]])}{more}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What `place` said, and a line per node for people."""

    outcome: Placement | Unplaceable
    refusals: Mapping[str, tuple[Refused, ...]]
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fleet:
    """The facts about all nodes."""

    nodes: Mapping[str, NodeRecord]
    usage: Mapping[str, Usage]
    silent: Set[str]

    def used(self, node: str) -> Usage:
        return self.usage.get(node, NO_USAGE)


def request_for(
    spec: InstanceSpec,
    *,
    count: int | None = None,
    allowed_regions: tuple[str, ...] = (),
    engine_version: int | None = None,
    existing: Mapping[str, str] | None = None,
) -> Request:
    """What a spec asks for. `count` None = all its members; `engine_version` is the one the instance has already."""
    return Request(
        count=1 + spec.replicas if count is None else count,
        cpu=spec.resources.cpu,
        memory_bytes=spec.resources.memory,
        disk_bytes=spec.resources.disk,
        region=spec.placement.region,
        zones=spec.placement.zones,
        node_labels=spec.placement.node_labels,
        allowed_regions=allowed_regions,
        spread=spec.placement.spread,
        engine=spec.engine,
        engine_version=engine_version if engine_version is not None else spec.engine_version,
        existing=existing or {},
    )


def usage_of(members: Iterable[MemberDesired]) -> dict[str, Usage]:
    """What is taken of each node."""
    taken: dict[str, Usage] = {}
    for member in members:
        before = taken.get(member.node, NO_USAGE)
        taken[member.node] = Usage(
            cpu=before.cpu + member.cpu,
            memory_bytes=before.memory_bytes + member.memory_bytes,
            disk_bytes=before.disk_bytes + member.disk_bytes,
        )
    return taken


def place(
    request: Request, nodes: Mapping[str, NodeRecord], usage: Mapping[str, Usage], silent: Set[str]
) -> Placement | Unplaceable:
    """Nodes for all members asked for, or why that cannot be."""
    if request.count == 0:
        return Placement((), request.engine_version or 0)
    fleet = _Fleet(nodes=nodes, usage=usage, silent=silent)
    fitting = {version: _fitting(request, fleet, version) for version in _versions(request, fleet)}
    for version, able in fitting.items():
        chosen = _choose(request, fleet, able)
        if len(chosen) == request.count:
            return Placement(tuple(chosen), version)
    # Told against the version that most nodes could run: the most useful thing to change is found there.
    told = max(fitting, key=lambda version: (len(fitting[version]), version), default=request.engine_version or 0)
    summary = _summary(request, fleet, told, fitting.get(told, []))
    return Unplaceable(summary, _all_refusals(request, fleet, told))


def explain(
    request: Request, nodes: Mapping[str, NodeRecord], usage: Mapping[str, Usage], silent: Set[str]
) -> Explanation:
    """The outcome of `place`, and for each node in one line whether it is chosen, would fit, or why it does not."""
    fleet = _Fleet(nodes=nodes, usage=usage, silent=silent)
    outcome = place(request, nodes, usage, silent)
    if isinstance(outcome, Placement):
        version, chosen = outcome.engine_version, outcome.nodes
        what = f"{len(chosen)} member(s) go to {', '.join(chosen)}" if chosen else "all members have their nodes"
        head = f"{what}, with {request.engine} {version or 'of any version'}"
        refusals = _all_refusals(request, fleet, version)
    else:
        chosen, head, refusals = (), f"cannot be placed: {outcome.summary}", dict(outcome.refusals)
    lines = (_line(node, request, fleet, refusals.get(node, ()), chosen) for node in sorted(nodes))
    return Explanation(outcome=outcome, refusals=refusals, lines=(head, *lines))


# --- filter ---------------------------------------------------------------------------------------------------------


def _versions(request: Request, fleet: _Fleet) -> Sequence[int]:
    """Majors to try, newest first."""
    if request.engine_version is not None:
        return [request.engine_version]
    offers = (offer for node in fleet.nodes.values() for offer in node.engines)
    return sorted({offer.version for offer in offers if offer.engine == request.engine}, reverse=True)


def _fitting(request: Request, fleet: _Fleet, version: int) -> list[str]:
    return [node for node in fleet.nodes if next(_refusals(node, request, fleet, version), None) is None]


def _all_refusals(request: Request, fleet: _Fleet, version: int) -> dict[str, tuple[Refused, ...]]:
    found = {node: tuple(_refusals(node, request, fleet, version)) for node in fleet.nodes}
    return {node: why for node, why in found.items() if why}


def _refusals(node: str, request: Request, fleet: _Fleet, version: int) -> Iterator[Refused]:
    for rule in _RULES:
        refused = rule(fleet.nodes[node], request, fleet)
        if refused is not None:
            yield refused
    offered = {offer.version for offer in fleet.nodes[node].engines if offer.engine == request.engine}
    if version not in offered and (version or not offered):
        wanted = f"{request.engine} {version}" if version else request.engine
        has = f"only {', '.join(map(str, sorted(offered)))}" if offered else f"no {request.engine} at all"
        yield Refused(Refusal.ENGINE, f"offers {has}, not {wanted}" if offered else f"offers {has}")


def _open_to_new(node: NodeRecord, request: Request, fleet: _Fleet) -> Refused | None:
    if node.name in request.existing:
        return Refused(Refusal.HOLDS_MEMBER, f"holds {request.existing[node.name]} of this instance")
    if node.cordoned:
        return Refused(Refusal.CORDONED, "cordoned")
    return None


def _heard_of(node: NodeRecord, request: Request, fleet: _Fleet) -> Refused | None:
    return Refused(Refusal.SILENT, "silent: no hub hears of it") if node.name in fleet.silent else None


def _region(node: NodeRecord, request: Request, fleet: _Fleet) -> Refused | None:
    where = node.region or "none"
    if request.region is not None and node.region != request.region:
        return Refused(Refusal.REGION, f"region {where}, not {request.region}")
    if request.allowed_regions and node.region not in request.allowed_regions:
        allowed = ", ".join(request.allowed_regions)
        return Refused(Refusal.PROJECT_REGION, f"region {where}; the project allows {allowed}")
    return None


def _zone(node: NodeRecord, request: Request, fleet: _Fleet) -> Refused | None:
    if request.zones and node.zone not in request.zones:
        return Refused(Refusal.ZONE, f"zone {node.zone or 'none'}, not {' or '.join(request.zones)}")
    return None


def _zone_is_free(node: NodeRecord, request: Request, fleet: _Fleet) -> Refused | None:
    if request.spread != "zone" or node.name in request.existing:
        return None
    for other, member in sorted(request.existing.items()):
        if other in fleet.nodes and fleet.nodes[other].zone == node.zone:
            return Refused(Refusal.ZONE_TAKEN, f"zone {node.zone or 'none'} has {member} on {other} already")
    return None


def _labels(node: NodeRecord, request: Request, fleet: _Fleet) -> Refused | None:
    missing = [f"{key}={value}" for key, value in request.node_labels.items() if node.labels.get(key) != value]
    return Refused(Refusal.LABELS, f"lacks label {', '.join(sorted(missing))}") if missing else None


def _cpu(node: NodeRecord, request: Request, fleet: _Fleet) -> Refused | None:
    free = node.cpu * CPU_OVERCOMMIT - fleet.used(node.name).cpu
    if request.cpu <= free + _ROUNDING:
        return None
    each = f"{node.cpu:g} cores promised {CPU_OVERCOMMIT:g} times over"
    return Refused(Refusal.CPU, f"cpu: asks {request.cpu:g}, free {max(free, 0.0):g} of {each}")


def _memory(node: NodeRecord, request: Request, fleet: _Fleet) -> Refused | None:
    total = node.memory_bytes * MEMORY_OVERCOMMIT
    return _space(Refusal.MEMORY, request.memory_bytes, total, fleet.used(node.name).memory_bytes)


def _disk(node: NodeRecord, request: Request, fleet: _Fleet) -> Refused | None:
    total = node.disk_bytes * DISK_OVERCOMMIT
    return _space(Refusal.DISK, request.disk_bytes, total, fleet.used(node.name).disk_bytes)


def _space(reason: Refusal, asked: int, total: float, used: int) -> Refused | None:
    free = total - used
    if asked <= free:
        return None
    figures = f"asks {asked / GIB:.2f} GiB, free {max(free, 0.0) / GIB:.2f} of {total / GIB:.2f} GiB"
    return Refused(reason, f"{reason.value.lower()}: {figures}")


_RULES: tuple[Callable[[NodeRecord, Request, _Fleet], Refused | None], ...] = (
    _open_to_new, _heard_of, _region, _zone, _zone_is_free, _labels, _cpu, _memory, _disk,
)  # fmt: skip


# --- score ----------------------------------------------------------------------------------------------------------


def _choose(request: Request, fleet: _Fleet, fitting: Iterable[str]) -> list[str]:
    """Up to `count` nodes, best first, none twice, in zone spread no zone twice."""
    in_zone = _members_in_zones(request, fleet)
    left, chosen = set(fitting), list[str]()
    while left and len(chosen) < request.count:
        best = min(left, key=lambda node: _score(fleet, request, node, in_zone))
        chosen.append(best)
        zone = fleet.nodes[best].zone
        in_zone[zone] += 1
        left.discard(best)
        if request.spread == "zone":
            left = {node for node in left if fleet.nodes[node].zone != zone}
    return chosen


def _members_in_zones(request: Request, fleet: _Fleet) -> Counter[str]:
    return Counter(fleet.nodes[node].zone for node in request.existing if node in fleet.nodes)


def _score(fleet: _Fleet, request: Request, node: str, in_zone: Mapping[str, int]) -> tuple[int, float, float, str]:
    """Smaller is better."""
    record = fleet.nodes[node]
    return in_zone.get(record.zone, 0), -_free_memory(request, fleet, node), record.price_per_hour, node


def _free_memory(request: Request, fleet: _Fleet, node: str) -> float:
    """Part of the node's memory that stays free with one more member, 0.0 to 1.0, in whole percents: a few bytes of
    difference between two machines shall not outweigh the price."""
    total = fleet.nodes[node].memory_bytes
    free = total - fleet.used(node).memory_bytes - request.memory_bytes
    return round(free / total, 2) if total else 0.0


# --- words ----------------------------------------------------------------------------------------------------------


def _summary(request: Request, fleet: _Fleet, version: int, fitting: Sequence[str]) -> str:
    engine = f"{request.engine} {version}" if version else request.engine
    if request.spread == "zone":
        zones = len({fleet.nodes[node].zone for node in fitting})
        have = f"{zones} of the free zones have a fitting node"
        return f"{request.count} member(s) with {engine} need as many zones, and {have}"
    return f"{request.count} member(s) with {engine} need as many nodes, and {len(fitting)} of {len(fleet.nodes)} fit"


def _line(node: str, request: Request, fleet: _Fleet, refused: Sequence[Refused], chosen: Sequence[str]) -> str:
    record = fleet.nodes[node]
    if node in request.existing:
        return f"{node}: has {request.existing[node]} (zone {record.zone or 'none'})"
    if refused:
        return f"{node}: refused: {'; '.join(why.message for why in refused)}"
    here = _members_in_zones(request, fleet).get(record.zone, 0)
    score = (
        f"zone {record.zone or 'none'} has {here} of its members, "
        f"{_free_memory(request, fleet, node):.0%} of memory stay free, price {record.price_per_hour:g} per hour"
    )
    return f"{node}: chosen as number {chosen.index(node) + 1}: {score}" if node in chosen else f"{node}: fits: {score}"
