"""What is not as it should be with an instance, member by member, and what to do about it: pure.

Every member is looked at by itself and gives at most one *finding*: what is wrong, on which node, since when, and
what to do. A finding is either *broken* (something that should work does not) or *due* (a change under way explains
it: the member is being made, it is its turn to restart, the primary moves as asked). `conditions` sorts the findings,
and the phase follows from the same ones, so they cannot contradict each other.

Texts hold no figures that run by themselves (ages, lags), because a status is rewritten whenever a text changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from core.clock import iso
from core.records import REMOTE, HaRecord, ObservedMember
from core.status import ConditionType, MemberState, Phase, Role
from hub.judges.placement import Unplaceable
from hub.judges.situation import Current, Situation

# A planned change of primary takes seconds and has its own time limit in the agents; longer than this without a primary
# is no longer what was planned.
SWITCHOVER_GRACE_S = 30.0
STUCK = "ElectionStuck"  # what a member's agent reports while an election cannot end with the ballots there are
# Notices of an engine that runs but cannot do its work, or not for long. All others are information.
GRAVE = frozenset({"DiskFull", "DiskReadOnly", "DiskSilent", "CrashLoop"})
CHECK_NODE = "check the machine, its network, and `systemctl status moorage-agent` on it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as it should be. `type` is the condition that tells it."""

    type: ConditionType
    reason: str
    message: str
    broken: bool
    member: str = ""


def find(s: Situation, *, unplaceable: Unplaceable | None, now: float) -> Iterator[Finding]:
    """All findings. `unplaceable` is why missing members could not be placed, `now` wall seconds."""
    if s.spec is None:
        message = f"the stored spec is not valid: {s.spec_problem}; apply a corrected document"
        yield Finding(type=ConditionType.CONVERGED, reason="SpecNotValid", message=message, broken=False)
    if s.missing > 0:
        yield _missing(s, unplaceable)
    if s.leader is None and (s.members or s.initialised):
        yield _nobody_leads(s, now)
    for current in s.members:
        finding = about_leaving(s, current) if current.leaving else _about(s, current, now)
        if finding is not None:
            yield finding


def _missing(s: Situation, unplaceable: Unplaceable | None) -> Finding:
    if unplaceable is not None:
        reason = "Unplaceable"
        message = f"{unplaceable.message}; see `moorctl instance explain {s.ref}`, free or add nodes, or ask for less"
    elif s.may_join:
        reason, message = "Placing", f"{s.missing} member(s) are about to get their nodes"
    else:
        reason, message = "NoSource", f"{s.missing} member(s) wait for a primary to copy from, see PrimaryAvailable"
    return Finding(type=ConditionType.PLACED, reason=reason, message=message, broken=False)


def _nobody_leads(s: Situation, now: float) -> Finding:
    ha = s.ha
    if ha is None or not s.initialised:
        first = ha.bootstrap if ha is not None else ""
        who = next((current.place for current in s.members if current.name == first), "the first member")
        message = f"the database is not initialised yet; {who} does it"
        if ha is not None and ha.standby:
            message = f"the remote primary's data is not copied yet; {who} does it"
        return Finding(type=ConditionType.PRIMARY_AVAILABLE, reason="NotInitialised", message=message, broken=False)
    if ha.switchover is not None and now - _without_primary_since(s, now) <= SWITCHOVER_GRACE_S:
        text = f"the primary moves from {ha.leader} to {ha.switchover.target or 'the best replica'}, as asked"
        return Finding(type=ConditionType.PRIMARY_AVAILABLE, reason="SwitchoverUnderWay", message=text, broken=False)
    last = next((current.place for current in s.members if current.name == ha.leader), ha.leader)
    states = ", ".join(_state_of(s, current) for current in s.staying) or "no member is left"
    names = dict.fromkeys(name for era in ha.eras for name in era.names)
    needed = f", sync set {', '.join(names)}" if names else ""
    told = [(current.name, current.observed) for current in s.staying if current.observed and not s.is_lost(current)]
    waits = "".join(f"; {name}: {seen.message}" for name, seen in told if seen.message)
    stuck = any(seen.reason == STUCK for _, seen in told)
    message = f"nobody leads since term {ha.term} of {last}{needed} ({states}){waits}; {_way_out(s, ha, stuck=stuck)}"
    reason = STUCK if stuck else "NoPrimary"
    return Finding(type=ConditionType.PRIMARY_AVAILABLE, reason=reason, message=message, broken=True)


def _way_out(s: Situation, ha: HaRecord, *, stuck: bool) -> str:
    """What a person can do while nobody leads."""
    if ha.paused:
        end = f"end the pause (`moorctl instance resume {s.ref}`)"
        return f"automatic failover is paused: {end}, or bring the last primary back"
    if stuck:
        return f"if none of them can come back, `moorctl instance failover {s.ref}` tells what a forced one would lose"
    return "`moorctl instance show` tells why nobody stands; bring back the last primary or a member of the sync set"


def _without_primary_since(s: Situation, now: float) -> float:
    told = s.status.conditions if s.status is not None else ()
    missing = (c.since for c in told if c.type is ConditionType.PRIMARY_AVAILABLE and not c.status)
    return next(missing, now)


def _state_of(s: Situation, current: Current) -> str:
    if current.node not in s.nodes:
        return f"{current.name}: node {current.node} removed"
    return f"{current.name}: {f'node {current.node} silent' if current.node in s.silent else current.state.value}"


def about_leaving(s: Situation, current: Current) -> Finding | None:
    if s.is_gone(current):
        return None
    waits = f"{current.place} is being deleted ({_state_of(s, current)})"
    if current.node in s.silent:
        waits = f"{current.place} cannot be deleted: node {current.node} is silent; {CHECK_NODE}, or remove the node"
    elif current.state is MemberState.FAILED:
        waits = f"{current.place} cannot be deleted: {_told(current)}"
    return Finding(
        type=ConditionType.CONVERGED, reason="MemberLeaving", message=waits, broken=False, member=current.name
    )


def _about(s: Situation, current: Current, now: float) -> Finding | None:
    """What is wrong with one member that is to run."""
    leads = current.name == s.leader_name
    whole = ConditionType.PRIMARY_AVAILABLE if leads else ConditionType.REPLICAS_AVAILABLE
    if current.node not in s.nodes:
        text = f"node {current.node} of {current.name} was removed; the member is replaced once another one leads"
        return _finding(ConditionType.NODES_REACHABLE, "NodeRemoved", text, current, broken=True)
    if current.node in s.silent:
        text = f"node {current.node} with {current.name} is silent; {CHECK_NODE}"
        return _finding(ConditionType.NODES_REACHABLE, "NodeSilent", text, current, broken=True)
    match current.state:
        case MemberState.FAILED:
            reason = _named(current) or "MemberFailed"
            return _finding(whole, reason, f"{current.place} failed{_told(current)}", current, broken=True)
        case MemberState.CRASHED:
            text = f"the engine of {current.place} ended unexpectedly{_told(current)}; see engine.log in its directory"
            if _named(current):  # the message says what to look at
                text = f"the engine of {current.place} is not up{_told(current)}"
            return _finding(whole, _named(current) or "MemberCrashed", text, current, broken=True)
        case MemberState.RUNNING:
            return _about_running(s, current, leads=leads, now=now)
        case MemberState.LAGGING:
            remote = current.name == s.leader_name  # it follows what a standby instance follows
            followed = "the remote primary" if remote else s.leader_name or "the primary"
            text = f"{current.place} does not keep up with {followed}{_told(current)}"
            reason = (current.observed.reason if current.observed is not None else "") or "Lagging"
            return _finding(ConditionType.REPLICATING, reason, text, current, broken=not _explained(s, current, now))
        case _:
            text = f"{current.place} {_DOING[current.state]}{_told(current)}"
            reason = f"Member{current.state.value.capitalize()}"
            return _finding(whole, reason, text, current, broken=not _explained(s, current, now))


_DOING = {
    MemberState.ABSENT: "has no data yet",
    MemberState.CREATING: "is being made",
    MemberState.REJOINING: "is being rewound or copied anew to follow the primary",
    MemberState.STARTING: "is starting",
    MemberState.STOPPED: "is stopped",
    MemberState.DELETED: "is deleted",
}


def _about_running(s: Situation, current: Current, *, leads: bool, now: float) -> Finding | None:
    seen = current.observed
    assert seen is not None, "a state other than ABSENT has been observed"
    broken = not _explained(s, current, now)
    if leads and s.ha is not None and s.ha.standby:
        return _about_standby(s, current, seen)
    if leads and seen.role is not Role.PRIMARY:
        text = f"{current.place} holds the leadership, its engine is {seen.role.value} still"
        return _finding(ConditionType.PRIMARY_AVAILABLE, "PrimaryNotReady", text, current, broken=broken)
    if not leads and s.leader is not None and seen.role is not Role.REPLICA:
        text = f"{current.place} is {seen.role.value}, though {s.leader_name} leads; its agent makes it a replica"
        return _finding(ConditionType.REPLICAS_AVAILABLE, "WrongRole", text, current, broken=broken)
    well = (s.leader_name, current.desired.upstream) if current.desired.upstream else (s.leader_name,)
    if not leads and s.leader is not None and seen.streaming_from not in well:
        source = f"streams from {seen.streaming_from}" if seen.streaming_from else "does not stream"
        text = f"{current.place} {source}, not from {s.leader_name}{_told(current)}"
        return _finding(ConditionType.REPLICATING, "NotStreaming", text, current, broken=broken)
    return _about_progress(s, current, seen)


def _about_standby(s: Situation, current: Current, seen: ObservedMember) -> Finding | None:
    """The member that follows the remote primary for the others."""
    if seen.role is not Role.REPLICA:
        text = f"{current.place} is {seen.role.value}, though the instance follows a remote primary{_told(current)}"
        return _finding(ConditionType.PRIMARY_AVAILABLE, "WrongRole", text, current, broken=True)
    if seen.streaming_from != REMOTE:
        text = f"{current.place} does not stream from the remote primary yet{_told(current)}"
        return _finding(ConditionType.REPLICATING, "NotStreaming", text, current, broken=not current.joining)
    return _about_progress(s, current, seen)


def _about_progress(s: Situation, current: Current, seen: ObservedMember) -> Finding | None:
    if seen.generation < current.desired.generation:
        text = f"{current.place} is at generation {seen.generation} of {current.desired.generation}{_told(current)}"
        return _finding(ConditionType.CONVERGED, "Applying", text, current, broken=False)
    return _about_turns(s, current)


def _about_turns(s: Situation, current: Current) -> Finding | None:
    """A member that runs well, for which something is in the queue, unless it will not run well for long."""
    grave = next((notice for notice in current.notices if notice.reason in GRAVE), None)
    if grave is not None:
        text = f"{current.place}: {grave.message}"
        return _finding(ConditionType.ENGINES_HEALTHY, grave.reason, text, current, broken=True)
    if current.restart_due or current.desired.restart_id < s.record.restart_id:
        text = f"{current.place} has restart {s.record.restart_id} before it"
        return _finding(ConditionType.CONVERGED, "RestartPending", text, current, broken=False)
    if current.desired.generation < s.record.generation:
        text = f"{current.place} has yet to be given generation {s.record.generation}"
        return _finding(ConditionType.CONVERGED, "Applying", text, current, broken=False)
    if current.desired.no_failover and len(s.staying) > s.wanted:
        text = f"{current.place} leaves once the primary has replaced it in the sync set"
        return _finding(ConditionType.CONVERGED, "MemberRetiring", text, current, broken=False)
    wanted = s.spec.engine_version if s.spec is not None else None
    if wanted is not None and wanted != current.desired.engine_version:
        kept = current.desired.engine_version
        text = f"{current.place} stays at major version {kept}; an upgrade to {wanted} is not done in place"
        return _finding(ConditionType.CONVERGED, "VersionKept", text, current, broken=False)
    return None


# What an agent could not say more about than that something failed.
_UNNAMED = frozenset({"", "OperationFailed", "CannotBegin", "Unresponsive"})


def _named(current: Current) -> str:
    """The reason that the agent found for a failure, such as DiskFull; empty when it knows none."""
    reason = current.observed.reason if current.observed is not None else ""
    return "" if reason in _UNNAMED else reason


def _finding(type_: ConditionType, reason: str, text: str, current: Current, *, broken: bool) -> Finding:
    return Finding(type=type_, reason=reason, message=text, broken=broken, member=current.name)


def _explained(s: Situation, current: Current, now: float) -> bool:
    """A change under way explains that the member is not up, or not in its role, at the moment. The one that an
    operator asked for is not over with the new leader's first moment: it is to be promoted, the old one to rejoin.

    While an instance is modified its members are stopped, started and connected in turns; one that does not come back
    is reported CRASHED, FAILED or LAGGING by its agent, or its node falls silent.
    """
    if current.joining or current.restart_due:
        return True
    if (s.ha is not None and s.ha.switchover is not None) or now - s.handed_over_at <= SWITCHOVER_GRACE_S:
        return True
    if s.phase is not Phase.MODIFYING:
        return False
    leader = next((other for other in s.members if other.name == s.leader_name), None)
    leader_restarts = leader is not None and (leader.restart_due or leader.state is not MemberState.RUNNING)
    return leader_restarts or current.state in (MemberState.STOPPED, MemberState.STARTING)


def _told(current: Current) -> str:
    """Since when, and what the agent says, as the tail of a sentence."""
    seen = current.observed
    if seen is None:
        return ""
    since = f" since {iso(seen.since)}" if seen.since else ""
    message = f": {seen.message}" if seen.message else f": {seen.reason}" if seen.reason else ""
    return since + message
