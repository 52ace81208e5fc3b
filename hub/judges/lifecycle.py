"""The life of an instance: one table of phases, and the only function that moves an instance along it.

A phase is coarse on purpose: it answers "must I look?". Whatever is finer is a condition (`hub.judges.conditions`). A
transition that is not in TRANSITIONS cannot happen, and the diagram in the documentation is drawn from the same table.

Phases are judged anew from facts, one transition at a time; nothing is remembered but the phase itself. It is needed to
tell an instance that is still being made from one that has lost something.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from core.status import Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the phase depends on. `ready` and `broken` exclude each other."""

    deleting: bool  # an operator asked for it
    members: int  # keys below members/, leaving ones included
    ready: bool  # a leader, and every desired member does its work in its role at the desired generation
    broken: bool  # something does not work that should, other than by a change under way

    def __post_init__(self) -> None:
        assert not (self.ready and self.broken), "what is broken is not ready"


class Guard(Enum):
    """When a transition is taken; the value is its sentence in the diagram."""

    DELETION_ASKED = "deletion is asked for"
    PLACED = "members have their nodes"
    READY = "every member does its work at the desired generation"
    BROKEN = "something that should work does not"
    CHANGING = "nothing is broken, not all has converged"
    EMPTY = "no member is left"


_HOLDS: dict[Guard, Callable[[Facts], bool]] = {
    Guard.DELETION_ASKED: lambda facts: facts.deleting,
    Guard.PLACED: lambda facts: facts.members > 0,
    Guard.READY: lambda facts: facts.ready,
    Guard.BROKEN: lambda facts: facts.broken,
    Guard.CHANGING: lambda facts: not facts.ready and not facts.broken,
    Guard.EMPTY: lambda facts: facts.members == 0,
}


@dataclass(frozen=True, slots=True)
class Transition:
    source: Phase
    guard: Guard
    target: Phase


ALIVE = (Phase.PENDING, Phase.CREATING, Phase.RUNNING, Phase.MODIFYING, Phase.DEGRADED)

# In each phase the first guard that holds is taken; deletion stands before all others.
TRANSITIONS: tuple[Transition, ...] = (
    *(Transition(phase, Guard.DELETION_ASKED, Phase.DELETING) for phase in ALIVE),
    Transition(Phase.PENDING, Guard.PLACED, Phase.CREATING),
    Transition(Phase.CREATING, Guard.READY, Phase.RUNNING),
    Transition(Phase.RUNNING, Guard.BROKEN, Phase.DEGRADED),
    Transition(Phase.RUNNING, Guard.CHANGING, Phase.MODIFYING),
    Transition(Phase.MODIFYING, Guard.BROKEN, Phase.DEGRADED),
    Transition(Phase.MODIFYING, Guard.READY, Phase.RUNNING),
    Transition(Phase.DEGRADED, Guard.READY, Phase.RUNNING),
    Transition(Phase.DEGRADED, Guard.CHANGING, Phase.MODIFYING),
    Transition(Phase.DELETING, Guard.EMPTY, Phase.DELETED),
)


def next_phase(phase: Phase, facts: Facts) -> Phase:
    """The phase after one transition; the same phase when none is due."""
    for transition in TRANSITIONS:
        if transition.source is phase and _HOLDS[transition.guard](facts):
            return transition.target
    return phase


def mermaid() -> str:
    """The table as a Mermaid state diagram, for the documentation."""
    lines = ["stateDiagram-v2", f"    [*] --> {Phase.PENDING}"]
    lines += [f"    {t.source} --> {t.target}: {t.guard.value}" for t in TRANSITIONS]
    lines.append(f"    {Phase.DELETED} --> [*]")
    return "\n".join(lines) + "\n"
