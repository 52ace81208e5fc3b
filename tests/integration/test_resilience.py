"""Parts that die at bad moments: nothing is lost, everything converges."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import psycopg
import pytest
import pytest_asyncio

from tests.support.agent import AgentProcess
from tests.support.cluster import Cluster, running_cluster, short_root
from tests.support.waiting import eventually
from tests.support.writer import Writer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def cluster() -> AsyncIterator[Cluster]:
    async with short_root("resil") as root, running_cluster(root, hubs=2) as running:
        yield running


async def create_without_waiting(cluster: Cluster, name: str, *, replicas: int = 2) -> None:
    small = ["--memory", "256Mi", "--disk", "1Gi", "--cpu", "0.1", "--mode", "sync"]
    await cluster.actl("instance", "create", name, "--replicas", str(replicas), "--create-project", *small, "--no-wait")


async def member_count(cluster: Cluster, name: str) -> int:
    return len((await cluster.status(name))["members"])


def proxy_pid(agent: AgentProcess) -> int:
    return int(next(agent.data_root.glob("proxy/proxy-*.pid")).read_text().split()[0])


async def drop(cluster: Cluster, name: str) -> None:
    await cluster.actl("instance", "delete", name, "--yes", "--wait", timeout=90)


async def test_etcd_killed_while_an_instance_is_being_created_converges(cluster: Cluster) -> None:
    await create_without_waiting(cluster, "demo/etcdless")
    await eventually(lambda: member_count(cluster, "demo/etcdless"), lambda count: count == 3, within=20, every=0.1)
    cluster.etcd.kill()
    await cluster.etcd.start()
    await cluster.await_running("demo/etcdless", within=90)
    await drop(cluster, "demo/etcdless")


async def test_both_hubs_killed_while_an_instance_is_being_created_converges(cluster: Cluster) -> None:
    await create_without_waiting(cluster, "demo/hubless")
    await eventually(lambda: member_count(cluster, "demo/hubless"), lambda count: count == 3, within=20, every=0.1)
    for hub in cluster.hubs:
        hub.kill()
    for hub in cluster.hubs:
        await hub.start()
    await cluster.await_running("demo/hubless", within=90)
    await drop(cluster, "demo/hubless")


async def test_every_agent_killed_while_an_instance_is_being_created_converges(cluster: Cluster) -> None:
    await create_without_waiting(cluster, "demo/agentless")
    await eventually(lambda: member_count(cluster, "demo/agentless"), lambda count: count == 3, within=20, every=0.1)

    async def begun() -> bool:
        return any(agent.data_root.glob("members/demo.agentless.*/*") for agent in cluster.agents.values())

    await eventually(begun, within=20, every=0.02)
    for agent in cluster.agents.values():
        agent.kill()
    for agent in cluster.agents.values():
        agent.start()
    await cluster.await_running("demo/agentless", within=90)
    await drop(cluster, "demo/agentless")


async def test_one_of_two_hubs_dies_and_its_twin_carries_on_with_nothing_lost(cluster: Cluster) -> None:
    await cluster.create("demo/twins", mode="sync")
    writer = Writer(await cluster.dsn("demo/twins"))
    await writer.prepare()
    async with asyncio.TaskGroup() as group:
        group.create_task(writer.run())

        async def written() -> int:
            return len(writer.acknowledged)

        await eventually(written, lambda count: count > 50, within=20)
        cluster.hubs[0].kill()
        # The twin must do everything alone: an engine crash is handled through it.
        old = await cluster.primary_node("demo/twins")
        os.kill(cluster.postmaster(old, "demo/twins"), signal.SIGKILL)
        await eventually(
            lambda: cluster.primary_node("demo/twins"), lambda node: node != old, within=40, every=0.3, what="failover"
        )
        count = len(writer.acknowledged)
        await eventually(written, lambda seen: seen > count + 100, within=20)
        await cluster.await_running("demo/twins", within=60)
        writer.stopping.set()
    assert await writer.lost() == []
    await cluster.hubs[0].start()
    await drop(cluster, "demo/twins")


async def test_etcd_away_for_a_while_is_not_noticed_by_clients(cluster: Cluster) -> None:
    await cluster.create("demo/calm", mode="sync")
    writer = Writer(await cluster.dsn("demo/calm"))
    await writer.prepare()
    async with asyncio.TaskGroup() as group:
        group.create_task(writer.run())

        async def written() -> int:
            return len(writer.acknowledged)

        await eventually(written, lambda count: count > 50, within=20)
        cluster.etcd.kill()
        # The outage itself is the case: longer than the lease.
        await asyncio.sleep(12)
        count = len(writer.acknowledged)
        await cluster.etcd.start()
        await eventually(written, lambda seen: seen > count + 300, within=30)
        await cluster.await_running("demo/calm", within=60)
        writer.stopping.set()
    assert writer.errors == []
    assert await writer.lost() == []
    await drop(cluster, "demo/calm")


async def hands_over(cluster: Cluster, node: str, name: str) -> bool:
    lines = cluster.agents[node].log.read_text(errors="replace").splitlines()
    return any("operation_started" in line and "handover" in line and name in line for line in lines)


async def test_clients_notice_nothing_of_a_switchover_but_a_short_pause(cluster: Cluster) -> None:
    await cluster.create("demo/moved", mode="sync")
    dsn = await cluster.dsn("demo/moved")
    writer = Writer(dsn)
    await writer.prepare()
    async with asyncio.TaskGroup() as group:
        group.create_task(writer.run())

        async def written() -> int:
            return len(writer.acknowledged)

        await eventually(written, lambda count: count > 50, within=20)
        old = await cluster.primary_node("demo/moved")
        async with await cluster.connect(dsn) as client:
            async with client.transaction():
                await client.execute("CREATE TABLE kept (n int)")
                await cluster.actl("instance", "switchover", "demo/moved", "--no-wait")
                await eventually(lambda: hands_over(cluster, old, "demo/moved"), within=20, every=0.05, what="handover")
                # It is waited for: what was begun may end.
                await client.execute("INSERT INTO kept VALUES (1)")
            rows = await (await client.execute("SELECT n FROM kept")).fetchall()
            assert rows == [(1,)]
            await eventually(
                lambda: cluster.primary_node("demo/moved"), lambda node: node != old, within=20, every=0.3, what="move"
            )
            rows = await (await client.execute("SELECT n FROM kept")).fetchall()
            assert rows == [(1,)]
        count = len(writer.acknowledged)
        await eventually(written, lambda seen: seen > count + 20, within=20)
        writer.stopping.set()
    assert writer.errors == []
    assert await writer.lost() == []
    await drop(cluster, "demo/moved")


async def test_an_engine_that_is_killed_while_it_hands_over_is_followed_by_an_election_and_loses_nothing(
    cluster: Cluster,
) -> None:
    """It did not end in good order, so its last checkpoint is no measure of what the target must have."""
    await cluster.create("demo/broken", mode="sync")
    dsn = await cluster.dsn("demo/broken")
    writer = Writer(dsn)
    await writer.prepare()
    async with asyncio.TaskGroup() as group:
        group.create_task(writer.run())

        async def written() -> int:
            return len(writer.acknowledged)

        await eventually(written, lambda count: count > 50, within=20)
        old = await cluster.primary_node("demo/broken")
        client = await cluster.connect(dsn)
        await client.execute("BEGIN")  # until it ends the handover waits with the stop
        await client.execute("SELECT 1")
        await cluster.actl("instance", "switchover", "demo/broken", "--no-wait")
        await eventually(lambda: hands_over(cluster, old, "demo/broken"), within=20, every=0.05, what="handover")
        os.kill(cluster.postmaster(old, "demo/broken"), signal.SIGKILL)
        count = len(writer.acknowledged)
        await eventually(written, lambda seen: seen > count + 50, within=30)
        await cluster.await_running("demo/broken", within=60)
        await client.close()
        writer.stopping.set()
    assert await writer.lost() == []
    assert any("handover_ended" in line for line in cluster.agents[old].log.read_text(errors="replace").splitlines())
    assert (await cluster.status("demo/broken"))["ha"]["switchover"] is None
    await drop(cluster, "demo/broken")


async def test_a_member_cut_off_while_its_instance_is_deleted_goes_when_its_agent_returns(cluster: Cluster) -> None:
    await cluster.create("demo/straggler", replicas=2, mode="async")
    status = await cluster.status("demo/straggler")
    node = next(member["node"] for member in status["members"] if member["name"] != status["primary"])
    directory = cluster.member_dir(node, "demo/straggler")
    cluster.agents[node].kill()
    await cluster.actl("instance", "delete", "demo/straggler", "--yes", "--no-wait")
    await eventually(
        lambda: member_count(cluster, "demo/straggler"), lambda count: count >= 1, within=10, what="deletion waits"
    )
    assert directory.exists()
    cluster.agents[node].start()

    async def gone() -> bool:
        return not directory.exists() and cluster.ctl_result("instance", "show", "demo/straggler").returncode == 3

    await eventually(gone, within=60, every=0.5, what="the straggler is deleted too")


async def test_a_proxy_that_is_killed_is_started_again_and_lets_clients_in(cluster: Cluster) -> None:
    await cluster.create("demo/entry", replicas=1, mode="async")
    dsn = await cluster.dsn("demo/entry")
    pids = {node: proxy_pid(agent) for node, agent in cluster.agents.items()}
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)

    async def connected() -> bool:
        async with await cluster.connect(dsn) as connection:
            return (await (await connection.execute("SELECT 1")).fetchone()) == (1,)

    async def tried() -> bool:
        try:
            return await connected()
        except psycopg.OperationalError:
            return False

    await eventually(tried, within=20, every=0.2, what="a client is let in by a new proxy")

    async def all_new() -> bool:
        return all(proxy_pid(cluster.agents[node]) != pids[node] for node in pids)

    await eventually(all_new, within=20, what="every node has a new proxy")
    await drop(cluster, "demo/entry")
