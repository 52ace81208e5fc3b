"""Who could become primary by an operator's wish, as far as the hub can see: pure, one sentence for each obstacle.

The wish to switch over is judged when it is made, and once more when its time has come: by the same rules. A forced
failover asks for less: a node that answers and data to lead with. The agents judge all of it again, from facts that are
newer; what is refused here only saves a person the wait.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.status import MemberState, Role
from hub.judges.situation import Current, Situation

SHOWN_NAMES = 5  # in a sentence that lists members
_NO_DATA = frozenset({MemberState.ABSENT, MemberState.CREATING, MemberState.DELETED})


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a switchover cannot be. `lasting`: time alone does not change it. `unknown`: there is no such member."""

    text: str
    hint: str = ""
    lasting: bool = False
    unknown: bool = False


def obstacle(s: Situation, target: str) -> Obstacle | None:
    """What stands in the way of a switchover to `target` (empty = any replica) at this moment."""
    if s.ha is not None and s.ha.standby:
        return _has_no_primary(s)
    if s.leader is None:
        return Obstacle("instance has no primary now", hint="Wait until it is Running.")
    others = [current for current in s.members if current.name != s.leader_name]
    if target:
        return _of_target(s, target, others)
    refusals = [_why_not(s, current) for current in others]
    if others and not all(refusals):
        return None
    why = f": {'; '.join(text for text in refusals if text)}" if refusals else ""
    lasting = all(current.desired.no_failover for current in others)
    return Obstacle(f"no replica can become primary{why}", lasting=lasting)


def unfit_to_be_forced(s: Situation, target: str) -> Obstacle | None:
    """What stands in the way of a forced failover to `target`: only what it could not even begin with."""
    if s.ha is not None and s.ha.standby:
        return _has_no_primary(s)
    if s.leader_name == target:
        return Obstacle(f"{target} is the primary already", lasting=True)
    current = next((one for one in s.members if one.name == target), None)
    if current is None:
        return _no_such_member(s, target)
    if current.desired.desired != "running":
        return Obstacle(f"{target} is to be {current.desired.desired}")
    if s.is_lost(current):
        return Obstacle(
            f"node {current.node} of {target} is silent, so it would not hear of the order",
            hint="Choose a member whose node is heard, or bring this one back first.",
        )
    if current.state in _NO_DATA or current.state is MemberState.REJOINING:
        return Obstacle(f"{target} has no data to lead with ({current.state.value})", hint="Choose another member.")
    return None


def _has_no_primary(s: Situation) -> Obstacle:
    hint = f"Members take over from each other by themselves; `moorctl instance promote {s.ref}` makes a primary of it."
    return Obstacle("the instance follows a remote primary, and has none of its own", hint=hint, lasting=True)


def _of_target(s: Situation, target: str, others: list[Current]) -> Obstacle | None:
    if target == s.leader_name:
        return Obstacle(f"{target} is the primary already", lasting=True)
    current = next((one for one in others if one.name == target), None)
    if current is None:
        return _no_such_member(s, target)
    refusal = _why_not(s, current)
    return Obstacle(f"{refusal}, so it cannot become primary", lasting=current.desired.no_failover) if refusal else None


def _no_such_member(s: Situation, target: str) -> Obstacle:
    names = [current.name for current in s.members]
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    hint = f"Members: {', '.join(names[:SHOWN_NAMES])}{more}." if names else "It has no members yet."
    return Obstacle(f"member {target!r} does not exist", hint=hint, lasting=True, unknown=True)


def _why_not(s: Situation, current: Current) -> str:
    """Empty when the replica could become primary."""
    name = current.name
    if current.desired.desired != "running":
        return f"{name} is to be {current.desired.desired}"
    if current.desired.no_failover:
        return f"{name} is marked never to become primary"
    if current.node in s.silent:
        return f"node {current.node} of {name} is silent"
    seen = current.observed
    if seen is None or seen.state is not MemberState.RUNNING or seen.role is not Role.REPLICA:
        state = "unknown" if seen is None else f"{seen.role.value}, {seen.state.value}"
        return f"{name} is not a running replica ({state})"
    return ""
