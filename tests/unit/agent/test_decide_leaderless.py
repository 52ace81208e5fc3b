"""What a member does while nobody leads."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.ha.actions import Acquire, AskPeers, CastBallot, Detach, Fence, Reason, StartReplica
from agent.ha.view import Engine, EngineState
from core.positions import WalPosition
from core.records import ForcedFailover
from tests.support.builders import (
    HELD,
    NOW,
    Case,
    as_candidate,
    as_leader,
    as_voter,
    at,
    ballot,
    instance,
    leading_peer,
    peer,
    primary,
    replica,
    sync,
)

NOBODY = instance(leader="")
NEVER_MADE = instance(leader="", term=0, system_id="", record=replace(NOBODY.ha, term=0, leader="", system_id=""))
RELEASED = instance(leader="", released_term=1)
HANDED = instance(leader="", released_term=1, handover="m2")
PAUSED = instance(leader="", paused=True)
ORDER = ForcedFailover(id="f1", target="m2", after_term=1)
FORCED = instance(leader="", forced=ORDER)
JUST_FORCED = NOW - 1
CRASHED = primary(state=EngineState.CRASHED)
FORMER = as_candidate(me="m1", engine=CRASHED)

CASES = [
    # the first leader
    Case(
        "the bootstrap member takes the leadership of a new instance",
        as_candidate(me="m1", engine=Engine(state=EngineState.ABSENT), instance=NEVER_MADE),
        Reason.BOOTSTRAPS,
        (Acquire(0),),
    ),
    Case(
        "the others wait for it",
        as_candidate(engine=Engine(state=EngineState.ABSENT), instance=NEVER_MADE),
        Reason.WAITS_FOR_BOOTSTRAP,
        detail="m1",
    ),
    # who is primary still
    Case(
        "a primary that went on by its peers' promises takes the leadership again",
        as_leader(instance=NOBODY),
        Reason.RESUMES,
        (Acquire(1),),
    ),
    Case(
        "it does so also while failover is paused",
        as_leader(instance=instance(leader="", paused=True)),
        Reason.RESUMES,
        (Acquire(1),),
    ),
    # handed over
    Case(
        "whom the leader handed over to takes the leadership at once, as it streams",
        as_candidate(engine=replica(), instance=HANDED),
        Reason.SUCCEEDS,
        (Acquire(1),),
        detail="m1",
    ),
    Case(
        "a successor does so also while failover is paused",
        as_candidate(engine=replica(), instance=instance(leader="", released_term=1, handover="m2", paused=True)),
        Reason.SUCCEEDS,
        (Acquire(1),),
    ),
    Case(
        "the others wait a moment for it and go on streaming",
        as_candidate(me="m3", engine=replica(), instance=HANDED, leaderless_since=NOW - 0.9),
        Reason.AWAITS_SUCCESSOR,
        detail="m2",
    ),
    Case(
        "when it does not act they elect somebody",
        as_candidate(me="m3", engine=replica(), instance=HANDED, leaderless_since=NOW - 1.1),
        Reason.DETACHES,
        (Detach(),),
    ),
    Case(
        "they do not wait for one that cannot be reached",
        as_candidate(
            me="m3",
            engine=replica(),
            instance=instance(
                leader="", released_term=1, handover="m2", members=(peer("m1"), peer("m2", alive=False), peer("m3"))
            ),
        ),
        Reason.DETACHES,
        (Detach(),),
    ),
    Case(
        "a successor whose engine is down starts it and stands by its ballot",
        as_candidate(engine=replica("", state=EngineState.STOPPED), instance=HANDED),
        Reason.STARTS_TO_STAND,
        (StartReplica(""),),
    ),
    Case(
        "a successor that is unfit lets the others elect",
        as_candidate(engine=replica("", unfit="the disk is full"), instance=HANDED),
        Reason.CASTS_BALLOT,
        (CastBallot(2, at(1000), was_leader=False),),
    ),
    Case(
        "a handover of an earlier term means nothing",
        as_candidate(instance=instance(leader="", released_term=0, handover="m2")),
        Reason.CASTS_BALLOT,
        (CastBallot(2, at(1000), was_leader=False),),
    ),
    # forced
    Case(
        "whom an operator forces to lead takes the leadership without ballots",
        as_candidate(instance=FORCED, forced_since=JUST_FORCED),
        Reason.FORCED,
        (Acquire(1),),
    ),
    Case(
        "it leaves the old primary first",
        as_candidate(engine=replica(), instance=FORCED, forced_since=JUST_FORCED),
        Reason.DETACHES,
        (Detach(),),
    ),
    Case(
        "it may even be a primary of long ago",
        as_candidate(engine=primary(state=EngineState.STOPPED), instance=FORCED, forced_since=JUST_FORCED),
        Reason.STARTS_TO_STAND,
        (StartReplica(""),),
    ),
    Case(
        "it may have lost the stream long ago, and failover may be paused",
        as_candidate(
            streamed_at=NOW - 60,
            instance=instance(leader="", forced=ORDER, paused=True),
            forced_since=JUST_FORCED,
        ),
        Reason.FORCED,
        (Acquire(1),),
    ),
    Case(
        "it keeps the promise it has given all the same",
        as_candidate(instance=FORCED, forced_since=JUST_FORCED, promised_until=NOW + 3),
        Reason.PROMISED,
    ),
    Case(
        "without data it cannot lead",
        as_candidate(engine=Engine(state=EngineState.ABSENT), instance=FORCED, forced_since=JUST_FORCED),
        Reason.NO_DATA,
    ),
    Case(
        "a hanging engine is stopped before it leads",
        as_candidate(engine=replica("", state=EngineState.UNRESPONSIVE), instance=FORCED, forced_since=JUST_FORCED),
        Reason.ENGINE_HUNG,
        (Fence(),),
    ),
    Case(
        "the others wait for whom the operator chose",
        as_candidate(me="m3", instance=FORCED, forced_since=JUST_FORCED),
        Reason.AWAITS_FORCED,
        detail="m2",
    ),
    Case(
        "an order that nothing came of is void after half a minute",
        as_candidate(me="m3", instance=FORCED, forced_since=NOW - 31),
        Reason.CASTS_BALLOT,
        (CastBallot(2, at(1000), was_leader=False),),
    ),
    Case(
        "an order for an earlier election means nothing",
        as_candidate(
            me="m3",
            instance=instance(leader="", term=2, forced=ORDER),
            forced_since=JUST_FORCED,
        ),
        Reason.CASTS_BALLOT,
        (CastBallot(3, at(1000), was_leader=False),),
    ),
    # who may not stand, or not yet
    Case("nobody is elected while failover is paused", as_candidate(instance=PAUSED), Reason.PAUSED, detail="m1"),
    Case(
        "but the last leader takes its leadership again",
        replace(FORMER, instance=PAUSED),
        Reason.LEADS_AGAIN,
        (Acquire(1),),
    ),
    Case(
        "it does not let the others go first then",
        replace(FORMER, instance=instance(leader="", paused=True, released_term=1)),
        Reason.LEADS_AGAIN,
        (Acquire(1),),
    ),
    Case(
        "it waits for an engine that starts",
        replace(FORMER, engine=replica("", state=EngineState.STARTING), instance=PAUSED),
        Reason.STARTS,
    ),
    Case("a member without data cannot stand", as_candidate(engine=Engine(state=EngineState.ABSENT)), Reason.NO_DATA),
    Case(
        "the primary of an earlier term cannot stand",
        as_candidate(engine=primary(state=EngineState.STOPPED)),
        Reason.OUTDATED,
        detail="m1",
    ),
    Case(
        "a hanging engine is stopped",
        as_candidate(engine=replica("", state=EngineState.UNRESPONSIVE)),
        Reason.ENGINE_HUNG,
        (Fence(),),
    ),
    Case(
        "a member that has promised waits, and goes on streaming",
        as_candidate(promised_until=NOW + 3, engine=replica()),
        Reason.PROMISED,
    ),
    Case(
        "a promise to a leader binds although one of a later term has let go",
        as_candidate(promised_until=NOW + 3, promised_term=1, instance=instance(leader="", term=2, released_term=2)),
        Reason.PROMISED,
    ),
    Case(
        "a primary by promises whose key has gone asks for them before it asks the hub",
        as_candidate(engine=primary(), lease=replace(HELD, renewed_at=NOW - 4, fence_at=NOW + 2)),
        Reason.ASKS_PEERS,
        (AskPeers(1),),
    ),
    Case(
        "a promise to a leader that let go by itself binds no more",
        as_candidate(promised_until=NOW + 3, promised_term=1, instance=RELEASED),
        Reason.CASTS_BALLOT,
        (CastBallot(2, at(1000), was_leader=False),),
    ),
    Case(
        "a young agent waits as long as a promise of its former life could last",
        as_candidate(started_at=NOW - 5.9),
        Reason.MAY_HAVE_PROMISED,
    ),
    Case(
        "a young agent need not wait when the leader let go by itself",
        as_candidate(started_at=NOW - 1, instance=RELEASED),
        Reason.CASTS_BALLOT,
        (CastBallot(2, at(1000), was_leader=False),),
    ),
    Case(
        "an async replica that lost the stream while the leader still led does not stand",
        as_candidate(streamed_at=NOW - 2 - 10.1),
        Reason.LOST_TOUCH,
    ),
    Case(
        "in sync mode it votes all the same, for the record tells who has what",
        as_candidate(streamed_at=NOW - 2 - 10.1, instance=instance(leader="", sync=sync(1, "m2"))),
        Reason.CASTS_BALLOT,
        (CastBallot(2, at(1000), was_leader=False),),
    ),
    Case(
        "a leader that gave up after a crash lets the others go first",
        replace(FORMER, instance=RELEASED),
        Reason.STANDS_BACK,
    ),
    Case(
        "it stands itself when they do not come to a leader",
        replace(FORMER, instance=RELEASED, leaderless_since=NOW - 3),
        Reason.STARTS_TO_STAND,
        (StartReplica(""),),
    ),
    Case(
        "it stands at once when nobody else could",
        replace(FORMER, instance=instance(leader="", released_term=1, members=(peer("m1"), peer("m2", alive=False)))),
        Reason.STARTS_TO_STAND,
        (StartReplica(""),),
    ),
    Case(
        "a replica of a leader that let go by itself leaves it all the same before it votes",
        as_candidate(engine=replica(streaming=False), instance=RELEASED),
        Reason.DETACHES,
        (Detach(),),
    ),
    # to a final position
    Case(
        "a replica that starts does not vote yet",
        as_candidate(engine=replica("", state=EngineState.STARTING)),
        Reason.STARTS,
    ),
    Case(
        "a stopped replica starts as replica of nobody, to learn its position",
        as_candidate(engine=replica(state=EngineState.STOPPED, streaming=False)),
        Reason.STARTS_TO_STAND,
        (StartReplica(""),),
    ),
    Case(
        "a failed start is repeated only after a pause",
        as_candidate(engine=replica(state=EngineState.STOPPED, streaming=False, retry_at=NOW + 1)),
        Reason.RETRIES_LATER,
    ),
    Case(
        "a replica leaves the old primary before it votes",
        as_candidate(engine=replica()),
        Reason.DETACHES,
        (Detach(),),
    ),
    Case(
        "also one whose stream is down could come back, so it leaves too",
        as_candidate(engine=replica(streaming=False)),
        Reason.DETACHES,
        (Detach(),),
    ),
    Case(
        "a replica whose position is not known does not vote",
        as_candidate(engine=replica("", position=WalPosition())),
        Reason.POSITION_UNKNOWN,
    ),
    # vote
    Case(
        "a replica of nobody votes",
        as_candidate(),
        Reason.CASTS_BALLOT,
        (CastBallot(2, at(1000), was_leader=False),),
    ),
    Case(
        "the last leader votes as such",
        replace(FORMER, engine=replica("")),
        Reason.CASTS_BALLOT,
        (CastBallot(2, at(1000), was_leader=True),),
    ),
    Case(
        "a ballot that does not show is cast again",
        replace(as_voter(), instance=NOBODY),
        Reason.CASTS_BALLOT,
        (CastBallot(2, at(1000), was_leader=False),),
    ),
    Case(
        "a ballot of an earlier term counts for nothing",
        replace(as_voter(), ballot_term=1),
        Reason.CASTS_BALLOT,
        (CastBallot(2, at(1000), was_leader=False),),
    ),
    Case(
        "ballots that may still come are waited for",
        as_voter(leaderless_since=NOW - 0.9),
        Reason.AWAITS_BALLOTS,
        detail="m3",
    ),
    Case(
        "ballots that do not come are not waited for any longer",
        as_voter(leaderless_since=NOW - 1),
        Reason.TAKES_OVER,
        (Acquire(1),),
    ),
    Case(
        "the elected member takes the leadership at once when all have voted",
        as_voter(ballot("m3", 990), leaderless_since=NOW - 0.1),
        Reason.TAKES_OVER,
        (Acquire(1),),
    ),
    Case(
        "the others wait for the elected member",
        as_voter(ballot("m3", 1001)),
        Reason.AWAITS_WINNER,
        detail="m3",
    ),
    Case(
        "the next one goes when the elected member does not act",
        as_voter(ballot("m3", 1001), leaderless_since=NOW - 4),
        Reason.TAKES_OVER,
        (Acquire(1),),
    ),
    Case(
        "an election that cannot be decided says whose ballot is missing",
        as_voter(of_instance={"sync": sync(1, "m3")}),
        Reason.ELECTION_STUCK,
        detail="missing: m3",
    ),
    Case(
        "a primary without data elsewhere resumes only before its deadline",
        as_leader(instance=NOBODY, lease=replace(HELD, fence_at=NOW)),
        Reason.LEASE_OVER,
        (Fence(),),
    ),
    Case(
        "the node of the dead leader is not waited for though it is not known to be silent yet",
        as_voter(
            ballot("m3", 990),
            of_instance={"members": (leading_peer("m1"), peer("m2"), peer("m3"))},
            leaderless_since=NOW - 0.1,
        ),
        Reason.TAKES_OVER,
        (Acquire(1),),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_while_nobody_leads(case: Case) -> None:
    case.check()
