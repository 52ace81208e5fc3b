"""Pure: what a member does while another one leads: have data, be its replica, stream.

Data comes from the leader only: a member that the leader does not know of cannot get any, so whoever has data that
could be elected is among those whom a failsafe primary asks.
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
from agent.ha.premises import act, data_is_foreign, retries_later, runs_as_primary, waits
from agent.ha.view import Engine, EngineState, View
from core.status import Role

CONNECT_S = 2.0  # a stream that was just asked for or cut is given so long to (re)connect before anything is suspected
PROBE_EVERY_S = 5.0
BROKEN_AFTER_S = 60.0  # not streaming from a healthy leader for so long: what is missing there will not come back
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
            ready = bool(view.instance.ha.system_id)
            return _from_leader(view, now, Clone(leader), Reason.CLONES, leader, ready=ready)
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
    if engine.role is not Role.REPLICA:
        return _from_leader(view, now, Rejoin(leader), Reason.REJOINS_AS_FORMER, leader)
    if engine.failed_starts >= STARTS_MAX:
        return _from_leader(view, now, Rejoin(leader), Reason.REJOINS_BROKEN, engine.failure)
    return retries_later(view, now) or act(StartReplica(leader), Reason.STARTS_REPLICA, now, leader)


def _running(view: View, now: float, leader: str) -> Decision:
    engine = view.engine
    if engine.upstream != leader:
        return act(Follow(leader), Reason.FOLLOWS, now, leader)
    if engine.streaming:
        return waits(view, now, Reason.STEADY_REPLICA, leader)
    if not runs_as_primary(view, leader):
        return waits(view, now, Reason.CONNECTS, f"{leader} is not up yet")
    if _has_diverged(view, leader):
        return _from_leader(view, now, Rejoin(leader), Reason.REJOINS_DIVERGED, str(engine.position))
    apart_s = now - view.not_streaming_since if view.not_streaming_since else 0.0
    if apart_s < CONNECT_S:
        return waits(view, now, Reason.CONNECTS, leader, until=now + CONNECT_S - apart_s)
    if now - view.probed_at >= PROBE_EVERY_S:
        return act(ProbeTimeline(leader), Reason.PROBES, now, leader)
    if apart_s >= BROKEN_AFTER_S:
        return _from_leader(view, now, Rejoin(leader), Reason.REJOINS_BROKEN, f"no stream for {int(apart_s)} s")
    return waits(view, now, Reason.CONNECTS, leader, until=view.probed_at + PROBE_EVERY_S)


def _is_another_log(view: View) -> bool:
    """A leader since the last one followed took over without the timeline that the own data is on.

    It made a timeline of its own then, perhaps with the very same number: neither PostgreSQL nor pg_rewind could tell
    the two logs apart. Only async mode lets that happen, when a leader dies before anybody has followed it.
    """
    assert view.instance is not None, "a leader is known"
    if view.followed_term is None:
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
    probed = view.probed_at > 0 and view.probed_at >= view.not_streaming_since
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
