"""The hub as a process: setup, start, drain, death, restart, a restored etcd, and its own line in etcd."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import signal
import subprocess
import time

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2

from core.ids import InstanceRef
from hub.etcd import keys, txns
from hub.etcd.client import EtcdClient
from protos.v1 import agent_pb2, agent_pb2_grpc, operator_pb2, operator_pb2_grpc
from tests.support.contents import member_ref
from tests.support.desired import place, write
from tests.support.etcd import EtcdProcess
from tests.support.hub import HubProcess
from tests.support.waiting import eventually

FULL = agent_pb2.PollResponse.KIND_FULL
UNCHANGED = agent_pb2.PollResponse.KIND_UNCHANGED


@pytest.fixture
async def etcd():
    async with EtcdProcess.running() as etcd:
        yield etcd


@pytest.fixture
async def client(etcd):
    client = EtcdClient([etcd.endpoint])
    yield client
    await client.aclose()


@pytest.fixture
async def hub_of(etcd, tmp_path):
    """Makes hubs that end with the test."""
    made: list[HubProcess] = []

    def make(name: str = "hub1", **fields) -> HubProcess:
        made.append(HubProcess(tmp_path / name, etcd.endpoint, name=name, **fields))
        return made[-1]

    yield make
    for hub in made:
        hub.kill()


async def poll(stub, node, known=None, **fields) -> agent_pb2.PollResponse:
    told = {"protocol_version": 1, **fields}
    if known is not None:
        told |= {"store_id": known.store_id, "known_revision": known.revision}
    return await stub.Poll(agent_pb2.PollRequest(node_id=node.name, **told), timeout=30, wait_for_ready=True)


def events_in(hub: HubProcess) -> list[str]:
    """Names of the events in the hub's log."""
    return [json.loads(line)["event"] for line in hub.log.read_text().splitlines() if line.startswith("{")]


async def hub_record(client: EtcdClient, name: str) -> dict | None:
    found = await client.get(keys.hub(name))
    return json.loads(found.value) if found else None


# --- setup ------------------------------------------------------------------------------------------------------------


async def test_init_may_be_repeated_and_changes_nothing_then(hub_of, client):
    hub = hub_of()
    assert hub.init().returncode == 0
    token, ca_pem, store_id = hub.admin_token, hub.ca_pem, (await client.get(keys.STORE_ID)).value
    again = hub.init()
    assert again.returncode == 0
    assert "admin token" in again.stdout
    assert "left as it was" in again.stdout
    assert (hub.admin_token, hub.ca_pem) == (token, ca_pem)
    assert (await client.get(keys.STORE_ID)).value == store_id
    assert os.stat(hub.admin_token_file).st_mode & 0o777 == 0o600
    assert os.stat(hub.root.parent / "seal.key").st_mode & 0o777 == 0o600
    assert b"PRIVATE KEY" not in (await client.get(keys.CA)).value


async def test_a_second_hub_without_the_seal_key_is_told_where_to_get_it(hub_of, tmp_path):
    assert hub_of("hub1").init().returncode == 0
    other = hub_of("hub2", seal_key_file=str(tmp_path / "hub2" / "seal.key"))
    refused = other.init()
    assert refused.returncode == 2
    assert "Copy seal.key from a hub that runs" in refused.stderr
    assert "Traceback" not in refused.stderr


async def test_a_lost_admin_token_is_replaced_on_request(hub_of):
    hub = hub_of()
    hub.init()
    first = hub.admin_token
    hub.admin_token_file.unlink()
    assert hub.init().returncode == 0
    assert not hub.admin_token_file.exists()
    assert hub.init("--new-admin").returncode == 0
    assert hub.admin_token != first
    await hub.start()
    await hub.enrol("n1")


async def test_run_before_init_and_wrong_configurations_end_with_one_clear_line(hub_of, etcd):
    hub = hub_of()
    hub.spawn()
    assert await hub.exited() == 2
    assert "Run `moorage-hub init` first" in hub.tail()
    hub.config.write_text(hub.config.read_text() + "lease_ttl: 5\n")
    refused = hub.init()
    assert refused.returncode == 2
    assert "lease_ttl: is not a known field" in refused.stderr
    assert "Traceback" not in refused.stderr + hub.tail(100)


async def test_a_port_that_is_taken_is_named(hub_of):
    first = hub_of("hub1")
    await first.start()
    second = hub_of("hub2", listen_agents=first.agents_address)
    assert second.init().returncode == 0
    second.spawn()
    assert await second.exited() == 2
    assert f"{first.agents_address}: cannot listen there" in second.tail()


# --- end and new life -------------------------------------------------------------------------------------------------


async def test_sigterm_answers_every_held_poll_and_ends_with_zero(hub_of, client):
    hub = hub_of()
    await hub.start()
    nodes = [await hub.enrol(f"n{number}", f"127.0.3.{number}") for number in range(1, 4)]
    await eventually(lambda: hub_record(client, "hub1"), within=5)
    async with hub.agent(nodes[0]) as a, hub.agent(nodes[1]) as b, hub.agent(nodes[2]) as c:
        stubs = [a, b, c]
        known = [await poll(stub, node) for stub, node in zip(stubs, nodes, strict=True)]
        polls = [
            asyncio.ensure_future(poll(stub, node, mark)) for stub, node, mark in zip(stubs, nodes, known, strict=True)
        ]
        await asyncio.wait(polls, timeout=0.3)
        assert not any(task.done() for task in polls)
        hub.terminate()
        answers = await asyncio.wait_for(asyncio.gather(*polls), 5)
    assert all(answer.draining and answer.kind == UNCHANGED for answer in answers)
    assert all(answer.retry_after_ms <= 5000 for answer in answers)
    assert await hub.exited() == 0
    assert await hub_record(client, "hub1") is None
    assert events_in(hub)[-1] == "hub_stopped"


async def test_a_hub_that_waits_for_etcd_says_so_binds_nothing_and_can_be_stopped(hub_of, etcd):
    hub = hub_of()
    assert hub.init().returncode == 0
    etcd.kill()
    hub.spawn()
    await eventually(lambda: asyncio.to_thread(events_in, hub), lambda e: "list_failed" in e, within=30, every=0.2)
    assert await hub.health() == 0
    assert hub.stop() == 0


async def test_a_hub_that_was_killed_keeps_everything_and_agents_go_on_with_their_mark(hub_of, client):
    hub = hub_of()
    await hub.start()
    node = await hub.enrol("n1")
    ref = InstanceRef("demo", "orders")
    await place(client, ref, m1=node.name)
    async with hub.agent(node) as stub:
        known = await eventually(lambda: poll(stub, node), lambda a: b"15001" in a.state_json, within=5)
        taken = await stub.Acquire(agent_pb2.AcquireRequest(id={**_id(ref)}), timeout=5)
        assert taken.acquired
        known = await poll(stub, node, known)
        hub.kill()
        began = time.monotonic()
        await hub.start()
        assert time.monotonic() - began < 10
        held = await poll(stub, node, known, max_hold_ms=100)
        assert held.kind == UNCHANGED
        request = agent_pb2.HeartbeatRequest(node_id=node.name, lease_id=taken.lease_id)
        assert (await stub.Heartbeat(request, timeout=5)).lease_confirmed


def _id(ref: InstanceRef) -> dict[str, str]:
    return {"project": ref.project, "instance": ref.instance, "member": "m1"}


async def test_an_agent_moves_to_the_twin_with_its_mark_and_is_held_there(hub_of, client):
    one, two = hub_of("hub1"), hub_of("hub2")
    await one.start()
    await two.start()
    node = await one.enrol("n1")
    await place(client, InstanceRef("demo", "orders"), m1=node.name)
    async with one.agent(node) as stub:
        known = await eventually(lambda: poll(stub, node), lambda a: b"15001" in a.state_json, within=5)
    one.kill()
    async with two.agent(node) as stub:
        assert (await poll(stub, node, known, max_hold_ms=100)).kind == UNCHANGED
        waiting = asyncio.ensure_future(poll(stub, node, known))
        await asyncio.wait([waiting], timeout=0.2)
        await write(client, txns.Delete(keys.member(node.name, member_ref(InstanceRef("demo", "orders"), "m1"))))
        answer = await asyncio.wait_for(waiting, 5)
        assert json.loads(answer.state_json)["members"] == []


async def test_a_restored_etcd_with_a_lower_revision_is_answered_from(hub_of, etcd, client, tmp_path):
    hub = hub_of()
    await hub.start()
    node = await hub.enrol("n1")
    snapshot = tmp_path / "snapshot.db"
    etcdctl(etcd, "snapshot", "save", str(snapshot))
    ref = InstanceRef("demo", "orders")
    await place(client, ref, m1=node.name)
    async with hub.agent(node) as stub:
        after = await eventually(lambda: poll(stub, node), lambda a: b"15001" in a.state_json, within=5)
        await write(client, txns.Put(keys.STORE_ID, (await client.get(keys.STORE_ID)).value))
        later = (await client.get(keys.STORE_ID)).mod_revision
        hub.kill()
        etcd.kill()
        restore(etcd, snapshot)
        await etcd.start()
        store_id = b"another life"
        await write(client, txns.Put(keys.STORE_ID, store_id))
        assert (await client.get(keys.STORE_ID)).mod_revision < later
        await hub.start()
        answer = await poll(stub, node, after)
        assert (answer.kind, answer.store_id) == (FULL, store_id.decode())
        assert json.loads(answer.state_json)["members"] == []
        assert (await poll(stub, node, answer, max_hold_ms=100)).kind == UNCHANGED


def etcdctl(etcd: EtcdProcess, *arguments: str) -> None:
    command = ["etcdctl", "--endpoints", etcd.endpoint, *arguments]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "ETCDCTL_API": "3"}, timeout=30)


def restore(etcd: EtcdProcess, snapshot) -> None:
    shutil.rmtree(etcd.root / etcd.name)
    peer = f"http://127.0.0.1:{etcd.peer_port}"
    where = ["--data-dir", str(etcd.root / etcd.name), "--name", etcd.name]
    etcdctl(
        etcd, "snapshot", "restore", str(snapshot), *where, "--initial-cluster", etcd.initial_cluster,
        "--initial-advertise-peer-urls", peer,
    )  # fmt: skip


async def test_without_etcd_polls_are_served_from_memory_and_writes_are_refused_as_unavailable(hub_of, etcd, client):
    hub = hub_of()
    await hub.start()
    node = await hub.enrol("n1")
    async with hub.agent(node) as stub:
        known = await poll(stub, node)
        etcd.kill()
        assert (await poll(stub, node)).kind == FULL
        assert (await poll(stub, node, known, max_hold_ms=100)).kind == UNCHANGED
        beat = await stub.Heartbeat(agent_pb2.HeartbeatRequest(node_id=node.name), timeout=2)
        assert beat.next_ms == 5000
        facts = agent_pb2.NodeFacts(address="127.0.0.1", peer_port=9)
        report = agent_pb2.ReportStatusRequest(node_id=node.name, facts=facts)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ReportStatus(report, timeout=15)
        assert refused.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        assert hub.running
        await etcd.start()
        await eventually(lambda: stub.ReportStatus(report, timeout=5), lambda _: True, within=15)


async def test_a_hub_whose_watch_is_refused_for_good_ends_rather_than_serve_the_past(hub_of, etcd):
    hub = hub_of()
    await hub.start()
    etcdctl(etcd, "user", "add", "root:secret")
    etcdctl(etcd, "user", "grant-role", "root", "root")
    etcdctl(etcd, "auth", "enable")
    etcd.kill()
    etcd.spawn()
    assert await hub.exited() in (1, 2)
    assert "etcd" in hub.tail(1)
    assert "Traceback" not in "".join(line for line in hub.tail(50).splitlines() if not line.startswith("{"))


async def test_health_says_serving_and_strangers_reach_only_the_operator_port(hub_of):
    hub = hub_of()
    await hub.start()
    assert await hub.health() == health_pb2.HealthCheckResponse.SERVING
    async with hub.operators_channel() as channel:
        stub = operator_pb2_grpc.OperatorServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.GetStatus(operator_pb2.GetStatusRequest(), timeout=5)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    async with hub.agent(None) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Poll(agent_pb2.PollRequest(node_id="n1"), timeout=2)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


# --- the hub's own line -----------------------------------------------------------------------------------------------


async def test_a_hub_publishes_whom_it_hears_writes_nothing_while_that_stays_so_on_a_short_lease(hub_of, client):
    hub = hub_of(heartbeat_idle_s=1, silent_after_s=3, lease_ttl_s=3)
    await hub.start()
    node = await hub.enrol("n1")
    async with hub.agent(node) as stub:

        async def beat() -> list[str] | None:
            await stub.Heartbeat(agent_pb2.HeartbeatRequest(node_id=node.name), timeout=5)
            record = await hub_record(client, "hub1")
            return record and record["nodes"]

        await eventually(beat, lambda heard: heard == ["n1"], within=5)
        record = await hub_record(client, "hub1")
        assert (record["agent_address"], record["operator_address"]) == (hub.agents_address, hub.operators_address)
        before = await client.newest_change(keys.ROOT)
        until = time.monotonic() + 2.5
        await eventually(beat, lambda _: time.monotonic() > until, within=5, every=0.5)
        assert await client.newest_change(keys.ROOT) == before
    await eventually(lambda: hub_record(client, "hub1"), lambda record: record["nodes"] == [], within=6)
    lease_id = (await client.get(keys.hub("hub1"))).lease_id
    assert 0 < await client.time_to_live(lease_id) <= 6


async def test_two_living_hubs_of_one_name_end_with_the_elder_giving_up(hub_of, tmp_path):
    elder, younger = hub_of("hub1"), hub_of("hub2")
    await elder.start()
    younger.config.write_text(younger.config.read_text().replace("name: hub2", "name: hub1"))
    await younger.start()
    node = await elder.enrol("n1")
    async with elder.agent(node) as stub:
        await stub.Heartbeat(agent_pb2.HeartbeatRequest(node_id=node.name), timeout=5)
        assert await elder.exited() == 4
    assert "another hub writes under this name" in elder.tail()
    assert younger.running


async def test_a_hub_that_stood_still_calls_nobody_silent_for_it(hub_of, client):
    hub = hub_of(heartbeat_idle_s=1, silent_after_s=3, lease_ttl_s=3)
    await hub.start()
    node = await hub.enrol("n1")
    async with hub.agent(node) as stub:
        request = agent_pb2.HeartbeatRequest(node_id=node.name)
        await stub.Heartbeat(request, timeout=5)
        os.kill(hub.pid, signal.SIGSTOP)
        beat = asyncio.ensure_future(stub.Heartbeat(request, timeout=20))
        await asyncio.wait([beat], timeout=4)
        os.kill(hub.pid, signal.SIGCONT)
        await beat
        await eventually(lambda: asyncio.to_thread(events_in, hub), lambda e: "hub_stood_still" in e, within=5)
        assert await client.get(keys.silent("n1")) is None


async def test_a_herd_of_agents_that_connect_at_one_moment_all_get_in(hub_of):
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    hub = hub_of()
    await hub.start()
    node = await hub.enrol("n1")
    options = (("grpc.use_local_subchannel_pool", 1),)

    async def beat(number: int) -> int:
        async with hub.agents_channel(node, options) as channel:
            request = agent_pb2.HeartbeatRequest(node_id="n1", boot_id=str(number), seq=1)
            answer = await agent_pb2_grpc.AgentServiceStub(channel).Heartbeat(request, timeout=20)
            return answer.next_ms

    answers = await asyncio.gather(*(beat(number) for number in range(1000)))
    assert all(answers)
