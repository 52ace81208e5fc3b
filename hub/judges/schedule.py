"""Wishes about leadership that time ends. A switchover whose time has come becomes a request, or is dropped with the
reason; an order to force a failover that did not come about is dropped as well. Pure.

Each happens once, in one transaction with the event that tells of it. A wish is never kept for later than its time: who
scheduled it for a quiet hour does not want it in a busy one, and who comes upon the event at least knows. So a
switchover is dropped when no hub was there for `LATE_MAX_S` after the time, when something else is wrong with the
instance, and when it cannot be met. Agents heed an order for half a minute; what lies there longer would only surprise
whoever brings its target back.
"""

from __future__ import annotations

import math
from dataclasses import replace

from core.clock import moment
from core.records import HISTORY_MAX, Event, HaRecord, LeadershipChange, ScheduledSwitchover, SwitchoverRequest
from hub.judges.candidates import obstacle
from hub.judges.conditions import judge
from hub.judges.notices import event
from hub.judges.situation import Situation

LATE_MAX_S = 15 * 60.0
ORDER_S = 45.0  # agents heed an order for 30 s from when each first saw it


def due(s: Situation, now: float) -> tuple[HaRecord, Event] | None:
    """The memory of leadership as it reads after the time of a wish, and what to tell; None while none has come.
    `now` is wall seconds."""
    return _order(s, now) or _appointment(s, now)


def due_at(ha: HaRecord) -> float:
    """Wall seconds from which on `due` finds something; infinite when there is no wish."""
    order = ha.forced.requested_at + ORDER_S if ha.forced is not None else math.inf
    return min(order, ha.scheduled.at if ha.scheduled is not None else math.inf)


def _order(s: Situation, now: float) -> tuple[HaRecord, Event] | None:
    if s.ha is None or s.ha.forced is None or now < s.ha.forced.requested_at + ORDER_S:
        return None
    order = s.ha.forced
    target = next((current for current in s.members if current.name == order.target), None)
    seen = target.observed if target is not None else None
    told = (seen.message or seen.state.value) if seen is not None else "nothing is known of it"
    whose = f"the forced failover to {order.target} that {order.requested_by} ordered"
    text = f"{whose} did not come about within {ORDER_S:.0f} s ({order.target}: {told})"
    line = LeadershipChange(
        term=s.ha.term, member=s.ha.leader, reason=text, at=now, kind="switchover_ended", seen=told, seen_by="hub"
    )
    again = f"see `moorctl instance show {s.ref}`, then order it again or choose another member"
    event_ = event(now, "failover_dropped", str(s.ref), f"{text}; {again}", "error")
    return replace(s.ha, forced=None, history=(*s.ha.history, line)[-HISTORY_MAX:]), event_


def _appointment(s: Situation, now: float) -> tuple[HaRecord, Event] | None:
    if s.ha is None or s.ha.scheduled is None or now < s.ha.scheduled.at:
        return None
    wish = s.ha.scheduled
    why = _why_dropped(s, wish, now)
    if why:
        return _dropped(s, s.ha, wish, why, now)
    request = SwitchoverRequest(
        id=wish.id, target=wish.target, requested_by=wish.requested_by, requested_at=wish.requested_at
    )
    text = f"scheduled by {wish.requested_by} for {moment(wish.at)}, to {wish.target or 'the best replica'}"
    return replace(s.ha, scheduled=None, switchover=request), event(now, "switchover_requested", str(s.ref), text)


def _why_dropped(s: Situation, wish: ScheduledSwitchover, now: float) -> str:
    if now - wish.at > LATE_MAX_S:
        return f"no hub was at work for {int((now - wish.at) / 60)} minutes after its time"
    assert s.ha is not None, "the wish lies in it"
    if s.ha.switchover is not None:
        return f"switchover {s.ha.switchover.id} is under way"
    if s.ha.forced is not None and s.ha.forced.after_term == s.ha.term:
        return f"a forced failover to {s.ha.forced.target} is under way"
    standing = obstacle(s, wish.target)
    if standing is not None:
        return standing.text
    worst = judge(s, now=now).worst
    return f"the instance is not healthy ({worst.message})" if worst is not None else ""


def _dropped(s: Situation, ha: HaRecord, wish: ScheduledSwitchover, why: str, now: float) -> tuple[HaRecord, Event]:
    whose = f"the switchover that {wish.requested_by} scheduled for {moment(wish.at)}"
    line = LeadershipChange(
        term=ha.term, member=ha.leader, reason=f"{whose} was dropped: {why}", at=now, kind="switchover_ended",
        seen=why, seen_by="hub",
    )  # fmt: skip
    text = f"{whose} was dropped: {why}; ask again with `moorctl instance switchover {s.ref}`"
    told = event(now, "switchover_dropped", str(s.ref), text, "warning")
    return replace(ha, scheduled=None, history=(*ha.history, line)[-HISTORY_MAX:]), told
