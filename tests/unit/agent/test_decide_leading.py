"""What the leader does."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.ha.actions import (
    ApplySync,
    AskPeers,
    EndSwitchover,
    Fence,
    Handover,
    Initialise,
    Promote,
    Reason,
    RecordSync,
    RecordSystemId,
    Release,
    StartPrimary,
    StartReplica,
    TellOpened,
)
from agent.ha.view import Engine, EngineState, OperationKind
from core.positions import Lsn
from core.records import ForcedFailover, LeadershipChange, SwitchoverRequest
from core.status import MemberState
from tests.support.builders import (
    HELD,
    NOW,
    QUORUM,
    SYNC,
    SYSTEM_ID,
    Case,
    as_leader,
    at,
    desired,
    instance,
    leading_peer,
    peer,
    primary,
    replica,
    standby,
    sync,
)

ABSENT = Engine(state=EngineState.ABSENT)
CRASHED = primary(state=EngineState.CRASHED)
STOPPED = primary(state=EngineState.STOPPED)
HUNG = primary(state=EngineState.UNRESPONSIVE)
ALONE = (leading_peer("m1"), peer("m2", alive=False), peer("m3", no_failover=True))
SILENT = replace(HELD, renewed_at=96.0)
BOTH = (standby("m2"), standby("m3"))
ORDER = ForcedFailover(id="f1", target="m2", after_term=1)


def asked(target: str = "m2") -> SwitchoverRequest:
    return SwitchoverRequest(id="s1", target=target)


def led(term: int, timeline: int) -> LeadershipChange:
    return LeadershipChange(term=term, member="m2", reason="", timeline=timeline, kind="led")


def ended(note: str) -> EndSwitchover:
    return EndSwitchover(1, "s1", f"switchover ended: {note}")


CASES = [
    Case("a leader with a running primary has nothing to do", as_leader(), Reason.STEADY_PRIMARY),
    Case(
        "a leader that the hub's view does not show yet writes, but changes nothing on record",
        as_leader(lease=replace(HELD, term=2), desired=desired(replication=SYNC)),
        Reason.STEADY_PRIMARY,
    ),
    # to a running primary
    Case(
        "the bootstrap member initialises once it leads",
        as_leader(engine=ABSENT, instance=instance(system_id="")),
        Reason.INITIALISES,
        (Initialise(),),
    ),
    Case(
        "a leader that has lost its data lets go and never initialises",
        as_leader(engine=ABSENT),
        Reason.DATA_LOST,
        (Release(1),),
    ),
    Case(
        "a stopped engine is started in place",
        as_leader(engine=STOPPED),
        Reason.RESTARTS_IN_PLACE,
        (StartPrimary(1),),
    ),
    Case(
        "a crashed engine is given up when a replica can take over at once",
        as_leader(engine=CRASHED),
        Reason.GIVES_UP_CRASHED,
        (Release(1),),
    ),
    Case(
        "a crashed engine is started in place when nobody could take over",
        as_leader(engine=CRASHED, instance=instance(members=ALONE)),
        Reason.RESTARTS_IN_PLACE,
        (StartPrimary(1),),
    ),
    Case(
        "a crashed engine is started in place while failover is paused",
        as_leader(engine=CRASHED, instance=instance(paused=True)),
        Reason.RESTARTS_IN_PLACE,
        (StartPrimary(1),),
    ),
    Case(
        "a crashed engine is started in place when no replica is on record in sync mode",
        as_leader(engine=CRASHED, instance=instance(sync=sync(0))),
        Reason.RESTARTS_IN_PLACE,
        (StartPrimary(1),),
    ),
    Case(
        "a crashed engine is given up to the replica on record in sync mode",
        as_leader(engine=CRASHED, instance=instance(sync=sync(1, "m3"))),
        Reason.GIVES_UP_CRASHED,
        (Release(1),),
    ),
    Case(
        "an engine that was fenced is not simply started again when others can take over",
        as_leader(engine=STOPPED, fenced_at=99.0),
        Reason.GIVES_UP_CRASHED,
        (Release(1),),
    ),
    Case(
        "a start that has just failed is not repeated at once",
        as_leader(engine=replace(STOPPED, retry_at=NOW + 1, failure="disk full"), instance=instance(members=ALONE)),
        Reason.RETRIES_LATER,
        detail="disk full",
    ),
    Case(
        "a starting engine is waited for",
        as_leader(engine=primary(state=EngineState.STARTING)),
        Reason.STARTS,
    ),
    Case(
        "a hanging engine is fenced before the leadership is given up",
        as_leader(engine=HUNG),
        Reason.ENGINE_HUNG,
        (Fence(),),
    ),
    Case(
        "a hanging engine is left alone when nobody could take over",
        as_leader(engine=HUNG, instance=instance(members=ALONE)),
        Reason.ENGINE_SILENT,
    ),
    Case(
        "an elected replica is promoted",
        as_leader(engine=replica("")),
        Reason.PROMOTES,
        (Promote(1),),
    ),
    Case(
        "a leader that never had the last one's log passes over the number of its timeline",
        as_leader(
            engine=replica(""),
            lease=replace(HELD, term=3),
            instance=instance(term=3, history=(led(1, 0), led(2, 1), led(3, 1))),
        ),
        Reason.PROMOTES,
        (Promote(3, above=2),),
    ),
    Case(
        "a leader that had it takes the next number, as always",
        as_leader(
            engine=replica("", position=at(1000, 2)),
            lease=replace(HELD, term=3),
            instance=instance(term=3, history=(led(1, 0), led(2, 1), led(3, 2))),
        ),
        Reason.PROMOTES,
        (Promote(3),),
    ),
    Case(
        "a number that a member reports is taken, too",
        as_leader(engine=replica(""), instance=instance(members=(peer("m1"), peer("m2", timeline=5)))),
        Reason.PROMOTES,
        (Promote(1, above=5),),
    ),
    Case(
        "an elected replica is promoted before the view shows its leadership",
        as_leader(engine=replica(""), lease=replace(HELD, term=2), instance=instance(leader="")),
        Reason.PROMOTES,
        (Promote(2),),
    ),
    Case(
        "a replica that fails to be promoted is given up to another",
        as_leader(engine=replica("", failed_starts=1, failed=OperationKind.PROMOTE)),
        Reason.GIVES_UP_CRASHED,
        (Release(1),),
    ),
    Case(
        "what failed before it was elected is nothing against it",
        as_leader(engine=replica("", failed_starts=1, failed=OperationKind.CLONE)),
        Reason.PROMOTES,
        (Promote(1),),
    ),
    Case(
        "a leader lets go when an operator forces another member to lead",
        as_leader(engine=primary(state=EngineState.STOPPED), instance=instance(forced=ORDER)),
        Reason.FORCED_AWAY,
        (Release(1),),
    ),
    Case(
        "a leader goes on when it is the one that was forced to lead",
        as_leader(instance=instance(forced=replace(ORDER, target="m1"))),
        Reason.STEADY_PRIMARY,
    ),
    Case(
        "how long it took is told once commits are acknowledged",
        as_leader(acquired_at=NOW - 1, opened_at=NOW - 0.1),
        Reason.TELLS_OPENED,
        (TellOpened(1),),
    ),
    Case(
        "and only once",
        as_leader(acquired_at=NOW - 1, opened_at=NOW - 0.1, opening_told=True),
        Reason.STEADY_PRIMARY,
    ),
    Case(
        "a member that is to stream from another replica is in no sync set",
        as_leader(
            desired=desired(replication=SYNC),
            instance=instance(
                sync=sync(0), members=(leading_peer("m1"), peer("m2", upstream="m3"), peer("m3", alive=False))
            ),
            engine=primary(sync=sync(0), standbys=(standby("m2"),)),
            sync_sent=sync(0),
        ),
        Reason.TOO_FEW_STANDBYS,
        detail="0 of 1",
    ),
    Case(
        "a stopped replica that leads is started to be promoted",
        as_leader(engine=replica("", state=EngineState.STOPPED)),
        Reason.LEARNS_POSITION,
        (StartReplica(""),),
    ),
    Case(
        "an Acquire that took effect late waits for the promise given since",
        as_leader(engine=replica(""), promised_until=NOW + 2),
        Reason.PROMISED_TO_OTHER,
    ),
    Case(
        "a promise to a leader that has let go by itself binds nobody",
        as_leader(
            engine=replica(""),
            promised_until=NOW + 2,
            promised_term=1,
            lease=replace(HELD, term=2),
            instance=instance(term=2, released_term=1),
        ),
        Reason.PROMOTES,
        (Promote(2),),
    ),
    # the hub
    Case(
        "a primary that has not heard from the hub for half a TTL asks its peers",
        as_leader(lease=SILENT),
        Reason.ASKS_PEERS,
        (AskPeers(1),),
    ),
    Case(
        "the peers are not asked more often than every sixth of a TTL",
        as_leader(lease=SILENT, asked_peers_at=NOW - 0.9),
        Reason.STEADY_PRIMARY,
        detail="the hub does not answer",
    ),
    Case(
        "a fresh instance's identity is recorded",
        as_leader(instance=instance(system_id="")),
        Reason.RECORDS_IDENTITY,
        (RecordSystemId(1, SYSTEM_ID),),
    ),
    # switchover
    Case(
        "a switchover goes to the target when it is close enough",
        as_leader(engine=primary(standbys=BOTH), instance=instance(switchover=asked())),
        Reason.HANDS_OVER,
        (Handover(request_id="s1", target="m2", term=1),),
    ),
    Case(
        "a switchover without target goes to the preferred, then the furthest standby",
        as_leader(
            engine=primary(standbys=(standby("m2", 990), standby("m3", 995))),
            instance=instance(switchover=asked("")),
        ),
        Reason.HANDS_OVER,
        (Handover(request_id="s1", target="m3", term=1),),
    ),
    Case(
        "a switchover waits for a target that is far behind",
        as_leader(
            engine=primary(position=at(3 << 20), standbys=BOTH),
            instance=instance(switchover=asked()),
            switchover_since=NOW - 29,
        ),
        Reason.SWITCHOVER_WAITS,
        detail="m2 is",
    ),
    Case(
        "a switchover does not wait for ever for a target that does not stream",
        as_leader(
            engine=primary(standbys=(standby("m2", streaming=False),)),
            instance=instance(switchover=asked()),
            switchover_since=NOW - 30,
        ),
        Reason.SWITCHOVER_ENDED,
        (ended("m2 does not stream from m1"),),
    ),
    Case(
        "a switchover to the leader is ended",
        as_leader(instance=instance(switchover=asked("m1"))),
        Reason.SWITCHOVER_ENDED,
        (ended("m1 leads already"),),
    ),
    Case(
        "a switchover to a stranger is ended",
        as_leader(instance=instance(switchover=asked("m9"))),
        Reason.SWITCHOVER_ENDED,
        (ended("m9 is not a member"),),
    ),
    Case(
        "a switchover to a member that must not lead is ended",
        as_leader(instance=instance(switchover=asked("m3"), members=ALONE)),
        Reason.SWITCHOVER_ENDED,
        (ended("m3 must not lead (no_failover)"),),
    ),
    Case(
        "a switchover that failed is tried again only after a pause",
        as_leader(
            engine=primary(standbys=BOTH, retry_at=NOW + 1, failure="handover: rolled back"),
            instance=instance(switchover=asked()),
        ),
        Reason.RETRIES_LATER,
    ),
    Case(
        "a switchover works while automatic failover is paused",
        as_leader(engine=primary(standbys=BOTH), instance=instance(switchover=asked(), paused=True)),
        Reason.HANDS_OVER,
        (Handover(request_id="s1", target="m2", term=1),),
    ),
    # sync set
    Case(
        "the sync set is put in force once a standby streams",
        as_leader(
            desired=desired(replication=SYNC),
            engine=primary(standbys=(standby("m3"),), sync=sync(0)),
            instance=instance(sync=sync(0)),
            sync_sent=sync(0),
        ),
        Reason.APPLIES_SYNC,
        (ApplySync(sync(1, "m3")),),
    ),
    Case(
        "the sync set is recorded when its standby has caught up",
        as_leader(
            desired=desired(replication=SYNC),
            engine=primary(standbys=(standby("m3"),), sync=sync(1, "m3")),
            instance=instance(sync=sync(0)),
            sync_sent=sync(0),
            sync_base=Lsn(1000),
        ),
        Reason.RECORDS_SYNC,
        (RecordSync(1, sync(1, "m3", seq=1)),),
    ),
    Case(
        "the sync set is not recorded before its standby has caught up",
        as_leader(
            desired=desired(replication=QUORUM),
            engine=primary(standbys=(standby("m3", 999),), sync=sync(1, "m3", mode="quorum")),
            instance=instance(sync=sync(0, mode="quorum")),
            sync_sent=sync(0, mode="quorum"),
            sync_base=Lsn(1000),
        ),
        Reason.SYNC_CATCHES_UP,
        detail="m3",
    ),
    Case(
        "strict commits wait when no standby streams, and that is said",
        as_leader(
            desired=desired(replication=SYNC),
            engine=primary(sync=sync(1, "m3")),
            instance=instance(sync=sync(1, "m3", seq=2)),
            sync_sent=sync(1, "m3", seq=2),
        ),
        Reason.TOO_FEW_STANDBYS,
        detail="0 of 1",
    ),
    Case(
        "a member that must not lead, or whose node is silent, is no sync standby",
        as_leader(
            desired=desired(replication=SYNC),
            engine=primary(standbys=BOTH, sync=sync(0)),
            instance=instance(sync=sync(0), members=ALONE),
            sync_sent=sync(0),
        ),
        Reason.TOO_FEW_STANDBYS,
    ),
    Case(
        "a primary whose disk is full leaves it to those that have room",
        as_leader(engine=primary(unfit="no room")),
        Reason.GIVES_UP_UNFIT,
        (Fence(),),
    ),
    Case(
        "a primary whose disk is full goes on where the others' are full as well",
        as_leader(
            engine=primary(unfit="no room"),
            instance=replace(instance(), members=tuple(replace(m, unfit=True) for m in instance().members)),
        ),
        Reason.STEADY_PRIMARY,
    ),
    Case(
        "a standby that has stalled is exchanged: the record claims less first",
        as_leader(
            desired=desired(replication=SYNC),
            engine=primary(standbys=(standby("m2", 900), standby("m3")), sync=sync(1, "m2")),
            instance=instance(sync=sync(1, "m2")),
            sync_sent=sync(1, "m2"),
            stalled=frozenset({"m2"}),
        ),
        Reason.RECORDS_SYNC,
        (RecordSync(1, sync(1, "m2", "m3", seq=1)),),
    ),
    Case(
        "a standby that has stalled is waited for where there is no other",
        as_leader(
            desired=desired(replication=SYNC),
            engine=primary(standbys=(standby("m2", 900),), sync=sync(1, "m2")),
            instance=instance(sync=sync(1, "m2")),
            sync_sent=sync(1, "m2"),
            stalled=frozenset({"m2"}),
        ),
        Reason.STEADY_PRIMARY,
    ),
    Case(
        "where commits need not wait, they do not wait for a standby that has stalled",
        as_leader(
            desired=desired(replication=replace(SYNC, strict=False)),
            engine=primary(standbys=(standby("m2", 900),), sync=sync(1, "m2")),
            instance=instance(sync=sync(1, "m2")),
            sync_sent=sync(1, "m2"),
            stalled=frozenset({"m2"}),
        ),
        Reason.RECORDS_SYNC,
        (RecordSync(1, sync(0, seq=1)),),
    ),
    Case(
        "a switchover that waits does not hold up the sync set",
        as_leader(
            desired=desired(replication=SYNC),
            engine=primary(standbys=(standby("m3"),), sync=sync(0)),
            instance=instance(sync=sync(0), switchover=asked()),
            sync_sent=sync(0),
        ),
        Reason.APPLIES_SYNC,
        (ApplySync(sync(1, "m3")),),
    ),
    Case(
        "a standby whose engine its agent reports as down is no sync standby",
        as_leader(
            desired=desired(replication=SYNC),
            engine=primary(standbys=(standby("m3"),), sync=sync(0)),
            instance=instance(sync=sync(0), members=(leading_peer("m1"), peer("m3", state=MemberState.STOPPED))),
            sync_sent=sync(0),
        ),
        Reason.TOO_FEW_STANDBYS,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_leader(case: Case) -> None:
    case.check()


def test_a_waiting_leader_looks_again_at_its_deadline() -> None:
    decision = Case("", as_leader(lease=replace(HELD, fence_at=NOW + 0.3)), Reason.STEADY_PRIMARY).check()
    assert decision.wake_at == NOW + 0.3


def test_a_leader_looks_again_when_the_peers_are_due() -> None:
    view = as_leader(lease=replace(HELD, renewed_at=NOW - 2.5))
    assert Case("", view, Reason.STEADY_PRIMARY).check().wake_at < NOW + 0.7
