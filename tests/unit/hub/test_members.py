"""The desired members follow the spec in steps that endanger no data: joining, leaving, restarting, being given up."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.records import ClientsDesired, DatabaseDesired, HaRecord, MemberDesired, Replication, SyncRecord, UserDesired
from core.specs.instance import InstanceSpec
from core.status import MemberState
from hub.judges.members import (
    Adjustment,
    Ports,
    adjust,
    choose_ports,
    first_ha,
    first_members,
    further_members,
    leave_all,
    parameter_text,
)
from hub.judges.placement import Placement
from hub.judges.situation import Situation
from tests.support.situations import (
    GIB,
    ORDERS,
    PORTS,
    current,
    desired,
    healthy,
    leaderless,
    observed,
    record,
    spec,
    unobserved,
)


def changed(adjustment: Adjustment) -> dict[str, MemberDesired]:
    return {member.member: member for member in adjustment.changed}


def with_spec(s: Situation, of: InstanceSpec, **fields: object) -> Situation:
    """The same members under a new spec, one generation further."""
    return replace(s, spec=of, record=replace(record(of, generation=s.record.generation + 1), **fields))


def settle(s: Situation, adjustment: Adjustment) -> Situation:
    """The situation after the adjustment was written and every agent has done as told."""
    by_name = changed(adjustment)
    members = []
    for one in s.members:
        if one in adjustment.dropped:
            continue
        wanted = by_name.get(one.name, one.desired)
        seen = one.observed
        assert seen is not None
        seen = replace(seen, generation=wanted.generation, restart_id=wanted.restart_id)
        if wanted.desired == "absent":
            seen = replace(seen, state=MemberState.DELETED)
        members.append(replace(one, desired=wanted, observed=seen, revision=50, observed_revision=60))
    return replace(s, members=tuple(members))


# --- from the spec to a member ----------------------------------------------------------------------------------------


def test_the_first_members_are_all_that_the_spec_says() -> None:
    of = spec(
        replicas=1,
        resources={"cpu": 2, "memory": "2Gi", "disk": "20Gi"},
        replication={"mode": "quorum", "k": 1, "strict": False, "max_failover_lag": "2Mi"},
        parameters={
            "work_mem": "64MB",
            "jit": False,
            "hot_standby_feedback": True,
            "max_connections": 200,
            "seq_page_cost": 1.5,
        },
        users=[{"name": "app", "superuser": True, "roles": ["pg_monitor"]}],
        databases=[{"name": "shop", "owner": "app", "extensions": ["vector"]}],
        proxy={"hold_timeout_s": 5, "tls": "require", "allow": ["10.0.0.0/8"]},
    )
    s = replace(healthy(of=of), members=(), ha=None, leader=None)
    first, second = first_members(s, Placement(("n7", "n8"), 18), Ports(engine=1, rw=2, ro=3))
    assert first == MemberDesired(
        project="demo",
        instance="orders",
        member="m1",
        node="n7",
        engine_version=18,
        cpu=2.0,
        memory_bytes=2 * GIB,
        disk_bytes=20 * GIB,
        engine_port=1,
        rw_port=2,
        ro_port=3,
        replication=Replication(mode="quorum", k=1, strict=False, max_failover_lag_bytes=2 << 20),
        parameters={
            "work_mem": "64MB",
            "jit": "off",
            "hot_standby_feedback": "on",
            "max_connections": "200",
            "seq_page_cost": "1.5",
        },
        databases=(DatabaseDesired(name="shop", owner="app", extensions=("vector",)),),
        users=(UserDesired(name="app", superuser=True, roles=("pg_monitor",)),),
        hold_s=5.0,
        client_tls="require",
        allow=("10.0.0.0/8",),
        clients=ClientsDesired(observers=("app",)),
    )
    assert second == replace(first, member="m2", node="n8")
    assert first_ha(s, (first, second)) == HaRecord(bootstrap="m1", sync=SyncRecord(mode="quorum"))


def test_what_is_particular_to_a_member_reaches_it_and_no_other() -> None:
    tags = {"no_failover": True, "priority": 7, "no_load_balance": True, "clone_source": True, "upstream": "m3"}
    s = with_spec(healthy(), spec(members={"m2": tags}))
    members = changed(adjust(s))
    m2 = members["m2"]
    assert (m2.no_failover, m2.priority, m2.no_load_balance, m2.clone_source, m2.upstream) == (
        True,
        7,
        True,
        True,
        "m3",
    )
    assert (members["m3"].no_failover, members["m3"].priority, members["m3"].upstream) == (False, 0, "")
    assert adjust(settle(s, adjust(s))).is_empty


@pytest.mark.parametrize(
    ("value", "text"), [(True, "on"), (False, "off"), (7, "7"), (0.9, "0.9"), ("on", "on"), ("1GB", "1GB")]
)
def test_parameters_become_the_engines_text(value: str | bool | int | float, text: str) -> None:
    assert parameter_text(value) == text


def test_sync_mode_waits_for_one_standby_whatever_k_says() -> None:
    s = with_spec(healthy(), spec(replication={"mode": "sync", "k": 2}))
    assert {member.replication.k for member in adjust(s).changed} == {1}


def test_ports_are_the_lowest_free_ones_of_the_range() -> None:
    assert choose_ports((10, 20), {10: "x", 12: "y"}, ORDERS) == Ports(engine=11, rw=13, ro=14)


def test_the_range_includes_both_ends_and_can_be_used_up() -> None:
    assert choose_ports((10, 12), {}, ORDERS) == Ports(engine=10, rw=11, ro=12)
    assert choose_ports((10, 12), {11: "x"}, ORDERS) is None


def test_ports_that_are_the_instances_already_are_kept() -> None:
    taken = {10: "a.b", 15: ORDERS.key, 17: ORDERS.key, 16: ORDERS.key}
    assert choose_ports((10, 20), taken, ORDERS) == Ports(engine=15, rw=16, ro=17)


# --- a changed spec ---------------------------------------------------------------------------------------------------


def test_nothing_is_due_to_members_that_are_as_they_should_be() -> None:
    assert adjust(healthy()).is_empty


def test_a_changed_spec_reaches_all_members_at_once() -> None:
    s = with_spec(healthy(), spec(parameters={"work_mem": "8MB"}))
    adjustment = adjust(s)
    assert {name: (m.generation, m.parameters) for name, m in changed(adjustment).items()} == {
        name: (2, {"work_mem": "8MB"}) for name in ("m1", "m2", "m3")
    }
    assert adjust(settle(s, adjustment)).is_empty


def test_engine_version_and_ports_of_a_member_never_change() -> None:
    s = with_spec(healthy(), spec(engine_version=19))
    assert {(m.engine_version, m.engine_port, m.rw_port, m.ro_port) for m in adjust(s).changed} == {
        (18, *PORTS.numbers)
    }


def test_a_spec_that_cannot_be_read_changes_nothing() -> None:
    assert adjust(replace(healthy(), spec=None, spec_problem="?")).is_empty


# --- growing and shrinking --------------------------------------------------------------------------------------------


def test_a_newcomer_takes_the_lowest_free_number() -> None:
    s = with_spec(healthy(), spec(replicas=4))
    s = replace(s, members=tuple(m for m in s.members if m.name != "m2"))
    added = further_members(s, Placement(("n8", "n9"), 18))
    assert [(m.member, m.node, m.generation) for m in added] == [("m2", "n8", 2), ("m4", "n9", 2)]
    assert {(m.engine_port, m.rw_port, m.ro_port) for m in added} == {PORTS.numbers}


def test_a_name_that_stands_for_data_elsewhere_is_not_given_to_a_newcomer() -> None:
    s = healthy()
    s = replace(
        s, members=s.members[:1], ha=replace(s.ha or HaRecord(), sync=SyncRecord(mode="sync", k=1, names=("m2",)))
    )
    assert [m.member for m in further_members(s, Placement(("n8",), 18))] == ["m3"]


def test_a_newcomer_has_no_old_restart_before_it() -> None:
    s = with_spec(healthy(), spec(replicas=3), restart_id=4)
    assert further_members(s, Placement(("n8",), 18))[0].restart_id == 4


def test_members_are_missing_only_beside_those_that_stay() -> None:
    assert healthy().missing == 0
    assert desired(healthy(), "m3", desired="absent").missing == 1


def test_the_replica_with_the_highest_number_leaves_first() -> None:
    s = with_spec(healthy(), spec(replicas=1))
    adjustment = adjust(s)
    assert changed(adjustment)["m3"].desired == "absent"
    assert changed(adjustment)["m2"].desired == "running"
    assert [(note.event, note.member) for note in adjustment.notes] == [("member_leaving", "m3")]


def test_the_leader_never_leaves() -> None:
    of = spec()
    s = healthy()
    s = replace(s, members=tuple(current(n, of, s.record, leader="m3") for n in (1, 2, 3)))
    s = replace(s, leader=replace(s.leader, member="m3", node="n3") if s.leader else None)
    s = with_spec(s, spec(replicas=0))
    assert {name for name, m in changed(adjust(s)).items() if m.desired == "absent"} == {"m1", "m2"}


def test_nobody_leaves_while_nobody_leads() -> None:
    s = with_spec(leaderless(healthy()), spec(replicas=0))
    assert all(m.desired == "running" for m in adjust(s).changed)


def test_the_member_that_is_to_initialise_does_not_leave() -> None:
    s = with_spec(replace(leaderless(healthy()), ha=HaRecord(bootstrap="m3")), spec(replicas=0))
    assert {name for name, m in changed(adjust(s)).items() if m.desired == "absent"} == {"m1", "m2"}


def test_a_member_of_the_sync_set_is_barred_from_election_first_and_leaves_when_it_is_out() -> None:
    s = healthy(of=spec(replication={"mode": "sync"}))
    ha = replace(s.ha or HaRecord(), sync=SyncRecord(mode="sync", k=1, names=("m3",)))
    s = with_spec(replace(s, ha=ha), spec(replicas=1, replication={"mode": "sync"}))
    first = adjust(s)
    assert (changed(first)["m3"].no_failover, changed(first)["m3"].desired) == (True, "running")
    s = settle(s, first)
    assert adjust(s).is_empty
    s = replace(s, ha=replace(ha, sync=SyncRecord(mode="sync", k=1, names=("m2",))))
    assert changed(adjust(s))["m3"].desired == "absent"


def test_a_member_that_was_to_leave_may_stay_until_it_is_told() -> None:
    s = healthy(of=spec(replication={"mode": "sync"}))
    s = replace(s, ha=replace(s.ha or HaRecord(), sync=SyncRecord(mode="sync", k=1, names=("m3",))))
    s = desired(s, "m3", no_failover=True)
    assert changed(adjust(s))["m3"].no_failover is False


def test_a_member_that_has_been_told_to_leave_is_not_called_back() -> None:
    s = desired(healthy(), "m3", desired="absent")
    assert adjust(s).is_empty
    assert s.missing == 1


def test_the_keys_of_a_member_go_once_its_agent_has_deleted_it() -> None:
    s = observed(desired(healthy(), "m3", desired="absent"), "m3", state=MemberState.DELETED)
    adjustment = adjust(s)
    assert [one.name for one in adjustment.dropped] == ["m3"]
    assert [(note.event, note.message) for note in adjustment.notes] == [("member_removed", "m3 on n3 is deleted")]


def test_a_leaving_member_on_a_silent_node_is_waited_for() -> None:
    s = replace(desired(healthy(), "m3", desired="absent"), silent=frozenset({"n3"}))
    assert adjust(s).is_empty


def test_a_leaving_member_whose_node_was_removed_is_not_waited_for() -> None:
    s = replace(desired(healthy(), "m3", desired="absent"), nodes=frozenset({"n1", "n2"}))
    assert [one.name for one in adjust(s).dropped] == ["m3"]


def test_a_member_of_a_removed_node_is_given_up_when_another_one_leads() -> None:
    s = replace(healthy(), nodes=frozenset({"n1", "n3"}))
    assert [one.name for one in adjust(s).dropped] == ["m2"]
    assert adjust(leaderless(s)).dropped == ()
    assert adjust(replace(healthy(), nodes=frozenset({"n2", "n3"}))).dropped == ()  # m1 leads by its lease still


def test_deletion_tells_every_member_to_leave() -> None:
    s = desired(healthy(), "m3", desired="absent")
    assert {(m.member, m.desired) for m in leave_all(s)} == {("m1", "absent"), ("m2", "absent")}


# --- rolling restart --------------------------------------------------------------------------------------------------


def restarts(s: Situation) -> list[str]:
    """Who is restarted, in which order, when every agent does as told."""
    order = []
    for _ in range(10):
        adjustment = adjust(s)
        order += [note.member for note in adjustment.notes if note.event == "member_restart_requested"]
        if adjustment.is_empty:
            return order
        assert len(adjustment.changed) == 1
        s = settle(s, adjustment)
    raise AssertionError(f"no end: {order}")


def to_restart(s: Situation) -> Situation:
    return replace(s, record=replace(s.record, restart_id=1))


def test_a_restart_goes_from_replica_to_replica_and_comes_to_the_leader_last() -> None:
    assert restarts(to_restart(healthy())) == ["m2", "m3", "m1"]


def test_a_leadership_that_has_moved_is_followed() -> None:
    s = to_restart(healthy())
    s = settle(s, adjust(s))
    s = replace(s, leader=replace(s.leader, member="m3", node="n3") if s.leader else None)
    assert restarts(s) == ["m1", "m3"]


@pytest.mark.parametrize("state", [MemberState.STOPPED, MemberState.STARTING, MemberState.CRASHED, MemberState.LAGGING])
def test_the_next_restart_waits_until_the_former_member_runs_again(state: MemberState) -> None:
    s = to_restart(healthy())
    s = settle(s, adjust(s))
    assert adjust(observed(s, "m2", state=state)).is_empty
    assert adjust(observed(s, "m2", restart_id=0)).is_empty
    assert not adjust(s).is_empty


def test_a_restart_waits_for_a_leader() -> None:
    assert adjust(leaderless(to_restart(healthy()))).is_empty


def test_an_unreachable_member_holds_no_restart_up_and_gets_its_turn_when_it_is_back() -> None:
    s = replace(to_restart(healthy()), silent=frozenset({"n2"}))
    assert restarts(s) == ["m3", "m1"]
    done = s
    while not adjust(done).is_empty:
        done = settle(done, adjust(done))
    assert restarts(replace(done, silent=frozenset())) == ["m2"]


def test_a_member_that_is_just_joining_holds_no_restart_up() -> None:
    s = desired(to_restart(healthy()), "m3", restart_id=1)
    s = observed(s, "m3", state=MemberState.CREATING, generation=0)
    assert changed(adjust(s)).keys() == {"m2"}


def test_a_single_member_restarts() -> None:
    assert restarts(to_restart(healthy(of=spec(replicas=0)))) == ["m1"]


@given(st.integers(0, 6), st.integers(0, 6), st.sets(st.integers(1, 7)))
def test_a_rolling_restart_visits_every_reachable_member_once_and_the_leader_last(
    replicas: int, leads: int, silent: set[int]
) -> None:
    leads = leads % (replicas + 1) + 1
    silent -= {leads}
    of = spec(replicas=replicas)
    s = healthy(of=of)
    s = replace(
        s,
        members=tuple(current(n, of, s.record, leader=f"m{leads}") for n in range(1, replicas + 2)),
        leader=replace(s.leader, member=f"m{leads}", node=f"n{leads}") if s.leader else None,
        silent=frozenset(f"n{number}" for number in silent),
    )
    order = restarts(to_restart(s))
    assert sorted(order) == sorted(one.name for one in s.members if one.node not in s.silent)
    assert order[-1] == f"m{leads}"


# --- who may initialise -----------------------------------------------------------------------------------------------


def uninitialised(s: Situation) -> Situation:
    for name in ("m1", "m2", "m3"):
        s = unobserved(s, name)
    return replace(leaderless(s), ha=HaRecord(bootstrap="m1"))


def test_the_right_to_initialise_moves_away_from_a_silent_node() -> None:
    s = uninitialised(healthy())
    assert adjust(s).is_empty
    assert adjust(replace(s, silent=frozenset({"n1"}))).bootstrap == "m2"
    assert adjust(replace(s, silent=frozenset({"n1", "n2"}))).bootstrap == "m3"


def test_it_stays_when_nobody_else_can_be_reached_or_data_exists_already() -> None:
    s = uninitialised(healthy())
    assert adjust(replace(s, silent=frozenset({"n1", "n2", "n3"}))).is_empty
    has_data = replace(s, ha=HaRecord(bootstrap="m1", system_id="7", term=1, leader="m1"))
    assert adjust(replace(has_data, silent=frozenset({"n1"}))).is_empty
    led = replace(s, leader=healthy().leader, silent=frozenset({"n1"}))
    assert adjust(led).bootstrap == ""


def test_it_moves_when_the_node_was_removed_and_the_member_is_given_up() -> None:
    adjustment = adjust(replace(uninitialised(healthy()), nodes=frozenset({"n2", "n3"})))
    assert [one.name for one in adjustment.dropped] == ["m1"]
    assert adjustment.bootstrap == "m2"


def test_adjusting_changes_nothing_of_what_it_is_given() -> None:
    s = with_spec(to_restart(healthy()), spec(replicas=1))
    before = repr(s)
    adjust(s)
    assert repr(s) == before
