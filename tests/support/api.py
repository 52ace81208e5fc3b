"""A hub's parts inside the test's own loop, with real etcd, real TLS ports and a client's view of them.

What a whole process would add (controllers, heartbeats) is left out, so nothing changes but what the test asks for. The
test may write to etcd through `hub.store` what agents and controllers would have written.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from core.identity import HUB_NAME, make_csr, new_key_pem
from core.ids import InstanceRef, MemberName, MemberRef
from core.records import (
    Event,
    HaRecord,
    InstanceStatus,
    LeaderRecord,
    MemberDesired,
    NodeRecord,
    ObservedMember,
    to_json,
)
from core.status import MemberState, Phase, Role
from hub.authority import OperatorRole, create_operator
from hub.config import HubConfig
from hub.context import Hub
from hub.etcd import keys, txns
from hub.etcd.client import EtcdClient
from hub.etcd.mirror import Mirror
from hub.main import assemble_hub
from hub.pulse import Pulse
from hub.rpc.errors import ERROR_METADATA_KEY
from hub.servers import Servers
from hub.setup import prepare
from protos.v1 import agent_pb2, agent_pb2_grpc, operator_pb2_grpc
from protos.v1 import operator_pb2 as pb
from tests.support.etcd import EtcdProcess
from tests.support.ports import free_port
from tests.support.waiting import eventually

CALL_S = 10.0


@dataclass
class Refusal:
    """How a call was refused: gRPC's code and text, and our error taken apart."""

    code: grpc.StatusCode = grpc.StatusCode.OK
    text: str = ""
    error: dict[str, str] = field(default_factory=dict)


@contextmanager
def refused(code: grpc.StatusCode) -> Iterator[Refusal]:
    """The calls inside must end with this code."""
    refusal = Refusal()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield refusal
    assert caught.value.code() is code, f"{caught.value.code()}: {caught.value.details()}"
    refusal.code, refusal.text = code, caught.value.details() or ""
    refusal.error = json.loads(dict(caught.value.trailing_metadata() or ()).get(ERROR_METADATA_KEY, b"{}"))


@dataclass
class Api:
    """One hub, and how to call it."""

    hub: Hub
    channel: grpc.aio.Channel
    admin: str  # token

    def __post_init__(self) -> None:
        self._operators = operator_pb2_grpc.OperatorServiceStub(self.channel)
        self.enrolments = agent_pb2_grpc.EnrolServiceStub(self.channel)

    async def call(self, request: Any, *, token: str | None = None) -> Any:
        """Send a request; the method is the one that the request's type is named after. `token` empty = send none."""
        method = getattr(self._operators, type(request).__name__.removesuffix("Request"))
        return await method(request, metadata=bearer(self.admin if token is None else token), timeout=CALL_S)

    async def apply(self, *documents: dict[str, Any], token: str | None = None, **flags: bool) -> list[pb.Applied]:
        texts = [json.dumps(document) for document in documents]
        return list((await self.call(pb.ApplyRequest(documents=texts, **flags), token=token)).results)

    async def get(self, kind: pb.Kind.ValueType, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Spec and status of an object."""
        found = (await self.call(pb.GetRequest(kind=kind, name=name))).object
        return json.loads(found.spec_json), json.loads(found.status_json)

    def watch(self, request: pb.WatchEventsRequest, *, token: str | None = None) -> Any:
        return self._operators.WatchEvents(request, metadata=bearer(self.admin if token is None else token))

    async def events(self, object_prefix: str = "", *, count: int) -> list[Event]:
        """The past events, oldest first, once there are `count` of them: the mirror gets each a moment after the call
        that it tells of has returned."""

        async def look() -> list[Event]:
            answers = self.watch(pb.WatchEventsRequest(object_prefix=object_prefix))
            return [Event(**json.loads(answer.event_json)) async for answer in answers]

        return await eventually(look, lambda events: len(events) == count, within=5, what=f"{count} events")

    async def operator(self, role: OperatorRole) -> str:
        """A fresh token of that role."""
        return await create_operator(self.hub.store.commit, f"a-{role}", role)

    async def join_token(self, *, node: str = "", ttl_s: int = 0) -> str:
        answer = await self.call(pb.CreateJoinTokenRequest(node=node, ttl_s=ttl_s))
        return str(answer.token)

    async def enrol(self, node: str, token: str, *, csr: bytes | None = None, **facts: Any) -> agent_pb2.EnrolResponse:
        told: dict[str, Any] = {
            "address": "127.0.0.11",
            "peer_port": 7000,
            "cpu": 4.0,
            "memory_bytes": 8 << 30,
            **facts,
        }
        request = agent_pb2.EnrolRequest(
            token=token,
            node_id=node,
            csr_pem=csr if csr is not None else make_csr(new_key_pem(), node=node, address="127.0.0.11"),
            facts=agent_pb2.NodeFacts(**told),
        )
        return await self.enrolments.Enrol(request, timeout=CALL_S)

    # --- what agents and controllers would write ---

    async def put(self, key: str, record: Any) -> None:
        assert await self.hub.store.commit(txns.all_of([], [txns.Put(key, to_json(record))]))

    async def place(self, ref: InstanceRef, *nodes: str, leader: str = "m1") -> None:
        """Members m1, m2, ... on the nodes, all running, one of them leading in term 1."""
        for number, node in enumerate(nodes, start=1):
            name = f"m{number}"
            member = MemberRef(ref, MemberName(name))
            who = {"project": ref.project, "instance": ref.instance, "member": name, "node": node}
            role = Role.PRIMARY if name == leader else Role.REPLICA
            await self.put(keys.node(node), NodeRecord(name=node, address=f"127.0.0.{10 + number}"))
            await self.put(keys.member(node, member), MemberDesired(**who, engine_version=15, engine_port=15000))
            await self.put(keys.observed(node, member), ObservedMember(**who, state=MemberState.RUNNING, role=role))
            if name == leader:
                await self.put(keys.leader(ref), LeaderRecord(member=name, node=node, term=1))
        await self.put(keys.ha(ref), HaRecord(term=1, leader=leader))
        status = InstanceStatus(
            project=ref.project, name=ref.instance, phase=Phase.RUNNING, primary=leader, rw_port=15001, ro_port=15002
        )
        await self.put(keys.status(ref), status)


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),) if token else ()


def channel_to(address: str, ca_pem: bytes) -> grpc.aio.Channel:
    """A client that knows the hub by this CA only."""
    credentials = grpc.ssl_channel_credentials(root_certificates=ca_pem)
    return grpc.aio.secure_channel(address, credentials, options=(("grpc.ssl_target_name_override", HUB_NAME),))


@contextmanager
def one_etcd() -> Iterator[EtcdProcess]:
    """One member for many tests, each of which empties it first: to start one takes longer than most of them."""
    with tempfile.TemporaryDirectory(prefix="moorage-etcd-") as root:
        etcd = EtcdProcess(Path(root))
        asyncio.run(etcd.start())
        try:
            yield etcd
        finally:
            etcd.kill()


async def empty(etcd: EtcdProcess) -> None:
    client = EtcdClient([etcd.endpoint])
    await client.delete_prefix(keys.ROOT)
    await client.aclose()


@asynccontextmanager
async def running_api(etcd_endpoint: str, root: Path, *, name: str = "hub-1") -> AsyncIterator[Api]:
    """A hub on an etcd. `root` is its folder; hubs of one etcd must share it, for the seal key's sake."""
    config = HubConfig(
        name=name,
        etcd_endpoints=(etcd_endpoint,),
        listen_agents=f"127.0.0.1:{free_port()}",
        listen_operators=f"127.0.0.1:{free_port()}",
        data_dir=root,
    )
    client = EtcdClient(config.etcd_endpoints)
    try:
        await prepare(config, client)
        async with asyncio.TaskGroup() as group:
            mirror = Mirror(client)
            following = group.create_task(mirror.run())
            async with asyncio.timeout(CALL_S):
                await mirror.synced.wait()
            hub = await assemble_hub(config, client, mirror)
            servers = Servers(hub, Pulse(hub.clock, hub.liveness, hub.leases))
            await servers.start()
            try:
                async with channel_to(config.listen_operators, hub.authority.ca_pem) as channel:
                    yield Api(hub, channel, config.admin_token_path.read_text().strip())
            finally:
                await servers.stop()
                following.cancel()
    finally:
        await client.aclose()
