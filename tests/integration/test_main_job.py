"""The main job on real parts: etcd, hub, three agents, PostgreSQL, proxies, moorctl.

One cluster serves the whole module; each test leaves the instance Running.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil
import pytest
import pytest_asyncio

from tests.support.cluster import Cluster, running_cluster, short_root
from tests.support.waiting import eventually
from tests.support.writer import Writer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]
LEASE_TTL_S = 6.0


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def cluster() -> AsyncIterator[Cluster]:
    async with short_root("main") as root, running_cluster(root) as running:
        await running.create(mode="sync")
        yield running


@asynccontextmanager
async def writing(cluster: Cluster, table: str) -> AsyncIterator[Writer]:
    """A writer at work; at the end nothing that was acknowledged is missing."""
    writer = Writer(await cluster.dsn(), table=table)
    await writer.prepare()
    async with asyncio.TaskGroup() as group:
        group.create_task(writer.run())
        await acknowledged(writer, 20)
        yield writer
        await acknowledged(writer, len(writer.acknowledged) + 20)
        writer.stopping.set()
    assert await writer.lost() == []


async def acknowledged(writer: Writer, count: int, within: float = 40) -> None:
    async def look() -> int:
        return len(writer.acknowledged)

    await eventually(
        look, lambda seen: seen >= count, within=within, what=f"{count} writes; errors: {writer.errors[-3:]}"
    )


async def new_primary(cluster: Cluster, old: str, within: float = 40) -> str:
    return await eventually(cluster.primary_node, lambda node: node != old, within=within, every=0.2)


async def heal(cluster: Cluster) -> None:
    for agent in cluster.agents.values():
        if not agent.running():
            agent.start()
    await cluster.await_running(within=90)


async def test_writes_go_on_after_the_primarys_postmaster_is_killed(cluster: Cluster) -> None:
    old = await cluster.primary_node()
    async with writing(cluster, "crash") as writer:
        at = time.monotonic()
        os.kill(cluster.postmaster(old), signal.SIGKILL)
        await new_primary(cluster, old)
        await acknowledged(writer, len(writer.acknowledged) + 50)
    assert writer.longest_gap(at - 0.2) < LEASE_TTL_S, "an engine crash does not wait for the lease"
    await heal(cluster)


async def test_writes_go_on_after_the_primarys_node_is_lost(cluster: Cluster) -> None:
    old = await cluster.primary_node()
    async with writing(cluster, "loss") as writer:
        cluster.agents[old].kill_everything()
        await new_primary(cluster, old)
        await acknowledged(writer, len(writer.acknowledged) + 50)
    await heal(cluster)


async def test_switchover_moves_the_primary_and_loses_nothing(cluster: Cluster) -> None:
    old = await cluster.primary_node()
    async with writing(cluster, "planned") as writer:
        await cluster.actl("instance", "switchover", "demo/orders", "--no-wait")
        await new_primary(cluster, old)
        await acknowledged(writer, len(writer.acknowledged) + 50)
    await heal(cluster)


async def test_clients_notice_nothing_of_a_hub_that_is_away_for_half_a_minute(cluster: Cluster) -> None:
    async with writing(cluster, "hubless") as writer:
        errors = len(writer.errors)
        at = time.monotonic()
        cluster.hubs[0].kill()
        written = len(writer.acknowledged)
        # The outage itself is the case: it must last, whatever happens meanwhile.
        await asyncio.sleep(30)
        assert len(writer.acknowledged) > written + 1000
        await cluster.hubs[0].start()
        await cluster.await_running(within=60)
        await acknowledged(writer, len(writer.acknowledged) + 500)
        assert writer.errors[errors:] == []
        assert writer.longest_gap(at) < 1.5


async def test_an_agent_restart_cuts_no_session_and_makes_no_failover(cluster: Cluster) -> None:
    old = await cluster.primary_node()
    async with writing(cluster, "restart") as writer:
        errors = len(writer.errors)
        agent = cluster.agents[old]
        engine = cluster.postmaster(old)
        agent.kill()
        agent.start()
        await acknowledged(writer, len(writer.acknowledged) + 300)
        await cluster.await_running(within=30)
        assert writer.errors[errors:] == []
        assert cluster.postmaster(old) == engine
    assert await cluster.primary_node() == old


async def test_read_only_port_serves_replicas_and_refuses_writes(cluster: Cluster) -> None:
    connection = await cluster.connect(await cluster.dsn(read_only=True))
    async with connection:
        row = await (await connection.execute("SELECT pg_is_in_recovery()")).fetchone()
    assert row == (True,)


async def test_rolling_restart_restarts_every_engine(cluster: Cluster) -> None:
    before = {node: cluster.postmaster(node) for node in cluster.agents}
    await cluster.actl("instance", "restart", "demo/orders", "--wait", timeout=120)
    await cluster.await_running(within=60)
    after = {node: cluster.postmaster(node) for node in cluster.agents}
    assert all(before[node] != after[node] for node in before)


async def test_deletion_leaves_no_process_port_or_file_behind(cluster: Cluster) -> None:
    await cluster.create("demo/brief", replicas=1, mode="async")
    nodes = [member["node"] for member in (await cluster.status("demo/brief"))["members"]]
    dirs = [cluster.member_dir(node, "demo/brief") for node in nodes]
    pids = [cluster.postmaster(node, "demo/brief") for node in nodes]
    await cluster.actl("instance", "delete", "demo/brief", "--yes", "--wait", timeout=90)
    assert not [directory for directory in dirs if directory.exists()]
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
    left = await cluster.etcd_keys("/moorage/")
    assert not [key for key in left if "brief" in key and "/events/" not in key]


# --- reads ---------------------------------------------------------------------------------------------------------

READS = {
    "kind": "Instance",
    "project": "demo",
    "name": "reads",
    "engine_version": 15,
    "replicas": 1,
    "resources": {"cpu": 0.25, "memory": "256Mi", "disk": "1Gi"},
    "users": [{"name": "app"}],
    "databases": [{"name": "app", "owner": "app"}],
    "proxy": {
        "pooling": {"mode": "transaction"},
        "reads": {"lag_max_bytes": "1Mi"},
        "splitting": "statements",
        "splitting_functions": ["pg_is_in_recovery"],
    },
}


def replaying(cluster: Cluster, node: str) -> psutil.Process:
    """The process that replays the log."""
    children = psutil.Process(cluster.postmaster(node, "demo/reads")).children()
    return next(child for child in children if "startup" in " ".join(child.cmdline()))


async def at_replica(cluster: Cluster, *, read_only: bool) -> bool:
    """Where a client's read is answered."""
    async with await cluster.connect(await cluster.dsn("demo/reads", read_only=read_only)) as client:
        row = await (await client.execute("SELECT pg_is_in_recovery()")).fetchone()
    assert row is not None
    return bool(row[0])


async def answered(cluster: Cluster, *, replica: bool) -> None:
    for read_only in (True, False):
        await eventually(
            lambda read_only=read_only: at_replica(cluster, read_only=read_only),  # type: ignore[misc]
            lambda seen: seen is replica,
            within=20,
            every=0.2,
            what=f"reads at the {'replica' if replica else 'primary'} (read-only port: {read_only})",
        )


async def test_a_replica_that_falls_behind_takes_no_reads_until_it_has_caught_up(cluster: Cluster) -> None:
    """Neither those of the read-only port nor those that are split off."""
    await asyncio.to_thread(cluster.ctl, "apply", "-f", "-", "--wait", input=json.dumps(READS))
    status = await cluster.await_running("demo/reads")
    await answered(cluster, replica=True)
    (node,) = [one["node"] for one in status["members"] if one["name"] != status["primary"]]
    startup = replaying(cluster, node)
    startup.suspend()
    try:
        async with await cluster.connect(await cluster.dsn("demo/reads")) as client:
            await client.execute("CREATE TABLE big AS SELECT repeat(md5(n::text), 9) FROM generate_series(1, 9000) n")
        await answered(cluster, replica=False)
    finally:
        startup.resume()
    await answered(cluster, replica=True)
    await cluster.actl("instance", "delete", "demo/reads", "--yes", "--wait", timeout=90)
