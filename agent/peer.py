"""Between the agents of one instance, over mTLS on the data network: four questions.

`FailsafePing` lets a primary go on while the hub is away: each member that grants it promises not to stand for
leadership for a while. `MemberStatus` tells a switchover whether its target has every byte, `HoldClients` lets clients
wait for the target instead of being cut. `Verifiers` lets a proxy check passwords whose own engine is away. The caller
is known by its certificate and must run a member of the instance it asks about.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc
import grpc.aio

from agent.link import answer_of
from core.errors import MoorageError, UnavailableError
from core.ids import InstanceRef, MemberName, MemberRef
from core.log import EventLog
from core.positions import Lsn, WalPosition
from core.records import PeerMember
from protos.v1 import peer_pb2 as pb
from protos.v1.common_pb2 import MemberId, Position
from protos.v1.peer_pb2_grpc import PeerServiceServicer, PeerServiceStub, add_PeerServiceServicer_to_server

log = EventLog("agent.peer")
Context = grpc.aio.ServicerContext[Any, Any]

OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),  # a failsafe question is asked every second
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
)


class Answerer(Protocol):
    """The member's keeper, as far as peers may ask it."""

    def member_nodes(self) -> frozenset[str]:
        """Nodes that run a member of this instance."""

    def grant_failsafe(self, *, primary: str, term: int, promise_s: float, ask: int, all_granted: int) -> str:
        """Empty = granted, else why not."""

    async def member_status(self, *, about_to_lead: bool) -> pb.MemberStatusResponse:
        """As of a look that began after the question, if one ends soon. `about_to_lead`: made ready for it."""

    async def hold_clients(self, *, leader: str, term: int, request_id: str, for_s: float) -> HeldHere: ...

    async def verifiers(self, users: list[str]) -> dict[str, str | None]:
        """Of the member's engine; MoorageError when it does not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldHere:
    """What the proxy beside an agent says: `busy` write sessions are still at work. `refusal`: why it does not hold."""

    busy: int = 0
    refusal: str = ""


class PeerService(PeerServiceServicer):
    """Answers peers for all members of this node."""

    def __init__(self, answerer_of: Callable[[MemberRef], Answerer | None]) -> None:
        self._answerer_of = answerer_of

    async def FailsafePing(  # noqa: N802
        self,
        request: pb.FailsafePingRequest,
        context: Context,
    ) -> pb.FailsafePingResponse:
        ref = InstanceRef(request.primary.project, request.primary.instance)
        answerer = await self._allowed(MemberRef(ref, MemberName(request.asked_member)), context)
        reason = answerer.grant_failsafe(
            primary=request.primary.member,
            term=request.term,
            promise_s=request.promise_ms / 1000,
            ask=request.ask,
            all_granted=request.all_granted,
        )
        return pb.FailsafePingResponse(granted=not reason, reason=reason)

    async def MemberStatus(  # noqa: N802
        self,
        request: pb.MemberStatusRequest,
        context: Context,
    ) -> pb.MemberStatusResponse:
        answerer = await self._allowed(_member_ref(request.id), context)
        return await answerer.member_status(about_to_lead=request.about_to_lead)

    async def HoldClients(  # noqa: N802
        self,
        request: pb.HoldClientsRequest,
        context: Context,
    ) -> pb.HoldClientsResponse:
        ref = InstanceRef(request.leader.project, request.leader.instance)
        answerer = await self._allowed(MemberRef(ref, MemberName(request.asked_member)), context)
        held = await answerer.hold_clients(
            leader=request.leader.member,
            term=request.term,
            request_id=request.request_id,
            for_s=request.for_ms / 1000,
        )
        return pb.HoldClientsResponse(held=not held.refusal, busy=held.busy, reason=held.refusal)

    async def Verifiers(  # noqa: N802
        self,
        request: pb.VerifiersRequest,
        context: Context,
    ) -> pb.VerifiersResponse:
        answerer = await self._allowed(_member_ref(request.id), context)
        try:
            found = await answerer.verifiers(list(request.users))
        except MoorageError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, error.what)
            raise AssertionError("abort does not return") from error
        return pb.VerifiersResponse(verifiers={user: text for user, text in found.items() if text is not None})

    async def _allowed(self, ref: MemberRef, context: Context) -> Answerer:
        answerer = self._answerer_of(ref)
        if answerer is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"{ref} is not on this node")
            raise AssertionError("abort does not return")
        caller = next(iter(context.auth_context().get("x509_common_name") or ()), b"").decode()
        if caller not in answerer.member_nodes():
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"node {caller!r} runs no member of {ref.instance}")
        return answerer


def _member_ref(member: MemberId) -> MemberRef:
    return MemberRef(InstanceRef(member.project, member.instance), MemberName(member.member))


class PeerServer:
    """The listening side; `restart()` takes a renewed certificate."""

    def __init__(self, address: str, port: int, identity_dir: Path, service: PeerService) -> None:
        self._where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        self._identity_dir = identity_dir
        self._service = service
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """UnavailableError when the port is taken."""
        server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        add_PeerServiceServicer_to_server(self._service, server)
        credentials = grpc.ssl_server_credentials(
            [((self._identity_dir / "node.key").read_bytes(), (self._identity_dir / "node.crt").read_bytes())],
            root_certificates=(self._identity_dir / "ca.crt").read_bytes(),
            require_client_auth=True,
        )
        try:
            server.add_secure_port(self._where, credentials)
        except RuntimeError as error:
            raise UnavailableError(
                f"cannot listen on {self._where}", object="peer port", hint="See what holds the port: ss -ltnp."
            ) from error
        await server.start()
        self._server = server

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(grace=1)

    async def restart(self) -> None:
        await self.stop()
        await self.start()


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """May `primary` go on without the hub? See FailsafePingRequest."""

    primary: MemberRef
    term: int
    promise_s: float
    ask: int
    all_granted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldAsked:
    """Hold the clients for the switchover `request_id` of `leader`; `for_s` 0 = let them go on."""

    leader: MemberRef
    term: int
    request_id: str
    for_s: float


class Peers:
    """The asking side: one connection a peer node, opened when first needed."""

    def __init__(self, identity_dir: Path) -> None:
        self._identity_dir = identity_dir
        self._channels: dict[tuple[str, str, int], grpc.aio.Channel] = {}

    async def close(self) -> None:
        channels = list(self._channels.values())
        self._channels.clear()
        for channel in channels:
            await channel.close()

    async def all_grant(self, question: Question, peers: tuple[PeerMember, ...], *, timeout_s: float) -> str:
        """Ask all peers at once; empty when every single one grants, else who did not and why."""
        answers = await asyncio.gather(*(self._ask(question, peer, timeout_s=timeout_s) for peer in peers))
        return "; ".join(answer for answer in answers if answer)

    async def _ask(self, question: Question, peer: PeerMember, *, timeout_s: float) -> str:
        ref = question.primary
        request = pb.FailsafePingRequest(
            primary=MemberId(project=ref.instance.project, instance=ref.instance.instance, member=ref.member),
            term=question.term,
            asked_member=peer.member,
            promise_ms=int(question.promise_s * 1000),
            ask=question.ask,
            all_granted=question.all_granted,
        )
        try:
            answer = await answer_of(self._stub(peer).FailsafePing(request, timeout=timeout_s))
        except (grpc.aio.AioRpcError, UnavailableError, OSError) as error:
            return f"{peer.member} on {peer.node}: {_short(error)}"
        return "" if answer.granted else f"{peer.member} on {peer.node} refuses: {answer.reason}"

    async def position_of(
        self, ref: InstanceRef, peer: PeerMember, *, timeout_s: float, about_to_lead: bool = False
    ) -> WalPosition:
        """How far the peer's member is, straight from its agent. UnavailableError when it does not say."""
        request = pb.MemberStatusRequest(
            id=MemberId(project=ref.project, instance=ref.instance, member=peer.member), about_to_lead=about_to_lead
        )
        try:
            answer = await answer_of(self._stub(peer).MemberStatus(request, timeout=timeout_s))
        except (grpc.aio.AioRpcError, UnavailableError, OSError) as error:
            raise UnavailableError(f"no answer: {_short(error)}", object=f"{ref}/{peer.member}") from error
        return WalPosition(answer.position.timeline, Lsn(answer.position.lsn))

    async def hold_clients(self, asked: HoldAsked, peer: PeerMember, *, timeout_s: float) -> HeldHere:
        """UnavailableError when the peer's agent does not answer."""
        ref = asked.leader
        request = pb.HoldClientsRequest(
            leader=MemberId(project=ref.instance.project, instance=ref.instance.instance, member=ref.member),
            term=asked.term,
            asked_member=peer.member,
            request_id=asked.request_id,
            for_ms=int(asked.for_s * 1000),
        )
        try:
            answer = await answer_of(self._stub(peer).HoldClients(request, timeout=timeout_s))
        except (grpc.aio.AioRpcError, UnavailableError, OSError) as error:
            raise UnavailableError(f"no answer: {_short(error)}", object=f"{ref.instance}/{peer.member}") from error
        return HeldHere(busy=answer.busy, refusal="" if answer.held else answer.reason or "refused")

    async def verifiers(
        self, ref: InstanceRef, peer: PeerMember, users: list[str], *, timeout_s: float
    ) -> dict[str, str | None]:
        """What the peer's engine keeps of these users. UnavailableError when it does not say."""
        member = MemberId(project=ref.project, instance=ref.instance, member=peer.member)
        try:
            request = pb.VerifiersRequest(id=member, users=users)
            answer = await answer_of(self._stub(peer).Verifiers(request, timeout=timeout_s))
        except (grpc.aio.AioRpcError, UnavailableError, OSError) as error:
            raise UnavailableError(f"no answer: {_short(error)}", object=f"{ref}/{peer.member}") from error
        return {user: answer.verifiers.get(user) for user in users}

    def _stub(self, peer: PeerMember) -> PeerServiceStub:
        key = (peer.node, peer.address, peer.peer_port)
        if key not in self._channels:
            credentials = grpc.ssl_channel_credentials(
                root_certificates=(self._identity_dir / "ca.crt").read_bytes(),
                private_key=(self._identity_dir / "node.key").read_bytes(),
                certificate_chain=(self._identity_dir / "node.crt").read_bytes(),
            )
            host = f"[{peer.address}]" if ":" in peer.address else peer.address
            # The peer must be the node the hub named, whatever address it has.
            options = (*OPTIONS, ("grpc.ssl_target_name_override", peer.node))
            self._channels[key] = grpc.aio.secure_channel(f"{host}:{peer.peer_port}", credentials, options=options)
        return PeerServiceStub(self._channels[key])


def _short(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return error.details() or error.code().name.lower()
    return str(error)


def position_message(position: WalPosition) -> Position:
    """The wire form of a position."""
    return Position(timeline=position.timeline, lsn=position.lsn.value)
