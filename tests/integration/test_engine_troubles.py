"""Engines in trouble, in a whole cluster: members heal themselves where they can; where not, it is said what to do."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.support.cluster import Cluster, running_cluster, short_root
from tests.support.mounts import Mount, may_mount
from tests.support.waiting import eventually
from tests.support.writer import Writer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]
MIB = 1 << 20


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def disks() -> AsyncIterator[dict[str, Mount]]:
    """By node; filled by `cluster`, taken off after its end."""
    made: dict[str, Mount] = {}
    yield made
    for disk in made.values():
        disk.close()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def cluster(disks: dict[str, Mount]) -> AsyncIterator[Cluster]:
    """The members of each node on a disk of their own, which can be frozen; the agent's own files are not on it."""
    async with short_root("troub") as root, AsyncExitStack() as stack:
        running = await stack.enter_async_context(running_cluster(root))
        for node, agent in running.agents.items() if may_mount() else ():
            image = root / f"{node}.img"
            disks[node] = Mount.block_device(agent.data_root / "members", size_bytes=1500 * MIB, image=image)
        yield running
        await stack.aclose()
        for disk in disks.values():
            disk.close()
        disks.clear()


async def _events(cluster: Cluster, name: str) -> list[dict[str, Any]]:
    lines = await cluster.actl("event", "list", "--object", name, "--limit", "500", "-o", "json")
    events: list[dict[str, Any]] = [json.loads(line) for line in lines.splitlines()] if lines.strip() else []
    flat = [event for entry in events for event in (entry if isinstance(entry, list) else [entry])]
    return [event for event in flat if str(event.get("object", "")).startswith(name)]


def _condition(status: dict[str, Any], type_: str) -> dict[str, Any]:
    return next(condition for condition in status["conditions"] if condition["type"] == type_)


async def _member(cluster: Cluster, name: str, member: str) -> dict[str, Any]:
    status = await cluster.status(name)
    found: dict[str, Any] = next(m for m in status["members"] if m["name"] == member)
    return found


def _starts(cluster: Cluster, node: str, name: str) -> int:
    logs = cluster.member_dir(node, name).glob("log/engine-*.log")
    return sum(log.read_text(errors="replace").count("starting PostgreSQL") for log in logs)


def _damage(cluster: Cluster, node: str, name: str) -> None:
    """Kill the engine and zero its log before the agent can start it again."""
    wal = cluster.member_dir(node, name) / "data" / "pg_wal"
    agent = cluster.agents[node]
    os.kill(agent.pid, signal.SIGSTOP)
    os.kill(cluster.postmaster(node, name), signal.SIGKILL)
    for segment in wal.glob("0000000?0*"):
        segment.write_bytes(bytes(16 * MIB))
    os.kill(agent.pid, signal.SIGCONT)


async def test_replica_with_damaged_data_copies_itself_anew(cluster: Cluster) -> None:
    name = "demo/corrupt"
    await cluster.create(name, replicas=1)
    status = await cluster.await_running(name)
    replica = next(m for m in status["members"] if m["name"] != status["primary"])
    data = cluster.member_dir(replica["node"], name) / "data"
    before = (data / "PG_VERSION").stat().st_ino
    os.kill(cluster.postmaster(replica["node"], name), signal.SIGKILL)
    shutil.rmtree(data / "global")
    await eventually(_copied(data, before), within=30)
    await cluster.await_running(name)
    reasons = [
        event["message"].split(":")[0] for event in await _events(cluster, name) if event["event"] == "trouble_met"
    ]
    assert "DataIncomplete" in reasons
    await cluster.actl("instance", "delete", name, "--yes", "--wait", timeout=90)


def _written(writer: Writer, count: int) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return len(writer.acknowledged) >= count

    return look


def _copied(data: Path, before: int) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return (data / "PG_VERSION").stat().st_ino != before and (data / "global" / "pg_control").exists()

    return look


async def test_primary_with_damaged_data_gives_the_leadership_up_and_comes_back_with_its_data_kept(
    cluster: Cluster,
) -> None:
    name = "demo/damaged"
    await cluster.create(name, replicas=1)
    status = await cluster.await_running(name)
    old = status["primary"]
    node = await cluster.primary_node(name)
    _damage(cluster, node, name)
    await eventually(lambda: cluster.status(name), lambda s: s["primary"] not in ("", old), within=40, every=0.3)
    await cluster.await_running(name)
    told = await eventually(
        lambda: _events(cluster, name), lambda all_: any(e["event"] == "rejoined" for e in all_), within=10
    )
    rejoined = next(event for event in told if event["event"] == "rejoined")
    assert "cloned from" in rejoined["message"] or "rewound" in rejoined["message"]
    await cluster.actl("instance", "delete", name, "--yes", "--wait", timeout=90)


async def test_sole_member_with_damaged_data_stops_trying_and_says_so_until_it_is_told_to_try_again(
    cluster: Cluster,
) -> None:
    name = "demo/alone"
    await cluster.create(name, replicas=0, mode="async")
    await cluster.await_running(name)
    node = await cluster.primary_node(name)
    data = cluster.member_dir(node, name) / "data"
    os.kill(cluster.agents[node].pid, signal.SIGSTOP)
    os.kill(cluster.postmaster(node, name), signal.SIGKILL)
    (data / "pg_wal").rename(data / "pg_lost")
    os.kill(cluster.agents[node].pid, signal.SIGCONT)
    status = await eventually(
        lambda: cluster.status(name),
        lambda s: "not started again before" in _condition(s, "PrimaryAvailable")["message"],
        within=40,
        every=0.3,
    )
    assert status["phase"] == "Degraded"
    told = _condition(status, "PrimaryAvailable")
    assert told["reason"] == "DataIncomplete"
    assert "pg_wal" in told["message"]
    starts = _starts(cluster, node, name)
    (data / "pg_lost").rename(data / "pg_wal")
    await cluster.actl("instance", "restart", name, "--no-wait")
    await cluster.await_running(name)
    assert _starts(cluster, node, name) > starts
    await cluster.actl("instance", "delete", name, "--yes", "--wait", timeout=90)


async def test_engine_whose_directory_was_taken_is_named_and_starts_by_itself_when_it_is_given_back(
    cluster: Cluster,
) -> None:
    name = "demo/taken"
    await cluster.create(name, replicas=0, mode="async")
    await cluster.await_running(name)
    node = await cluster.primary_node(name)
    data = cluster.member_dir(node, name) / "data"
    data.chmod(0o777)
    os.kill(cluster.postmaster(node, name), signal.SIGKILL)
    status = await eventually(
        lambda: cluster.status(name),
        lambda s: _condition(s, "PrimaryAvailable")["reason"] == "DataPermissions",
        within=30,
        every=0.3,
    )
    assert "chmod 700" in _condition(status, "PrimaryAvailable")["message"]
    data.chmod(0o700)
    await cluster.await_running(name, within=20)
    events = [event["event"] for event in await _events(cluster, name)]
    assert "trouble_met" in events
    await eventually(
        lambda: _events(cluster, name), lambda all_: any(e["event"] == "trouble_ended" for e in all_), within=10
    )
    await cluster.actl("instance", "delete", name, "--yes", "--wait", timeout=90)


async def test_primary_on_a_disk_that_hangs_is_replaced_and_loses_no_acknowledged_write(
    cluster: Cluster, disks: dict[str, Mount]
) -> None:
    if not may_mount():
        pytest.skip("needs to be root and to mount file systems")
    name = "demo/frozen"
    await cluster.create(name, replicas=2)
    status = await cluster.await_running(name)
    node, old = await cluster.primary_node(name), status["primary"]
    disk = disks[node]
    writer = Writer(await cluster.dsn(name))
    await writer.prepare()
    writing = asyncio.create_task(writer.run())
    await eventually(_written(writer, 50), within=20)
    began = time.monotonic()
    disk.freeze()
    try:
        await eventually(lambda: cluster.status(name), lambda s: s["primary"] not in ("", old), within=25, every=0.1)
        changed_s = time.monotonic() - began
        await eventually(_written(writer, len(writer.acknowledged) + 50), within=20)
    finally:
        disk.thaw()
    gap_s = writer.gap_after(began + 1.0)
    print(f"disk frozen: another primary was told after {changed_s:.1f} s, writes went on after {gap_s:.1f} s")
    assert gap_s < 15
    await cluster.await_running(name, within=60)
    writer.stopping.set()
    await writing
    assert await writer.lost() == []
    events = await _events(cluster, name)
    assert any("DiskSilent" in event["message"] for event in events), events
    await cluster.actl("instance", "delete", name, "--yes", "--wait", timeout=90)
