"""Pure: what a member does while nobody leads: resume, wait, or vote and perhaps win.

Only a running replica votes, and only after it has left the old primary: so its position is exact and final, and no
commit can be acknowledged with its help any more. Also the last leader starts as a replica of nobody before it votes.
"""

from __future__ import annotations

from agent.ha.actions import (
    Acquire,
    CastBallot,
    Decision,
    Detach,
    Fence,
    Reason,
    StartReplica,
)
from agent.ha.election import Elected, Pending, Stuck, could_succeed, elect
from agent.ha.premises import SOON_S, act, held_term, retries_later, waits
from agent.ha.view import EngineState, View
from core.records import HaRecord
from core.status import Role

TOUCH_S = 4.0  # etcd may take a second to end a lease, the hub and this agent some more to tell and hear of it
STAND_BACK_S = 3.0  # of a leader that let go: an election among the others takes a second
VOTE_AGAIN_S = 0.5  # a ballot that does not show in the view is cast again


def stand(view: View, now: float) -> Decision:
    """`view` shows an instance that nobody leads."""
    ha = _ha(view)
    if not ha.system_id:
        return _bootstrap(view, now)
    if _is_still_primary(view, now):
        return act(Acquire(ha.term), Reason.RESUMES, now, f"after term {ha.term}")
    if ha.paused:
        return waits(view, now, Reason.PAUSED, warning=True)
    return _not_able(view, now) or _not_yet(view, now) or _to_replica(view, now) or _vote(view, now)


def _ha(view: View) -> HaRecord:
    assert view.instance is not None, "the instance is known"
    return view.instance.ha


def _bootstrap(view: View, now: float) -> Decision:
    ha = _ha(view)
    if ha.bootstrap != view.me:
        return waits(view, now, Reason.WAITS_FOR_BOOTSTRAP, ha.bootstrap)
    return act(Acquire(ha.term), Reason.BOOTSTRAPS, now, f"after term {ha.term}")


def _is_still_primary(view: View, now: float) -> bool:
    """Its key is gone but by the peers' promises it is the primary of the last term: nobody else may stand."""
    engine = view.engine
    running = engine.state is EngineState.RUNNING and engine.role is Role.PRIMARY
    return running and held_term(view, now) == _ha(view).term


def _not_able(view: View, now: float) -> Decision | None:
    """Without data, or with data that cannot have what the last leader had."""
    engine, ha = view.engine, _ha(view)
    if engine.state is EngineState.ABSENT:
        return waits(view, now, Reason.NO_DATA, ha.leader, warning=True)
    if engine.state is EngineState.UNRESPONSIVE:
        return act(Fence(), Reason.ENGINE_HUNG, now, warning=True)
    if engine.role is not Role.REPLICA and ha.leader != view.me:
        return waits(view, now, Reason.OUTDATED, ha.leader, warning=True)
    if ha.sync.mode == "async" and ha.leader != view.me and _lost_touch(view):
        return waits(view, now, Reason.LOST_TOUCH, ha.leader, warning=True)
    return None


def _lost_touch(view: View) -> bool:
    """The stream ended longer ago than a lease lasts, so the leader went on without this member for a while."""
    if view.streamed_at is None:
        return False  # this agent is younger than the leadership's end, or has never seen a stream: nothing is known
    return view.leaderless_since - view.streamed_at > view.ttl_s + TOUCH_S


def _not_yet(view: View, now: float) -> Decision | None:
    """Promises bind, remembered or forgotten, until the one they were given to has let go by itself."""
    ha = _ha(view)
    released = ha.released_term == ha.term
    if not released and now < view.promised_until:
        return waits(view, now, Reason.PROMISED, ha.leader, until=view.promised_until)
    young_until = view.started_at + view.ttl_s
    if not released and now < young_until:
        return waits(view, now, Reason.MAY_HAVE_PROMISED, until=young_until)
    back_until = view.leaderless_since + STAND_BACK_S
    if released and ha.leader == view.me and now < back_until and could_succeed(ha, view.peers):
        return waits(view, now, Reason.STANDS_BACK, until=back_until)
    return None


def _to_replica(view: View, now: float) -> Decision | None:
    """Until the engine is a running replica of nobody whose position is known."""
    engine = view.engine
    if engine.state is EngineState.STARTING:
        return waits(view, now, Reason.STARTS, engine.failure)
    if engine.state is not EngineState.RUNNING:
        return retries_later(view, now) or act(StartReplica(""), Reason.STARTS_TO_STAND, now)
    if engine.streaming or engine.upstream:
        return act(Detach(), Reason.DETACHES, now, engine.upstream)
    if not engine.position.lsn.value or not engine.position.timeline:
        return waits(view, now, Reason.POSITION_UNKNOWN, until=now + SOON_S)
    return None


def _vote(view: View, now: float) -> Decision:
    assert view.instance is not None, "the instance is known"
    ha, position = view.instance.ha, view.engine.position
    term = ha.term + 1
    mine = next((b for b in view.instance.ballots if b.member == view.me and b.term == term), None)
    if (view.ballot_term, view.ballot_position) != (term, position) or mine is None:
        ballot = CastBallot(term=term, position=position, was_leader=ha.leader == view.me)
        return act(ballot, Reason.CASTS_BALLOT, now, f"{position} for term {term}", wake_s=VOTE_AGAIN_S)
    verdict = elect(
        ha,
        view.instance.ballots,
        view.instance.members,
        max_lag_bytes=view.desired.replication.max_failover_lag_bytes,
        leaderless_for=now - view.leaderless_since,
    )
    match verdict:
        case Pending(missing=missing, for_s=for_s):
            return waits(view, now, Reason.AWAITS_BALLOTS, ", ".join(missing), until=now + for_s)
        case Stuck(why=why):
            return waits(view, now, Reason.ELECTION_STUCK, why, warning=True)
        case Elected(members=members) if view.me in members:
            return act(Acquire(ha.term), Reason.TAKES_OVER, now, f"after term {ha.term}", wake_s=VOTE_AGAIN_S)
        case Elected(members=members):
            return waits(view, now, Reason.AWAITS_WINNER, members[0])
