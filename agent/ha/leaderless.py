"""Pure: what a member does while nobody leads: resume, take over what was handed to it, wait, or vote and perhaps win.

Only a running replica votes, and only after it has left the old primary: so its position is exact and final, and no
commit can be acknowledged with its help any more. Also the last leader starts as a replica of nobody before it votes.

Two need no ballots. *Whom the last leader handed over to*: that one had stopped for good (its term is spent), had seen
at this member's own agent that it has every byte, and said so in the very transaction that let go. So nothing was or
will be acknowledged that this member lacks, whatever the others have; they wait a moment for it and stream on, ready to
turn to it. *Whom an operator forces to lead*: what may be lost was accepted. Both only take a leadership that nobody
holds, in the one transaction that everybody takes it by; and both keep the promises they have given.

While automatic failover is paused nobody is elected. The last leader may take its leadership again: it has every commit
it ever acknowledged, and nobody has led since.
"""

from __future__ import annotations

from agent.ha.actions import (
    Acquire,
    AskPeers,
    CastBallot,
    Decision,
    Detach,
    Fence,
    Reason,
    StartReplica,
)
from agent.ha.election import BY_FORCE, Elected, Pending, Stuck, could_succeed, elect
from agent.ha.premises import (
    SOON_S,
    act,
    held_term,
    is_standby,
    may_ask_peers,
    promise_is_void,
    retries_later,
    waits,
)
from agent.ha.view import EngineState, View
from core.records import ForcedFailover, HaRecord
from core.status import Role

TOUCH_S = 4.0  # etcd may take a second to end a lease, the hub and this agent some more to tell and hear of it
STAND_BACK_S = 3.0  # of a leader that let go: an election among the others takes a second
VOTE_AGAIN_S = 0.5  # a ballot that does not show in the view is cast again
SUCCESSOR_S = 1.0  # for whom the last leader handed over to, before the others elect somebody
FORCED_S = 30.0  # for whom an operator forced to lead; then the order is void, and the election goes by its rules


def stand(view: View, now: float) -> Decision:
    """`view` shows an instance that nobody leads."""
    ha = _ha(view)
    if not ha.system_id:
        return _bootstrap(view, now)
    if _is_still_primary(view, now):
        # The hub may have gone again since: until it answers, the promises are what this primary lives by.
        if may_ask_peers(view, now):
            return act(AskPeers(view.lease.term), Reason.ASKS_PEERS, now, warning=True)
        return act(Acquire(ha.term), Reason.RESUMES, now, f"after term {ha.term}")
    forced = _forced(view, now)
    if forced is not None:
        return _by_force(view, now, forced)
    barred = _not_able(view, now) or _not_yet(view, now)
    return barred or _handed_over(view, now) or _paused(view, now) or _to_replica(view, now) or _vote(view, now)


def _ha(view: View) -> HaRecord:
    assert view.instance is not None, "the instance is known"
    return view.instance.ha


def _bootstrap(view: View, now: float) -> Decision:
    ha = _ha(view)
    if ha.bootstrap != view.me:
        return waits(view, now, Reason.WAITS_FOR_BOOTSTRAP, ha.bootstrap)
    reason = Reason.BOOTSTRAPS_STANDBY if is_standby(view) else Reason.BOOTSTRAPS
    return act(Acquire(ha.term), reason, now, f"after term {ha.term}")


def _is_still_primary(view: View, now: float) -> bool:
    """Its key is gone but by the peers' promises it is the primary of the last term: nobody else may stand."""
    engine = view.engine
    running = engine.state is EngineState.RUNNING and engine.role is Role.PRIMARY
    return running and held_term(view, now) == _ha(view).term


def _not_able(view: View, now: float) -> Decision | None:
    """Without data, or with data that cannot have what the last leader had. Who led one of the eras on record has the
    whole of that, and stands until a later leader has a sync set on record."""
    engine, ha = view.engine, _ha(view)
    way_out = f"bring {ha.leader} back, or {BY_FORCE}"
    if engine.state is EngineState.ABSENT and is_standby(view) and not could_succeed(ha, view.peers):
        return act(Acquire(ha.term), Reason.COPIES_AGAIN, now, f"after term {ha.term}", warning=True)
    if engine.state is EngineState.ABSENT:
        return waits(view, now, Reason.NO_DATA, f"bring {ha.leader} back", warning=True)
    if engine.state is EngineState.UNRESPONSIVE:
        return act(Fence(), Reason.ENGINE_HUNG, now, warning=True)
    if engine.role is not Role.REPLICA and view.me not in {ha.leader, *(era.leader for era in ha.eras)}:
        return waits(view, now, Reason.OUTDATED, way_out, warning=True)
    if ha.sync.mode == "async" and ha.leader != view.me and _lost_touch(view):
        return waits(view, now, Reason.LOST_TOUCH, way_out, warning=True)
    return None


# --- without ballots --------------------------------------------------------------------------------------------------


def _handed_over(view: View, now: float) -> Decision | None:
    """The last leader named its successor when it let go."""
    ha, engine = _ha(view), view.engine
    if ha.released_term != ha.term or not ha.handover:
        return None
    if ha.handover == view.me:
        running = engine.state is EngineState.RUNNING and engine.role is Role.REPLICA
        ready = running and engine.position.lsn.value and not engine.unfit
        return act(Acquire(ha.term), Reason.SUCCEEDS, now, f"from {ha.leader} after term {ha.term}") if ready else None
    successor, until = view.peer(ha.handover), view.leaderless_since + SUCCESSOR_S
    if successor is None or not successor.alive or now >= until:
        return None
    return waits(view, now, Reason.AWAITS_SUCCESSOR, ha.handover, until=until)


def _forced(view: View, now: float) -> ForcedFailover | None:
    """The operator's order for the election under way, while it is good."""
    ha = _ha(view)
    good = ha.forced is not None and ha.forced.after_term == ha.term and now < view.forced_since + FORCED_S
    return ha.forced if good else None


def _by_force(view: View, now: float, forced: ForcedFailover) -> Decision:
    engine, ha = view.engine, _ha(view)
    if forced.target != view.me:
        until = view.forced_since + FORCED_S
        return waits(view, now, Reason.AWAITS_FORCED, forced.target, until=until, warning=True)
    if engine.state is EngineState.ABSENT:
        return waits(view, now, Reason.NO_DATA, f"{view.me} was forced to lead", warning=True)
    if engine.state is EngineState.UNRESPONSIVE:
        return act(Fence(), Reason.ENGINE_HUNG, now, warning=True)
    barred = _not_yet(view, now, stands_back=False) or _to_replica(view, now)
    return barred or act(Acquire(ha.term), Reason.FORCED, now, f"after term {ha.term}", warning=True)


def _paused(view: View, now: float) -> Decision | None:
    ha, engine = _ha(view), view.engine
    if not ha.paused or (ha.released_term == ha.term and ha.handover == view.me):
        return None
    if ha.leader != view.me:
        return waits(view, now, Reason.PAUSED, f"{ha.leader} may lead again", warning=True)
    if engine.state is EngineState.STARTING:
        return waits(view, now, Reason.STARTS, engine.failure)
    return act(Acquire(ha.term), Reason.LEADS_AGAIN, now, f"after term {ha.term}")


# --- with ballots -----------------------------------------------------------------------------------------------------


def _lost_touch(view: View) -> bool:
    """The stream ended longer ago than a lease lasts, so the leader went on without this member for a while."""
    if is_standby(view):
        return False  # what it lacks is at the remote primary
    if view.streamed_at is None:
        return False  # this agent is younger than the leadership's end, or has never seen a stream: nothing is known
    return view.leaderless_since - view.streamed_at > view.ttl_s + TOUCH_S


def _not_yet(view: View, now: float, *, stands_back: bool = True) -> Decision | None:
    """Promises bind, remembered or forgotten, until the one they were given to has let go by itself."""
    ha = _ha(view)
    released = ha.released_term == ha.term
    if now < view.promised_until and not promise_is_void(view):
        return waits(view, now, Reason.PROMISED, ha.leader, until=view.promised_until)
    young_until = view.started_at + view.ttl_s
    if not released and now < young_until:
        return waits(view, now, Reason.MAY_HAVE_PROMISED, until=young_until)
    back_until = view.leaderless_since + STAND_BACK_S
    others = stands_back and not ha.paused and could_succeed(ha, view.peers)
    if released and ha.leader == view.me and now < back_until and others:
        return waits(view, now, Reason.STANDS_BACK, until=back_until)
    return None


def _to_replica(view: View, now: float) -> Decision | None:
    """Until the engine is a running replica of nobody whose position is known. Also a leader that let go by itself is
    left first: the position that was seen before the news came may be older than the last commit it acknowledged."""
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
