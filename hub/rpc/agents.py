"""The service that agents call, over mTLS. Each method: authorise, convert, call, convert.

The caller is the node named by its certificate's common name, whatever the message says; a message that says another
name is refused. A node that was removed is told so with the code `node-unknown`, and for a member that is not its own
it gets nothing at all.

The heartbeat is the hot path: a thousand nodes cost a thousand of them every few seconds. For a node without members it
touches memory only; no etcd, no pydantic, no log line.
"""

# The methods' names are the contract's.
# ruff: noqa: N802

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import ClassVar

from core.errors import ConflictError, DeniedError, OverloadedError, UserError
from core.ids import InstanceRef, MemberRef
from core.records import Ballot, Event, LeadershipChange, ObservedMember, SyncRecord, to_json
from hub import history
from hub.context import Hub
from hub.leadership import HaChange, Leadership, Standing
from hub.leases import Renewal
from hub.pulse import Pulse
from hub.reports import Reports
from hub.rpc.convert import document, lsn_text, member_ref, node_sample, poll_response, short, with_facts
from hub.rpc.errors import Context, translated
from hub.rpc.limits import TokenBucket
from protos.v1 import agent_pb2, agent_pb2_grpc, common_pb2

PROTOCOL_VERSIONS = (0, 1)  # N-1 and N
OBSERVED_MAX = 500  # members reported at once
OPENED_REASON = "acknowledges commits"
EVENT_BURST = 50  # events a node may write at once,
EVENTS_PER_S = 1.0  # and from then on: a node that loops must not fill etcd
RENEWALS_PER_TTL = 3  # one may be lost before the agent fences itself
ETCD_SHARE = 0.25  # of the lease's time to live, for etcd within one heartbeat: agents wait less than a third of it


class NodeUnknownError(ConflictError):
    """The node has a good certificate, but its record is gone: an operator removed it."""

    code: ClassVar[str] = "node-unknown"


class AgentService(agent_pb2_grpc.AgentServiceServicer):
    """See protos/v1/agent.proto for what each call promises."""

    def __init__(self, hub: Hub, *, leadership: Leadership, reports: Reports, pulse: Pulse) -> None:
        self._hub = hub
        self._leadership = leadership
        self._reports = reports
        self._pulse = pulse
        self._event_buckets: dict[str, TokenBucket] = {}

    @translated
    async def Poll(self, request: agent_pb2.PollRequest, context: Context) -> agent_pb2.PollResponse:
        node = self._caller(context, request.node_id)
        if request.protocol_version not in PROTOCOL_VERSIONS:
            raise ConflictError(
                f"the agent speaks protocol {request.protocol_version}, this hub {PROTOCOL_VERSIONS[-1]}",
                object=f"node/{node}",
                hint="Upgrade the hubs first, then the agents.",
            )
        answer = await self._hub.board.poll(
            node,
            store_id=request.store_id,
            known_revision=request.known_revision,
            max_hold_s=request.max_hold_ms / 1000,
        )
        return poll_response(answer)

    @translated
    async def Heartbeat(self, request: agent_pb2.HeartbeatRequest, context: Context) -> agent_pb2.HeartbeatResponse:
        node = self._caller(context, request.node_id)
        mine = self._hub.board.where.on_node.get(node, ())
        self._hub.liveness.sampled(node, node_sample(request, mine, self._hub.clock.now()))
        if mine:
            return await self._beat_of_members(node, mine, request.lease_id)
        config = self._hub.config
        next_s = self._pulse.idle_beat_s(config.heartbeat_idle_s, config.silent_after_s)
        return agent_pb2.HeartbeatResponse(next_ms=int(next_s * 1000), lease_ttl_s=config.lease_ttl_s)

    async def _beat_of_members(
        self, node: str, mine: tuple[MemberRef, ...], lease_id: int
    ) -> agent_pb2.HeartbeatResponse:
        ttl_s = self._hub.config.lease_ttl_s
        next_s = ttl_s / RENEWALS_PER_TTL
        instances = sorted({ref.instance for ref in mine})
        renewal = Renewal.UNCONFIRMED
        try:
            async with asyncio.timeout(ttl_s * ETCD_SHARE):
                if lease_id:
                    renewal = await self._leadership.renew(node, instances, lease_id)
                await self._leadership.look_up(instances)
        except TimeoutError:
            pass  # what is known by now is told; the next beat asks again
        return agent_pb2.HeartbeatResponse(
            next_ms=int(next_s * 1000),
            lease_confirmed=renewal is Renewal.CONFIRMED,
            lease_gone=renewal is Renewal.GONE,
            lease_ttl_s=ttl_s,
            leaders=[_leader_term(standing) for standing in self._leadership.standings(instances)],
            resync=any((node, ref) not in self._hub.mirror.observed for ref in mine),
        )

    @translated
    async def ReportStatus(
        self, request: agent_pb2.ReportStatusRequest, context: Context
    ) -> agent_pb2.ReportStatusResponse:
        node = self._caller(context, request.node_id)
        if len(request.observed_json) > OBSERVED_MAX:
            raise UserError(f"{len(request.observed_json)} members at once", hint=f"Report {OBSERVED_MAX} at most.")
        records = [document(ObservedMember, data, "observed_json") for data in request.observed_json]
        reported = [(_observed_ref(node, record), record) for record in records]
        if request.HasField("facts"):
            await self._reports.update_node(node, lambda record: with_facts(record, request.facts))
        await self._reports.observe(node, reported)
        return agent_pb2.ReportStatusResponse()

    @translated
    async def Acquire(self, request: agent_pb2.AcquireRequest, context: Context) -> agent_pb2.AcquireResponse:
        node, me = self._calling_member(context, request.id)
        outcome = await self._leadership.acquire(
            me,
            node,
            after_term=request.after_term,
            lease_id=request.lease_id,
            change=_change(me, request.reason, request.position, request.told_json),
            knows_eras=request.knows_eras,
        )
        return agent_pb2.AcquireResponse(
            acquired=outcome.acquired,
            term=outcome.term,
            lease_id=outcome.lease_id,
            lease_ttl_s=self._hub.config.lease_ttl_s,
            leader=outcome.leader,
            sync_json=to_json(outcome.sync) if outcome.sync is not None else b"",
        )

    @translated
    async def Release(self, request: agent_pb2.ReleaseRequest, context: Context) -> agent_pb2.ReleaseResponse:
        node, me = self._calling_member(context, request.id)
        released = await self._leadership.release(
            me,
            node,
            term=request.term,
            handover=request.handover[:64],
            change=_change(me, request.reason, request.position, request.told_json),
        )
        return agent_pb2.ReleaseResponse(released=released)

    @translated
    async def CastBallot(self, request: agent_pb2.CastBallotRequest, context: Context) -> agent_pb2.CastBallotResponse:
        node, me = self._calling_member(context, request.id)
        ballot = document(Ballot, request.ballot_json, "ballot_json")
        if ballot.member != me.member or ballot.node != node:
            raise DeniedError(f"the ballot is {ballot.member[:64]!r}'s on {ballot.node[:64]!r}", object=str(me))
        return agent_pb2.CastBallotResponse(cast=await self._leadership.cast_ballot(me, node, ballot))

    @translated
    async def UpdateHa(self, request: agent_pb2.UpdateHaRequest, context: Context) -> agent_pb2.UpdateHaResponse:
        node, me = self._calling_member(context, request.id)
        sync = document(SyncRecord, request.sync_json, "sync_json") if request.HasField("sync_json") else None
        change = HaChange(
            sync=sync,
            system_id=request.system_id[:64] if request.HasField("system_id") else None,
            end_switchover=request.end_switchover if request.HasField("end_switchover") else None,
            note=short(request.note),
            opened=_change(me, OPENED_REASON, common_pb2.Position(), request.opened_json)
            if request.HasField("opened_json")
            else None,
        )
        updated = await self._leadership.update(me, node, term=request.term, change=change)
        return agent_pb2.UpdateHaResponse(updated=updated)

    @translated
    async def RenewCertificate(
        self, request: agent_pb2.RenewCertificateRequest, context: Context
    ) -> agent_pb2.RenewCertificateResponse:
        node = self._caller(context)
        address = self._hub.mirror.nodes[node].record.address
        certificate, serial = self._hub.authority.sign_node(request.csr_pem, node=node, address=address)
        await self._reports.update_node(node, lambda record: replace(record, certificate_serial=serial))
        await self._hub.events.emit("certificate_renewed", f"node/{node}", f"serial {serial}")
        return agent_pb2.RenewCertificateResponse(certificate_pem=certificate, ca_pem=self._hub.authority.ca_pem)

    @translated
    async def ReportEvent(
        self, request: agent_pb2.ReportEventRequest, context: Context
    ) -> agent_pb2.ReportEventResponse:
        node = self._caller(context)
        event = document(Event, request.event_json, "event_json")
        if not self._event_bucket(node).take(self._hub.clock.now()):
            raise OverloadedError("the node writes too many events", object=f"node/{node}", hint="Try again later.")
        await self._reports.tell(node, event, self._instances(node))
        return agent_pb2.ReportEventResponse()

    def _event_bucket(self, node: str) -> TokenBucket:
        """How many events the node may still write. Never more buckets than nodes, but for those that just left."""
        nodes = self._hub.mirror.nodes
        if len(self._event_buckets) > len(nodes):
            self._event_buckets = {name: kept for name, kept in self._event_buckets.items() if name in nodes}
        return self._event_buckets.setdefault(node, TokenBucket(burst=EVENT_BURST, per_s=EVENTS_PER_S))

    # --- who calls ---

    def _caller(self, context: Context, claimed: str | None = None) -> str:
        """The node that calls. DeniedError when it claims another name, NodeUnknownError when it was removed."""
        name = next(iter(context.auth_context().get("x509_common_name", ())), b"")
        if not name:
            raise DeniedError("no client certificate was shown", hint="Enrol the node: moorage-agent enrol.")
        node = name.decode("utf-8", "replace")
        if claimed is not None and claimed != node:
            raise DeniedError(
                f"the certificate is {node!r}'s, the request claims to be {claimed[:64]!r}",
                object=f"node/{node}",
                hint="Give the agent the name it was enrolled with, or enrol it anew.",
            )
        if node not in self._hub.mirror.nodes:
            raise NodeUnknownError("the node is not enrolled (any more)", object=f"node/{node}", hint="Enrol it anew.")
        return node

    def _calling_member(self, context: Context, id: common_pb2.MemberId) -> tuple[str, MemberRef]:
        """The node that calls and its member. DeniedError when the member is not on that node."""
        node = self._caller(context)
        me = member_ref(id)
        if (node, me) not in self._hub.mirror.members:
            raise DeniedError(f"the member is not on node {node}", object=str(me), hint="Poll for the desired state.")
        return node, me

    def _instances(self, node: str) -> set[InstanceRef]:
        return {ref.instance for ref in self._hub.board.where.on_node.get(node, ())}


def _observed_ref(node: str, record: ObservedMember) -> MemberRef:
    if record.node != node:
        raise DeniedError(f"the report is of node {record.node[:64]!r}", object=f"node/{node}")
    return member_ref(common_pb2.MemberId(project=record.project, instance=record.instance, member=record.member))


def _change(me: MemberRef, reason: str, position: common_pb2.Position, told_json: bytes) -> LeadershipChange:
    """The history line; term, kind and time are set where it is written."""
    line = LeadershipChange(
        term=0, member=me.member, reason=short(reason), timeline=position.timeline, lsn=lsn_text(position)
    )
    if not told_json:
        return line
    told = history.bounded(document(LeadershipChange, told_json, "told_json"))
    return replace(line, leaderless_s=told.leaderless_s, ballots=told.ballots, steps=told.steps, loss=told.loss)


def _leader_term(standing: Standing) -> agent_pb2.LeaderTerm:
    return agent_pb2.LeaderTerm(
        project=standing.instance.project,
        instance=standing.instance.instance,
        term=standing.term,
        member=standing.member,
        remaining_ms=int(standing.remaining_s * 1000),
    )
