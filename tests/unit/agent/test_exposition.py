"""What Prometheus reads of a node, read back by Prometheus' own parser."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from agent.exposition import MemberFacts, NodeFacts, exposition
from core.figures import BOUNDS_S, BUCKETS, Figures
from core.ids import InstanceRef, MemberName, MemberRef
from core.positions import Lsn, WalPosition
from core.routes import ProxyReport, SessionCounts
from core.status import MemberState, Role

ORDERS = InstanceRef("demo", "orders")
M1, M2 = (MemberRef(ORDERS, MemberName(name)) for name in ("m1", "m2"))
FIGURES = Figures(
    queries=7,
    transactions=5,
    query_us=1_500_000,
    bytes_in=100,
    logins=2,
    query_counts=(0, 3, 4),
    errors={"40": 2},
    refused={"28P01": 1, "53300": 4},
    ended={"57P01": 6},
)


def member(ref: MemberRef = M1, **changes: Any) -> MemberFacts:
    facts: dict[str, Any] = {
        "ref": ref,
        "state": MemberState.RUNNING,
        "role": Role.PRIMARY,
        "position": WalPosition(3, Lsn(1 << 32)),
        "lag_bytes": 0,
        "connections": 4,
        "data_bytes": 1 << 20,
        "term": 2,
    }
    return MemberFacts(**{**facts, **changes})


def node(**changes: Any) -> NodeFacts:
    facts: dict[str, Any] = {
        "node": "n1",
        "version": "0.1.0",
        "up_s": 12.5,
        "hub_reachable": True,
        "hub_answered_ago_s": 0.25,
        "proxy_processes": 2,
        "report": ProxyReport(
            seq=1,
            pid=2,
            release="0.1.0",
            sessions={"demo/orders": SessionCounts(read_write=3, waiting=1)},
            figures={"demo/orders": FIGURES},
        ),
        "members": [member()],
    }
    return NodeFacts(**{**facts, **changes})


def values(facts: NodeFacts) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Each sample once, by its name and labels."""
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in text_string_to_metric_families(exposition(facts)):
        assert family.documentation.endswith("."), family.name
        assert family.type in ("counter", "gauge", "histogram"), family.name
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, f"{sample} is told twice"
            found[key] = sample.value
    return found


def value(facts: NodeFacts, name: str, **labels: str) -> float | None:
    return values(facts).get((f"moorage_{name}", frozenset(labels.items())))


def test_the_figures_of_an_instance_are_told_under_its_names() -> None:
    of = {"project": "demo", "instance": "orders"}
    facts = node()
    assert value(facts, "proxy_queries_total", **of) == 7
    assert value(facts, "proxy_received_bytes_total", **of) == 100
    assert value(facts, "proxy_server_errors_total", **of, **{"class": "40"}) == 2
    assert value(facts, "proxy_clients_refused_total", **of, sqlstate="53300") == 4
    assert value(facts, "proxy_clients_ended_total", **of, sqlstate="57P01") == 6
    assert value(facts, "proxy_clients", **of, kind="read_write") == 3
    assert value(facts, "proxy_clients", **of, kind="waiting") == 1
    assert value(facts, "proxy_query_seconds_sum", **of) == 1.5
    assert value(facts, "proxy_query_seconds_bucket", **of, le="0.00025") == 3
    assert value(facts, "proxy_query_seconds_bucket", **of, le="+Inf") == 7


@given(st.lists(st.integers(0, 1 << 40), max_size=BUCKETS).map(tuple))
def test_a_histogram_counts_up_to_its_bounds(counts: tuple[int, ...]) -> None:
    report = ProxyReport(seq=1, pid=2, figures={"demo/orders": Figures(query_counts=counts)})
    found = {
        dict(labels)["le"]: value
        for (name, labels), value in values(node(report=report)).items()
        if name == "moorage_proxy_query_seconds_bucket"
    }
    bounds = [float(bound) for bound in found]
    assert bounds == [*BOUNDS_S, math.inf]
    assert list(found.values()) == [sum(counts[: at + 1]) for at in range(BUCKETS)]


def test_members_tell_role_state_and_position() -> None:
    facts = node(
        members=[
            member(),
            member(M2, role=Role.REPLICA, lag_bytes=500, state=MemberState.LAGGING),
        ]
    )
    one, two = ({"project": "demo", "instance": "orders", "member": name} for name in ("m1", "m2"))
    assert value(facts, "member_role", **one, role="primary") == 1
    assert value(facts, "member_role", **two, role="primary") == 0
    assert value(facts, "member_state", **two, state="lagging") == 1
    assert value(facts, "member_timeline", **one) == 3
    assert value(facts, "member_wal_position_bytes", **one) == 1 << 32
    assert value(facts, "member_term", **one) == 2
    assert value(facts, "member_lag_bytes", **two) == 500


def test_what_is_not_known_is_left_out() -> None:
    facts = node(
        report=None,
        hub_answered_ago_s=None,
        hub_reachable=False,
        members=[member(position=WalPosition())],
    )
    names = {name for name, _ in values(facts)}
    assert not any(name.startswith("moorage_proxy_") for name in names)
    assert "moorage_agent_hub_answered_ago_seconds" not in names
    assert not names & {"moorage_member_timeline", "moorage_member_wal_position_bytes", "moorage_member_lag_bytes"}
    assert value(facts, "agent_hub_reachable") == 0


def test_names_that_clients_bring_do_not_break_the_page() -> None:
    odd = 'a"b\\c\nd'
    report = ProxyReport(seq=1, pid=2, figures={"demo/orders": Figures(refused={odd: 3})})
    assert (
        value(node(report=report), "proxy_clients_refused_total", project="demo", instance="orders", sqlstate=odd) == 3
    )
