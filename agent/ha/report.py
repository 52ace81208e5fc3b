"""What a keeper tells of its member: one state, with reason and message when it is not simply well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from agent.engines.troubles import Cure, Diagnosis
from agent.ha.view import EngineState, OperationKind
from core.records import REMOTE, MemberNotice, ObservedMember
from core.status import MemberState, Role
from protos.v1 import common_pb2 as wire

if TYPE_CHECKING:
    from agent.ha.keeper import Keeper

LEADERLESS_GRACE_S = 3.0
STREAM_GRACE_S = 3.0  # a replica that changes its upstream does not count as broken for so long

STATE_TO_WIRE: dict[MemberState, wire.MemberState.ValueType] = {
    state: wire.MemberState.Value(f"MEMBER_STATE_{state.name}") for state in MemberState
}
ROLE_TO_WIRE: dict[Role, wire.Role.ValueType] = {role: wire.Role.Value(f"ROLE_{role.name}") for role in Role}

_BY_OPERATION: dict[OperationKind, MemberState] = {
    OperationKind.INITIALISE: MemberState.CREATING,
    OperationKind.CLONE: MemberState.CREATING,
    OperationKind.REJOIN: MemberState.REJOINING,
    OperationKind.START: MemberState.STARTING,
    OperationKind.PROMOTE: MemberState.STARTING,
    OperationKind.STOP: MemberState.STOPPED,
    OperationKind.HANDOVER: MemberState.STOPPED,
    OperationKind.FENCE: MemberState.STOPPED,
}
_BY_ENGINE: dict[EngineState, MemberState] = {
    EngineState.ABSENT: MemberState.ABSENT,
    EngineState.STOPPED: MemberState.STOPPED,
    EngineState.CRASHED: MemberState.CRASHED,
    EngineState.STARTING: MemberState.STARTING,
    EngineState.UNRESPONSIVE: MemberState.CRASHED,
}
Told = tuple[MemberState, str, str]


def member_state(keeper: Keeper) -> Told:
    """State, reason (CamelCase) and message."""
    state, reason, message = _state(keeper)
    return (state, *_why_nobody_leads(keeper)) if not message else (state, reason, message)


def _why_nobody_leads(keeper: Keeper) -> tuple[str, str]:
    """What this member waits for while nobody leads: it is the member that knows which ballots are missing. Told only
    when it lasts, since an election that goes well is over sooner."""
    decision, since = keeper.decision, keeper.facts.leaderless_since
    if decision is None or decision.severity != "warning" or not since:
        return "", ""
    if keeper.node.clock.now() - since < LEADERLESS_GRACE_S:
        return "", ""
    detail = f": {decision.detail}" if decision.detail else ""
    return decision.reason.name.title().replace("_", ""), f"{decision.reason.value}{detail}"


def _state(keeper: Keeper) -> Told:
    if keeper.deleted:
        return MemberState.DELETED, "", ""
    operations, engine = keeper.operations, keeper.engine
    handing_over = operations.kind is OperationKind.HANDOVER and not keeper.facts.closing  # serves clients still
    if operations.kind and not handing_over:
        return _busy(keeper, operations.kind)
    if engine.state is EngineState.RUNNING:
        return _running(keeper)
    fault = keeper.driver.facts().fault
    if operations.failure:
        return MemberState.FAILED, *_failure(keeper)
    if fault is not None:
        state = MemberState.FAILED if engine.state is EngineState.ABSENT else MemberState.CRASHED
        return state, fault.trouble.value, fault.message
    if engine.state is EngineState.UNRESPONSIVE:
        return MemberState.CRASHED, "Unresponsive", "the engine does not answer"
    return _BY_ENGINE[engine.state], "", engine.failure


def _busy(keeper: Keeper, kind: OperationKind) -> Told:
    """What failed before is told until it has succeeded; a quick new try is no news."""
    operations = keeper.operations
    under_way, now = operations.current(), keeper.node.clock.now()
    if not operations.failure:
        return _BY_OPERATION[kind], "", ""
    again = kind in (OperationKind.START, OperationKind.PROMOTE)
    young = under_way is not None and now - under_way.since < STREAM_GRACE_S
    return MemberState.FAILED if again and young else _BY_OPERATION[kind], *_failure(keeper)


def _failure(keeper: Keeper) -> tuple[str, str]:
    """Reason and message of the last operation's failure."""
    operations = keeper.operations
    diagnosis = operations.diagnosis
    if diagnosis is None:
        return "OperationFailed", operations.failure
    given_up = ""
    if operations.given_up:
        given_up = (
            f"; it is not started again before something changes: `moorctl instance restart {keeper.ref.instance}`"
        )
    return diagnosis.trouble.value, f"{diagnosis.message}{given_up}"


def _running(keeper: Keeper) -> Told:
    engine = keeper.engine
    problem = "; ".join(keeper.driver.facts().problems) or keeper.operations.failure
    if engine.role is Role.PRIMARY:
        if keeper.writable() and not keeper.memory.prepared:
            return MemberState.STARTING, "Preparing", "makes roles and replication slots"
        if keeper.writable():
            return MemberState.RUNNING, "SettingsProblem" if problem else "", problem
        return MemberState.STARTING, "NotLeader", "the engine is primary, but the leadership is not held"
    leader = keeper.instance.leader if keeper.instance else None
    if engine.upstream == REMOTE:
        return _follows_remote(keeper, problem)
    if leader is None or (engine.streaming and engine.upstream in (leader.member, keeper.desired.upstream)):
        return MemberState.RUNNING, "SettingsProblem" if problem else "", problem
    since = keeper.facts.not_streaming_since
    if not since or keeper.node.clock.now() - since < STREAM_GRACE_S:
        return MemberState.STARTING, "Connecting", f"connects to {leader.member}"
    return MemberState.LAGGING, "NotStreaming", f"does not stream from {leader.member}"


def _follows_remote(keeper: Keeper, problem: str) -> Told:
    """The leader of a standby instance. Without the remote primary it goes on serving reads."""
    if keeper.engine.streaming:
        return MemberState.RUNNING, "SettingsProblem" if problem else "", problem
    remote, since = keeper.desired.standby, keeper.facts.not_streaming_since
    if not since or keeper.node.clock.now() - since < STREAM_GRACE_S:
        return MemberState.STARTING, "Connecting", f"connects to the remote primary {remote}"
    lacks = f": {keeper.engine.failure}" if keeper.engine.failure else ""
    return MemberState.LAGGING, "RemoteSilent", f"does not stream from the remote primary {remote}{lacks}"


def observed(keeper: Keeper, converged_generation: int) -> ObservedMember:
    """The record for the hub."""
    state, reason, message = member_state(keeper)
    facts, engine, ref = keeper.driver.facts(), keeper.engine, keeper.ref
    return ObservedMember(
        project=ref.instance.project,
        instance=ref.instance.instance,
        member=ref.member,
        node=keeper.node.config.node,
        state=state,
        role=engine.role,
        timeline=engine.position.timeline,
        generation=converged_generation,
        restart_id=keeper.memory.restart_id,
        streaming_from=engine.upstream if engine.streaming else "",
        pending_restart=facts.pending_restart,
        engine_version=facts.full_version,
        engine_tls=facts.tls,
        reason=reason,
        message=message,
        unfit=bool(keeper.engine.unfit),
        late=keeper.late,
        notices=tuple(MemberNotice(reason=d.trouble.value, message=d.message) for d in facts.notices),
    )


class Troubles:
    """What is wrong with one member, told as events: once when it is met, once when it is over."""

    def __init__(self) -> None:
        self._told: dict[str, Diagnosis] = {}

    def tell(self, keeper: Keeper) -> None:
        facts = keeper.driver.facts()
        present = {
            d.trouble.value: d for d in (keeper.operations.diagnosis, facts.fault, *facts.notices) if d is not None
        }
        reporter, subject = keeper.node.reporter, str(keeper.ref)
        for reason, diagnosis in present.items():
            if reason not in self._told:
                severity: Literal["warning", "error"] = "warning" if diagnosis.cure is Cure.WARNING else "error"
                reporter.event("trouble_met", subject, f"{reason}: {diagnosis.message}", severity=severity)
        for reason in self._told.keys() - present.keys():
            reporter.event("trouble_ended", subject, f"{reason}: it is over")
        self._told = present
