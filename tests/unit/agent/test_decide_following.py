"""What a member does while another one leads."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.ha.actions import Clone, Fence, Follow, ProbeTimeline, Reason, Rejoin, StartReplica
from agent.ha.view import Engine, EngineState, Fork, OperationKind
from core.positions import Lsn
from core.records import LeadershipChange
from core.status import MemberState
from tests.support.builders import (
    NOW,
    Case,
    as_follower,
    at,
    desired,
    instance,
    leading_peer,
    peer,
    primary,
    replica,
)

ABSENT = Engine(state=EngineState.ABSENT)
APART = replica(streaming=False)
NOT_UP = (peer("m1", state=MemberState.STARTING), peer("m2"))
LEFT_AT_900 = (Fork(timeline=1, lsn=Lsn(900)),)
LEADER_ON_2 = (leading_peer("m1", timeline=2), peer("m2"))
CASCADE = desired("m2", upstream="m3")
THROUGH_M3 = (leading_peer("m1"), peer("m2"), peer("m3", streaming_from="m1"))
M3_AWAY = (leading_peer("m1"), peer("m2"), peer("m3", streaming_from="m1", alive=False))
M3_THROUGH_M2 = (leading_peer("m1"), peer("m2"), peer("m3", streaming_from="m2"))
SOURCE_M3 = (leading_peer("m1"), peer("m2"), peer("m3", streaming_from="m1", clone_source=True))


def stopped(**changes: object) -> Engine:
    return replica(state=EngineState.STOPPED, streaming=False, **changes)


CASES = [
    Case("a streaming replica has nothing to do", as_follower(), Reason.STEADY_REPLICA, detail="m1"),
    Case(
        "a leader that is not among the members is waited for",
        as_follower(instance=instance(members=(peer("m2"),))),
        Reason.LEADER_UNKNOWN,
    ),
    Case("a member without data copies the leader's", as_follower(engine=ABSENT), Reason.CLONES, (Clone("m1"),)),
    # through another replica
    Case(
        "a member that is to stream from another replica turns to it",
        as_follower(desired=CASCADE, instance=instance(members=THROUGH_M3)),
        Reason.FOLLOWS,
        (Follow("m3"),),
    ),
    Case(
        "and stays with it",
        as_follower(desired=CASCADE, instance=instance(members=THROUGH_M3), engine=replica("m3")),
        Reason.CASCADES,
        detail="m3",
    ),
    Case(
        "it is given time to connect",
        as_follower(desired=CASCADE, instance=instance(members=THROUGH_M3), engine=replica("m3", streaming=False)),
        Reason.CONNECTS_TO_REPLICA,
    ),
    Case(
        "it turns to the leader when the other gives it no stream",
        as_follower(
            desired=CASCADE,
            instance=instance(members=THROUGH_M3),
            engine=replica("m3", streaming=False),
            upstream_failed_at=NOW - 1,
        ),
        Reason.FOLLOWS,
        (Follow("m1"),),
    ),
    Case(
        "it stays there for a while before it tries the other again",
        as_follower(
            desired=CASCADE, instance=instance(members=THROUGH_M3), engine=replica(), upstream_failed_at=NOW - 29
        ),
        Reason.STEADY_REPLICA,
    ),
    Case(
        "it follows the leader when the other is away",
        as_follower(desired=CASCADE, instance=instance(members=M3_AWAY), engine=replica("m3")),
        Reason.FOLLOWS,
        (Follow("m1"),),
    ),
    Case(
        "it follows no replica that does not itself stream from the leader",
        as_follower(desired=CASCADE, instance=instance(members=M3_THROUGH_M2), engine=replica()),
        Reason.STEADY_REPLICA,
    ),
    Case(
        "it starts as replica of the other",
        as_follower(desired=CASCADE, instance=instance(members=THROUGH_M3), engine=stopped()),
        Reason.STARTS_REPLICA,
        (StartReplica("m3"),),
    ),
    Case(
        "it copies from the other, too",
        as_follower(desired=CASCADE, instance=instance(members=THROUGH_M3), engine=ABSENT),
        Reason.CLONES,
        (Clone("m3"),),
    ),
    Case(
        "a member without data copies from a replica that is meant for it",
        as_follower(instance=instance(members=SOURCE_M3), engine=ABSENT),
        Reason.CLONES,
        (Clone("m3"),),
    ),
    Case(
        "and from the leader when that has failed",
        as_follower(instance=instance(members=SOURCE_M3), engine=replace(ABSENT, failed=OperationKind.CLONE)),
        Reason.CLONES,
        (Clone("m1"),),
    ),
    Case(
        "nothing is copied before the leader runs as primary",
        as_follower(engine=ABSENT, instance=instance(members=NOT_UP)),
        Reason.WAITS_FOR_LEADER,
    ),
    Case(
        "nothing is copied before the instance has an identity",
        as_follower(engine=ABSENT, instance=instance(system_id="")),
        Reason.WAITS_FOR_LEADER,
    ),
    Case(
        "a failed copy is repeated only after a pause",
        as_follower(engine=Engine(state=EngineState.ABSENT, retry_at=NOW + 2, failure="clone: refused")),
        Reason.RETRIES_LATER,
        detail="clone: refused",
    ),
    Case(
        "a former primary rejoins",
        as_follower(engine=primary(state=EngineState.CRASHED)),
        Reason.REJOINS_AS_FORMER,
        (Rejoin("m1"),),
    ),
    Case(
        "a stopped replica starts",
        as_follower(engine=stopped()),
        Reason.STARTS_REPLICA,
        (StartReplica("m1"),),
    ),
    Case(
        "a replica that cannot start takes the leader's data",
        as_follower(engine=stopped(failed_starts=5, failure="start: PANIC")),
        Reason.REJOINS_BROKEN,
        (Rejoin("m1"),),
    ),
    Case(
        "a replica whose data is damaged takes the leader's at once, however long it was to wait for another start",
        as_follower(engine=stopped(broken=True, failed=OperationKind.START, retry_at=NOW + 1e9)),
        Reason.REJOINS_BROKEN,
        (Rejoin("m1"),),
    ),
    Case(
        "but not from a leader that is not up",
        as_follower(engine=stopped(broken=True), instance=instance(members=NOT_UP)),
        Reason.WAITS_FOR_LEADER,
    ),
    Case(
        "and a rejoin that failed is paced",
        as_follower(engine=stopped(broken=True, failed=OperationKind.REJOIN, retry_at=NOW + 5)),
        Reason.RETRIES_LATER,
    ),
    Case(
        "a replica that waits for room on its disk is never copied anew for that",
        as_follower(engine=stopped(failed_starts=50, hindered=True)),
        Reason.STARTS_REPLICA,
        (StartReplica("m1"),),
    ),
    Case(
        "a replica for which the leader no longer has the log takes its data at once",
        as_follower(engine=replica(streaming=False, broken=True)),
        Reason.REJOINS_BROKEN,
        (Rejoin("m1"),),
    ),
    Case(
        "a starting replica is waited for",
        as_follower(engine=replica(state=EngineState.STARTING, streaming=False)),
        Reason.STARTS,
    ),
    Case(
        "a hanging replica is stopped",
        as_follower(engine=replica(state=EngineState.UNRESPONSIVE)),
        Reason.ENGINE_HUNG,
        (Fence(),),
    ),
    Case(
        "a replica of another member turns to the leader",
        as_follower(engine=replica("m3")),
        Reason.FOLLOWS,
        (Follow("m1"),),
    ),
    Case(
        "a replica that has voted turns to the new leader",
        as_follower(engine=replica(""), ballot_term=2, instance=instance(leader="m1", term=2)),
        Reason.FOLLOWS,
        (Follow("m1"),),
    ),
    Case(
        "the stream is given time to come up",
        as_follower(engine=APART, not_streaming_since=NOW - 1),
        Reason.CONNECTS,
    ),
    Case(
        "a leader that is not up yet is waited for",
        as_follower(engine=APART, not_streaming_since=NOW - 30, instance=instance(members=NOT_UP)),
        Reason.CONNECTS,
        detail="not up",
    ),
    Case(
        "a replica that does not come to stream compares its history",
        as_follower(engine=APART, not_streaming_since=NOW - 3),
        Reason.PROBES,
        (ProbeTimeline("m1"),),
    ),
    Case(
        "the leader is not asked for its history again and again",
        as_follower(engine=APART, not_streaming_since=NOW - 3, probed_at=NOW - 1),
        Reason.CONNECTS,
    ),
    Case(
        "a replica beyond the point where the leader left its timeline rejoins",
        as_follower(engine=replica(streaming=False, leader_forks=LEFT_AT_900), instance=instance(members=LEADER_ON_2)),
        Reason.REJOINS_DIVERGED,
        (Rejoin("m1"),),
    ),
    Case(
        "a replica before that point only waits for the stream",
        as_follower(
            engine=replica(streaming=False, leader_forks=LEFT_AT_900, position=at(800)),
            instance=instance(members=LEADER_ON_2),
            not_streaming_since=NOW - 1,
        ),
        Reason.CONNECTS,
    ),
    Case(
        "a replica on a timeline that the leader never was on rejoins",
        as_follower(
            engine=replica(streaming=False, position=at(800, 3)),
            instance=instance(members=LEADER_ON_2),
            not_streaming_since=NOW - 4,
            probed_at=NOW - 1,
            probe_answered_at=NOW - 1,
        ),
        Reason.REJOINS_DIVERGED,
        (Rejoin("m1"),),
    ),
    Case(
        "a question about its history that the leader did not answer proves nothing",
        as_follower(
            engine=replica(streaming=False, position=at(800, 3)),
            instance=instance(members=LEADER_ON_2),
            not_streaming_since=NOW - 4,
            probed_at=NOW - 1,
        ),
        Reason.CONNECTS,
    ),
    Case(
        "a replica that a healthy leader does not feed for a minute takes its data anew",
        as_follower(engine=APART, not_streaming_since=NOW - 61, probed_at=NOW - 1),
        Reason.REJOINS_BROKEN,
        (Rejoin("m1"),),
    ),
    Case(
        "a replica of a leader that the present one never knew copies the data though the timelines agree",
        as_follower(
            engine=replica(streaming=False, position=at(800, 2)),
            followed_term=2,
            instance=instance(
                term=3,
                members=LEADER_ON_2,
                history=(
                    LeadershipChange(term=2, member="m3", reason="", timeline=1),
                    LeadershipChange(term=3, member="m1", reason="", timeline=1),
                ),
            ),
        ),
        Reason.REJOINS_OTHER_LOG,
        (Rejoin("m1", anew=True),),
    ),
    Case(
        "a replica of the leader before, which the present one followed too, keeps its data",
        as_follower(
            engine=stopped(position=at(800, 2)),
            followed_term=2,
            instance=instance(
                term=3,
                members=LEADER_ON_2,
                history=(
                    LeadershipChange(term=2, member="m3", reason="", timeline=1),
                    LeadershipChange(term=3, member="m1", reason="", timeline=2),
                ),
            ),
        ),
        Reason.STARTS_REPLICA,
        (StartReplica("m1"),),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_while_another_leads(case: Case) -> None:
    case.check()
