"""The history of an instance's leadership: what its lines say, completed here with what only the hub knows.

All lines lie in the instance's ha record, newest last, so that a change of leadership and its line are one transaction.
The views that members get carry of it only what decisions rest on (`hub.judges.assemble`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from core.ids import InstanceRef
from core.records import HISTORY_MAX, HaRecord, LeadershipChange

LINES_MAX = 12  # of ballots and of steps in one line of history
TEXT_MAX = 300


class Versioned(Protocol):
    """A record in the mirror."""

    @property
    def record(self) -> HaRecord: ...


class Source(Protocol):
    """The mirror, as far as it is read here."""

    @property
    def ha(self) -> Mapping[InstanceRef, Versioned]: ...


def entries(mirror: Source, ref: InstanceRef) -> tuple[LeadershipChange, ...]:
    """The history of an instance, oldest first; empty when there is none."""
    ha = mirror.ha.get(ref)
    return ha.record.history if ha is not None else ()


def with_line(ha: HaRecord, line: LeadershipChange) -> HaRecord:
    """The record with one more line; the oldest goes when there are too many."""
    return replace(ha, history=(*ha.history, line)[-HISTORY_MAX:])


def acquired(ha: HaRecord, told: LeadershipChange, *, last_is_silent: bool) -> LeadershipChange:
    """The line of whoever takes over after `ha.term`: what was seen of the last leader, and by whom."""
    seen, seen_by = _seen(ha, last_is_silent=last_is_silent)
    return replace(told, seen=seen, seen_by=seen_by)


def _seen(ha: HaRecord, *, last_is_silent: bool) -> tuple[str, str]:
    if not ha.term:
        return "a new instance", "hub"
    if ha.released_term == ha.term:
        line = next((c for c in reversed(ha.history) if c.term == ha.term and c.kind == "released"), None)
        return f"{ha.leader} let go{f': {line.reason}' if line else ''}", ha.leader
    node = ", and no hub hears of its node" if last_is_silent else ""
    return f"the lease of {ha.leader} ran out{node}", "hub"


def bounded(told: LeadershipChange) -> LeadershipChange:
    """As told by an agent, cut to what a line may hold."""
    return replace(
        told,
        reason=told.reason[:TEXT_MAX],
        ballots=tuple(line[:TEXT_MAX] for line in told.ballots[:LINES_MAX]),
        steps=tuple(replace(step, name=step.name[:40]) for step in told.steps[:LINES_MAX]),
        loss=told.loss[:TEXT_MAX],
    )
