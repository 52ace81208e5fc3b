"""Placement never breaks a rule, finds a place whenever there is one, prefers what it should, and explains the rest."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.records import MemberDesired, NodeRecord
from hub.judges.placement import (
    CPU_OVERCOMMIT,
    DISK_OVERCOMMIT,
    MEMORY_OVERCOMMIT,
    Placement,
    Refusal,
    Request,
    Unplaceable,
    Usage,
    explain,
    place,
    request_for,
    usage_of,
)
from tests.support.situations import GIB, node, offer, spec

ASK = Request(count=1, cpu=1.0, memory_bytes=1 * GIB, disk_bytes=10 * GIB)


def fleet(*records: NodeRecord) -> dict[str, NodeRecord]:
    return {record.name: record for record in records}


def placed(outcome: Placement | Unplaceable) -> Placement:
    assert isinstance(outcome, Placement), outcome
    return outcome


def reasons(outcome: Placement | Unplaceable, name: str) -> set[Refusal]:
    assert isinstance(outcome, Unplaceable), outcome
    return {refused.reason for refused in outcome.refusals[name]}


# --- hard rules -------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[NodeRecord, Request, Usage, set[str], Refusal, str]] = {
    "cordoned": (node("n1", cordoned=True), ASK, Usage(), set(), Refusal.CORDONED, "cordoned"),
    "silent": (node("n1"), ASK, Usage(), {"n1"}, Refusal.SILENT, "silent"),
    "cpu": (node("n1", cpu=1.0), replace(ASK, cpu=4.1), Usage(), set(), Refusal.CPU, "asks 4.1, free 4"),
    "cpu taken": (node("n1"), ASK, Usage(cpu=15.5), set(), Refusal.CPU, "free 0.5"),
    "memory": (node("n1"), replace(ASK, memory_bytes=9 * GIB), Usage(), set(), Refusal.MEMORY, "asks 9.00 GiB"),
    "memory taken": (node("n1"), ASK, Usage(memory_bytes=8 * GIB - 1), set(), Refusal.MEMORY, "free 0.00 of 8.00 GiB"),
    "disk": (node("n1"), ASK, Usage(disk_bytes=91 * GIB), set(), Refusal.DISK, "asks 10.00 GiB, free 9.00"),
    "region": (node("n1"), replace(ASK, region="south"), Usage(), set(), Refusal.REGION, "region north, not south"),
    "project": (node("n1"), replace(ASK, allowed_regions=("eu",)), Usage(), set(), Refusal.PROJECT_REGION, "allows eu"),
    "zone": (node("n1"), replace(ASK, zones=("a", "b")), Usage(), set(), Refusal.ZONE, "not a or b"),
    "labels": (node("n1"), replace(ASK, node_labels={"disk": "ssd"}), Usage(), set(), Refusal.LABELS, "disk=ssd"),
    "version": (node("n1"), replace(ASK, engine_version=17), Usage(), set(), Refusal.ENGINE, "only 15, 18"),
    "no engine": (node("n1", engines=()), ASK, Usage(), set(), Refusal.ENGINE, "no postgresql at all"),
    "same node": (node("n1"), replace(ASK, existing={"n1": "m1"}), Usage(), set(), Refusal.HOLDS_MEMBER, "holds m1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_node_that_breaks_a_rule_is_refused_with_the_figures(case: str) -> None:
    record, request, used, silent, reason, words = REFUSED[case]
    outcome = place(request, fleet(record), {"n1": used}, silent)
    assert reasons(outcome, "n1") == {reason}
    assert isinstance(outcome, Unplaceable)
    assert words in outcome.message


def test_every_reason_is_told_not_only_the_first() -> None:
    bad = node("n1", cordoned=True, memory_bytes=GIB // 2, engines=())
    assert reasons(place(ASK, fleet(bad), {}, {"n1"}), "n1") == {
        Refusal.CORDONED,
        Refusal.SILENT,
        Refusal.MEMORY,
        Refusal.ENGINE,
    }


def test_a_zone_that_has_a_member_takes_no_second_one_in_zone_spread() -> None:
    nodes = fleet(node("n1", zone="a"), node("n2", zone="a"), node("n3", zone="b"))
    request = replace(ASK, spread="zone", existing={"n1": "m1"})
    assert placed(place(request, nodes, {}, set())).nodes == ("n3",)
    outcome = place(replace(request, count=2), nodes, {}, set())
    assert reasons(outcome, "n2") == {Refusal.ZONE_TAKEN}


def test_capacity_counts_all_members_of_a_node() -> None:
    members = [
        MemberDesired(project="p", instance=name, member="m1", node="n1", cpu=0.1, memory_bytes=GIB, disk_bytes=GIB)
        for name in ("a", "b")
    ]
    assert usage_of(members) == {"n1": Usage(cpu=0.2, memory_bytes=2 * GIB, disk_bytes=2 * GIB)}


def test_fractions_of_cores_that_add_up_to_the_whole_fit() -> None:
    used = Usage(cpu=sum(0.1 for _ in range(39)))
    assert placed(place(replace(ASK, cpu=0.1), fleet(node("n1", cpu=1.0)), {"n1": used}, set())).nodes == ("n1",)


# --- engine version ---------------------------------------------------------------------------------------------------


def test_an_open_version_is_the_newest_that_enough_nodes_offer() -> None:
    nodes = fleet(node("n1"), node("n2"), node("n3", engines=(offer(15),)))
    assert placed(place(replace(ASK, count=2), nodes, {}, set())).engine_version == 18
    assert placed(place(replace(ASK, count=3), nodes, {}, set())).engine_version == 15


def test_a_newer_version_on_nodes_that_do_not_fit_is_passed_over() -> None:
    nodes = fleet(node("n1", engines=(offer(19),), cordoned=True), node("n2", engines=(offer(16),)))
    assert placed(place(ASK, nodes, {}, set())).engine_version == 16


def test_a_fixed_version_is_kept_even_when_a_newer_one_is_offered() -> None:
    assert placed(place(replace(ASK, engine_version=15), fleet(node("n1")), {}, set())).engine_version == 15


# --- preference -------------------------------------------------------------------------------------------------------


def test_zones_are_spread_before_memory_counts() -> None:
    nodes = fleet(node("n1", zone="a"), node("n2", zone="a"), node("n3", zone="b", memory_bytes=2 * GIB))
    assert set(placed(place(replace(ASK, count=2), nodes, {}, set())).nodes) == {"n1", "n3"}


def test_zones_of_existing_members_count_in_the_spread() -> None:
    nodes = fleet(node("n1", zone="a"), node("n2", zone="a"), node("n3", zone="b", memory_bytes=2 * GIB))
    assert placed(place(replace(ASK, existing={"n1": "m1"}), nodes, {}, set())).nodes == ("n3",)


def test_free_memory_is_preferred_then_price_then_name() -> None:
    nodes = fleet(node("n1", zone="a"), node("n2", zone="a"), node("n3", zone="a"))
    assert placed(place(ASK, nodes, {"n1": Usage(memory_bytes=GIB)}, set())).nodes == ("n2",)
    dear = {**nodes, "n2": replace(nodes["n2"], price_per_hour=2.0)}
    assert placed(place(ASK, dear, {"n1": Usage(memory_bytes=GIB)}, set())).nodes == ("n3",)


# --- explanation ------------------------------------------------------------------------------------------------------


def test_explain_has_a_line_for_every_node() -> None:
    nodes = fleet(node("n1"), node("n2"), node("n3", cordoned=True), node("n4"))
    explained = explain(replace(ASK, existing={"n4": "m1"}), nodes, {}, set())
    head, *lines = explained.lines
    assert "go to n1, with postgresql 18" in head
    assert [line.split(":")[0] for line in lines] == ["n1", "n2", "n3", "n4"]
    assert lines[0].startswith("n1: chosen as number 1")
    assert lines[1].startswith("n2: fits")
    assert lines[2] == "n3: refused: cordoned"
    assert lines[3] == "n4: has m1 (zone zone-n4)"


def test_explain_tells_what_is_missing() -> None:
    explained = explain(replace(ASK, count=3), fleet(node("n1"), node("n2", cordoned=True)), {}, set())
    assert "cannot be placed: 3 member(s) with postgresql 18 need as many nodes, and 1 of 2 fit" in explained.lines[0]


def test_explain_of_a_complete_instance_says_so() -> None:
    explained = explain(replace(ASK, count=0, existing={"n1": "m1"}), fleet(node("n1")), {}, set())
    assert explained.lines[0].startswith("all members have their nodes")


def test_a_fleet_without_any_engine_is_explained() -> None:
    outcome = place(ASK, fleet(node("n1", engines=())), {}, set())
    assert isinstance(outcome, Unplaceable)
    assert "no postgresql at all" in outcome.message
    assert place(ASK, {}, {}, set()) == Unplaceable(
        "1 member(s) with postgresql need as many nodes, and 0 of 0 fit", {}
    )


def test_a_message_about_a_large_fleet_stays_short() -> None:
    nodes = fleet(*(node(f"n{number}", cordoned=True) for number in range(1000)))
    outcome = place(ASK, nodes, {}, set())
    assert isinstance(outcome, Unplaceable)
    assert outcome.message.endswith("and 995 more nodes")
    assert len(outcome.message) < 500


def test_a_request_is_made_of_the_spec() -> None:
    asked = spec(
        replicas=1,
        engine_version=15,
        resources={"cpu": 2, "memory": "4Gi", "disk": "20Gi"},
        placement={"region": "eu", "zones": ["a"], "node_labels": {"k": "v"}, "spread": "zone"},
    )
    assert request_for(asked, allowed_regions=("eu",)) == Request(
        count=2,
        cpu=2.0,
        memory_bytes=4 * GIB,
        disk_bytes=20 * GIB,
        region="eu",
        zones=("a",),
        node_labels={"k": "v"},
        allowed_regions=("eu",),
        spread="zone",
        engine_version=15,
    )
    assert request_for(asked, engine_version=18).engine_version == 18


# --- properties -------------------------------------------------------------------------------------------------------

NAMES = [f"n{number}" for number in range(1, 7)]


@st.composite
def nodes_with_usage(draw: st.DrawFn) -> tuple[dict[str, NodeRecord], dict[str, Usage], set[str]]:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=6))
    nodes = {
        name: node(
            name,
            zone=draw(st.sampled_from(["", "a", "b", "c"])),
            region=draw(st.sampled_from(["north", "south"])),
            labels=draw(st.sampled_from([{}, {"disk": "ssd"}])),
            cordoned=draw(st.sampled_from([False, False, False, True])),
            price_per_hour=draw(st.sampled_from([0.0, 1.0])),
            memory_bytes=draw(st.sampled_from([1, 2, 8])) * GIB,
            engines=draw(st.sampled_from([(offer(15),), (offer(18),), (offer(15), offer(18)), ()])),
        )
        for name in names
    }
    usage = {
        name: Usage(
            cpu=draw(st.sampled_from([0.0, 15.5])),
            memory_bytes=draw(st.sampled_from([0, 1])) * GIB,
            disk_bytes=draw(st.sampled_from([0, 95])) * GIB,
        )
        for name in names
    }
    return nodes, usage, set(draw(st.lists(st.sampled_from(NAMES), max_size=2)))


@st.composite
def requests(draw: st.DrawFn) -> Request:
    existing = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=2))
    return replace(
        ASK,
        count=draw(st.integers(0, 4)),
        region=draw(st.sampled_from([None, None, "north"])),
        zones=draw(st.sampled_from([(), (), ("a", "b")])),
        node_labels=draw(st.sampled_from([{}, {}, {"disk": "ssd"}])),
        allowed_regions=draw(st.sampled_from([(), (), ("south",)])),
        spread=draw(st.sampled_from(["node", "zone"])),
        engine_version=draw(st.sampled_from([None, 15, 18])),
        existing={name: f"m{number + 1}" for number, name in enumerate(existing)},
    )


def fits(record: NodeRecord, request: Request, used: Usage, silent: set[str], version: int) -> bool:
    """The rules once more, written as plainly as can be."""
    return (
        not record.cordoned
        and record.name not in silent
        and record.name not in request.existing
        and request.region in (None, record.region)
        and (not request.allowed_regions or record.region in request.allowed_regions)
        and (not request.zones or record.zone in request.zones)
        and all(record.labels.get(key) == value for key, value in request.node_labels.items())
        and used.cpu + request.cpu <= record.cpu * CPU_OVERCOMMIT
        and used.memory_bytes + request.memory_bytes <= record.memory_bytes * MEMORY_OVERCOMMIT
        and used.disk_bytes + request.disk_bytes <= record.disk_bytes * DISK_OVERCOMMIT
        and any(it.version == version for it in record.engines)
    )


def valid(
    chosen: tuple[str, ...],
    request: Request,
    nodes: dict[str, NodeRecord],
    usage: dict[str, Usage],
    silent: set[str],
    version: int,
) -> bool:
    if len(set(chosen)) != request.count:
        return False
    zones = [nodes[name].zone for name in (*chosen, *(it for it in request.existing if it in nodes))]
    existing_zones = [nodes[name].zone for name in request.existing if name in nodes]
    apart = len(set(zones)) == len(chosen) + len(set(existing_zones))
    return all(fits(nodes[name], request, usage[name], silent, version) for name in chosen) and (
        request.spread == "node" or apart
    )


def any_valid(
    request: Request, nodes: dict[str, NodeRecord], usage: dict[str, Usage], silent: set[str], version: int
) -> bool:
    return any(valid(c, request, nodes, usage, silent, version) for c in combinations(sorted(nodes), request.count))


@given(nodes_with_usage(), requests())
def test_placement_breaks_no_rule_and_misses_no_possibility(
    facts: tuple[dict[str, NodeRecord], dict[str, Usage], set[str]], request: Request
) -> None:
    nodes, usage, silent = facts
    outcome = place(request, nodes, usage, silent)
    versions = [request.engine_version] if request.engine_version else [18, 15]
    offered = {it.version for record in nodes.values() for it in record.engines}
    possible = [v for v in versions if v in offered and any_valid(request, nodes, usage, silent, v)]
    if isinstance(outcome, Placement):
        if request.count:
            assert outcome.engine_version == possible[0]
        assert valid(outcome.nodes, request, nodes, usage, silent, outcome.engine_version)
    else:
        assert not possible
        fitting = {n for n in nodes for v in offered if fits(nodes[n], request, usage[n], silent, v)}
        assert set(nodes) - fitting <= set(outcome.refusals)


@given(nodes_with_usage(), requests(), st.randoms(use_true_random=False))
def test_placement_does_not_depend_on_the_order_of_nodes_and_changes_nothing_it_is_given(
    facts: tuple[dict[str, NodeRecord], dict[str, Usage], set[str]], request: Request, dice: object
) -> None:
    nodes, usage, silent = facts
    before = repr((nodes, usage, silent, request))
    first = place(request, nodes, usage, silent)
    assert repr((nodes, usage, silent, request)) == before
    names = list(nodes)
    dice.shuffle(names)  # type: ignore[attr-defined]
    assert place(request, {name: nodes[name] for name in names}, usage, silent) == first
    assert explain(request, nodes, usage, silent).outcome == first
