"""The way to the hubs: one call in, a plain value or a MoorageError out.

The hubs of a context are equal, so they are tried in the order given and the first that answers is kept. A call that
failed is repeated on the next hub only when that is safe: when it certainly was not carried out (no connection), or
when carrying it out twice is the same as once. All of it happens within a deadline. A hub that refuses is not a failed
call: its refusal is the answer.

Protobuf messages do not leave this module.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeVar

import grpc
import grpc.aio

from cli.refusals import is_lost, never_sent, parsed, tls_problem, translate, words
from cli.settings import Target
from core.backoff import Backoff
from core.clock import Clock
from core.errors import MoorageError, TimedOutError, UnavailableError
from protos.v1 import operator_pb2 as pb
from protos.v1.operator_pb2_grpc import OperatorServiceStub

Req = TypeVar("Req")
Res = TypeVar("Res")
KindName = Literal["Project", "Instance", "Node"]
Unary = grpc.aio.UnaryUnaryMultiCallable[Req, Res]

HUB_SERVER_NAME = "moorage-hub"  # every hub's certificate has it, whatever its address
CALL_S = 20.0  # for one call over all hubs and repetitions
ATTEMPT_S = 8.0  # for one hub to answer: an apply waits for an etcd commit, and no longer
PATIENCE_S = 4.0  # how long a hub that is being restarted is waited for, when there is no connection to any

_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.ssl_target_name_override", HUB_SERVER_NAME),
    # How long one attempt to connect may take: an address that swallows packets must not eat the whole deadline.
    ("grpc.min_reconnect_backoff_ms", 3_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_retries", 0),  # repeated here, knowing what is safe
    # A followed stream of events is quiet for hours: notice a hub that went away meanwhile.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 64 << 20),
)
_KINDS: dict[KindName, pb.Kind.ValueType] = {
    "Project": pb.KIND_PROJECT,
    "Instance": pb.KIND_INSTANCE,
    "Node": pb.KIND_NODE,
}
_KIND_NAMES: dict[int, KindName] = {value: name for name, value in _KINDS.items()}
_OUTCOMES = {
    pb.Applied.OUTCOME_CREATED: "created",
    pb.Applied.OUTCOME_CHANGED: "changed",
    pb.Applied.OUTCOME_UNCHANGED: "unchanged",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """A project, instance or node: its document and its state (docs/reference/status.md)."""

    kind: KindName
    name: str
    spec: dict[str, Any]
    status: dict[str, Any]

    def page(self) -> dict[str, Any]:
        return {"kind": self.kind, "name": self.name, "spec": self.spec, "status": self.status}


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Texts of entries of the audit trail, oldest first, and its head."""

    entries: list[str]
    head_seq: int
    head_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What became of one document."""

    kind: KindName
    name: str
    outcome: str  # created, changed, unchanged
    changes: tuple[str, ...] = ()
    generation: int = 0

    def page(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "name": self.name,
            "outcome": self.outcome,
            "changes": list(self.changes),
            "generation": self.generation,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """How to connect to an instance. No repr of the password."""

    user: str
    password: str = field(repr=False)
    database: str
    hosts: tuple[str, ...]
    rw_port: int
    ro_port: int
    ca_pem: bytes = field(repr=False)
    client_tls: str  # off, prefer, require


class Client:
    """Calls to the OperatorService of whichever hub answers. Use it as an async context manager."""

    def __init__(self, target: Target, clock: Clock) -> None:
        self._target = target
        self._clock = clock
        self._hubs = list(target.hubs)
        self._channel: grpc.aio.Channel | None = None
        self._stub: OperatorServiceStub | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._disconnect()

    # --- objects ---

    async def apply(
        self, documents: Sequence[dict[str, Any]], *, dry_run: bool = False, create_only: bool = False
    ) -> tuple[Applied, ...]:
        """What became of each document, all or none of which were written."""
        texts = [json.dumps(document) for document in documents]
        request = pb.ApplyRequest(documents=texts, dry_run=dry_run, create_only=create_only)
        # Created twice would be told as a conflict with oneself.
        response = await self._call(lambda stub: stub.Apply, request, repeatable=dry_run or not create_only)
        return tuple(
            Applied(
                kind=_KIND_NAMES[result.kind],
                name=result.name,
                outcome=_OUTCOMES.get(result.outcome, "unknown"),
                changes=tuple(result.changes),
                generation=result.generation,
            )
            for result in response.results
        )

    async def get(self, kind: KindName, name: str) -> Thing:
        """NotFoundError when there is none."""
        response = await self._call(lambda stub: stub.Get, pb.GetRequest(kind=_KINDS[kind], name=name))
        return _thing(response.object)

    async def all(self, kind: KindName, *, project: str = "") -> tuple[Thing, ...]:
        response = await self._call(lambda stub: stub.List, pb.ListRequest(kind=_KINDS[kind], project=project))
        return tuple(_thing(one) for one in response.objects)

    async def delete(self, kind: KindName, name: str) -> None:
        """Begin the deletion; it goes on in the background."""
        await self._call(lambda stub: stub.Delete, pb.DeleteRequest(kind=_KINDS[kind], name=name))

    # --- instances ---

    async def switchover(self, name: str, target: str = "") -> str:
        """Id of the request."""
        request = pb.SwitchoverRequest(name=name, target=target)
        return (await self._call(lambda stub: stub.Switchover, request, repeatable=False)).id

    async def schedule_switchover(self, name: str, target: str, *, at_ms: int = 0, delay_ms: int = 0) -> float:
        """When it will happen, wall seconds."""
        request = pb.SwitchoverRequest(name=name, target=target, at_ms=at_ms, delay_ms=delay_ms)
        return (await self._call(lambda stub: stub.Switchover, request, repeatable=False)).at_ms / 1000

    async def cancel_switchover(self, name: str) -> tuple[float, str]:
        """When it was to happen (wall seconds), and who was to become primary (empty = the best replica)."""
        request = pb.CancelSwitchoverRequest(name=name)
        answer = await self._call(lambda stub: stub.CancelSwitchover, request, repeatable=False)
        return answer.at_ms / 1000, answer.target

    async def plan_failover(self, name: str, target: str = "") -> dict[str, Any]:
        """What a forced failover would do and lose."""
        request = pb.PlanFailoverRequest(name=name, target=target)
        return _mapping((await self._call(lambda stub: stub.PlanFailover, request)).plan_json)

    async def failover(self, name: str, target: str, *, after_term: int) -> str:
        """Id of the order."""
        request = pb.FailoverRequest(name=name, target=target, after_term=after_term)
        return (await self._call(lambda stub: stub.Failover, request)).id

    async def pause_failover(self, name: str, reason: str = "") -> None:
        await self._call(lambda stub: stub.PauseFailover, pb.PauseFailoverRequest(name=name, reason=reason))

    async def resume_failover(self, name: str) -> None:
        await self._call(lambda stub: stub.ResumeFailover, pb.ResumeFailoverRequest(name=name))

    async def history(self, name: str, limit: int = 0) -> list[dict[str, Any]]:
        """Changes of leadership, oldest first."""
        answer = await self._call(lambda stub: stub.GetHistory, pb.GetHistoryRequest(name=name, limit=limit))
        return [_mapping(text) for text in answer.entries_json]

    async def promote(self, name: str) -> int:
        """Generation from which on the instance follows nobody."""
        request = pb.PromoteInstanceRequest(name=name)
        return (await self._call(lambda stub: stub.PromoteInstance, request, repeatable=False)).generation

    async def restart(self, name: str) -> int:
        """Number of the restart."""
        request = pb.RestartInstanceRequest(name=name)
        return (await self._call(lambda stub: stub.RestartInstance, request, repeatable=False)).restart_id

    async def explain(self, *, name: str = "", document: dict[str, Any] | None = None) -> tuple[list[str], Any]:
        """Lines for people, and the same for programs."""
        request = pb.ExplainRequest(name=name, document=json.dumps(document) if document is not None else "")
        response = await self._call(lambda stub: stub.Explain, request)
        return list(response.lines), parsed(response.explanation_json)

    async def credentials(self, name: str, user: str = "") -> Credentials:
        request = pb.GetCredentialsRequest(name=name, user=user)
        answer = await self._call(lambda stub: stub.GetCredentials, request)
        return Credentials(
            user=answer.user,
            password=answer.password,
            database=answer.database,
            hosts=tuple(answer.hosts),
            rw_port=answer.rw_port,
            ro_port=answer.ro_port,
            ca_pem=answer.ca_pem,
            client_tls=answer.client_tls,
        )

    # --- nodes and the whole ---

    async def cordon(self, node: str, *, cordoned: bool) -> None:
        await self._call(lambda stub: stub.CordonNode, pb.CordonNodeRequest(node=node, cordoned=cordoned))

    async def join_token(self, *, node: str = "", ttl_s: int = 0) -> str:
        request = pb.CreateJoinTokenRequest(node=node, ttl_s=ttl_s)
        return (await self._call(lambda stub: stub.CreateJoinToken, request, repeatable=False)).token

    async def create_operator_token(self, name: str, role: str) -> tuple[str, str]:
        """The token and its id."""
        request = pb.CreateOperatorTokenRequest(name=name, role=role)
        answer = await self._call(lambda stub: stub.CreateOperatorToken, request, repeatable=False)
        return answer.token, answer.id

    async def operator_tokens(self) -> list[dict[str, Any]]:
        """All of them, without secrets: id, name, role, created_at (wall seconds; 0 = not known), own."""
        answer = await self._call(lambda stub: stub.ListOperatorTokens, pb.ListOperatorTokensRequest())
        return [
            {
                "id": one.id,
                "name": one.name,
                "role": one.role,
                "created_at": one.created_at_ms / 1000,
                "own": one.own,
            }
            for one in answer.tokens
        ]

    async def audit(self, *, after: int, limit: int) -> AuditPage:
        """Entries numbered above `after`, at most `limit`; the hub may give fewer."""
        request = pb.ListAuditRequest(after=after, limit=min(limit, 2**31 - 1))
        answer = await self._call(lambda stub: stub.ListAudit, request)
        return AuditPage(list(answer.entries), answer.head_seq, answer.head_sha256)

    async def revoke_operator_token(self, token: str) -> tuple[str, str]:
        """Id and name of the token that was revoked."""
        request = pb.RevokeOperatorTokenRequest(token=token)
        answer = await self._call(lambda stub: stub.RevokeOperatorToken, request, repeatable=False)
        return answer.id, answer.name

    async def status(self) -> dict[str, Any]:
        """Everything at a glance."""
        response = await self._call(lambda stub: stub.GetStatus, pb.GetStatusRequest())
        return _mapping(response.status_json)

    async def events(self, *, prefix: str = "", limit: int = 0, follow: bool = False) -> AsyncGenerator[dict[str, Any]]:
        """Past events, then with `follow` new ones as they happen, for as long as a hub answers."""
        request = pb.WatchEventsRequest(object_prefix=prefix, limit=limit, follow=follow)
        for number in range(1, len(self._hubs) + 1):
            told = False  # once something came, another hub would tell it again
            try:
                deadline = None if follow else CALL_S
                call = self._connected().WatchEvents(request, timeout=deadline, metadata=self._metadata())
                async for response in call:
                    told = True
                    event = parsed(response.event_json)
                    if isinstance(event, dict):
                        yield event
            except grpc.aio.AioRpcError as error:
                if told or not is_lost(error) or number == len(self._hubs):
                    raise self._translate(error) from error
                await self._rotate()
            else:
                return

    # --- the inside ---

    async def _call(
        self, method: Callable[[OperatorServiceStub], Unary[Req, Res]], request: Req, *, repeatable: bool = True
    ) -> Res:
        """The answer of the first hub that gives one."""
        started = self._clock.now()
        backoff = Backoff(base_s=0.1, cap_s=1.0, uniform=random.uniform)
        failures = 0
        while True:
            left = started + CALL_S - self._clock.now()
            try:
                call = method(self._connected())
                return await call(request, timeout=max(0.1, min(ATTEMPT_S, left)), metadata=self._metadata())
            except grpc.aio.AioRpcError as error:
                if not is_lost(error):
                    raise self._translate(error) from error
                if not (repeatable or never_sent(error)):
                    raise self._maybe_done(error) from error
                failures += 1
                if self._hopeless(error, failures, self._clock.now() - started):
                    raise self._translate(error) from error
            await self._rotate()
            if failures % len(self._hubs) == 0:
                await asyncio.sleep(backoff.next_delay())

    def _hopeless(self, error: grpc.aio.AioRpcError, failures: int, waited_s: float) -> bool:
        """Whether to stop trying. Every hub is tried at least once."""
        if failures < len(self._hubs):
            return False
        if tls_problem(error) or waited_s > CALL_S:
            return True
        return never_sent(error) and waited_s > PATIENCE_S

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self._target.token}"),)

    def _connected(self) -> OperatorServiceStub:
        if self._stub is None:
            credentials = grpc.ssl_channel_credentials(root_certificates=self._target.ca_pem)
            self._channel = grpc.aio.secure_channel(self._hubs[0], credentials, options=_OPTIONS)
            self._stub = OperatorServiceStub(self._channel)
        return self._stub

    async def _rotate(self) -> None:
        """The next hub from now on, by a new connection."""
        await self._disconnect()
        self._hubs.append(self._hubs.pop(0))

    async def _disconnect(self) -> None:
        channel, self._channel, self._stub = self._channel, None, None
        if channel is not None:
            async with asyncio.timeout(2):
                await channel.close()

    def _translate(self, error: grpc.aio.AioRpcError) -> MoorageError:
        if not is_lost(error):
            return translate(error)
        hubs = ", ".join(sorted(self._target.hubs))
        where = f"hub {hubs}" if len(self._target.hubs) == 1 else f"hubs {hubs}"
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            what = f"no answer within {ATTEMPT_S:g} s"
            return TimedOutError(what, object=where, hint="Is etcd well? See the hub's log, then try again.")
        problem = tls_problem(error)
        if problem:
            return UnavailableError(problem, object=where, hint="Take ca.crt from the hub's data_dir anew (--ca-file).")
        hint = "Is moorage-hub running there, and is this its operator port? Choose another with --hub or --context."
        return UnavailableError(words(error), object=where, hint=hint)

    def _maybe_done(self, error: grpc.aio.AioRpcError) -> MoorageError:
        return UnavailableError(
            f"the connection broke before the answer came: {words(error)}",
            object=f"hub {self._hubs[0]}",
            hint="It may have been carried out or not: look before you try again.",
        )


def _thing(message: pb.Object) -> Thing:
    return Thing(
        kind=_KIND_NAMES[message.kind],
        name=message.name,
        spec=_mapping(message.spec_json),
        status=_mapping(message.status_json),
    )


def _mapping(text: str) -> dict[str, Any]:
    """JSON of the hub, of which a mapping is expected."""
    found = parsed(text)
    return found if isinstance(found, dict) else {}
