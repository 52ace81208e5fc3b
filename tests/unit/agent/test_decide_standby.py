"""What the members of a standby instance do: one follows the remote primary, the others follow that one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.ha.actions import (
    Acquire,
    CastBallot,
    Clone,
    Detach,
    Fence,
    Follow,
    Initialise,
    ProbeTimeline,
    Promote,
    Reason,
    RecordSync,
    RecordSystemId,
    Rejoin,
    Release,
    StartPrimary,
    StartReplica,
)
from agent.ha.decide import decide
from agent.ha.view import Engine, EngineState, Fork, Lease, OperationKind, View
from core.positions import Lsn
from core.records import REMOTE, InstanceView, RemotePrimary, Replication
from core.status import MemberState, Role
from tests.support.builders import (
    HELD,
    NOW,
    SYSTEM_ID,
    Case,
    as_candidate,
    as_follower,
    as_leader,
    as_voter,
    at,
    ballot,
    busy,
    desired,
    instance,
    peer,
    primary,
    replica,
)

FAR = RemotePrimary(hosts=("far:5432",), user="follower")
ABSENT = Engine(state=EngineState.ABSENT)
BROKEN = replica(REMOTE, streaming=False, broken=True, failure="lacks log")
LEADER = peer("m1", streaming_from=REMOTE)
MEMBERS = (LEADER, peer("m2"), peer("m3"))
ALONE = (LEADER, peer("m2", alive=False))


def following(**changes: Any) -> InstanceView:
    """As m1 leads, all of them replicas."""
    return instance(**{"members": MEMBERS, "standby": True, **changes})


def leads(engine: Engine, **changes: Any) -> View:
    """m1, which leads the standby instance."""
    plain = as_leader(engine=engine, instance=following(), desired=desired(standby=FAR))
    return replace(plain, **changes)


def other(**changes: Any) -> View:
    """m2, another member of it."""
    return as_follower(**{"instance": following(), "desired": desired("m2", standby=FAR), **changes})


LEADING = [
    Case(
        "a standby leader that streams has nothing to do", leads(replica(REMOTE)), Reason.STEADY_STANDBY, detail="far"
    ),
    Case(
        "a new standby instance is copied from the remote primary, never initialised",
        leads(ABSENT, instance=following(system_id="")),
        Reason.COPIES_REMOTE,
        (Clone(REMOTE),),
    ),
    Case(
        "which database it is, is put on record after the first copy",
        leads(replica(REMOTE), instance=following(system_id="")),
        Reason.RECORDS_IDENTITY,
        (RecordSystemId(1, SYSTEM_ID),),
    ),
    Case(
        "who has lost its data leaves it to a member that has some",
        leads(ABSENT),
        Reason.DATA_LOST,
        (Release(1),),
    ),
    Case(
        "who has lost its data copies it anew when no other member has any",
        leads(ABSENT, instance=following(members=ALONE)),
        Reason.COPIES_REMOTE,
        (Clone(REMOTE),),
    ),
    Case(
        "who was elected turns to the remote primary and is not promoted",
        leads(replica("")),
        Reason.FOLLOWS_REMOTE,
        (Follow(REMOTE),),
    ),
    Case(
        "a stopped engine starts as replica of the remote primary",
        leads(replica(REMOTE, state=EngineState.STOPPED, streaming=False)),
        Reason.STARTS_STANDBY,
        (StartReplica(REMOTE),),
    ),
    Case(
        "a crashed engine is left to the others",
        leads(replica(REMOTE, state=EngineState.CRASHED, streaming=False)),
        Reason.GIVES_UP_CRASHED,
        (Release(1),),
    ),
    Case(
        "a crashed engine is started when there is no other member",
        leads(replica(REMOTE, state=EngineState.CRASHED), instance=following(members=ALONE)),
        Reason.STARTS_STANDBY,
        (StartReplica(REMOTE),),
    ),
    Case(
        "an engine that hangs is stopped when another member can follow",
        leads(replica(REMOTE, state=EngineState.UNRESPONSIVE)),
        Reason.ENGINE_HUNG,
        (Fence(),),
    ),
    Case(
        "an engine that hangs is waited for when there is no other",
        leads(replica(REMOTE, state=EngineState.UNRESPONSIVE), instance=following(members=ALONE)),
        Reason.ENGINE_SILENT,
    ),
    Case(
        "an engine that starts is waited for",
        leads(replica(REMOTE, state=EngineState.STARTING)),
        Reason.STARTS,
    ),
    Case(
        "while the remote primary is away it is waited for, however long",
        leads(replica(REMOTE, streaming=False), not_streaming_since=NOW - 3600, probed_at=NOW - 1),
        Reason.REMOTE_SILENT,
        detail="far:5432",
    ),
    Case(
        "now and then it is asked for its history",
        leads(replica(REMOTE, streaming=False), not_streaming_since=NOW - 3600),
        Reason.PROBES_REMOTE,
        (ProbeTimeline(REMOTE),),
    ),
    Case(
        "a new timeline of the remote primary's that has everything is followed by the engine itself",
        leads(replica(REMOTE, streaming=False, leader_forks=(Fork(timeline=1, lsn=Lsn(1000)),)), probed_at=NOW),
        Reason.REMOTE_SILENT,
    ),
    Case(
        "one that lacks the end of the own log is copied anew",
        leads(replica(REMOTE, streaming=False, leader_forks=(Fork(timeline=1, lsn=Lsn(999)),)), probed_at=NOW),
        Reason.REJOINS_REMOTE,
        (Rejoin(REMOTE),),
    ),
    Case(
        "what lacks log that the remote primary no longer has is copied anew",
        leads(BROKEN),
        Reason.COPIES_REMOTE,
        (Clone(REMOTE),),
        detail="lacks log",
    ),
    Case(
        "a copy that failed is tried again after a pause",
        leads(replace(BROKEN, failed=OperationKind.CLONE, retry_at=NOW + 5)),
        Reason.RETRIES_LATER,
    ),
    Case(
        "data that cannot be started is copied anew, if there is no other member",
        leads(replace(BROKEN, state=EngineState.CRASHED), instance=following(members=ALONE)),
        Reason.COPIES_REMOTE,
        (Clone(REMOTE),),
    ),
    Case(
        "an engine that somebody promoted by hand is stopped",
        leads(primary()),
        Reason.PROMOTED_BY_HAND,
        (Fence(),),
    ),
    Case(
        "it is neither started nor overwritten",
        leads(primary(state=EngineState.CRASHED)),
        Reason.PROMOTED_BY_HAND,
    ),
    Case(
        "another database at the remote primary's address is not taken for the first",
        leads(replica(REMOTE, system_id="another")),
        Reason.FOREIGN_DATA,
        (Fence(),),
    ),
    Case(
        "without the hub it streams on: it needs nobody's promise",
        leads(replica(REMOTE), lease=replace(HELD, renewed_at=NOW - 4)),
        Reason.STEADY_STANDBY,
    ),
    Case(
        "without a lease it streams on, and waits for one",
        leads(replica(REMOTE), lease=Lease(term=1, renewed_at=NOW - 8, fence_at=NOW - 3)),
        Reason.LEASE_UNCONFIRMED,
    ),
    Case(
        "a memory of leadership that has lost the mark promotes nobody",
        leads(replica(REMOTE), instance=following(standby=False)),
        Reason.STEADY_STANDBY,
    ),
    Case(
        "nor does a desired state that has",
        leads(replica(REMOTE), desired=desired()),
        Reason.STEADY_STANDBY,
    ),
    Case(
        "once the instance is promoted the leader is",
        leads(replica(REMOTE), desired=desired(), instance=following(standby=False)),
        Reason.PROMOTES,
        (Promote(1),),
    ),
]
OTHERS = [
    Case(
        "the bootstrap member takes the leadership of a new standby instance",
        as_candidate(me="m1", engine=ABSENT, instance=following(leader="", term=0, system_id="")),
        Reason.BOOTSTRAPS_STANDBY,
        (Acquire(0),),
    ),
    Case("the others stream from the standby leader", other(), Reason.STEADY_REPLICA, detail="m1"),
    Case("they copy from it, though it is a replica", other(engine=ABSENT), Reason.CLONES, (Clone("m1"),)),
    Case(
        "also while that one waits for the remote primary",
        other(engine=ABSENT, instance=following(members=(replace(LEADER, state=MemberState.LAGGING), peer("m2")))),
        Reason.CLONES,
        (Clone("m1"),),
    ),
    Case(
        "they do not copy from one that has no data yet",
        other(engine=ABSENT, instance=following(members=(replace(LEADER, state=MemberState.CREATING), peer("m2")))),
        Reason.WAITS_FOR_LEADER,
    ),
    Case(
        "a former standby leader turns to the new one",
        other(engine=replica(REMOTE)),
        Reason.FOLLOWS,
        (Follow("m1"),),
    ),
    Case(
        "a log is nobody's own, however leaders and timelines have changed",
        other(engine=replica(streaming=False, position=at(1000, 3)), followed_term=0),
        Reason.CONNECTS,
    ),
    Case(
        "while nobody leads a member leaves its upstream before it votes",
        as_candidate(engine=replica(), instance=following(leader="")),
        Reason.DETACHES,
        (Detach(),),
    ),
    Case(
        "a member that lost the stream long ago stands all the same",
        as_candidate(streamed_at=NOW - 60, instance=following(leader="")),
        Reason.CASTS_BALLOT,
        (CastBallot(2, at(1000), was_leader=False),),
    ),
    Case(
        "a member far behind the last leader is elected: it gets the rest from the remote primary",
        as_voter(
            ballot("m3", 900, leader_lsn=1 << 40),
            of_instance={"standby": True, "members": (peer("m1", alive=False, timeline=7), peer("m2"), peer("m3"))},
        ),
        Reason.TAKES_OVER,
        (Acquire(1),),
    ),
    Case(
        "when nobody has data left, somebody leads to copy it anew",
        as_candidate(engine=ABSENT, instance=following(leader="", members=(peer("m1", alive=False), peer("m2")))),
        Reason.COPIES_AGAIN,
        (Acquire(1),),
    ),
    Case(
        "who has no data waits for a member that has some",
        as_candidate(engine=ABSENT, instance=following(leader="")),
        Reason.NO_DATA,
    ),
]
CASES = [*LEADING, *OTHERS]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_in_a_standby_instance(case: Case) -> None:
    case.check()


def test_the_sync_set_comes_back_with_the_promotion() -> None:
    opened = as_leader(
        desired=desired(replication=Replication(mode="sync")),
        instance=instance(standby=False),
        engine=primary(),
    )
    (action,) = decide(opened, NOW).actions
    assert isinstance(action, RecordSync), "the mode of the document is put on record"


VIEWS = st.builds(
    replace,
    st.sampled_from([leads(replica(REMOTE)), other(), as_candidate(instance=following(leader=""))]),
    lease=st.sampled_from([Lease(), HELD, replace(HELD, fence_at=NOW - 1), replace(HELD, renewed_at=NOW - 4)]),
    engine=st.builds(
        Engine,
        state=st.sampled_from(EngineState),
        role=st.sampled_from(Role),
        position=st.sampled_from([at(1000), at(0, 0)]),
        system_id=st.sampled_from(["", SYSTEM_ID, "other"]),
        upstream=st.sampled_from(["", "m1", REMOTE]),
        streaming=st.booleans(),
        broken=st.booleans(),
        failed=st.sampled_from([None, *OperationKind]),
    ),
    instance=st.builds(
        following,
        leader=st.sampled_from(["", "m1", "m2"]),
        term=st.integers(0, 2),
        system_id=st.sampled_from(["", SYSTEM_ID]),
        released_term=st.integers(0, 2),
        handover=st.sampled_from(["", "m2"]),
        paused=st.booleans(),
        ballots=st.sampled_from([(), (ballot("m2"), ballot("m3"))]),
        members=st.sampled_from([MEMBERS, ALONE]),
    ),
    operation=st.none() | st.sampled_from(OperationKind).map(busy),
)


@settings(max_examples=600, deadline=None)
@given(VIEWS)
def test_no_member_of_a_standby_instance_is_ever_opened_for_writes(view: View) -> None:
    decision = decide(view, NOW)
    assert not any(isinstance(action, Promote | StartPrimary | Initialise) for action in decision.actions)
    assert NOW < decision.wake_at <= NOW + 1.0


@settings(max_examples=600, deadline=None)
@given(VIEWS)
def test_only_the_leader_of_a_standby_instance_turns_to_the_remote_primary(view: View) -> None:
    turned = any(
        action in (Follow(REMOTE), Clone(REMOTE), StartReplica(REMOTE)) for action in decide(view, NOW).actions
    )
    assert not turned or (view.lease.term and view.lease.fence_at > NOW)
