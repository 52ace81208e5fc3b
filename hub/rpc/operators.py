"""The operator service: each method lets the caller in, converts, calls, converts back.

What is done lies in `hub.applying`, `hub.operations` and `hub.wishes`, what is shown in `hub.status_page`, who may in
`hub.rpc.access`. Protobuf stops here.
"""

# The methods' names are the contract's.
# ruff: noqa: N802

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from core.errors import UserError
from core.ids import InstanceRef, check_name
from core.records import to_json
from hub.admission import Planned
from hub.applying import Applier, parse_all
from hub.context import Hub
from hub.operations import Operations, scene_of
from hub.rpc import pages
from hub.rpc.access import Gate, may
from hub.rpc.errors import Context, translated, translated_stream
from hub.rpc.event_stream import EventStreams
from hub.rpc.explaining import explain
from hub.status_page import overview
from hub.wishes import Wishes
from protos.v1 import operator_pb2 as pb
from protos.v1 import operator_pb2_grpc

KIND_NAMES = {pb.KIND_PROJECT: "Project", pb.KIND_INSTANCE: "Instance", pb.KIND_NODE: "Node"}
KINDS = {name: kind for kind, name in KIND_NAMES.items()}
OUTCOMES = {
    "created": pb.Applied.OUTCOME_CREATED,
    "changed": pb.Applied.OUTCOME_CHANGED,
    "unchanged": pb.Applied.OUTCOME_UNCHANGED,
}
TIME_MAX_MS = 1 << 43  # some 270 years: what is beyond is no time


class OperatorService(operator_pb2_grpc.OperatorServiceServicer):
    """What operators may ask of a hub."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._gate = Gate(hub.authority, hub.clock)
        self._applier = Applier(hub)
        self._operations = Operations(hub)
        self._wishes = Wishes(hub)
        self._events = EventStreams(hub.mirror)

    def end_streams(self) -> None:
        """Send the watchers of events elsewhere, before the server stops: they would hold it for its whole grace."""
        self._events.end_all()

    # --- documents ---

    @translated
    async def Apply(self, request: pb.ApplyRequest, context: Context) -> pb.ApplyResponse:
        operator = self._gate.admit(context, "Apply")
        documents = parse_all(request.documents)
        for kind in {document.kind for document in documents}:
            may(operator, f"Apply {kind}")
        steps = await self._applier.apply(operator, documents, dry_run=request.dry_run, create_only=request.create_only)
        return pb.ApplyResponse(results=_applied(steps))

    @translated
    async def Delete(self, request: pb.DeleteRequest, context: Context) -> pb.DeleteResponse:
        operator = self._gate.admit(context, "Delete")
        kind = _kind_name(request.kind)
        may(operator, f"Delete {kind}")
        match kind:
            case "Instance":
                await self._operations.delete_instance(operator, _instance(request.name))
            case "Project":
                await self._operations.delete_project(operator, _name(request.name, "project"))
            case _:
                await self._operations.delete_node(operator, _name(request.name, "node"))
        return pb.DeleteResponse()

    # --- reading ---

    @translated
    async def Get(self, request: pb.GetRequest, context: Context) -> pb.GetResponse:
        self._gate.admit(context, "Get")
        kind = _kind_name(request.kind)
        page = pages.get(scene_of(self._hub), kind, request.name)
        return pb.GetResponse(object=_object(page))

    @translated
    async def List(self, request: pb.ListRequest, context: Context) -> pb.ListResponse:
        self._gate.admit(context, "List")
        found = pages.list_all(scene_of(self._hub), _kind_name(request.kind), project=request.project)
        return pb.ListResponse(objects=[_object(page) for page in found])

    @translated
    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.GetStatusResponse:
        self._gate.admit(context, "GetStatus")
        return pb.GetStatusResponse(status_json=json.dumps(overview(scene_of(self._hub))))

    @translated
    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.ExplainResponse:
        self._gate.admit(context, "Explain")
        lines, explanation = explain(self._hub.mirror, name=request.name, document=request.document)
        return pb.ExplainResponse(lines=lines, explanation_json=json.dumps(explanation))

    @translated
    async def PlanFailover(self, request: pb.PlanFailoverRequest, context: Context) -> pb.PlanFailoverResponse:
        self._gate.admit(context, "PlanFailover")
        plan = self._wishes.plan_failover(_instance(request.name), request.target)
        return pb.PlanFailoverResponse(plan_json=json.dumps(plan))

    @translated
    async def GetHistory(self, request: pb.GetHistoryRequest, context: Context) -> pb.GetHistoryResponse:
        self._gate.admit(context, "GetHistory")
        entries = self._wishes.history(_instance(request.name), request.limit)
        return pb.GetHistoryResponse(entries_json=[json.dumps(entry) for entry in entries])

    @translated_stream
    async def WatchEvents(
        self, request: pb.WatchEventsRequest, context: Context
    ) -> AsyncGenerator[pb.WatchEventsResponse, None]:
        self._gate.admit(context, "WatchEvents")
        events = self._events.stream(prefix=request.object_prefix, limit=request.limit, follow=request.follow)
        async with aclosing(events):
            async for event in events:
                yield pb.WatchEventsResponse(event_json=to_json(event).decode())

    @translated
    async def GetCredentials(self, request: pb.GetCredentialsRequest, context: Context) -> pb.GetCredentialsResponse:
        operator = self._gate.admit(context, "GetCredentials")
        ref = _instance(request.name)
        found = self._operations.credentials(operator, ref, request.user)
        await self._hub.audit.note(operator, str(ref), f"password of {found.user}")
        return pb.GetCredentialsResponse(
            user=found.user,
            password=found.password,
            database=found.database,
            hosts=found.hosts,
            rw_port=found.rw_port,
            ro_port=found.ro_port,
            ca_pem=self._hub.authority.ca_pem,
            client_tls=found.client_tls,
        )

    # --- wishes ---

    @translated
    async def Switchover(self, request: pb.SwitchoverRequest, context: Context) -> pb.SwitchoverResponse:
        operator = self._gate.admit(context, "Switchover")
        ref, at = _instance(request.name), self._time(request)
        asked = await self._wishes.switchover(operator, ref, request.target, at=at)
        return pb.SwitchoverResponse(id=asked.id, at_ms=int(asked.at * 1000))

    @translated
    async def CancelSwitchover(
        self, request: pb.CancelSwitchoverRequest, context: Context
    ) -> pb.CancelSwitchoverResponse:
        operator = self._gate.admit(context, "CancelSwitchover")
        wish = await self._wishes.cancel_switchover(operator, _instance(request.name))
        return pb.CancelSwitchoverResponse(id=wish.id, at_ms=int(wish.at * 1000), target=wish.target)

    @translated
    async def Failover(self, request: pb.FailoverRequest, context: Context) -> pb.FailoverResponse:
        operator = self._gate.admit(context, "Failover")
        ref = _instance(request.name)
        order = await self._wishes.failover(operator, ref, request.target, after_term=request.after_term)
        return pb.FailoverResponse(id=order)

    @translated
    async def PauseFailover(self, request: pb.PauseFailoverRequest, context: Context) -> pb.PauseFailoverResponse:
        operator = self._gate.admit(context, "PauseFailover")
        await self._wishes.pause(operator, _instance(request.name), request.reason)
        return pb.PauseFailoverResponse()

    @translated
    async def ResumeFailover(self, request: pb.ResumeFailoverRequest, context: Context) -> pb.ResumeFailoverResponse:
        operator = self._gate.admit(context, "ResumeFailover")
        await self._wishes.resume(operator, _instance(request.name))
        return pb.ResumeFailoverResponse()

    @translated
    async def PromoteInstance(self, request: pb.PromoteInstanceRequest, context: Context) -> pb.PromoteInstanceResponse:
        operator = self._gate.admit(context, "PromoteInstance")
        generation = await self._operations.promote(operator, _instance(request.name))
        return pb.PromoteInstanceResponse(generation=generation)

    @translated
    async def RestartInstance(self, request: pb.RestartInstanceRequest, context: Context) -> pb.RestartInstanceResponse:
        operator = self._gate.admit(context, "RestartInstance")
        number = await self._operations.restart(operator, _instance(request.name))
        return pb.RestartInstanceResponse(restart_id=number)

    @translated
    async def CordonNode(self, request: pb.CordonNodeRequest, context: Context) -> pb.CordonNodeResponse:
        operator = self._gate.admit(context, "CordonNode")
        await self._operations.cordon(operator, _name(request.node, "node"), cordoned=request.cordoned)
        return pb.CordonNodeResponse()

    @translated
    async def CreateJoinToken(self, request: pb.CreateJoinTokenRequest, context: Context) -> pb.CreateJoinTokenResponse:
        operator = self._gate.admit(context, "CreateJoinToken")
        token = await self._operations.create_join_token(operator, node=request.node, ttl_s=request.ttl_s)
        return pb.CreateJoinTokenResponse(token=token)

    # --- operators' tokens ---

    @translated
    async def CreateOperatorToken(
        self, request: pb.CreateOperatorTokenRequest, context: Context
    ) -> pb.CreateOperatorTokenResponse:
        operator = self._gate.admit(context, "CreateOperatorToken")
        text, token_id = await self._operations.create_operator_token(operator, name=request.name, role=request.role)
        return pb.CreateOperatorTokenResponse(token=text, id=token_id)

    @translated
    async def ListOperatorTokens(
        self, request: pb.ListOperatorTokensRequest, context: Context
    ) -> pb.ListOperatorTokensResponse:
        operator = self._gate.admit(context, "ListOperatorTokens")
        tokens = [
            pb.OperatorToken(
                id=one.id,
                name=one.name,
                role=one.role,
                created_at_ms=int(one.created_at * 1000),
                own=one.id == operator.id,
            )
            for one in self._operations.operator_tokens()
        ]
        return pb.ListOperatorTokensResponse(tokens=tokens)

    @translated
    async def RevokeOperatorToken(
        self, request: pb.RevokeOperatorTokenRequest, context: Context
    ) -> pb.RevokeOperatorTokenResponse:
        operator = self._gate.admit(context, "RevokeOperatorToken")
        revoked = await self._operations.revoke_operator_token(operator, request.token)
        return pb.RevokeOperatorTokenResponse(id=revoked.id, name=revoked.name)

    @translated
    async def ListAudit(self, request: pb.ListAuditRequest, context: Context) -> pb.ListAuditResponse:
        self._gate.admit(context, "ListAudit")
        if request.after < 0 or request.limit < 0:
            raise UserError("must not be negative", object="after" if request.after < 0 else "limit")
        entries, head = await self._hub.audit.read(after=request.after, limit=request.limit)
        return pb.ListAuditResponse(entries=entries, head_seq=head.seq, head_sha256=head.sha256)

    # --- the inside ---

    def _time(self, request: pb.SwitchoverRequest) -> float:
        """Wall seconds at which the switchover is wanted; 0 = now."""
        if request.at_ms and request.delay_ms:
            raise UserError("give a time or a delay, not both", object="at_ms")
        if max(request.at_ms, request.delay_ms) > TIME_MAX_MS:
            raise UserError("is too far ahead", object="at_ms" if request.at_ms else "delay_ms")
        return self._hub.clock.wall() + request.delay_ms / 1000 if request.delay_ms else request.at_ms / 1000


def _kind_name(kind: pb.Kind.ValueType) -> str:
    name = KIND_NAMES.get(kind)
    if name is None:
        raise UserError("kind is not known", object="kind", hint=f"Use one of {', '.join(KINDS)}.")
    return name


def _instance(name: str) -> InstanceRef:
    try:
        return InstanceRef.parse(name)
    except ValueError as error:
        raise UserError(str(error), object="name") from error


def _name(name: str, what: str) -> str:
    try:
        return check_name(name, what)
    except ValueError as error:
        raise UserError(str(error), object="name") from error


def _applied(steps: Sequence[Planned]) -> list[pb.Applied]:
    return [
        pb.Applied(
            kind=KINDS[step.kind],
            name=step.name,
            outcome=OUTCOMES[step.outcome],
            changes=step.changes,
            generation=step.generation,
        )
        for step in steps
    ]


def _object(page: pages.ObjectPage) -> pb.Object:
    return pb.Object(
        kind=KINDS[page.kind],
        name=page.name,
        spec_json=json.dumps(page.spec),
        status_json=json.dumps(page.status),
    )
