"""Phases move by the table only, and phase and conditions tell the truth about every way an instance can be."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from core.records import HaRecord, InstanceStatus, LeadershipChange, MemberNotice, StepTaken, SwitchoverRequest
from core.status import Condition, ConditionType, MemberState, Phase, Role
from hub.judges.conditions import Judgement, judge
from hub.judges.findings import SWITCHOVER_GRACE_S
from hub.judges.lifecycle import TRANSITIONS, Facts, mermaid, next_phase
from hub.judges.placement import Refusal, Refused, Unplaceable
from hub.judges.situation import Situation
from tests.support.situations import desired, healthy, leaderless, member, observed, spec, unobserved, with_member

NOW = 1000.0
LEGAL = {
    (Phase.PENDING, Phase.CREATING),
    (Phase.CREATING, Phase.RUNNING),
    (Phase.RUNNING, Phase.MODIFYING),
    (Phase.MODIFYING, Phase.RUNNING),
    (Phase.RUNNING, Phase.DEGRADED),
    (Phase.DEGRADED, Phase.RUNNING),
    (Phase.MODIFYING, Phase.DEGRADED),
    (Phase.DEGRADED, Phase.MODIFYING),
    (Phase.DELETING, Phase.DELETED),
    *((phase, Phase.DELETING) for phase in Phase if phase not in (Phase.DELETING, Phase.DELETED)),
}
ALL_FACTS = [
    Facts(deleting=deleting, members=members, ready=ready, broken=broken)
    for deleting, members, (ready, broken) in product(
        (False, True), (0, 1, 3), ((False, False), (True, False), (False, True))
    )
]


def phase_after(s: Situation) -> Phase:
    return next_phase(s.phase, judge(s, now=NOW).facts)


def condition(judgement: Judgement, type_: ConditionType) -> Condition:
    found = judgement.of(type_)
    assert found is not None
    return found


# --- the table --------------------------------------------------------------------------------------------------------


def test_no_facts_lead_from_any_phase_along_a_transition_that_is_not_legal() -> None:
    taken = {(phase, next_phase(phase, facts)) for phase in Phase for facts in ALL_FACTS}
    assert {(before, after) for before, after in taken if before is not after} == LEGAL


@pytest.mark.parametrize("facts", ALL_FACTS)
def test_the_same_facts_bring_every_phase_to_rest(facts: Facts) -> None:
    for phase in Phase:
        walked = phase
        for _ in range(4):
            walked = next_phase(walked, facts)
        assert next_phase(walked, facts) is walked


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase not in (Phase.DELETING, Phase.DELETED)])
def test_deletion_comes_before_everything_else(phase: Phase) -> None:
    for ready, broken in ((True, False), (False, True), (False, False)):
        assert next_phase(phase, Facts(deleting=True, members=3, ready=ready, broken=broken)) is Phase.DELETING


def test_what_is_deleted_stays_deleted() -> None:
    assert all(next_phase(Phase.DELETED, facts) is Phase.DELETED for facts in ALL_FACTS)


def test_an_instance_being_made_is_never_called_degraded() -> None:
    assert next_phase(Phase.CREATING, Facts(deleting=False, members=3, ready=False, broken=True)) is Phase.CREATING


def test_the_diagram_shows_exactly_the_table() -> None:
    lines = mermaid().splitlines()
    assert lines[0] == "stateDiagram-v2"
    arrows = [line.split(":")[0].split() for line in lines[1:] if "[*]" not in line]
    assert [(source, target) for source, _, target in arrows] == [(str(t.source), str(t.target)) for t in TRANSITIONS]


# --- from a situation to its phase ------------------------------------------------------------------------------------


def test_an_instance_runs_when_every_member_does_its_work_at_the_desired_generation() -> None:
    judgement = judge(healthy(Phase.CREATING), now=NOW)
    assert judgement.findings == ()
    assert judgement.facts.ready
    assert next_phase(Phase.CREATING, judgement.facts) is Phase.RUNNING
    good = {c.type for c in judgement.conditions if c.status}
    assert good == set(ConditionType) - {ConditionType.PENDING_RESTART}


def test_what_engines_complain_of_is_told_and_degrades_nothing_while_they_do_their_work() -> None:
    filling = MemberNotice(reason="DiskFilling", message="8 GiB free of 128 GiB")
    behind = MemberNotice(reason="SlotFallsBehind", message="slot feed")
    s = observed(observed(healthy(), "m2", notices=(filling,)), "m1", notices=(behind,))
    judgement = judge(s, now=NOW)
    told = condition(judgement, ConditionType.ENGINES_HEALTHY)
    assert not told.status
    assert "m2 on n2: 8 GiB free" in told.message
    assert "m1 on n1: slot feed" in told.message
    assert phase_after(s) is Phase.RUNNING


def test_every_condition_is_always_told_once() -> None:
    for s in (healthy(), leaderless(healthy()), replace(healthy(), members=(), leader=None, ha=None)):
        assert sorted(c.type for c in judge(s, now=NOW).conditions) == sorted(ConditionType)


BROKEN: dict[str, tuple[Situation, ConditionType, str, list[str]]] = {
    "silent node": (
        replace(healthy(), silent=frozenset({"n2"})),
        ConditionType.NODES_REACHABLE,
        "NodeSilent",
        ["n2", "m2", "moorage-agent"],
    ),
    "removed node": (
        replace(healthy(), nodes=frozenset({"n1", "n3"})),
        ConditionType.NODES_REACHABLE,
        "NodeRemoved",
        ["n2", "m2"],
    ),
    "crashed replica": (
        observed(healthy(), "m3", state=MemberState.CRASHED, since=77.0, message="signal 9"),
        ConditionType.REPLICAS_AVAILABLE,
        "MemberCrashed",
        ["m3 on n3", "1970-01-01T00:01:17", "signal 9", "engine.log"],
    ),
    "failed replica": (
        observed(healthy(), "m3", state=MemberState.FAILED, reason="OperationFailed", message="no space left"),
        ConditionType.REPLICAS_AVAILABLE,
        "MemberFailed",
        ["m3 on n3", "no space left"],
    ),
    "replica that failed for a known reason": (
        observed(healthy(), "m3", state=MemberState.FAILED, reason="PortTaken", message="nginx listens there"),
        ConditionType.REPLICAS_AVAILABLE,
        "PortTaken",
        ["m3 on n3", "nginx"],
    ),
    "replica that crashed for a known reason": (
        observed(healthy(), "m3", state=MemberState.CRASHED, reason="DiskFull", message="the disk is full"),
        ConditionType.REPLICAS_AVAILABLE,
        "DiskFull",
        ["m3 on n3", "the disk is full"],
    ),
    "running replica on a full disk": (
        observed(healthy(), "m3", notices=(MemberNotice(reason="DiskFull", message="the disk is full"),)),
        ConditionType.ENGINES_HEALTHY,
        "DiskFull",
        ["m3 on n3", "the disk is full"],
    ),
    "stopped replica": (
        observed(healthy(), "m3", state=MemberState.STOPPED),
        ConditionType.REPLICAS_AVAILABLE,
        "MemberStopped",
        ["m3 on n3"],
    ),
    "rejoining former primary": (
        observed(healthy(), "m2", state=MemberState.REJOINING, since=5.0),
        ConditionType.REPLICAS_AVAILABLE,
        "MemberRejoining",
        ["m2 on n2", "rewound"],
    ),
    "lost data directory": (
        observed(healthy(), "m2", state=MemberState.ABSENT),
        ConditionType.REPLICAS_AVAILABLE,
        "MemberAbsent",
        ["m2 on n2"],
    ),
    "nobody leads": (
        leaderless(healthy()),
        ConditionType.PRIMARY_AVAILABLE,
        "NoPrimary",
        ["term 1", "m1 on n1", "m2: running", "moorctl instance show"],
    ),
    "crashed primary that still holds the lease": (
        observed(healthy(), "m1", state=MemberState.CRASHED),
        ConditionType.PRIMARY_AVAILABLE,
        "MemberCrashed",
        ["m1 on n1"],
    ),
    "leader whose engine is a replica still": (
        observed(healthy(), "m1", role=Role.REPLICA),
        ConditionType.PRIMARY_AVAILABLE,
        "PrimaryNotReady",
        ["m1 on n1", "replica"],
    ),
    "second primary": (
        observed(healthy(), "m2", role=Role.PRIMARY),
        ConditionType.REPLICAS_AVAILABLE,
        "WrongRole",
        ["m2 on n2", "m1 leads"],
    ),
    "replica of the wrong member": (
        observed(healthy(), "m2", streaming_from="m3"),
        ConditionType.REPLICATING,
        "NotStreaming",
        ["m2 on n2", "from m3", "not from m1"],
    ),
    "replica that does not stream": (
        observed(healthy(), "m2", streaming_from=""),
        ConditionType.REPLICATING,
        "NotStreaming",
        ["does not stream"],
    ),
    "lagging replica": (
        observed(healthy(), "m2", state=MemberState.LAGGING, reason="TooFarBehind", message="2 GiB behind"),
        ConditionType.REPLICATING,
        "TooFarBehind",
        ["m2 on n2", "m1", "2 GiB behind"],
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_degrades_the_instance_and_says_what_and_where(case: str) -> None:
    s, type_, reason, words = BROKEN[case]
    judgement = judge(s, now=NOW)
    told = condition(judgement, type_)
    assert (told.status, told.reason) == (False, reason)
    assert [word for word in words if word not in told.message] == []
    assert phase_after(s) is Phase.DEGRADED
    assert judgement.worst is not None
    assert judgement.worst.type is type_


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_so_while_modifying_too_unless_it_only_starts(case: str) -> None:
    s, *_ = BROKEN[case]
    modifying = replace(s, status=replace(s.status or InstanceStatus(project="", name=""), phase=Phase.MODIFYING))
    expected = Phase.MODIFYING if case == "stopped replica" else Phase.DEGRADED
    assert phase_after(modifying) is expected


@pytest.mark.parametrize("case", BROKEN)
def test_judging_changes_nothing_of_what_it_is_given(case: str) -> None:
    s, *_ = BROKEN[case]
    before = repr(s)
    judge(s, now=NOW)
    assert repr(s) == before


def test_a_degraded_instance_runs_again_once_all_is_well() -> None:
    assert phase_after(healthy(Phase.DEGRADED)) is Phase.RUNNING


def test_the_primary_comes_first_among_several_troubles() -> None:
    s = replace(leaderless(healthy()), silent=frozenset({"n1"}))
    worst = judge(s, now=NOW).worst
    assert worst is not None
    assert worst.reason == "NoPrimary"
    assert "m1: node n1 silent" in worst.message


def test_a_pause_is_named_as_the_reason_why_nobody_takes_over() -> None:
    s = leaderless(healthy())
    s = replace(s, ha=replace(s.ha or HaRecord(), paused=True))
    assert "paused" in condition(judge(s, now=NOW), ConditionType.PRIMARY_AVAILABLE).message


def handed_over(s: Situation, at: float) -> Situation:
    """m1 has just taken over in term 2 from m2, as asked."""
    steps = (StepTaken(name="stopped", took_s=0.2),)
    line = LeadershipChange(term=1, member="m2", reason="asked", kind="released", steps=steps, at=at)
    return replace(s, ha=replace(s.ha or HaRecord(), term=2, leader="m1", history=(line,)))


@pytest.mark.parametrize(
    ("since_s", "phase"), [(1.0, Phase.MODIFYING), (29.0, Phase.MODIFYING), (31.0, Phase.DEGRADED)]
)
def test_a_switchover_is_no_trouble_until_its_grace_is_over(since_s: float, phase: Phase) -> None:
    promoting = observed(healthy(), "m1", role=Role.REPLICA)
    rejoining = observed(healthy(), "m2", state=MemberState.REJOINING)
    for s in (promoting, rejoining):
        assert phase_after(handed_over(s, NOW - since_s)) is phase
        assert phase_after(s) is Phase.DEGRADED


def test_an_engine_that_fails_in_a_switchover_is_trouble_at_once() -> None:
    s = observed(healthy(), "m1", state=MemberState.FAILED)
    assert phase_after(handed_over(s, NOW - 1.0)) is Phase.DEGRADED


def test_a_pause_is_told_while_all_is_well_and_degrades_nothing() -> None:
    s = healthy()
    on = condition(judge(s, now=NOW), ConditionType.AUTOMATIC_FAILOVER)
    assert (on.status, on.reason, on.message) == (True, "On", "any member may take over")
    paused = replace(s.ha or HaRecord(), paused=True, paused_by="ada", paused_at=1_800_000_000.0, pause_reason="disks")
    s = replace(s, ha=paused)
    off = condition(judge(s, now=NOW), ConditionType.AUTOMATIC_FAILOVER)
    assert (off.status, off.reason) == (False, "Paused")
    assert off.message == (
        "automatic failover is paused by ada since 2027-01-15 08:00:00 UTC (disks); end it with `moorctl instance "
        "resume demo/orders`"
    )
    assert phase_after(s) is Phase.RUNNING


def test_members_that_must_not_lead_are_named() -> None:
    s = desired(healthy(), "m2", no_failover=True)
    assert condition(judge(s, now=NOW), ConditionType.AUTOMATIC_FAILOVER).message == "any member but m2 may take over"


def test_what_an_election_waits_for_is_told_with_the_way_out() -> None:
    s = replace(leaderless(healthy()), silent=frozenset({"n1", "n2"}))
    waits = "nobody may lead: ballots of 1 of m2 are needed, or that of m1; missing: m2"
    s = observed(s, "m3", reason="ElectionStuck", message=waits)
    s = observed(s, "m2", message="an old story: its node is silent")
    told = condition(judge(s, now=NOW), ConditionType.PRIMARY_AVAILABLE)
    assert told.reason == "ElectionStuck"
    assert f"; m3: {waits}; " in told.message
    assert "`moorctl instance failover demo/orders` tells what a forced one would lose" in told.message
    assert "an old story" not in told.message


def test_an_engine_that_is_not_initialised_yet_is_no_outage() -> None:
    s = leaderless(healthy(Phase.CREATING))
    s = replace(s, ha=HaRecord(bootstrap="m1"))
    for name in ("m1", "m2", "m3"):
        s = unobserved(s, name)
    judgement = judge(s, now=NOW)
    assert condition(judgement, ConditionType.PRIMARY_AVAILABLE).reason == "NotInitialised"
    assert judgement.worst is None


# --- changes under way ------------------------------------------------------------------------------------------------


def test_a_new_generation_modifies_until_every_member_has_converged() -> None:
    s = healthy(generation=2)
    assert phase_after(observed(s, "m3", generation=1)) is Phase.MODIFYING
    assert (
        phase_after(replace(s, status=replace(s.status or InstanceStatus(project="", name=""), phase=Phase.MODIFYING)))
        is Phase.RUNNING
    )


@pytest.mark.parametrize(
    "state", [MemberState.ABSENT, MemberState.CREATING, MemberState.STARTING, MemberState.LAGGING, MemberState.DELETED]
)
def test_a_member_that_is_being_added_degrades_nothing(state: MemberState) -> None:
    s = observed(healthy(), "m3", state=state, generation=0, role=Role.UNKNOWN, streaming_from="")
    assert phase_after(s) is Phase.MODIFYING


def test_a_member_that_cannot_be_added_degrades() -> None:
    s = observed(healthy(), "m3", state=MemberState.FAILED, generation=0, message="clone failed")
    assert phase_after(s) is Phase.DEGRADED


def test_a_restart_that_was_asked_for_degrades_nothing() -> None:
    s = healthy(restart_id=1)
    s = observed(s, "m2", state=MemberState.STOPPED, restart_id=0)
    assert phase_after(s) is Phase.MODIFYING


def test_replicas_may_lose_their_stream_while_the_primary_restarts_as_asked() -> None:
    s = healthy(restart_id=1)
    s = observed(s, "m1", state=MemberState.STARTING, restart_id=0)
    s = replace(s, status=replace(s.status or InstanceStatus(project="", name=""), phase=Phase.MODIFYING))
    s = observed(s, "m2", state=MemberState.LAGGING)
    s = observed(s, "m3", streaming_from="")
    assert phase_after(s) is Phase.MODIFYING


def test_members_waiting_for_their_turn_to_restart_keep_the_instance_modifying() -> None:
    s = healthy(restart_id=1)
    s = desired(observed(s, "m1", restart_id=0), "m1", restart_id=0)
    assert phase_after(s) is Phase.MODIFYING
    assert "m1 on n1 has restart 1" in condition(judge(s, now=NOW), ConditionType.CONVERGED).message


def test_a_leaving_member_keeps_the_instance_modifying_until_it_is_gone() -> None:
    s = desired(healthy(of=spec(replicas=1)), "m2", desired="absent")
    s = replace(s, members=(*s.members, healthy().members[2]), nodes=frozenset({"n1", "n2", "n3"}))
    judgement = judge(s, now=NOW)
    assert condition(judgement, ConditionType.CONVERGED).reason == "MemberLeaving"
    assert next_phase(Phase.RUNNING, judgement.facts) is Phase.MODIFYING


SWITCHOVER = SwitchoverRequest(id="s1", target="m2")


def test_a_switchover_that_was_asked_for_is_no_outage() -> None:
    s = leaderless(healthy())
    s = replace(s, ha=replace(s.ha or HaRecord(), switchover=SWITCHOVER))
    s = observed(s, "m1", state=MemberState.STOPPED)
    judgement = judge(s, now=NOW)
    assert condition(judgement, ConditionType.PRIMARY_AVAILABLE).reason == "SwitchoverUnderWay"
    assert judgement.worst is None


def test_a_switchover_that_leaves_nobody_leading_for_long_is_an_outage() -> None:
    s = leaderless(healthy())
    s = replace(s, ha=replace(s.ha or HaRecord(), switchover=SWITCHOVER))
    since = replace(condition(judge(s, now=NOW), ConditionType.PRIMARY_AVAILABLE), since=NOW - SWITCHOVER_GRACE_S - 1)
    s = replace(s, status=replace(s.status or InstanceStatus(project="", name=""), conditions=(since,)))
    assert condition(judge(s, now=NOW), ConditionType.PRIMARY_AVAILABLE).reason == "NoPrimary"


# --- the words --------------------------------------------------------------------------------------------------------


def test_since_stays_while_the_status_of_a_condition_does() -> None:
    first = judge(replace(healthy(), silent=frozenset({"n2"})), now=NOW)
    s = replace(healthy(), silent=frozenset({"n2", "n3"}))
    s = replace(s, status=InstanceStatus(project="demo", name="orders", conditions=first.conditions))
    later = judge(s, now=NOW + 50)
    told = condition(later, ConditionType.NODES_REACHABLE)
    assert told.since == NOW
    assert "n3" in told.message
    well = judge(replace(s, silent=frozenset()), now=NOW + 60)
    assert condition(well, ConditionType.NODES_REACHABLE).since == NOW + 60


def test_a_long_list_of_troubles_is_cut_with_a_count() -> None:
    s = healthy(of=spec(replicas=8))
    s = replace(s, silent=frozenset(f"n{number}" for number in range(2, 10)))
    message = condition(judge(s, now=NOW), ConditionType.NODES_REACHABLE).message
    assert message.endswith("and 3 more")


def test_why_members_cannot_be_placed_is_told_with_the_nodes_reasons() -> None:
    s = replace(healthy(Phase.PENDING), members=(), leader=None, ha=None, status=None)
    why = Unplaceable("3 needed, 1 fits", {"n2": (Refused(Refusal.CORDONED, "cordoned"),)})
    told = condition(judge(s, unplaceable=why, now=NOW), ConditionType.PLACED)
    assert (told.status, told.reason) == (False, "Unplaceable")
    assert "n2: cordoned" in told.message
    assert "moorctl instance explain demo/orders" in told.message


def test_an_unreadable_spec_is_told_and_holds_the_instance_in_its_phase() -> None:
    s = replace(healthy(), spec=None, spec_problem="replicas: must not be negative")
    told = condition(judge(s, now=NOW), ConditionType.CONVERGED)
    assert told.reason == "SpecNotValid"
    assert "replicas: must not be negative" in told.message


def test_parameters_that_wait_for_a_restart_are_information() -> None:
    s = observed(healthy(), "m2", pending_restart=("max_connections",))
    told = condition(judge(s, now=NOW), ConditionType.PENDING_RESTART)
    assert told.status
    assert "max_connections" in told.message
    assert "moorctl instance restart demo/orders" in told.message
    assert phase_after(s) is Phase.RUNNING


def test_an_engine_without_tls_is_information() -> None:
    s = observed(healthy(), "m2", engine_tls=False)
    told = condition(judge(s, now=NOW), ConditionType.ENGINE_TLS)
    assert (told.status, told.reason) == (False, "EngineWithoutTls")
    assert "m2 on n2" in told.message
    assert phase_after(s) is Phase.RUNNING


def test_a_deletion_tells_which_silent_node_it_waits_for() -> None:
    s = healthy(Phase.DELETING, deleting=True)
    for name in ("m1", "m2", "m3"):
        s = desired(s, name, desired="absent")
    s = replace(s, silent=frozenset({"n2"}))
    judgement = judge(s, now=NOW)
    assert "n2" in condition(judgement, ConditionType.NODES_REACHABLE).message
    assert "m2 on n2 cannot be deleted" in condition(judgement, ConditionType.CONVERGED).message
    assert next_phase(Phase.DELETING, judgement.facts) is Phase.DELETING


def test_texts_hold_no_running_figures() -> None:
    for s, *_ in BROKEN.values():
        texts = [{c.type: c.message for c in judge(s, now=now).conditions} for now in (NOW, NOW + 12345)]
        assert texts[0] == texts[1]


def test_an_old_report_of_deletion_is_not_believed_about_a_new_member() -> None:
    s = desired(healthy(), "m3", desired="absent")
    fresh = with_member(observed(s, "m3", state=MemberState.DELETED), "m3", revision=10, observed_revision=20)
    stale = with_member(fresh, "m3", revision=30)
    assert member(fresh, "m3").deleted
    assert not member(stale, "m3").deleted
