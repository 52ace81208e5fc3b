"""What one hub process carries: N simulated agents over mTLS, each with a held poll and a heartbeat every 5 seconds.

Measured: memory and CPU of the hub per agent, how fast one changed member reaches its agent (from before the etcd put),
how long until all agents are answered again after a kill -9 of the hub, and whether any was called silent by that.
The load generator shares the machine: with two cores the latencies are pessimistic.

    ./dev bench hub_scale [--agents 1000] [--json FILE]
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field

import grpc
import grpc.aio
import psutil

from core.ids import InstanceRef, MemberName, MemberRef
from core.records import MemberDesired, to_json
from hub.etcd import keys, txns
from hub.etcd.client import EtcdClient
from protos.v1 import agent_pb2 as pb
from protos.v1.agent_pb2_grpc import AgentServiceStub
from tests.support.bench import Rows, parser, percentile
from tests.support.cluster import short_root
from tests.support.etcd import EtcdProcess
from tests.support.hub import SERVER_NAME, HubProcess, NodeIdentity
from tests.support.waiting import eventually

HEARTBEAT_S = 5.0
IDLE_S = 20.0
WAKES = 200
CHANNEL = (
    *SERVER_NAME,
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.min_reconnect_backoff_ms", 10000),
)


@dataclass(slots=True)
class SimulatedAgent:
    """The wire behaviour of an agent, nothing else."""

    identity: NodeIdentity
    hub: HubProcess
    store_id: str = ""
    revision: int = 0
    heard_at: float = 0.0  # monotonic; last answered heartbeat
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    seq: int = 0

    async def run(self) -> None:
        credentials = grpc.ssl_channel_credentials(
            self.hub.ca_pem, private_key=self.identity.key_pem, certificate_chain=self.identity.certificate_pem
        )
        async with grpc.aio.secure_channel(self.hub.agents_address, credentials, options=CHANNEL) as channel:
            stub = AgentServiceStub(channel)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._poll(stub))
                group.create_task(self._beat(stub))

    async def _poll(self, stub: AgentServiceStub) -> None:
        while True:
            request = pb.PollRequest(
                node_id=self.identity.name,
                store_id=self.store_id,
                known_revision=self.revision,
                protocol_version=1,
            )
            try:
                answer = await stub.Poll(request, timeout=65, wait_for_ready=True)
            except grpc.aio.AioRpcError:
                await asyncio.sleep(random.uniform(0, 1))
                continue
            if answer.kind == pb.PollResponse.KIND_FULL:
                self.store_id, self.revision = answer.store_id, answer.revision
                self.woken.set()
            await asyncio.sleep(answer.retry_after_ms / 1000)

    async def _beat(self, stub: AgentServiceStub) -> None:
        pause_s = random.uniform(0, HEARTBEAT_S)
        while True:
            await asyncio.sleep(pause_s)
            self.seq += 1
            request = pb.HeartbeatRequest(node_id=self.identity.name, boot_id="b", seq=self.seq, cpu_used=0.1)
            try:
                await stub.Heartbeat(request, timeout=3)
                self.heard_at = time.monotonic()
                pause_s = HEARTBEAT_S
            except grpc.aio.AioRpcError:
                pause_s = random.uniform(0.2, 1.0)


async def enrol_all(hub: HubProcess, count: int) -> list[NodeIdentity]:
    """Nodes a1..aN by real enrolment, a few at a time."""
    gate = asyncio.Semaphore(16)

    async def one(number: int) -> NodeIdentity:
        async with gate:
            return await hub.enrol(f"a{number}", "127.0.0.1")

    return list(await asyncio.gather(*(one(number) for number in range(count))))


async def all_heard(agents: list[SimulatedAgent], since: float, within: float) -> float:
    """Seconds from `since` until every agent has had an answer after it."""

    async def missing() -> int:
        return sum(agent.heard_at < since for agent in agents)

    await eventually(missing, lambda count: count == 0, within=within, what="all agents answered")
    return max(agent.heard_at for agent in agents) - since


async def wake_times(etcd: EtcdClient, agents: list[SimulatedAgent]) -> list[float]:
    """Milliseconds from just before a member's put to its agent having the new state."""
    times = []
    for number in range(WAKES):
        agent = random.choice(agents)
        ref = MemberRef(InstanceRef("bench", "b"), MemberName("m1"))
        key = keys.member(agent.identity.name, ref)
        known = await etcd.get(key)
        desired = MemberDesired(
            project="bench", instance="b", member="m1", node=agent.identity.name, generation=number + 1
        )
        agent.woken.clear()
        started = time.monotonic()
        await etcd.commit(txns.put_if(key, to_json(desired), revision=known.mod_revision if known else 0))
        async with asyncio.timeout(10):
            await agent.woken.wait()
        times.append((time.monotonic() - started) * 1000)
        await etcd.delete_prefix(keys.MEMBERS)
        await asyncio.sleep(0.02)
    return times


async def measure(hub: HubProcess, etcd: EtcdProcess, count: int, rows: Rows) -> None:
    system, case = "moorage-hub", f"{count}_agents_mtls"
    base = psutil.Process(hub.pid).memory_info().rss
    identities = await enrol_all(hub, count)
    await hub.restart()
    base = psutil.Process(hub.pid).memory_info().rss
    agents = [SimulatedAgent(identity, hub) for identity in identities]
    client = EtcdClient([etcd.endpoint])
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(agent.run()) for agent in agents]
        await all_heard(agents, time.monotonic() - 1, within=60)
        process = psutil.Process(hub.pid)
        await asyncio.sleep(2)
        before, started = process.cpu_times(), time.monotonic()
        await asyncio.sleep(IDLE_S)
        after, elapsed = process.cpu_times(), time.monotonic() - started
        cpu = (after.user + after.system - before.user - before.system) / elapsed
        rows.add(case, system, "cpu_of_a_core", "%", 100 * cpu)
        rows.add(case, system, "memory_per_agent", "KB", (process.memory_info().rss - base) / count / 1000)
        rows.add(case, system, "memory_total", "MB", process.memory_info().rss / 1e6)
        times = await wake_times(client, agents)
        rows.add(case, system, "wake_p50", "ms", percentile(times, 0.5))
        rows.add(case, system, "wake_p99", "ms", percentile(times, 0.99))
        hub.kill()
        killed = time.monotonic()
        hub.spawn()
        rows.add(case, system, "all_back_after_kill", "s", await all_heard(agents, killed, within=60))
        silent, _ = await client.list(keys.SILENT)
        rows.add(case, system, "falsely_silent_nodes", "count", len(silent))
        for task in tasks:
            task.cancel()
    await client.aclose()


async def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--agents", type=int, default=1000)
    options = arguments.parse_args()
    rows = Rows(options.json)
    async with short_root("scale") as root, EtcdProcess.running() as etcd:
        hub = HubProcess(root / "hub1", etcd.endpoint, log_level="warning")
        await hub.start()
        try:
            await measure(hub, etcd, options.agents, rows)
        finally:
            hub.kill()
    rows.finish()


if __name__ == "__main__":
    asyncio.run(main())
