"""What people are told when something has changed: events with the reason in them. Pure."""

from __future__ import annotations

from typing import Literal

from core.records import Event
from core.status import ConditionType, Phase
from hub.judges.conditions import Judgement
from hub.judges.situation import Situation

Severity = Literal["info", "warning", "error"]


def event(now: float, name: str, of: str, message: str, severity: Severity = "info") -> Event:
    return Event(at=now, event=name, object=of, severity=severity, message=message)


def phase_event(s: Situation, judgement: Judgement, phase: Phase, now: float) -> Event:
    severity: Severity = "info"
    if phase is Phase.PENDING:
        severity = "warning"
    if phase is Phase.DEGRADED and judgement.worst is not None:
        severity = "error" if judgement.worst.type is ConditionType.PRIMARY_AVAILABLE else "warning"
    return event(now, f"instance_{phase.value.lower()}", str(s.ref), _phase_reason(s, judgement, phase), severity)


def _phase_reason(s: Situation, judgement: Judgement, phase: Phase) -> str:
    """Why the instance is in the phase, such as `MemberCrashed: the engine of m2 on n2 ended unexpectedly ...`."""
    if phase is Phase.DELETING:
        return f"removes {', '.join(current.place for current in s.members)}"
    if phase is Phase.DEGRADED and judgement.worst is not None:
        return f"{judgement.worst.reason}: {judgement.worst.message}"
    if phase is Phase.MODIFYING and judgement.findings:
        first = judgement.findings[0]
        return f"{first.reason}: {first.message}"
    telling = {
        Phase.RUNNING: (ConditionType.PRIMARY_AVAILABLE, ConditionType.REPLICATING),
        Phase.CREATING: (ConditionType.PLACED, ConditionType.PRIMARY_AVAILABLE),
    }.get(phase, (ConditionType.PLACED,))
    return "; ".join(condition.message for type_ in telling if (condition := judgement.of(type_)) is not None)
