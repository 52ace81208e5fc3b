"""Pure: what the leader of a standby instance does. It follows a remote primary, and is never writable.

It leads by the same lease and terms as any leader, so that one member at a time streams from afar and the others have
one to stream from. No election promotes it: as long as the memory of leadership says `standby`, nothing here leads to a
`Promote` or to an engine started as primary. An operator ends that (`moorctl instance promote`): the hub takes
`standby` out of that memory and of every member's desired state in one transaction, and `leading` does the rest.

What is in the data belongs to the remote primary. So a copy that cannot go on is made anew: for lack of log there, or
because the remote primary was replaced by one that lacks the end of ours (that end is saved aside as a former primary's
is). But an engine that somebody promoted by hand may hold writes of its own: it is stopped, and a person decides.
"""

from __future__ import annotations

from agent.ha.actions import (
    Clone,
    Decision,
    Fence,
    Follow,
    ProbeTimeline,
    Reason,
    RecordSystemId,
    Rejoin,
    Release,
    StartReplica,
)
from agent.ha.premises import UP, act, is_confirmed, retries_later, waits
from agent.ha.view import Engine, EngineState, OperationKind, View
from core.records import REMOTE
from core.status import Role

PROBE_EVERY_S = 5.0
CONNECT_S = 3.0  # the remote primary is far away: a stream is given so long before its absence is told as a warning


def lead_standby(view: View, now: float, *, why_in_place: str) -> Decision:
    """`view` shows the leader of a standby instance. `why_in_place`: why the others could not lead instead."""
    engine = view.engine
    if engine.state is EngineState.ABSENT:
        return _without_data(view, now, why_in_place)
    if engine.role is not Role.REPLICA:
        if engine.state in UP:
            return act(Fence(), Reason.PROMOTED_BY_HAND, now, _remote(view), warning=True)
        return waits(view, now, Reason.PROMOTED_BY_HAND, _remote(view), warning=True)
    match engine.state:
        case EngineState.STOPPED | EngineState.CRASHED:
            return _down(view, now, why_in_place)
        case EngineState.STARTING:
            return waits(view, now, Reason.STARTS, engine.failure)
        case EngineState.UNRESPONSIVE if why_in_place:
            return waits(view, now, Reason.ENGINE_SILENT, why_in_place, warning=True)
        case EngineState.UNRESPONSIVE:
            return act(Fence(), Reason.ENGINE_HUNG, now, warning=True)
        case EngineState.RUNNING:
            return _running(view, now)


def _remote(view: View) -> str:
    return str(view.desired.standby or "the remote primary")


def _without_data(view: View, now: float, why_in_place: str) -> Decision:
    assert view.instance is not None, "nobody leads an unknown instance"
    term = view.lease.term
    if view.instance.ha.system_id and not why_in_place:
        return act(Release(term), Reason.DATA_LOST, now, f"term {term}", warning=True)
    return retries_later(view, now) or act(Clone(REMOTE), Reason.COPIES_REMOTE, now, _remote(view))


def _down(view: View, now: float, why_in_place: str) -> Decision:
    engine = view.engine
    crashed = engine.state is EngineState.CRASHED or view.fenced_at > 0 or engine.failed is OperationKind.START
    if crashed and not why_in_place:
        return act(Release(view.lease.term), Reason.GIVES_UP_CRASHED, now, engine.failure, warning=True)
    delayed = retries_later(view, now)
    if delayed is not None:
        return delayed
    if engine.broken:
        return act(Clone(REMOTE), Reason.COPIES_REMOTE, now, engine.failure, warning=True)
    return act(StartReplica(REMOTE), Reason.STARTS_STANDBY, now, _remote(view), warning=crashed)


def _running(view: View, now: float) -> Decision:
    engine = view.engine
    assert view.instance is not None, "nobody leads an unknown instance"
    if is_confirmed(view) and not view.instance.ha.system_id and engine.system_id:
        action = RecordSystemId(view.lease.term, engine.system_id)
        return act(action, Reason.RECORDS_IDENTITY, now, engine.system_id)
    if engine.upstream != REMOTE:
        return act(Follow(REMOTE), Reason.FOLLOWS_REMOTE, now, _remote(view))
    if engine.streaming:
        return waits(view, now, Reason.STEADY_STANDBY, _remote(view))
    if engine.broken:
        copies = act(Clone(REMOTE), Reason.COPIES_REMOTE, now, engine.failure, warning=True)
        return (retries_later(view, now) if engine.failed is OperationKind.CLONE else None) or copies
    if _went_on_without(engine):
        rejoins = act(Rejoin(REMOTE), Reason.REJOINS_REMOTE, now, str(engine.position), warning=True)
        return retries_later(view, now) or rejoins
    apart_s = now - view.not_streaming_since if view.not_streaming_since else 0.0
    if apart_s >= CONNECT_S and now - view.probed_at >= PROBE_EVERY_S:
        return act(ProbeTimeline(REMOTE), Reason.PROBES_REMOTE, now, _remote(view), warning=True)
    return waits(view, now, Reason.REMOTE_SILENT, _remote(view), warning=apart_s >= CONNECT_S)


def _went_on_without(engine: Engine) -> bool:
    """The remote primary's history left the own timeline before the own position: it was replaced by a server that did
    not have everything that was sent here."""
    left_at = [fork.lsn for fork in engine.leader_forks if fork.timeline == engine.position.timeline]
    return any(engine.position.lsn > lsn for lsn in left_at)
