"""What this member does next: one pure function of everything that is known. The story is in the package's docstring.

The order below is the rule: fencing before everything, then whatever runs is left to finish, then what is desired, then
who leads.
"""

from __future__ import annotations

from agent.ha.actions import AskPeers, Decision, Fence, Reason, Release, Stop
from agent.ha.following import follow
from agent.ha.leaderless import stand
from agent.ha.leading import exchange_standbys, goes_in_order, lead
from agent.ha.premises import (
    UP,
    act,
    data_is_foreign,
    forced_away,
    known_term,
    leads,
    may_ask_peers,
    may_write,
    waits,
)
from agent.ha.view import EngineState, OperationKind, View

GIVE_UP_STOPPING = 2  # failed orderly stops after which the engine is stopped at once


def decide(view: View, now: float) -> Decision:
    """The actions for this moment, why, and when to decide again at the latest."""
    return _fence(view, now) or _busy(view, now) or _down(view, now) or _foreign(view, now) or _by_leader(view, now)


def _fence(view: View, now: float) -> Decision | None:
    if view.operation is not None and view.operation.kind is OperationKind.FENCE:
        return None
    if not may_write(view):
        return None
    if now >= view.lease.fence_at:
        return act(Fence(), Reason.LEASE_OVER, now, f"term {view.lease.term}", warning=True)
    if _superseded(view):
        return act(Fence(), Reason.SUPERSEDED, now, f"term {known_term(view)}", warning=True)
    if data_is_foreign(view):
        return act(Fence(), Reason.FOREIGN_DATA, now, view.engine.system_id, warning=True)
    if forced_away(view) and not goes_in_order(view, now):
        return act(Fence(), Reason.FORCED_AWAY, now, f"term {view.lease.term}", warning=True)
    return None


def _superseded(view: View) -> bool:
    """Another member led after the term this one holds. (Own later terms are its own business.)"""
    return view.instance is not None and known_term(view) > view.lease.term and view.instance.ha.leader != view.me


def _busy(view: View, now: float) -> Decision | None:
    if view.operation is None:
        return None
    detail = view.operation.kind.value
    if leads(view, now) and may_write(view) and may_ask_peers(view, now):
        return act(AskPeers(view.lease.term), Reason.ASKS_PEERS, now, detail)
    return _meanwhile(view, now) or waits(view, now, Reason.BUSY, detail)


def _meanwhile(view: View, now: float) -> Decision | None:
    """Until a handover stops the engine, clients go on: their commits must not wait for a standby that is gone."""
    assert view.operation is not None, "something is under way"
    if view.operation.kind is not OperationKind.HANDOVER or view.closing or not leads(view, now):
        return None
    return exchange_standbys(view, now)


def _down(view: View, now: float) -> Decision | None:
    if view.desired.desired == "running":
        return None
    engine, leader = view.engine, view.instance.leader if view.instance else None
    if engine.state is EngineState.UNRESPONSIVE or (engine.state in UP and engine.failed_starts >= GIVE_UP_STOPPING):
        return act(Fence(), Reason.ENGINE_HUNG, now, warning=True)
    if engine.state in UP:
        return act(Stop(), Reason.STOPS, now, view.desired.desired)
    if leader is not None and leader.member == view.me:
        return act(Release(leader.term), Reason.GIVES_UP_STOPPED, now, f"term {leader.term}")
    return waits(view, now, Reason.STAYS_DOWN, view.desired.desired)


def _foreign(view: View, now: float) -> Decision | None:
    """Data of another database is never started, joined or overwritten."""
    if not data_is_foreign(view):
        return None
    assert view.instance is not None, "data is foreign to a known instance"
    detail = f"{view.engine.system_id}, not {view.instance.ha.system_id or 'a new one'}"
    leader = view.instance.leader
    if view.engine.state in UP:
        return act(Fence(), Reason.FOREIGN_DATA, now, detail, warning=True)
    if leader is not None and leader.member == view.me:
        return act(Release(leader.term), Reason.GIVES_UP_FOREIGN, now, detail, warning=True)
    return waits(view, now, Reason.FOREIGN_DATA, detail, warning=True)


def _by_leader(view: View, now: float) -> Decision:
    instance = view.instance
    if instance is None:
        return waits(view, now, Reason.WAITS_FOR_HUB)
    if leads(view, now):
        return lead(view, now)
    leader = instance.leader
    if leader is None:
        return stand(view, now)
    if leader.member == view.me:
        return _unconfirmed(view, now, leader.term)
    if view.ballot_term > leader.term:
        return waits(view, now, Reason.VIEW_OLDER, f"voted for term {view.ballot_term}, the hub told of {leader.term}")
    return follow(view, now)


def _unconfirmed(view: View, now: float, term: int) -> Decision:
    """The leader key is this member's, but it holds no lease for it. Its engine does not accept writes: `_fence`."""
    if term <= view.spent_term and not may_write(view):
        return act(Release(term), Reason.GIVES_UP_SPENT, now, f"term {term}")
    return waits(view, now, Reason.LEASE_UNCONFIRMED, f"term {term}")
