"""What the parts of `decide` conclude from: who leads, whether the engine may accept writes, whether it is time to act.

Each premise is one small predicate over the view, so that a rule reads as a sentence and two rules cannot mean two
things by the same word.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from agent.ha.actions import Action, Decision, Reason
from agent.ha.leaseclock import ASK_AFTER, ASK_EVERY
from agent.ha.view import EngineState, OperationKind, View
from core.records import HaRecord, PeerMember
from core.status import MemberState, Role

TURN_S = 1.0  # the longest pause between two looks
SOON_S = 0.1  # after an action, whose effect is then seen
UP = frozenset({EngineState.STARTING, EngineState.RUNNING, EngineState.UNRESPONSIVE})
DOWN = frozenset({EngineState.ABSENT, EngineState.STOPPED, EngineState.CRASHED})
# Operations in which an engine may begin to accept writes although it does not run yet, or still runs as a replica.
_OPENING = frozenset({OperationKind.INITIALISE, OperationKind.PROMOTE})


def may_write(view: View) -> bool:
    """The engine accepts writes, or might at any moment."""
    engine, operation = view.engine, view.operation
    if engine.state in UP and engine.role is not Role.REPLICA:
        return True
    if operation is None:
        return False
    if operation.kind is OperationKind.HANDOVER:
        return view.lease.term > 0  # it rolls back to primary, but not once it has given the leadership away
    return operation.kind in _OPENING or (operation.kind is OperationKind.START and engine.role is Role.PRIMARY)


def known_term(view: View) -> int:
    """The highest term that the hub told of; 0 = none."""
    if view.instance is None:
        return 0
    leader = view.instance.leader
    return max(view.instance.ha.term, leader.term if leader else 0)


def held_term(view: View, now: float) -> int:
    """The term in which this member may act as leader at this moment; 0 = none."""
    return view.lease.term if now < view.lease.fence_at else 0


def leads(view: View, now: float) -> bool:
    """Holds the leadership: the hub says so too, or has not told of it yet."""
    held = held_term(view, now)
    return held > 0 and (is_confirmed(view) or held > known_term(view))


def is_confirmed(view: View) -> bool:
    """The view's leader is this member in the very term of its lease, so what the view tells is of its own time."""
    leader = view.instance.leader if view.instance else None
    return leader is not None and leader.member == view.me and leader.term == view.lease.term


def forced_away(view: View) -> bool:
    """An operator ordered that another member leads after the very term this member holds."""
    forced = view.instance.ha.forced if view.instance else None
    return forced is not None and 0 < forced.after_term == view.lease.term and forced.target != view.me


def timelines_used(ha: HaRecord, peers: Sequence[PeerMember], *, before_term: int) -> int:
    """The highest number that a timeline may have by now; 0 = nothing is known. Each leader made one more at most.

    PostgreSQL tells logs apart by these numbers alone, and counts from the log it has itself. A leader that does not
    have the last one's log (async, or forced) would use its number again, for another log.
    """
    highest = 0
    for line in sorted(ha.history, key=lambda line: line.term):
        if line.term < before_term and line.timeline:
            highest = max(highest, line.timeline) + (line.kind != "released")
    return max([highest, *(peer.timeline for peer in peers)])


def hub_is_silent(view: View, now: float) -> bool:
    """The lease has not been renewed for so long that the leader must look after itself."""
    return now - view.lease.renewed_at > view.ttl_s * ASK_AFTER


def may_ask_peers(view: View, now: float) -> bool:
    return hub_is_silent(view, now) and now - view.asked_peers_at >= view.ttl_s * ASK_EVERY


def promise_is_void(view: View) -> bool:
    """Whom it was given to has let go by itself since: in that very term, for a later one's word says nothing of it."""
    return view.instance is not None and 0 < view.promised_term == view.instance.ha.released_term


def data_is_foreign(view: View) -> bool:
    """There is data, and it is not this instance's: another identifier, or nobody has ever led to make any."""
    if view.instance is None or not view.engine.system_id:
        return False
    ha = view.instance.ha
    return view.engine.system_id != ha.system_id if ha.system_id else ha.term == 0


def is_standby(view: View) -> bool:
    """The instance follows a remote primary, and no member accepts writes. One transaction takes both marks away; were
    one of them lost (a hub of an older version drops fields that it does not know), nobody is promoted for that."""
    return view.desired.standby is not None or (view.instance is not None and view.instance.ha.standby)


def runs_as_primary(view: View, member: str) -> bool:
    """As far as is known, `member` is up as primary; of a standby instance: in the role of its leader."""
    peer = view.peer(member)
    if peer is not None and is_standby(view) and peer.role is Role.REPLICA:
        return peer.state in (MemberState.RUNNING, MemberState.LAGGING)
    return peer is not None and peer.state is MemberState.RUNNING and peer.role is Role.PRIMARY


def waits(
    view: View, now: float, reason: Reason, detail: str = "", *, until: float = 0.0, warning: bool = False
) -> Decision:
    """Nothing to do before `until`, the next failsafe question, the fence or a turn's time, whichever comes first."""
    times = [now + TURN_S]
    lease = view.lease
    if lease.term:
        times += [lease.fence_at, lease.renewed_at + view.ttl_s * ASK_AFTER + SOON_S]
        times.append(max(view.asked_peers_at, lease.renewed_at) + view.ttl_s * ASK_EVERY)
    times.append(until)
    return Decision(
        actions=(),
        reason=reason,
        wake_at=min(at for at in times if at > now),
        detail=detail,
        severity="warning" if warning else "info",
    )


def retries_later(view: View, now: float) -> Decision | None:
    """What failed is not tried again before its time."""
    engine = view.engine
    if now >= engine.retry_at:
        return None
    return waits(view, now, Reason.RETRIES_LATER, engine.failure, until=engine.retry_at, warning=True)


def act(
    action: Action, reason: Reason, now: float, detail: str = "", *, wake_s: float = SOON_S, warning: bool = False
) -> Decision:
    """One action, and another look at its effect after `wake_s`."""
    severity: Literal["info", "warning"] = "warning" if warning else "info"
    return Decision(actions=(action,), reason=reason, wake_at=now + wake_s, detail=detail, severity=severity)
