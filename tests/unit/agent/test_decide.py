"""What a member does whoever leads: fence, finish what runs, stop, leave foreign data alone, wait for news."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.ha.actions import ApplySync, AskPeers, Fence, Handover, Reason, Release, Stop
from agent.ha.decide import decide
from agent.ha.leading import IN_ORDER_S
from agent.ha.view import Engine, EngineState, Lease, OperationKind, View
from core.records import ForcedFailover, LeaderRecord, Replication, SwitchoverRequest
from core.status import Role
from tests.support.builders import (
    HELD,
    NOW,
    Case,
    as_candidate,
    as_follower,
    as_leader,
    as_voter,
    ballot,
    busy,
    desired,
    ha,
    instance,
    leading_peer,
    peer,
    primary,
    replica,
    standby,
    sync,
)
from tests.unit.agent import test_decide_following, test_decide_leaderless, test_decide_leading, test_decide_standby

OVER = replace(HELD, fence_at=NOW)
NO_LEASE = Lease()
OTHER = Engine(state=EngineState.STOPPED, role=Role.PRIMARY, system_id="other")

FORCED = as_leader(
    engine=primary(standbys=(standby("m2"), standby("m3"))),
    instance=instance(forced=ForcedFailover(id="f1", target="m2", after_term=1)),
    forced_since=NOW,
)
HANDING_OVER = as_leader(
    engine=primary(standbys=(standby("m3"),), sync=sync(1, "m2")),
    desired=desired(replication=Replication(mode="sync")),
    instance=instance(record=ha(sync=sync(1, "m2", "m3", seq=2))),
    sync_sent=sync(1, "m2", "m3", seq=2),
    operation=busy(OperationKind.HANDOVER),
)

CASES = [
    # fence
    Case("a primary at its deadline is fenced", as_leader(lease=OVER), Reason.LEASE_OVER, (Fence(),)),
    Case("a primary without any lease is fenced", as_leader(lease=NO_LEASE), Reason.LEASE_OVER, (Fence(),)),
    Case(
        "a primary that has never heard of the hub is fenced at its deadline",
        as_leader(lease=OVER, instance=None),
        Reason.LEASE_OVER,
        (Fence(),),
    ),
    Case(
        "an engine that only starts as primary is fenced at the deadline",
        as_leader(lease=OVER, engine=primary(state=EngineState.STARTING)),
        Reason.LEASE_OVER,
        (Fence(),),
    ),
    Case(
        "a hanging engine of unknown role is fenced at the deadline",
        as_leader(lease=OVER, engine=primary(state=EngineState.UNRESPONSIVE, role=Role.UNKNOWN)),
        Reason.LEASE_OVER,
        (Fence(),),
    ),
    Case(
        "a promotion under way is preempted at the deadline",
        as_leader(lease=OVER, engine=replica(""), operation=busy(OperationKind.PROMOTE)),
        Reason.LEASE_OVER,
        (Fence(),),
    ),
    Case(
        "the start of a primary that is under way is preempted at the deadline",
        as_leader(lease=OVER, engine=primary(state=EngineState.STOPPED), operation=busy(OperationKind.START)),
        Reason.LEASE_OVER,
        (Fence(),),
    ),
    Case(
        "an initialisation under way is preempted at the deadline",
        as_leader(lease=OVER, engine=Engine(state=EngineState.ABSENT), operation=busy(OperationKind.INITIALISE)),
        Reason.LEASE_OVER,
        (Fence(),),
    ),
    Case(
        "a handover that could still roll back is preempted at the deadline",
        as_leader(lease=OVER, engine=primary(state=EngineState.STOPPED), operation=busy(OperationKind.HANDOVER)),
        Reason.LEASE_OVER,
        (Fence(),),
    ),
    Case(
        "a handover that has given the leadership away is left to finish",
        as_leader(lease=NO_LEASE, engine=primary(state=EngineState.STOPPED), operation=busy(OperationKind.HANDOVER)),
        Reason.BUSY,
    ),
    Case(
        "a fence under way is not begun again",
        as_leader(lease=OVER, operation=busy(OperationKind.FENCE)),
        Reason.BUSY,
    ),
    Case(
        "a replica needs no fence",
        as_follower(),
        Reason.STEADY_REPLICA,
    ),
    Case(
        "a primary is fenced as soon as it hears that another has led since, even before its deadline",
        as_leader(instance=instance(leader="m2", term=2)),
        Reason.SUPERSEDED,
        (Fence(),),
    ),
    Case(
        "a primary that others have led after is fenced also while nobody leads",
        as_leader(instance=instance(leader="", record=instance(leader="m2", term=2).ha)),
        Reason.SUPERSEDED,
        (Fence(),),
    ),
    Case(
        "a primary on another database's data is fenced",
        as_leader(engine=primary(system_id="other")),
        Reason.FOREIGN_DATA,
        (Fence(),),
    ),
    Case(
        "a primary is fenced when an operator forces another member to lead",
        as_leader(instance=instance(forced=ForcedFailover(id="f1", target="m2", after_term=1))),
        Reason.FORCED_AWAY,
        (Fence(),),
    ),
    Case(
        "an order to force a failover of another term does nothing",
        as_leader(instance=instance(forced=ForcedFailover(id="f1", target="m2", after_term=2))),
        Reason.STEADY_PRIMARY,
    ),
    Case(
        "a leader that is forced away and well hands over to who is to lead",
        FORCED,
        Reason.HANDS_OVER,
        (Handover(request_id="f1", target="m2", term=1),),
    ),
    Case(
        "it is fenced when that takes too long",
        replace(FORCED, operation=busy(OperationKind.HANDOVER), forced_since=NOW - IN_ORDER_S),
        Reason.FORCED_AWAY,
        (Fence(),),
    ),
    Case(
        "it is fenced when that has failed",
        replace(FORCED, engine=replace(FORCED.engine, failed=OperationKind.HANDOVER)),
        Reason.FORCED_AWAY,
        (Fence(),),
    ),
    Case(
        "it is fenced when who is to lead does not stream from it",
        replace(FORCED, engine=primary(standbys=(standby("m3"),))),
        Reason.FORCED_AWAY,
        (Fence(),),
    ),
    Case(
        "it is fenced when the hub cannot hear of it",
        replace(FORCED, lease=replace(HELD, renewed_at=96.0)),
        Reason.FORCED_AWAY,
        (Fence(),),
    ),
    # an operation runs
    Case(
        "a standby that is gone is exchanged while a handover lets the clients go on",
        HANDING_OVER,
        Reason.APPLIES_SYNC,
        (ApplySync(sync(1, "m3")),),
    ),
    Case(
        "nothing changes any more when the handover stops the engine",
        replace(HANDING_OVER, closing=True),
        Reason.BUSY,
    ),
    Case(
        "nothing changes during any other operation",
        replace(HANDING_OVER, operation=busy(OperationKind.STOP)),
        Reason.BUSY,
    ),
    Case("a clone is left to finish", as_follower(operation=busy(OperationKind.CLONE)), Reason.BUSY, detail="clone"),
    Case(
        "a leader asks its peers also during an operation",
        as_leader(operation=busy(OperationKind.STOP), lease=replace(HELD, renewed_at=96.0)),
        Reason.ASKS_PEERS,
        (AskPeers(1),),
    ),
    # to be down
    Case(
        "a running member that is to be stopped stops",
        as_follower(desired=desired("m2", desired="stopped")),
        Reason.STOPS,
        (Stop(),),
    ),
    Case(
        "a member that will not stop in an orderly way is stopped at once",
        as_follower(desired=desired("m2", desired="absent"), engine=replica(failed_starts=2)),
        Reason.ENGINE_HUNG,
        (Fence(),),
    ),
    Case(
        "a leader that is to be absent stops before it lets go",
        as_leader(desired=desired(desired="absent")),
        Reason.STOPS,
        (Stop(),),
    ),
    Case(
        "a leader that is to be absent lets go once it is down",
        as_leader(desired=desired(desired="absent"), engine=primary(state=EngineState.STOPPED)),
        Reason.GIVES_UP_STOPPED,
        (Release(1),),
    ),
    Case(
        "a stopped member stays down while nobody leads",
        as_candidate(desired=desired("m2", desired="stopped"), engine=replica("", state=EngineState.STOPPED)),
        Reason.STAYS_DOWN,
    ),
    # foreign data
    Case(
        "another database's data is neither started nor replaced",
        as_follower(engine=OTHER),
        Reason.FOREIGN_DATA,
        detail="other",
    ),
    Case(
        "a leader that finds another database's data lets go",
        as_leader(engine=OTHER),
        Reason.GIVES_UP_FOREIGN,
        (Release(1),),
    ),
    Case(
        "data that lay there before the instance was ever made is not taken for its own",
        as_leader(lease=NO_LEASE, engine=OTHER, instance=instance(leader="", term=0, system_id="")),
        Reason.FOREIGN_DATA,
    ),
    # news is missing
    Case("a member that knows of no instance waits", as_follower(instance=None), Reason.WAITS_FOR_HUB),
    Case(
        "a leadership is not used before the hub confirms its lease",
        as_leader(lease=NO_LEASE, engine=primary(state=EngineState.STOPPED)),
        Reason.LEASE_UNCONFIRMED,
    ),
    Case(
        "a term that was given up is given up again when the key is still there",
        as_leader(lease=NO_LEASE, spent_term=1, engine=primary(state=EngineState.STOPPED)),
        Reason.GIVES_UP_SPENT,
        (Release(1),),
    ),
    Case(
        "a member that has voted follows no leader of an earlier term than it voted for",
        as_follower(ballot_term=3, instance=instance(leader="m1", term=2)),
        Reason.VIEW_OLDER,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_whoever_leads(case: Case) -> None:
    case.check()


def test_every_reason_is_reached_by_a_named_case() -> None:
    tables = (
        CASES,
        test_decide_leading.CASES,
        test_decide_following.CASES,
        test_decide_leaderless.CASES,
        test_decide_standby.CASES,
    )
    shown = {case.reason for table in tables for case in table}
    assert {reason.name for reason in set(Reason) - shown} == set()


def test_sentences_are_told_once() -> None:
    tables = (
        CASES,
        test_decide_leading.CASES,
        test_decide_following.CASES,
        test_decide_leaderless.CASES,
        test_decide_standby.CASES,
    )
    sentences = [case.sentence for table in tables for case in table]
    assert len(sentences) == len(set(sentences))


# --- what holds for every view ----------------------------------------------------------------------------------------

LEASES = st.builds(
    Lease,
    term=st.integers(0, 4),
    renewed_at=st.sampled_from([0.0, 90.0, 96.5, 99.0]),
    fence_at=st.sampled_from([0.0, NOW - 1, NOW, NOW + 0.1, NOW + 4]),
)
ENGINES = st.builds(
    Engine,
    state=st.sampled_from(EngineState),
    role=st.sampled_from(Role),
    position=st.sampled_from([primary().position, Engine(state=EngineState.ABSENT).position]),
    system_id=st.sampled_from(["", primary().system_id, "other"]),
    upstream=st.sampled_from(["", "m1", "m3"]),
    streaming=st.booleans(),
    standbys=st.sampled_from([(), (standby("m2"), standby("m3", 10))]),
    failed_starts=st.sampled_from([0, 3, 9]),
    retry_at=st.sampled_from([0.0, NOW + 5]),
)
INSTANCES = st.none() | st.builds(
    lambda leader, term, **more: replace(
        instance(leader=leader, term=term, **more),
        leader=LeaderRecord(member=leader, node="n", term=term) if leader else None,
    ),
    leader=st.sampled_from(["", "m1", "m2", "m4"]),
    term=st.integers(0, 4),
    system_id=st.sampled_from(["", primary().system_id]),
    paused=st.booleans(),
    released_term=st.integers(0, 4),
    ballots=st.sampled_from([(), (ballot("m2"), ballot("m3"))]),
    members=st.sampled_from([None, (peer("m1"), leading_peer("m2"))]),
    switchover=st.sampled_from([None, SwitchoverRequest(id="s", target="m2")]),
)
VIEWS = st.builds(
    replace,
    st.sampled_from([as_leader(), as_follower(), as_candidate(), as_voter(ballot("m3"))]),
    lease=LEASES,
    engine=ENGINES,
    instance=INSTANCES,
    desired=st.sampled_from([desired("m2"), desired("m2", desired="stopped"), desired("m2", desired="absent")]),
    operation=st.none() | st.sampled_from(OperationKind).map(busy),
    promised_until=st.sampled_from([0.0, NOW + 3]),
    spent_term=st.integers(0, 4),
    followed_term=st.none() | st.integers(0, 3),
    started_at=st.sampled_from([0.0, NOW - 1]),
)


@settings(max_examples=600, deadline=None)
@given(VIEWS)
def test_every_view_gets_an_answer_in_time_and_unchanged(view: View) -> None:
    before = replace(view)
    decision = decide(view, NOW)
    assert view == before
    assert NOW < decision.wake_at <= NOW + 1.0
    assert len(decision.actions) <= 1


@settings(max_examples=600, deadline=None)
@given(VIEWS)
def test_no_view_leaves_a_primary_without_lease_alone(view: View) -> None:
    writes = view.engine.state in (EngineState.RUNNING, EngineState.STARTING, EngineState.UNRESPONSIVE)
    fencing = view.operation is not None and view.operation.kind is OperationKind.FENCE
    if writes and view.engine.role is not Role.REPLICA and view.lease.fence_at <= NOW and not fencing:
        assert decide(view, NOW).actions == (Fence(),)


@settings(max_examples=600, deadline=None)
@given(VIEWS)
def test_nobody_lets_go_with_an_engine_that_may_write(view: View) -> None:
    decision = decide(view, NOW)
    if any(isinstance(action, Release) for action in decision.actions):
        assert view.engine.state not in (EngineState.RUNNING, EngineState.STARTING) or view.engine.role is Role.REPLICA
