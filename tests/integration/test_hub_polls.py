"""Agents at a real hub: who is let in, what is held, who is woken."""

from __future__ import annotations

import asyncio
import itertools
import json

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from core.identity import make_csr, new_key_pem
from core.ids import InstanceRef
from core.records import Event, ObservedMember, to_json
from core.status import MemberState, Role
from hub.etcd import keys, txns
from hub.etcd.client import EtcdClient
from hub.options import MESSAGE_MAX_BYTES
from protos.v1 import agent_pb2, common_pb2
from tests.support.contents import member_ref
from tests.support.desired import desired, place, write
from tests.support.etcd import EtcdProcess
from tests.support.hub import HubProcess, NodeIdentity
from tests.support.waiting import eventually

_numbers = itertools.count(1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def etcd():
    async with EtcdProcess.running() as etcd:
        yield etcd


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hub(etcd, tmp_path_factory):
    hub = HubProcess(tmp_path_factory.mktemp("hub") / "hub1", etcd.endpoint)
    await hub.start()
    yield hub
    hub.kill()


@pytest.fixture
async def client(etcd):
    client = EtcdClient([etcd.endpoint])
    yield client
    await client.aclose()


@pytest.fixture
def ref() -> InstanceRef:
    return InstanceRef("demo", f"i{next(_numbers)}")


async def new_node(hub: HubProcess):
    number = next(_numbers)
    return await hub.enrol(f"n{number}", f"127.0.1.{number}")


async def poll(stub, node, known: agent_pb2.PollResponse | None = None, **fields) -> agent_pb2.PollResponse:
    told = {"protocol_version": 1, **fields}
    if known is not None:
        told |= {"store_id": known.store_id, "known_revision": known.revision}
    return await stub.Poll(agent_pb2.PollRequest(node_id=node.name, **told), timeout=20)


async def refused(call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await call
    return refusal.value


async def held(hub: HubProcess, stub, node, known) -> asyncio.Task:
    """A poll that the hub holds."""
    task = asyncio.ensure_future(poll(stub, node, known))
    done, _ = await asyncio.wait([task], timeout=0.3)
    assert not done
    return task


# --- who is let in --------------------------------------------------------------------------------------------------


async def test_a_caller_without_certificate_gets_no_connection(hub):
    node = await new_node(hub)
    async with hub.agent(None) as stub:
        assert (await refused(poll(stub, node))).code() is grpc.StatusCode.UNAVAILABLE


async def test_a_node_that_claims_another_name_is_refused_with_both_names(hub):
    node, other = await new_node(hub), await new_node(hub)
    async with hub.agent(node) as stub:
        refusal = await refused(poll(stub, other))
        assert refusal.code() is grpc.StatusCode.PERMISSION_DENIED
        assert node.name in refusal.details()
        assert other.name in refusal.details()
        beat = stub.Heartbeat(agent_pb2.HeartbeatRequest(node_id=other.name), timeout=5)
        assert (await refused(beat)).code() is grpc.StatusCode.PERMISSION_DENIED
        report = stub.ReportStatus(agent_pb2.ReportStatusRequest(node_id=other.name), timeout=5)
        assert (await refused(report)).code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_node_that_was_removed_is_told_so_by_code(hub, client):
    node = await new_node(hub)
    async with hub.agent(node) as stub:
        await poll(stub, node)
        await write(client, txns.Delete(keys.node(node.name)))
        refusal = await eventually(lambda: refused(poll(stub, node, max_hold_ms=50)), within=5)
        assert refusal.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert dict(refusal.trailing_metadata())["moorage-code"] == "node-unknown"


async def test_an_agent_of_a_later_protocol_is_told_to_wait_for_the_hubs(hub):
    node = await new_node(hub)
    async with hub.agent(node) as stub:
        refusal = await refused(poll(stub, node, protocol_version=2))
        assert refusal.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "Upgrade the hubs first" in refusal.details()


async def test_a_member_of_another_node_is_nobodys_to_speak_for(hub, client, ref):
    mine, other = await new_node(hub), await new_node(hub)
    await place(client, ref, m1=other.name)
    theirs = common_pb2.MemberId(project=ref.project, instance=ref.instance, member="m1")
    async with hub.agent(mine) as stub:
        calls = [
            stub.Acquire(agent_pb2.AcquireRequest(id=theirs), timeout=5),
            stub.Release(agent_pb2.ReleaseRequest(id=theirs, term=1), timeout=5),
            stub.CastBallot(agent_pb2.CastBallotRequest(id=theirs), timeout=5),
            stub.UpdateHa(agent_pb2.UpdateHaRequest(id=theirs, term=1), timeout=5),
        ]
        for call in calls:
            assert (await refused(call)).code() is grpc.StatusCode.PERMISSION_DENIED


# --- polls ----------------------------------------------------------------------------------------------------------


async def test_a_poll_brings_the_whole_state_and_is_then_held(hub, client, ref):
    node = await new_node(hub)
    await place(client, ref, m1=node.name)
    async with hub.agent(node) as stub:
        answer = await eventually(lambda: poll(stub, node), lambda a: b"15001" in a.state_json, within=5)
        state = json.loads(answer.state_json)
        assert [(m["project"], m["instance"], m["member"]) for m in state["members"]] == [("demo", ref.instance, "m1")]
        assert state["views"][0]["members"][0]["alive"] is True
        again = await poll(stub, node, answer, max_hold_ms=100)
        assert (again.kind, again.revision) == (agent_pb2.PollResponse.KIND_UNCHANGED, answer.revision)
        assert again.state_json == b""


async def test_a_change_wakes_exactly_the_concerned_node(hub, client, ref):
    concerned, other = await new_node(hub), await new_node(hub)
    async with hub.agent(concerned) as one, hub.agent(other) as two:
        waiting = await held(hub, one, concerned, await poll(one, concerned))
        unconcerned = await held(hub, two, other, await poll(two, other))
        await place(client, ref, m1=concerned.name)
        answer = await asyncio.wait_for(waiting, 5)
        assert answer.kind == agent_pb2.PollResponse.KIND_FULL
        assert not unconcerned.done()
        unconcerned.cancel()


async def test_a_newer_poll_supersedes_the_older_one(hub):
    node = await new_node(hub)
    async with hub.agent(node) as first, hub.agent(node) as second:
        older = await held(hub, first, node, await poll(first, node))
        newer = await held(hub, second, node, await poll(second, node))
        assert (await asyncio.wait_for(older, 5)).kind == agent_pb2.PollResponse.KIND_SUPERSEDED
        newer.cancel()


async def test_a_heartbeat_of_an_empty_node_is_answered_with_the_idle_pace(hub):
    node = await new_node(hub)
    async with hub.agent(node) as stub:
        answer = await stub.Heartbeat(agent_pb2.HeartbeatRequest(node_id=node.name, lease_id=7), timeout=5)
        assert (answer.next_ms, answer.lease_ttl_s) == (5000, 6)
        assert not answer.lease_confirmed
        assert not answer.lease_gone


# --- reports --------------------------------------------------------------------------------------------------------


async def test_what_a_member_is_lies_in_etcd_and_wakes_its_peers(hub, client, ref):
    node, peer = await new_node(hub), await new_node(hub)
    await place(client, ref, m1=node.name, m2=peer.name)
    observed = ObservedMember(
        project=ref.project,
        instance=ref.instance,
        member="m1",
        node=node.name,
        state=MemberState.RUNNING,
        role=Role.PRIMARY,
    )
    async with hub.agent(node) as stub, hub.agent(peer) as peer_stub:
        known = await eventually(lambda: poll(peer_stub, peer), lambda a: b"m2" in a.state_json, within=5)
        beat = await stub.Heartbeat(agent_pb2.HeartbeatRequest(node_id=node.name), timeout=5)
        assert beat.resync
        assert beat.next_ms == 2000
        waiting = await held(hub, peer_stub, peer, known)
        report = agent_pb2.ReportStatusRequest(node_id=node.name, observed_json=[to_json(observed)])
        await stub.ReportStatus(report, timeout=5)
        view = json.loads((await asyncio.wait_for(waiting, 5)).state_json)["views"][0]
        assert [(m["member"], m["state"], m["role"]) for m in view["members"]] == [
            ("m1", "running", "primary"),
            ("m2", "absent", "unknown"),
        ]
        written = await client.get(keys.observed(node.name, member_ref(ref, "m1")))
        await stub.ReportStatus(report, timeout=5)
        again = await client.get(keys.observed(node.name, member_ref(ref, "m1")))
        assert again.mod_revision == written.mod_revision
        assert not (await stub.Heartbeat(agent_pb2.HeartbeatRequest(node_id=node.name), timeout=5)).resync


async def test_a_report_of_a_member_that_is_not_there_leaves_nothing_behind(hub, client, ref):
    node = await new_node(hub)
    observed = ObservedMember(project=ref.project, instance=ref.instance, member="m1", node=node.name)
    async with hub.agent(node) as stub:
        report = agent_pb2.ReportStatusRequest(node_id=node.name, observed_json=[to_json(observed)])
        await stub.ReportStatus(report, timeout=5)
    assert await client.get(keys.observed(node.name, member_ref(ref, "m1"))) is None


async def test_new_facts_of_a_node_keep_what_operators_said_of_it(hub, client):
    node = await new_node(hub)
    key = keys.node(node.name)
    record = json.loads((await client.get(key)).value)
    await write(client, txns.Put(key, json.dumps({**record, "labels": {"rack": "7"}, "cordoned": True}).encode()))
    facts = agent_pb2.NodeFacts(address=record["address"], peer_port=8, zone="z9", cpu=64, agent_version="9.9")
    async with hub.agent(node) as stub:

        async def report() -> dict:
            await stub.ReportStatus(agent_pb2.ReportStatusRequest(node_id=node.name, facts=facts), timeout=5)
            return json.loads((await client.get(key)).value)

        now = await eventually(report, lambda r: r["cpu"] == 64, within=5)
    assert (now["labels"], now["cordoned"], now["zone"], now["peer_port"]) == ({"rack": "7"}, True, "z9", 8)
    assert now["certificate_serial"] == record["certificate_serial"]


@pytest.mark.parametrize(
    ("facts", "field"),
    [
        ({"address": "here"}, "facts.address"),
        ({"zone": "Zone/1"}, "facts.zone"),
        ({"peer_port": 70000}, "facts.peer_port"),
        ({"cpu": float("nan")}, "facts.cpu"),
    ],
)
async def test_facts_that_cannot_be_are_refused_by_field(hub, facts, field):
    node = await new_node(hub)
    told = agent_pb2.NodeFacts(**{"address": "127.0.0.1", "peer_port": 8, **facts})
    async with hub.agent(node) as stub:
        refusal = await refused(
            stub.ReportStatus(agent_pb2.ReportStatusRequest(node_id=node.name, facts=told), timeout=5)
        )
    assert refusal.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in refusal.details()


async def test_documents_that_are_malformed_or_too_large_are_refused_with_the_reason(hub, client, ref):
    node = await new_node(hub)
    await place(client, ref, m1=node.name)
    id = common_pb2.MemberId(project=ref.project, instance=ref.instance, member="m1")
    async with hub.agent(node) as stub:
        await eventually(lambda: poll(stub, node), lambda a: b"15001" in a.state_json, within=5)
        for document, said in [(b"{", "ballot_json"), (b'{"member": 1}', "ballot_json"), (b"x" * 70_000, "65536")]:
            refusal = await refused(
                stub.CastBallot(agent_pb2.CastBallotRequest(id=id, ballot_json=document), timeout=5)
            )
            assert refusal.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert said in refusal.details()
        report = agent_pb2.ReportStatusRequest(node_id=node.name, observed_json=[b"[]"])
        assert (await refused(stub.ReportStatus(report, timeout=5))).code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_message_over_the_limit_is_refused_with_a_clear_status_and_the_connection_lives_on(hub):
    node = await new_node(hub)
    async with hub.agent(node) as stub:
        event = agent_pb2.ReportEventRequest(event_json=b"x" * (MESSAGE_MAX_BYTES + 1))
        refusal = await refused(stub.ReportEvent(event, timeout=10))
        assert refusal.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max" in refusal.details()
        assert (await poll(stub, node)).kind == agent_pb2.PollResponse.KIND_FULL


async def test_a_node_writes_events_about_itself_only_and_not_without_end(hub, client):
    node = await new_node(hub)
    async with hub.agent(node) as stub:

        async def tell(object: str) -> None:
            event = Event(at=1.0, event="engine_installed", object=object, source="somebody else")
            await stub.ReportEvent(agent_pb2.ReportEventRequest(event_json=to_json(event)), timeout=5)

        await tell(f"node/{node.name}")
        found, _ = await client.list(keys.EVENTS)
        mine = [json.loads(kv.value) for kv in found if b"engine_installed" in kv.value]
        assert [event["source"] for event in mine] == [node.name]
        assert (await refused(tell("node/another"))).code() is grpc.StatusCode.PERMISSION_DENIED
        flood = await asyncio.gather(*(tell(f"node/{node.name}") for _ in range(60)), return_exceptions=True)
        refusals = [answer for answer in flood if isinstance(answer, grpc.aio.AioRpcError)]
        assert 5 < len(refusals) < 15
        assert {refusal.code() for refusal in refusals} == {grpc.StatusCode.RESOURCE_EXHAUSTED}


async def test_a_certificate_is_renewed_over_the_old_one(hub, client):
    node = await new_node(hub)
    before = json.loads((await client.get(keys.node(node.name))).value)["certificate_serial"]
    renewed = await renew(hub, node)
    after = json.loads((await client.get(keys.node(node.name))).value)["certificate_serial"]
    assert after != before
    async with hub.agent(renewed) as stub:
        assert (await poll(stub, renewed)).kind == agent_pb2.PollResponse.KIND_FULL


async def renew(hub: HubProcess, node):
    key_pem = new_key_pem()
    csr = make_csr(key_pem, node=node.name, address="127.0.0.1")
    async with hub.agent(node) as stub:
        answer = await stub.RenewCertificate(agent_pb2.RenewCertificateRequest(csr_pem=csr), timeout=5)
    return NodeIdentity(node.name, key_pem, answer.certificate_pem)


async def test_a_change_of_one_member_reaches_all_nodes_of_its_instance_at_once(hub, client, ref):
    nodes = [await new_node(hub) for _ in range(3)]
    await place(client, ref, m1=nodes[0].name, m2=nodes[1].name)
    async with hub.agent(nodes[0]) as stub:
        known = await eventually(lambda: poll(stub, nodes[0]), lambda a: b"m2" in a.state_json, within=5)
        waiting = await held(hub, stub, nodes[0], known)
        key = keys.member(nodes[2].name, member_ref(ref, "m3"))
        await write(client, txns.Put(key, to_json(desired(ref, "m3", nodes[2].name))))
        view = json.loads((await asyncio.wait_for(waiting, 5)).state_json)["views"][0]
        assert [member["member"] for member in view["members"]] == ["m1", "m2", "m3"]
