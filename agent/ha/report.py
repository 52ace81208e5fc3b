"""What a keeper tells of its member: one state, with reason and message when it is not simply well."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.ha.view import EngineState, OperationKind
from core.records import ObservedMember
from core.status import MemberState, Role
from protos.v1 import common_pb2 as wire

if TYPE_CHECKING:
    from agent.ha.keeper import Keeper

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
    if keeper.deleted:
        return MemberState.DELETED, "", ""
    operations, engine = keeper.operations, keeper.engine
    if operations.kind:
        return _BY_OPERATION[operations.kind], "", ""
    if engine.state is EngineState.RUNNING:
        return _running(keeper)
    if operations.failure:
        return MemberState.FAILED, "OperationFailed", operations.failure
    if engine.state is EngineState.UNRESPONSIVE:
        return MemberState.CRASHED, "Unresponsive", "the engine does not answer"
    return _BY_ENGINE[engine.state], "", engine.failure


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
    if leader is None or (engine.streaming and engine.upstream == leader.member):
        return MemberState.RUNNING, "SettingsProblem" if problem else "", problem
    since = keeper.facts.not_streaming_since
    if not since or keeper.node.clock.now() - since < STREAM_GRACE_S:
        return MemberState.STARTING, "Connecting", f"connects to {leader.member}"
    return MemberState.LAGGING, "NotStreaming", f"does not stream from {leader.member}"


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
    )
