"""Pure: what a node's agent knows of its proxy, its members and itself, as Prometheus reads it (text format 0.0.4).

Names are `moorage_proxy_*`, `moorage_member_*` and `moorage_agent_*`; they and their labels are an interface, on which
graphs and alerts are built. Counters only grow while the processes live that count. What is not known is left out
rather than told as 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from core.figures import BUCKETS, Figures, bucket_labels
from core.ids import MemberRef
from core.positions import WalPosition
from core.routes import ProxyReport
from core.status import MemberState, Role

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_US = 1_000_000
Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberFacts:
    """One member of this node, as its engine was last seen."""

    ref: MemberRef
    state: MemberState
    role: Role
    position: WalPosition  # its timeline is 0 while it is not known
    lag_bytes: int
    connections: int
    data_bytes: int
    term: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """`report`: the proxy's last one, None while it was not heard. `hub_answered_ago_s`: None = never."""

    node: str
    version: str
    up_s: float
    hub_reachable: bool
    hub_answered_ago_s: float | None
    proxy_processes: int
    report: ProxyReport | None
    members: Sequence[MemberFacts] = ()


@dataclass(frozen=True, slots=True)
class _Sample:
    labels: Labels
    value: float
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class _Family:
    """All samples of one name. `kind`: counter, gauge or histogram."""

    name: str
    kind: str
    story: str
    samples: Iterable[_Sample]


def exposition(node: NodeFacts) -> str:
    """The whole page."""
    families = [*_agent(node), *_members(node), *_proxy(node)]
    return "".join(line for family in families for line in _lines(family))


# --- the agent --------------------------------------------------------------------------------------------------------


def _agent(node: NodeFacts) -> Iterator[_Family]:
    yield _gauge("agent_info", "The agent of this node, always 1.", 1, {"node": node.node, "version": node.version})
    yield _gauge("agent_up_seconds", "How long the agent has been running.", node.up_s)
    story = "1 while a hub answers this agent; leadership goes on without one as long as all members agree."
    yield _gauge("agent_hub_reachable", story, node.hub_reachable)
    if node.hub_answered_ago_s is not None:
        story = "Since the last heartbeat was sent that a hub has answered."
        yield _gauge("agent_hub_answered_ago_seconds", story, node.hub_answered_ago_s)
    yield _gauge("agent_proxy_processes", "Processes of the node's proxy that live.", node.proxy_processes)


def _gauge(name: str, story: str, value: float, labels: Labels | None = None) -> _Family:
    return _Family(f"moorage_{name}", "gauge", story, [_Sample(labels or {}, value)])


# --- members ----------------------------------------------------------------------------------------------------------


def _members(node: NodeFacts) -> Iterator[_Family]:
    members = node.members

    def of_each(name: str, story: str, value: Callable[[MemberFacts], float | None]) -> _Family:
        samples = ((member.ref, value(member)) for member in members)
        found = [_Sample(_of_member(ref), known) for ref, known in samples if known is not None]
        return _Family(f"moorage_member_{name}", "gauge", story, found)

    yield _Family(
        "moorage_member_state",
        "gauge",
        "1 for the state the member's engine is in.",
        [
            _Sample({**_of_member(one.ref), "state": state}, one.state is state)
            for one in members
            for state in MemberState
        ],
    )
    yield _Family(
        "moorage_member_role",
        "gauge",
        "1 for what the member is to its instance.",
        [_Sample({**_of_member(one.ref), "role": role}, one.role is role) for one in members for role in Role],
    )
    yield of_each("term", "The newest term of leadership the member knows.", lambda one: one.term)
    yield of_each("timeline", "Timeline of the engine's data.", lambda one: one.position.timeline or None)
    yield of_each(
        "wal_position_bytes",
        "Written (primary) or received (replica) position in the write-ahead log.",
        lambda one: one.position.lsn.value if one.position.timeline else None,
    )
    yield of_each(
        "lag_bytes",
        "What the primary has written and this replica has not replayed.",
        lambda one: one.lag_bytes if one.role is Role.REPLICA else None,
    )
    yield of_each(
        "connections", "Client connections at the engine, replication not counted.", lambda one: one.connections
    )
    yield of_each("data_bytes", "Size of all databases; 0 = not measured yet.", lambda one: one.data_bytes)


def _of_member(ref: MemberRef) -> Labels:
    return {**_of_instance(str(ref.instance)), "member": ref.member}


# --- the proxy --------------------------------------------------------------------------------------------------------


def _proxy(node: NodeFacts) -> Iterator[_Family]:
    report = node.report
    if report is None:
        return
    yield _gauge("proxy_info", "The node's proxy, always 1.", 1, {"node": node.node, "version": report.release})
    yield _Family(
        "moorage_proxy_clients",
        "gauge",
        "Clients that have a server, by the port they came by, and clients that wait for one.",
        [
            _Sample({**_of_instance(instance), "kind": kind}, count)
            for instance, counts in report.sessions.items()
            for kind, count in (
                ("read_write", counts.read_write),
                ("read_only", counts.read_only),
                ("waiting", counts.waiting),
            )
        ],
    )
    figures = report.figures
    for name, story, count in _COUNTERS:
        yield _Family(
            f"moorage_proxy_{name}_total",
            "counter",
            story,
            [_Sample(_of_instance(instance), count(one)) for instance, one in figures.items()],
        )
    for name, label, story, counts in _BY_CODE:
        yield _Family(
            f"moorage_proxy_{name}_total",
            "counter",
            story,
            [
                _Sample({**_of_instance(instance), label: code}, count)
                for instance, one in figures.items()
                for code, count in sorted(counts(one).items())
            ],
        )
    for name, story, buckets, total_us in _HISTOGRAMS:
        yield _Family(
            f"moorage_proxy_{name}_seconds",
            "histogram",
            story,
            [
                sample
                for instance, one in figures.items()
                for sample in _histogram(instance, buckets(one), total_us(one))
            ],
        )


_COUNTERS: tuple[tuple[str, str, Callable[[Figures], float]], ...] = (
    ("queries", "Queries that servers have answered.", lambda one: one.queries),
    ("transactions", "Transactions that have ended, single statements included.", lambda one: one.transactions),
    ("transaction_seconds", "Time in transactions.", lambda one: one.transaction_us / _US),
    ("received_bytes", "From clients.", lambda one: one.bytes_in),
    ("sent_bytes", "To clients.", lambda one: one.bytes_out),
    ("logins", "Clients that were let in.", lambda one: one.logins),
    ("server_connections_opened", "Connections made to servers.", lambda one: one.opened),
    ("server_connections_closed", "Connections to servers that have ended.", lambda one: one.closed),
    ("server_connections_reused", "Server connections that went on to another client.", lambda one: one.reused),
    ("sessions_moved", "Sessions that went on at another server, their clients unaware.", lambda one: one.moved),
    ("cancel_requests", "Cancel requests taken.", lambda one: one.cancels),
    ("slow_queries", "Queries longer than proxy.slow_query_ms.", lambda one: one.slow),
)
_BY_CODE: tuple[tuple[str, str, str, Callable[[Figures], Mapping[str, int]]], ...] = (
    (
        "server_errors",
        "class",
        "Errors that servers have told clients, by the first two characters of the SQLSTATE.",
        lambda one: one.errors,
    ),
    ("clients_refused", "sqlstate", "Clients that were not let in, by what they were told.", lambda one: one.refused),
    (
        "clients_ended",
        "sqlstate",
        "What clients were told by the proxy later on: 57P01 their server went, 40003 a commit in doubt.",
        lambda one: one.ended,
    ),
)
_HISTOGRAMS: tuple[tuple[str, str, Callable[[Figures], tuple[int, ...]], Callable[[Figures], int]], ...] = (
    (
        "query",
        "From a query's first byte to its last answer, waiting for a server included.",
        lambda one: one.query_counts,
        lambda one: one.query_us,
    ),
    ("wait", "How long clients waited for a server.", lambda one: one.wait_counts, lambda one: one.wait_us),
)


def _histogram(instance: str, counts: tuple[int, ...], total_us: int) -> Iterator[_Sample]:
    labels = _of_instance(instance)
    up_to = list(accumulate(counts + (0,) * (BUCKETS - len(counts))))
    for bound, count in zip(bucket_labels(), up_to, strict=True):
        yield _Sample({**labels, "le": bound}, count, "_bucket")
    yield _Sample(labels, total_us / _US, "_sum")
    yield _Sample(labels, up_to[-1], "_count")


# --- the format -------------------------------------------------------------------------------------------------------


def _of_instance(instance: str) -> Labels:
    project, _, name = instance.partition("/")
    return {"project": project, "instance": name}


def _lines(family: _Family) -> Iterator[str]:
    yield f"# HELP {family.name} {family.story}\n# TYPE {family.name} {family.kind}\n"
    for sample in family.samples:
        words = ",".join(f'{name}="{_escaped(value)}"' for name, value in sample.labels.items())
        labels = f"{{{words}}}" if words else ""
        yield f"{family.name}{sample.suffix}{labels} {_number(sample.value)}\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if isinstance(value, int) else repr(round(value, 6))
