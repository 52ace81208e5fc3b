"""Pure: what a member does while another one leads: have data, be its replica, stream.

Data comes with the leader's leave only: who copies asks the leader first, over the replication protocol, and the leader
lets in whom it knows. So whoever has data that could be elected is among those whom a failsafe primary asks. The copy
itself may be taken from a replica that streams from the leader (`clone_source`), and so may the stream (`upstream`), as
long as that replica serves; a member that is to stream from a replica falls back to the leader by itself. It is never
one of two in a row: only a replica that itself streams from the leader is streamed from, so there are no circles.
"""

from __future__ import annotations

from agent.ha.actions import (
    Action,
    Clone,
    Decision,
    Fence,
    Follow,
    ProbeTimeline,
    Reason,
    Rejoin,
    StartReplica,
)
from agent.ha.premises import act, data_is_foreign, is_standby, retries_later, runs_as_primary, waits
from agent.ha.view import Engine, EngineState, OperationKind, View
from core.records import REMOTE
from core.status import MemberState, Role

CONNECT_S = 2.0  # a stream that was just asked for or cut is given so long to (re)connect before anything is suspected
PROBE_EVERY_S = 5.0
BROKEN_AFTER_S = 60.0  # not streaming from a healthy leader for so long: what is missing there will not come back
UPSTREAM_RESTS_S = 30.0  # a replica that gave no stream is not tried again before
STARTS_MAX = 5  # failed starts in a row after which the data is taken from the leader anew


def follow(view: View, now: float) -> Decision:
    """`view` shows another member that leads."""
    assert view.instance is not None, "a leader is known"
    assert view.instance.leader is not None, "a leader is known"
    leader = view.instance.leader.member
    engine = view.engine
    if view.peer(leader) is None:
        return waits(view, now, Reason.LEADER_UNKNOWN, leader, warning=True)
    if engine.state is not EngineState.ABSENT and not engine.streaming and _is_another_log(view):
        rejoin = Rejoin(leader, anew=True)
        return _from_leader(view, now, rejoin, Reason.REJOINS_OTHER_LOG, str(engine.position))
    match engine.state:
        case EngineState.ABSENT:
            ready, source = bool(view.instance.ha.system_id), _source(view, leader)
            return _from_leader(view, now, Clone(source), Reason.CLONES, source, ready=ready)
        case EngineState.STOPPED | EngineState.CRASHED:
            return _down(view, now, leader)
        case EngineState.STARTING:
            return waits(view, now, Reason.STARTS, engine.failure)
        case EngineState.UNRESPONSIVE:
            return act(Fence(), Reason.ENGINE_HUNG, now, warning=True)
        case EngineState.RUNNING:
            return _running(view, now, leader)


def _down(view: View, now: float, leader: str) -> Decision:
    engine = view.engine
    if engine.broken:
        return _broken(view, now, leader)
    if engine.role is not Role.REPLICA:
        return _from_leader(view, now, Rejoin(leader), Reason.REJOINS_AS_FORMER, leader)
    if engine.failed_starts >= STARTS_MAX and not engine.hindered:
        return _from_leader(view, now, Rejoin(leader), Reason.REJOINS_BROKEN, engine.failure)
    upstream = _upstream(view, now, leader)
    return retries_later(view, now) or act(StartReplica(upstream), Reason.STARTS_REPLICA, now, upstream)


def _broken(view: View, now: float, leader: str) -> Decision:
    """What it has is of no use any more, and another try would not change that. Only a rejoin that failed is paced."""
    if not runs_as_primary(view, leader):
        return waits(view, now, Reason.WAITS_FOR_LEADER, leader)
    delayed = retries_later(view, now) if view.engine.failed is OperationKind.REJOIN else None
    return delayed or act(Rejoin(leader), Reason.REJOINS_BROKEN, now, view.engine.failure, warning=True)


def _running(view: View, now: float, leader: str) -> Decision:
    engine, upstream = view.engine, _upstream(view, now, leader)
    if engine.upstream != upstream:
        return act(Follow(upstream), Reason.FOLLOWS, now, upstream)
    if engine.streaming:
        reason = Reason.STEADY_REPLICA if upstream == leader else Reason.CASCADES
        return waits(view, now, reason, upstream)
    if upstream != leader:
        return waits(view, now, Reason.CONNECTS_TO_REPLICA, upstream)
    if not runs_as_primary(view, leader):
        return waits(view, now, Reason.CONNECTS, f"{leader} is not up yet")
    if _has_diverged(view, leader):
        return _from_leader(view, now, Rejoin(leader), Reason.REJOINS_DIVERGED, str(engine.position))
    if engine.broken:
        return _broken(view, now, leader)
    apart_s = now - view.not_streaming_since if view.not_streaming_since else 0.0
    if apart_s < CONNECT_S:
        return waits(view, now, Reason.CONNECTS, leader, until=now + CONNECT_S - apart_s)
    if now - view.probed_at >= PROBE_EVERY_S:
        return act(ProbeTimeline(leader), Reason.PROBES, now, leader)
    if apart_s >= BROKEN_AFTER_S:
        return _from_leader(view, now, Rejoin(leader), Reason.REJOINS_BROKEN, f"no stream for {int(apart_s)} s")
    return waits(view, now, Reason.CONNECTS, leader, until=view.probed_at + PROBE_EVERY_S)


# --- through another replica ------------------------------------------------------------------------------------------


def _upstream(view: View, now: float, leader: str) -> str:
    """Whom to stream from: the member this one is set to follow while that one serves, else the leader."""
    wanted = view.desired.upstream
    rests = view.upstream_failed_at > 0 and now - view.upstream_failed_at < UPSTREAM_RESTS_S
    return wanted if wanted and not rests and serves_log(view, wanted, leader) else leader


def _source(view: View, leader: str) -> str:
    """Whom to copy from: a replica that is meant for it, so that the primary is spared; after a failure the leader."""
    if view.engine.failed is OperationKind.CLONE:
        return leader
    meant = [view.desired.upstream, *sorted(peer.member for peer in view.peers if peer.clone_source)]
    return next((member for member in meant if member and serves_log(view, member, leader)), leader)


def serves_log(view: View, member: str, leader: str) -> bool:
    """`member` is a replica that streams from the leader itself, on the leader's timeline."""
    peer, lead = view.peer(member), view.peer(leader)
    if peer is None or lead is None or not runs_as_primary(view, leader):
        return False
    well = peer.alive and peer.state is MemberState.RUNNING and peer.role is Role.REPLICA
    return well and peer.streaming_from == leader and 0 < peer.timeline == lead.timeline


def streams_log_of(view: View, leader: str) -> bool:
    """A replica that streams gets the log of `leader`, directly or through a replica of it."""
    upstream, lead = view.engine.upstream, view.peer(leader)
    if upstream == leader or (leader == view.me and upstream == REMOTE):
        return True
    same = lead is not None and lead.timeline == view.engine.position.timeline
    return same and upstream == view.desired.upstream and serves_log(view, upstream, leader)


# --- logs that have parted --------------------------------------------------------------------------------------------


def _is_another_log(view: View) -> bool:
    """A leader since the last one followed took over without the timeline that the own data is on.

    It made a timeline of its own then, perhaps with the very same number: neither PostgreSQL nor pg_rewind could tell
    the two logs apart. Only async mode lets that happen, when a leader dies before anybody has followed it.
    """
    assert view.instance is not None, "a leader is known"
    if view.followed_term is None or is_standby(view):  # all logs are the remote primary's
        return False
    own = view.engine.position.timeline
    return any(0 < c.timeline < own for c in view.instance.ha.history if c.term > view.followed_term)


def _has_diverged(view: View, leader: str) -> bool:
    """The leader's history shows that the own position is not on its way.

    Its timeline left the own one before the own position, or never was on the own timeline at all.
    """
    engine, peer = view.engine, view.peer(leader)
    left_at = _left_at(engine)
    if left_at is not None:
        return engine.position.lsn.value > left_at
    probed = view.probe_answered_at > 0 and view.probe_answered_at >= view.not_streaming_since
    leads_on = peer.timeline if peer else 0
    return probed and leads_on > 0 and engine.position.timeline != leads_on


def _left_at(engine: Engine) -> int | None:
    """Where the leader's history left the own timeline; None when it did not, or was not asked."""
    return next((f.lsn.value for f in engine.leader_forks if f.timeline == engine.position.timeline), None)


def _from_leader(
    view: View, now: float, action: Action, reason: Reason, detail: str, *, ready: bool = True
) -> Decision:
    """An action that needs the leader's data: only from a leader that runs as primary, and paced after failures."""
    assert view.instance is not None, "a leader is known"
    assert view.instance.leader is not None, "a leader is known"
    assert not data_is_foreign(view), "foreign data was handled before"
    leader = view.instance.leader.member
    if not ready or not runs_as_primary(view, leader):
        return waits(view, now, Reason.WAITS_FOR_LEADER, leader)
    return retries_later(view, now) or act(action, reason, now, detail)
