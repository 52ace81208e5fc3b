"""Pure: what the leader does. It holds the lease; everything here ends with a primary that accepts writes, or with the
leadership given up to somebody who can do better.

A crashed engine is started in place only when nobody else could take over at once. Giving up is `Release`, always of an
engine that is down. A leader whose data is gone never makes new data: that would be another database under the name of
the first.
"""

from __future__ import annotations

from dataclasses import replace

from agent.ha.actions import (
    ApplySync,
    AskPeers,
    Decision,
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
from agent.ha.election import why_not_succeeded
from agent.ha.premises import (
    SOON_S,
    act,
    forced_away,
    hub_is_silent,
    is_confirmed,
    is_standby,
    may_ask_peers,
    promise_is_void,
    retries_later,
    timelines_used,
    waits,
)
from agent.ha.standby import lead_standby
from agent.ha.syncset import Apply, Candidate, CatchUp, Record, TooFew, first_era, next_step
from agent.ha.view import EngineState, OperationKind, Standby, View
from core.records import HaRecord, PeerMember, SwitchoverRequest
from core.status import MemberState, Role

HANDOVER_LAG_BYTES = 1 << 20  # a target further behind would make clients wait for it to catch up
AT_ONCE_S = 0.02
NEW_S = 10.0
IN_ORDER_S = 10.0  # for a leader that is forced away to hand over; an order is good for thirty
SWITCHOVER_WAIT_S = 30.0  # for a target that does not stream, or is too far behind
_OPENING = frozenset({OperationKind.START, OperationKind.PROMOTE, OperationKind.INITIALISE})
_SERVING = frozenset({MemberState.RUNNING, MemberState.LAGGING, MemberState.STARTING})


def lead(view: View, now: float) -> Decision:
    """`view` shows a member that holds the leadership."""
    engine = view.engine
    if forced_away(view) and goes_in_order(view, now):
        order = _ha(view).forced
        assert order is not None, "an operator's order forces it away"
        handover = Handover(request_id=order.id, target=order.target, term=view.lease.term)
        return act(handover, Reason.HANDS_OVER, now, f"to {order.target}, as forced")
    if forced_away(view):  # its engine is down: `decide` fences before anything else
        return act(Release(view.lease.term), Reason.FORCED_AWAY, now, f"term {view.lease.term}", warning=True)
    if is_standby(view):
        return lead_standby(view, now, why_in_place=_why_in_place(view))
    match engine.state:
        case EngineState.ABSENT:
            return _without_data(view, now)
        case EngineState.STOPPED | EngineState.CRASHED:
            return _down(view, now)
        case EngineState.STARTING:
            return waits(view, now, Reason.STARTS, engine.failure)
        case EngineState.UNRESPONSIVE:
            why_here = _why_in_place(view)
            if not why_here:
                return act(Fence(), Reason.ENGINE_HUNG, now, warning=True)
            return waits(view, now, Reason.ENGINE_SILENT, why_here, warning=True)
        case EngineState.RUNNING if engine.role is Role.REPLICA:
            return _to_be_promoted(view, now)
        case EngineState.RUNNING:
            return _primary(view, now)


# --- not primary yet, or no more -------------------------------------------------------------------------------------


def _ha(view: View) -> HaRecord:
    assert view.instance is not None, "nobody leads an unknown instance"
    return view.instance.ha


def _without_data(view: View, now: float) -> Decision:
    ha = _ha(view)
    if ha.system_id or ha.bootstrap != view.me:
        return act(Release(view.lease.term), Reason.DATA_LOST, now, f"term {view.lease.term}", warning=True)
    return retries_later(view, now) or act(Initialise(), Reason.INITIALISES, now)


def _down(view: View, now: float) -> Decision:
    engine, term = view.engine, view.lease.term
    crashed = engine.state is EngineState.CRASHED or view.fenced_at > 0 or engine.failed in _OPENING
    why_here = _why_in_place(view) if crashed else ""
    if crashed and not why_here:
        return act(Release(term), Reason.GIVES_UP_CRASHED, now, engine.failure, warning=True)
    delayed = _promised(view, now) or retries_later(view, now)
    if delayed is not None:
        return delayed
    if engine.role is Role.REPLICA:
        return act(StartReplica(""), Reason.LEARNS_POSITION, now)
    detail = f"term {term}" + (f": {why_here}" if why_here else "")
    return act(StartPrimary(term), Reason.RESTARTS_IN_PLACE, now, detail, warning=crashed)


def _why_in_place(view: View) -> str:
    """Why a leader whose engine has failed does not leave it to the others; empty when it does: they take over at once.
    Only a current view can tell."""
    if not is_confirmed(view):
        return "the hub does not confirm who leads"
    if _ha(view).paused:
        return "automatic failover is paused"
    return why_not_succeeded(_ha(view), view.peers)


def _to_be_promoted(view: View, now: float) -> Decision:
    engine, term = view.engine, view.lease.term
    if engine.failed is OperationKind.PROMOTE and not _why_in_place(view):
        return act(Release(term), Reason.GIVES_UP_CRASHED, now, engine.failure, warning=True)
    delayed = _promised(view, now) or retries_later(view, now)
    used = timelines_used(_ha(view), view.peers, before_term=term)
    above = used if used > engine.position.timeline else 0
    if delayed is not None:
        return delayed
    others = [peer.member for peer in view.peers if not peer.no_failover and not peer.upstream]
    era = first_era(view.desired.replication, view.sync_sent, others, view.me)
    promotes = act(Promote(term, above), Reason.PROMOTES, now, f"term {term}")
    return replace(promotes, actions=(*promotes.actions, RecordSync(term, era.sync))) if era is not None else promotes


def _promised(view: View, now: float) -> Decision | None:
    """An Acquire may take effect after its answer was given up; a promise given since then binds all the same."""
    if now >= view.promised_until or promise_is_void(view):
        return None
    return waits(view, now, Reason.PROMISED_TO_OTHER, until=view.promised_until)


# --- primary ---------------------------------------------------------------------------------------------------------


def _primary(view: View, now: float) -> Decision:
    if hub_is_silent(view, now):
        if may_ask_peers(view, now):
            return act(AskPeers(view.lease.term), Reason.ASKS_PEERS, now, warning=True)
        return waits(view, now, Reason.STEADY_PRIMARY, "the hub does not answer", warning=True)
    if not is_confirmed(view):
        return waits(view, now, Reason.STEADY_PRIMARY, f"term {view.lease.term}")
    if _should_leave_it_to_others(view):
        return act(Fence(), Reason.GIVES_UP_UNFIT, now, view.engine.unfit, warning=True)
    duties = [_identity(view, now), _switchover(view, now), _sync_set(view, now), _opening(view, now)]
    pending = [duty for duty in duties if duty is not None]
    steady = waits(view, now, Reason.STEADY_PRIMARY, f"term {view.lease.term}")
    # A duty that only waits holds up no other.
    return next((duty for duty in pending if duty.actions), pending[0] if pending else steady)


def _should_leave_it_to_others(view: View) -> bool:
    """Its disk is full, so that commits fail, and others can take over that have room. Where none has, an engine that
    answers reads is better than none."""
    if not view.engine.unfit or _ha(view).paused:
        return False
    return not why_not_succeeded(_ha(view), [peer for peer in view.peers if not peer.unfit])


def _identity(view: View, now: float) -> Decision | None:
    if _ha(view).system_id or not view.engine.system_id:
        return None
    action = RecordSystemId(view.lease.term, view.engine.system_id)
    return act(action, Reason.RECORDS_IDENTITY, now, view.engine.system_id)


def _opening(view: View, now: float) -> Decision | None:
    if not view.opened_at or view.opening_told:
        return None
    return act(TellOpened(view.lease.term), Reason.TELLS_OPENED, now, f"term {view.lease.term}")


# --- switchover ------------------------------------------------------------------------------------------------------


def _switchover(view: View, now: float) -> Decision | None:
    request = _ha(view).switchover
    if request is None:
        return None
    refusal = _cannot_be_met(view, request)
    if refusal:
        return _end(view, now, request, refusal)
    target = _target(view, request)
    if target is not None:
        handover = Handover(request_id=request.id, target=target.member, term=view.lease.term)
        return retries_later(view, now) or act(handover, Reason.HANDS_OVER, now, f"to {target.member}")
    lacking = _lacking(view, request)
    if view.switchover_since and now - view.switchover_since >= SWITCHOVER_WAIT_S:
        return _end(view, now, request, lacking)
    return waits(view, now, Reason.SWITCHOVER_WAITS, lacking)


def _cannot_be_met(view: View, request: SwitchoverRequest) -> str:
    if not request.target:
        return "" if any(not peer.no_failover for peer in view.peers) else "no member could lead instead"
    if request.target == view.me:
        return f"{view.me} leads already"
    peer = view.peer(request.target)
    if peer is None:
        return f"{request.target} is not a member"
    return f"{peer.member} must not lead (no_failover)" if peer.no_failover else ""


def _target(view: View, request: SwitchoverRequest) -> Standby | None:
    """Who can take over now; None while nobody can."""
    able = [
        (standby, peer)
        for standby, peer in _standbys(view)
        if request.target in ("", peer.member) and _lag_bytes(view, standby) <= HANDOVER_LAG_BYTES
    ]
    able.sort(key=lambda pair: (-pair[1].priority, -pair[0].flushed.value, pair[1].member))
    return able[0][0] if able else None


def _standbys(view: View) -> list[tuple[Standby, PeerMember]]:
    """Standbys that stream, could lead, and whose node is heard of."""
    return [
        (standby, peer)
        for standby in view.engine.standbys
        if standby.streaming
        and (peer := view.peer(standby.member)) is not None
        and peer.alive
        and not peer.no_failover
        and peer.state in _SERVING
    ]


def _lag_bytes(view: View, standby: Standby) -> int:
    return max(0, view.engine.position.lsn - standby.flushed)


def _lacking(view: View, request: SwitchoverRequest) -> str:
    lags = [(standby.member, _lag_bytes(view, standby)) for standby, _ in _standbys(view)]
    if request.target:
        lags = [(member, lag) for member, lag in lags if member == request.target]
    if not lags:
        return f"{request.target or 'no other member'} does not stream from {view.me}"
    return ", ".join(f"{member} is {lag} bytes behind" for member, lag in lags)


def _end(view: View, now: float, request: SwitchoverRequest, why: str) -> Decision:
    note = f"switchover ended: {why}"
    return act(EndSwitchover(view.lease.term, request.id, note), Reason.SWITCHOVER_ENDED, now, why, warning=True)


def goes_in_order(view: View, now: float) -> bool:
    """A leader that is forced away and well hands over to the forced one, if that streams, so that nothing is lost. It
    has little time for that; then, or when it fails, or is not well, it is fenced."""
    order = _ha(view).forced
    in_time = 0.0 < view.forced_since <= now < view.forced_since + IN_ORDER_S
    if order is None or not in_time or not is_confirmed(view) or view.engine.failed is OperationKind.HANDOVER:
        return False
    if view.operation is not None:
        return view.operation.kind is OperationKind.HANDOVER
    engine = view.engine
    if engine.state is not EngineState.RUNNING or engine.role is not Role.PRIMARY or hub_is_silent(view, now):
        return False
    return any(
        s.member == order.target and s.streaming and _lag_bytes(view, s) <= HANDOVER_LAG_BYTES for s in engine.standbys
    )


# --- sync set --------------------------------------------------------------------------------------------------------


def exchange_standbys(view: View, now: float) -> Decision | None:
    """A step of the sync set, for a running primary that is busy with something else; None when there is none."""
    engine = view.engine
    if engine.state is not EngineState.RUNNING or engine.role is not Role.PRIMARY or not is_confirmed(view):
        return None
    step = _sync_set(view, now)
    return step if step is not None and step.actions else None


def _sync_set(view: View, now: float) -> Decision | None:
    step = next_step(
        wanted=view.desired.replication,
        record=_ha(view).sync,
        sent=view.sync_sent,
        setting=view.engine.sync,
        base=view.sync_base,
        candidates=_candidates(view),
        me=view.me,
    )
    match step:
        case None:
            return None
        case Record(sync=sync):
            return act(RecordSync(view.lease.term, sync), Reason.RECORDS_SYNC, now, f"{sync.k} of {_names(sync.names)}")
        case Apply(sync=sync):
            return act(ApplySync(sync), Reason.APPLIES_SYNC, now, f"{sync.k} of {_names(sync.names)}")
        case CatchUp(names=names):
            return waits(view, now, Reason.SYNC_CATCHES_UP, _names(names), until=now + SOON_S)
        case TooFew(wanted=wanted, streaming=streaming):
            # Clients wait for this very moment, so it is looked for often: most of all when the others turn to this
            # leader for the first time.
            detail = f"{streaming} of {wanted}"
            until = now + (AT_ONCE_S if _is_new(view, now) else SOON_S)
            return waits(view, now, Reason.TOO_FEW_STANDBYS, detail, until=until, warning=True)


def _candidates(view: View) -> list[Candidate]:
    """Who may stand in the sync set. One that has stalled (its node is gone without a word, or its disk hangs) is
    exchanged long before its connection breaks, where there is another; without one, commits wait for it (strict) or
    go on (not strict). In a quorum that has enough others it does no harm."""
    replication = view.desired.replication
    found = [
        Candidate(member=peer.member, flushed=standby.flushed, priority=peer.priority)
        for standby, peer in _standbys(view)
        if not peer.upstream  # it streams from here for want of a better one only
    ]
    brisk = [candidate for candidate in found if candidate.member not in view.stalled]
    if replication.mode == "sync" and brisk:
        return brisk
    too_few = len(brisk) < (1 if replication.mode == "sync" else replication.k)
    return brisk if too_few and not replication.strict else found


def _is_new(view: View, now: float) -> bool:
    return not view.opened_at and now - view.acquired_at < NEW_S


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "nobody"
