"""Pure: what is wanted of a member beside leadership, and what is, to the one next step.

`agent.ha.decide` speaks first; this is asked only when it wants nothing and no operation is under way. The order is the
rule: delete before anything else, restart before settings (a restart may be what they wait for).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from agent.ha.view import EngineState
from core.records import MemberDesired
from core.status import Role

CONVERGE_EVERY_S = 15.0  # settings and roles are looked at this often even when nothing changed: drift is put right
_DOWN = frozenset({EngineState.STOPPED, EngineState.CRASHED, EngineState.ABSENT})


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What is. `settled`: settings, roles and databases were made so for exactly this desired state and role;
    `settled_at` is when (monotonic seconds)."""

    state: EngineState
    role: Role
    leads: bool  # the leader key in etcd is this member's
    writable: bool  # the running primary, holding the lease
    restart_id: int  # carried out
    settled: bool
    settled_at: float


class Step(Enum):
    """What to do next; the value is the sentence."""

    NOTHING = "everything is as desired"
    DESTROY = "delete the member's data from the node"
    RESTART = "restart the engine"
    CONVERGE = "make settings, roles and databases as desired"


def reconcile(desired: MemberDesired, observed: Observed, now: float) -> Step:
    """The next step towards what is desired."""
    if desired.desired == "absent":
        return Step.DESTROY if observed.state in _DOWN and not observed.leads else Step.NOTHING
    if desired.desired != "running" or observed.state is not EngineState.RUNNING:
        return Step.NOTHING
    if observed.role is Role.PRIMARY and not observed.writable:
        return Step.NOTHING  # an engine that may have to stop is left alone
    if desired.restart_id > observed.restart_id:
        return Step.RESTART
    if observed.settled and now - observed.settled_at < CONVERGE_EVERY_S:
        return Step.NOTHING
    return Step.CONVERGE
