"""First contact: a machine with a join token becomes a node.

The order is the safety: everything about the request is checked first, then the token is used up, then the node is
written, and only then does the certificate leave. A refused request costs no token; a crash in between costs one, and
the machine needs another.

Enrolling a name that exists is how a rebuilt machine comes back: it takes a fresh token, keeps what operators set
(labels, price, cordoned), and the event says so. An address that another node has too is a warning, not a refusal: the
old node may be dead and not removed yet.

Strangers can call this. What fails is paid for from one bucket for all: once it is empty, only requests whose token is
known are looked at, so a flood costs neither etcd nor signatures.
"""

from __future__ import annotations

from dataclasses import replace

from core import identity
from core.errors import ConflictError, OverloadedError
from core.log import EventLog
from core.records import NodeRecord, to_json
from hub.context import Hub
from hub.etcd import keys, txns
from hub.rpc.convert import with_facts
from hub.rpc.errors import Context, translated
from hub.rpc.limits import TokenBucket
from protos.v1 import agent_pb2, agent_pb2_grpc

FAILURES_AT_ONCE = 20
FAILURES_PER_S = 1.0
ATTEMPTS = 5  # to write the node's record against others

log = EventLog("hub.enrol")


class EnrolService(agent_pb2_grpc.EnrolServiceServicer):
    """Admits machines as nodes."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._failures = TokenBucket(burst=FAILURES_AT_ONCE, per_s=FAILURES_PER_S)

    @translated
    async def Enrol(  # noqa: N802 - the contract's name
        self, request: agent_pb2.EnrolRequest, context: Context
    ) -> agent_pb2.EnrolResponse:
        known_token = self._hub.authority.recognises_join_token(request.token)
        if not known_token and not self._failures.take(self._hub.clock.now()):
            raise OverloadedError("too many failed enrolments", hint="Wait a minute; check the token.")
        facts = checked_facts(request)
        identity.check_csr(request.csr_pem, node=facts.name)
        await self._hub.authority.consume_join_token(request.token, facts.name)
        certificate, serial = self._hub.authority.sign_node(request.csr_pem, node=facts.name, address=facts.address)
        facts = replace(facts, certificate_serial=serial)
        again = await self._write(facts)
        log.info("node_enrolled", node=facts.name, address=facts.address, again=again, peer=context.peer())
        await self._tell(facts, again=again)
        return agent_pb2.EnrolResponse(
            certificate_pem=certificate, ca_pem=self._hub.authority.ca_pem, hub_addresses=self._agent_addresses()
        )

    async def _tell(self, facts: NodeRecord, *, again: bool) -> None:
        emit, node = self._hub.events.emit, f"node/{facts.name}"
        message = f"address {facts.address}, certificate {facts.certificate_serial}"
        await emit("node_enrolled", node, f"again, {message}" if again else message, "warning" if again else "info")
        others = [
            name
            for name, known in self._hub.mirror.nodes.items()
            if name != facts.name and known.record.address == facts.address
        ]
        if others:
            shared = f"address {facts.address} is also that of {', '.join(sorted(others)[:5])}"
            await emit("node_address_shared", node, f"{shared}: give it another, or remove the old node", "warning")

    async def _write(self, facts: NodeRecord) -> bool:
        """Write the node's record. Returns whether the node was there already."""
        for _ in range(ATTEMPTS):
            known = self._hub.mirror.nodes.get(facts.name)
            record, revision = facts, 0
            if known is not None:
                record, revision = _rebuilt(known.record, facts), known.mod_revision
            record = replace(record, enrolled_at=self._hub.clock.wall())
            if await self._hub.store.commit(txns.put_if(keys.node(facts.name), to_json(record), revision=revision)):
                return known is not None
        raise ConflictError(
            "others keep changing the node", object=f"node/{facts.name}", hint="Enrol with a new token."
        )

    def _agent_addresses(self) -> list[str]:
        """The agent ports of all hubs that are alive, this one's first."""
        own = self._hub.config.agents_address
        others = sorted(known.record.agent_address for known in self._hub.mirror.hubs.values())
        return list(dict.fromkeys([own, *(address for address in others if address)]))


def checked_facts(request: agent_pb2.EnrolRequest) -> NodeRecord:
    """The newcomer's record from what it says of itself. UserError names the field that cannot be."""
    record = with_facts(NodeRecord(name=identity.check_node_name(request.node_id)), request.facts)
    identity.check_address(record.address)
    return record


def _rebuilt(known: NodeRecord, facts: NodeRecord) -> NodeRecord:
    """The record of a node that enrols again: new facts, but what operators set of it stays."""
    return replace(facts, labels=known.labels, price_per_hour=known.price_per_hour, cordoned=known.cordoned)
