"""Where the agents' protobuf messages and our own types meet. Nothing behind this module knows protobuf.

Strangers' text is bounded and checked here, once: names by `core.ids`, documents by size and by `core.codec`. The
heartbeat, which comes a thousand times a second, is taken over field by field without either: it is filtered to what
the hub knows already.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

from core.codec import from_json
from core.errors import UserError
from core.ids import InstanceRef, MemberName, MemberRef, check_name
from core.positions import Lsn
from core.records import EngineOffer, NodeRecord
from core.status import MemberState, Role
from hub.board import Answer, Outcome
from hub.liveness import MemberSample, NodeSample
from protos.v1 import agent_pb2, common_pb2

DOCUMENT_MAX_BYTES = 64 << 10  # one observed member, ballot, sync record or event; etcd takes 1.5 MiB at most
REASON_MAX_CHARS = 500
OFFERS_MAX = 64
_LABEL = re.compile(r"[a-z0-9-]{0,63}")

MEMBER_STATES: dict[int, MemberState] = {
    common_pb2.MemberState.Value(f"MEMBER_STATE_{state.name}"): state for state in MemberState
}
ROLES: dict[int, Role] = {common_pb2.Role.Value(f"ROLE_{role.name}"): role for role in Role}
assert len(MEMBER_STATES) == len(common_pb2.MemberState.keys()) - 1
assert len(ROLES) == len(common_pb2.Role.keys()) - 1

_KINDS = {
    Outcome.FULL: agent_pb2.PollResponse.KIND_FULL,
    Outcome.UNCHANGED: agent_pb2.PollResponse.KIND_UNCHANGED,
    Outcome.SUPERSEDED: agent_pb2.PollResponse.KIND_SUPERSEDED,
}

T = TypeVar("T")


def instance_ref(project: str, instance: str) -> InstanceRef:
    """UserError when a name is not one."""
    try:
        return InstanceRef(check_name(project, "project"), check_name(instance, "instance"))
    except ValueError as error:
        raise UserError(str(error), object="id") from error


def member_ref(id: common_pb2.MemberId) -> MemberRef:
    """UserError when a name is not one."""
    instance = instance_ref(id.project, id.instance)
    try:
        return MemberRef(instance, MemberName(check_name(id.member, "member")))
    except ValueError as error:
        raise UserError(str(error), object="id.member") from error


def document(kind: type[T], data: bytes, field: str) -> T:
    """A record from a JSON field of a message; UserError names the field and what is wrong in it."""
    if len(data) > DOCUMENT_MAX_BYTES:
        raise UserError(f"has {len(data)} bytes, more than {DOCUMENT_MAX_BYTES}", object=field)
    return from_json(kind, data, where=field)


def short(text: str) -> str:
    """Free text for people, cut to what a history line holds."""
    return text[:REASON_MAX_CHARS]


def lsn_text(position: common_pb2.Position) -> str:
    """PostgreSQL's form; empty when unknown."""
    return str(Lsn(position.lsn)) if position.lsn else ""


def with_facts(record: NodeRecord, facts: agent_pb2.NodeFacts) -> NodeRecord:
    """The record with what the agent says of its node; what operators say of it stays."""
    return replace(
        record,
        address=_address(facts.address),
        peer_port=_port(facts.peer_port),
        zone=_label(facts.zone, "facts.zone"),
        region=_label(facts.region, "facts.region"),
        cpu=_cores(facts.cpu),
        memory_bytes=facts.memory_bytes,
        disk_bytes=facts.disk_bytes,
        engines=_offers(facts.engines),
        agent_version=facts.agent_version[:64],
    )


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError as error:
        raise UserError(f"{text!r} is not an IP address", object="facts.address") from error


def _port(number: int) -> int:
    if not 0 < number < 65536:
        raise UserError(f"{number} is not a TCP port", object="facts.peer_port")
    return number


def _cores(number: float) -> float:
    if not 0 <= number < 1e6:  # NaN is neither
        raise UserError(f"{number} is not a number of cores", object="facts.cpu")
    return number


def _label(text: str, field: str) -> str:
    if not _LABEL.fullmatch(text):
        raise UserError(f"{text[:80]!r} is not valid: use at most 63 of a-z, 0-9 and '-'", object=field)
    return text


def _offers(offers: Iterable[agent_pb2.EngineOffer]) -> tuple[EngineOffer, ...]:
    taken = tuple(
        EngineOffer(
            engine=offer.engine[:64],
            version=offer.version,
            full_version=offer.full_version[:64],
            tls=offer.tls,
            bin_dir=offer.bin_dir[:1024],
        )
        for offer in offers
    )
    if len(taken) > OFFERS_MAX:
        raise UserError(f"has {len(taken)} entries, more than {OFFERS_MAX}", object="facts.engines")
    return taken


def node_sample(request: agent_pb2.HeartbeatRequest, mine: tuple[MemberRef, ...], now: float) -> NodeSample:
    """A heartbeat's facts; members that are not the node's (`mine`) are left out."""
    return NodeSample(
        at=now,
        boot_id=request.boot_id[:64],
        seq=request.seq,
        cpu_used=request.cpu_used if 0.0 <= request.cpu_used <= 1.0 else 1.0,  # NaN is neither
        memory_used_bytes=request.memory_used_bytes,
        disk_used_bytes=request.disk_used_bytes,
        applied_revision=request.applied_revision,
        members=tuple(_member_samples(request, mine)) if mine else (),
    )


def _member_samples(request: agent_pb2.HeartbeatRequest, mine: tuple[MemberRef, ...]) -> Iterable[MemberSample]:
    known = {(ref.instance.project, ref.instance.instance, ref.member): ref for ref in mine}
    for sample in request.members:
        ref = known.get((sample.id.project, sample.id.instance, MemberName(sample.id.member)))
        if ref is not None:
            yield MemberSample(
                ref=ref,
                state=MEMBER_STATES.get(sample.state, MemberState.FAILED),
                role=ROLES.get(sample.role, Role.UNKNOWN),
                timeline=sample.position.timeline,
                lsn=sample.position.lsn,
                lag_bytes=sample.lag_bytes,
                connections=sample.connections,
                data_bytes=sample.data_bytes,
            )


def poll_response(answer: Answer) -> agent_pb2.PollResponse:
    """What the board says, as the agent reads it."""
    return agent_pb2.PollResponse(
        kind=_KINDS[answer.outcome],
        store_id=answer.store_id,
        revision=answer.revision,
        state_json=answer.state_json,
        draining=answer.draining,
        retry_after_ms=int(answer.retry_after_s * 1000),
    )
