"""What operators ask about leadership, on a whole Moorage: tags, switchover at a time, pause, forced failover, and the
history that tells of all of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from tests.support.cluster import INSTANCE, Cluster, running_cluster, short_root
from tests.support.waiting import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def cluster() -> AsyncIterator[Cluster]:
    async with short_root("wish") as root, running_cluster(root) as running:
        await running.create(mode="sync")
        yield running


async def history(cluster: Cluster) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(await cluster.actl("instance", "history", INSTANCE, "-o", "json"))
    return found


async def leads(cluster: Cluster, member: str, within: float = 30) -> dict[str, Any]:
    """The status once `member` leads and all is well."""
    return await eventually(
        cluster.status,
        lambda status: status["primary"] == member and status["phase"] == "Running",
        within=within,
        every=0.3,
        what=f"{member} leads",
    )


async def apply_members(cluster: Cluster, members: dict[str, Any]) -> None:
    """The instance's document again, with other tags."""
    document = {**(await cluster.show())["spec"], "members": members}
    file = cluster.root / "orders.yaml"
    await asyncio.to_thread(Path(file).write_text, yaml.safe_dump(document))
    await cluster.actl("apply", "-f", str(file), "--timeout", "60")


async def member_that_must_not_lead_is_refused_as_target_and_shown(cluster: Cluster) -> None:
    await apply_members(cluster, {"m3": {"no_failover": True, "no_load_balance": True}, "m2": {"priority": 10}})
    shown = await cluster.actl("instance", "show", INSTANCE)
    assert "no_failover no_load_balance" in shown
    assert "priority=10" in shown
    refused = await asyncio.to_thread(cluster.ctl_result, "instance", "switchover", INSTANCE, "--to", "m3")
    assert refused.returncode == 4
    assert "m3 is marked never to become primary" in refused.stderr
    status = await eventually(
        cluster.status, lambda status: status["ha"]["sync"]["names"] == ["m2"], within=20, what="m3 is out"
    )
    assert status["phase"] == "Running"


async def reads_spare_a_marked_replica(cluster: Cluster) -> None:
    dsn = await cluster.dsn(read_only=True)
    ports = set()
    for _ in range(6):
        async with await cluster.connect(dsn) as connection:
            row = await (await connection.execute("select host(inet_server_addr())")).fetchone()
            assert row is not None
            ports.add(row[0])
    assert ports == {"127.0.0.12"}


async def member_streams_from_the_one_it_is_told_to(cluster: Cluster) -> None:
    await apply_members(cluster, {"m3": {"upstream": "m2"}})
    status = await eventually(
        cluster.status,
        lambda status: status["members"][2]["streaming_from"] == "m2" and status["phase"] == "Running",
        within=30,
        what="m3 streams from m2",
    )
    assert status["members"][2]["tags"] == {"upstream": "m2"}
    assert status["ha"]["sync"]["names"] == ["m2"]


async def switchover_comes_at_its_time_and_its_history_tells_each_step(cluster: Cluster) -> None:
    await apply_members(cluster, {})
    term = (await cluster.status())["ha"]["term"]
    told = await cluster.actl("instance", "switchover", INSTANCE, "--to", "m2", "--at", "+2s")
    assert "switchover to m2 at" in told
    await leads(cluster, "m2")
    lines = [entry for entry in await history(cluster) if entry["term"] >= term]
    by_kind = {(entry["kind"], entry["term"]): entry for entry in lines}
    released, led = by_kind["released", term], by_kind["led", term + 1]
    assert "stopped" in {step["name"] for step in released["steps"]}
    assert (led["member"], led["loss"]) == ("m2", "none")
    events = [json.loads(line) for line in (await cluster.actl("event", "list", "-o", "json")).splitlines()]
    at = next(n for n, event in enumerate(events) if event["event"] == "switchover_scheduled")
    names = [event["event"] for event in events[at:] if event["object"] == INSTANCE]
    assert names[:2] == ["switchover_scheduled", "switchover_requested"]
    assert "instance_degraded" not in names  # what was asked for is no trouble


async def switchover_that_is_waited_for_tells_how_long_clients_were_held(cluster: Cluster) -> None:
    told = json.loads(await cluster.actl("instance", "switchover", INSTANCE, "--to", "m1", "-o", "json"))
    assert (told["from"], told["to"]) == ("m2", "m1")
    assert 0 < told["held_s"] < 10
    page = await cluster.actl("instance", "history", INSTANCE)
    assert max(len(line) for line in page.splitlines()) <= 80
    assert "m1 took the leadership" in page
    assert "  lost    nothing that was acknowledged" in page


async def while_failover_is_paused_a_crashed_primary_stays_where_it_is(cluster: Cluster) -> None:
    await leads(cluster, "m1")
    await cluster.actl("instance", "pause", INSTANCE, "--reason", "new disks")
    assert "automatic failover is paused by admin" in await cluster.actl("status")
    os.kill(cluster.postmaster("n1"), signal.SIGKILL)
    down = await eventually(cluster.status, lambda s: s["phase"] != "Running", within=20, every=0.05)
    assert down["ha"]["paused"]
    await leads(cluster, "m1", within=60)
    await cluster.actl("instance", "resume", INSTANCE)
    assert [entry["kind"] for entry in await history(cluster) if entry["kind"] in ("paused", "resumed")] == [
        "paused",
        "resumed",
    ]


async def primary_that_still_runs_is_stopped_before_the_forced_one_leads(cluster: Cluster) -> None:
    await leads(cluster, "m1")
    term = (await cluster.status())["ha"]["term"]
    told = await cluster.actl("instance", "failover", INSTANCE, "--to", "m2", "--force", "--yes")
    assert f"moorctl instance switchover {INSTANCE} --to m2" in told  # which would have lost nothing
    assert told.endswith("instance demo/orders: m2 is primary\n")
    await leads(cluster, "m2")
    kinds = [(one["kind"], one["member"]) for one in await history(cluster) if one["term"] in (term, term + 1)]
    assert kinds.index(("ordered", "m2")) < kinds.index(("released", "m1")) < kinds.index(("forced", "m2"))
    await cluster.actl("instance", "switchover", INSTANCE, "--to", "m1")


async def forced_failover_brings_back_what_no_election_can(cluster: Cluster) -> None:
    """The primary and the only member that confirmed its commits are lost together."""
    await leads(cluster, "m1")
    status = await eventually(cluster.status, lambda s: len(s["ha"]["sync"]["names"]) == 1, within=20)
    (confirmed,) = status["ha"]["sync"]["names"]
    (left,) = {"m1", "m2", "m3"} - {"m1", confirmed}
    for member in ("m1", confirmed):
        cluster.agents[f"n{member[1]}"].kill_everything()
    stuck = await eventually(
        cluster.status,
        lambda s: any(c["reason"] == "ElectionStuck" for c in s["conditions"]),
        within=60,
        every=0.3,
        what="the election is stuck and says so",
    )
    told = next(c["message"] for c in stuck["conditions"] if c["reason"] == "ElectionStuck")
    assert f"missing: {confirmed}" in told
    assert f"moorctl instance failover {INSTANCE}" in told

    plan = await asyncio.to_thread(cluster.ctl_result, "instance", "failover", INSTANCE, "-o", "json")
    assert plan.returncode == 2
    found = json.loads(plan.stdout)
    assert (found["target"], found["loss"], found["primary_alive"]) == (left, "possible", False)

    done = json.loads(await cluster.actl("instance", "failover", INSTANCE, "--force", "--yes", "-o", "json"))
    assert done["to"] == left
    kinds = [(entry["kind"], entry["member"]) for entry in await history(cluster)][-3:]
    assert ("ordered", left) in kinds
    assert ("forced", left) in kinds
    shown = await cluster.status()
    assert (shown["primary"], shown["ha"]["forced"]) == (left, None)


@pytest.mark.timeout(600)
async def test_what_operators_wish_of_a_cluster_comes_true(cluster: Cluster) -> None:
    """One story on one cluster: each wish begins where the last one ended."""
    await member_that_must_not_lead_is_refused_as_target_and_shown(cluster)
    await reads_spare_a_marked_replica(cluster)
    await member_streams_from_the_one_it_is_told_to(cluster)
    await switchover_comes_at_its_time_and_its_history_tells_each_step(cluster)
    await switchover_that_is_waited_for_tells_how_long_clients_were_held(cluster)
    await while_failover_is_paused_a_crashed_primary_stays_where_it_is(cluster)
    await primary_that_still_runs_is_stopped_before_the_forced_one_leads(cluster)
    await forced_failover_brings_back_what_no_election_can(cluster)
