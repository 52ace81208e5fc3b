"""Pure: clients wait for the next primary while the present one hands over.

The primary asks every member's agent to hold the clients at its proxy, for a bounded time. A hold is only ever a
courtesy: it makes sessions wait that would else be cut, and nothing rests on it. So it ends by itself, and at once when
somebody leads in a higher term.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.records import InstanceView

HOLD_MAX_S = 5.0  # a handover asks for 3 s at a time, and again each second


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """`until`: monotonic time at which clients go on in any case."""

    term: int
    request_id: str
    until: float


def begun(*, term: int, request_id: str, for_s: float, now: float) -> Hold:
    """Whoever asks cannot make clients wait longer than HOLD_MAX_S before it must ask again."""
    return Hold(term=term, request_id=request_id, until=now + min(for_s, HOLD_MAX_S))


def in_force(hold: Hold | None, instance: InstanceView | None, now: float) -> bool:
    """Whether clients wait at this moment."""
    if hold is None or now >= hold.until:
        return False
    leader = instance.leader if instance else None
    return leader is None or leader.term <= hold.term


def may_hold(instance: InstanceView | None, *, leader: str, term: int) -> str:
    """Whether a member may be asked to hold its clients by `leader`, which leads in `term`: empty, or why not."""
    if instance is None:
        return "the instance is not known here yet"
    known = max(instance.ha.term, instance.leader.term if instance.leader else 0)
    if known > term:
        return f"term {known} has begun"
    if instance.leader is not None and instance.leader.term == term and instance.leader.member != leader:
        return f"{instance.leader.member} leads in term {term}"
    return ""
