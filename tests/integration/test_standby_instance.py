"""A standby instance: two members follow a real PostgreSQL that is none of them, take over from each other, and are
promoted."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from tests.support.cluster import Cluster, running_cluster, short_root
from tests.support.proxy import Server, running_servers
from tests.support.waiting import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]

NAME = "demo/copy"
SECRET = "follow-me"
PASSWORD = SECRET + ":\\1"  # with what a password file must escape


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def cluster() -> AsyncIterator[Cluster]:
    async with short_root("stand") as root, running_cluster(root, nodes=2) as running:
        yield running


@pytest.fixture(scope="module")
def remote() -> Any:
    with running_servers("far") as servers:
        (server,) = servers
        with (server.data / "pg_hba.conf").open("a") as rules:
            rules.write("host replication follower 127.0.0.0/8 scram-sha-256\n")
        server.value(f"CREATE ROLE follower LOGIN REPLICATION PASSWORD '{PASSWORD}'")
        server.value("SELECT pg_create_physical_replication_slot('copy')")
        server.value("ALTER ROLE app PASSWORD 'at-the-remote'")
        server.value("SELECT pg_reload_conf()")
        yield server


def document(remote: Server, *, password: str | None = PASSWORD, standby: bool = True) -> dict[str, Any]:
    follows = {"hosts": [f"127.0.0.1:{remote.port}"], "user": "follower", "slot": "copy"}
    return {
        "kind": "Instance",
        "project": "demo",
        "name": "copy",
        "engine_version": 15,
        "replicas": 1,
        "replication": {"mode": "sync"},
        "resources": {"cpu": 0.25, "memory": "256Mi", "disk": "1Gi"},
        "users": [{"name": "app"}],
        "databases": [{"name": "orders", "owner": "app"}],
        "standby": {**follows, **({"password": password} if password else {})} if standby else None,
    }


async def apply(cluster: Cluster, wanted: dict[str, Any], *more: str) -> str:
    path = Path(cluster.root / "copy.json")
    project = {"kind": "Project", "name": "demo"}
    path.write_text("\n---\n".join(json.dumps(part) for part in (project, wanted)))
    return await cluster.actl("apply", "-f", str(path), *more)


async def refused(cluster: Cluster, wanted: dict[str, Any]) -> str:
    path = Path(cluster.root / "bad.json")
    project = {"kind": "Project", "name": "demo"}
    path.write_text("\n---\n".join(json.dumps(part) for part in (project, wanted)))
    result = await asyncio.to_thread(cluster.ctl_result, "apply", "-f", str(path))
    assert result.returncode, result.stdout
    return result.stderr


def way_in(cluster: Cluster, status: dict[str, Any], node: str, kind: str) -> str:
    """To the proxy of one node."""
    host = cluster.agents[node].address
    port = status["endpoints"][kind]["port"]
    return f"host={host} port={port} user=app password=at-the-remote dbname=postgres connect_timeout=10"


async def read(dsn: str, statement: str) -> Any:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        row = await (await connection.execute(statement)).fetchone()
        return row[0] if row else None


async def count(dsn: str) -> int:
    try:
        return int(await read(dsn, "SELECT count(*) FROM written"))
    except psycopg.Error as error:
        raise OSError(str(error)) from error


async def follows(cluster: Cluster) -> str:
    """The member that streams from the remote primary."""
    shown = (await cluster.status(NAME))["standby"]
    assert shown["streaming"], shown
    return str(shown["member"])


async def test_a_standby_instance_from_its_copy_to_its_promotion(cluster: Cluster, remote: Server) -> None:
    remote.value("INSERT INTO written SELECT generate_series(1, 100)")
    assert "standby.password" in await refused(cluster, document(remote, password=None))

    # it copies, and the other member copies from it
    said = await apply(cluster, document(remote), "--wait", "--timeout", "90")
    assert SECRET not in said
    assert SECRET not in await cluster.actl("event", "list")
    stored = await cluster.etcd_values("/moorage/")
    assert SECRET not in stored
    status = await cluster.await_running(NAME)
    assert (status["primary"], status["standby"]["hosts"]) == ("", [f"127.0.0.1:{remote.port}"])
    assert {m["role"] for m in status["members"]} == {"replica"}
    assert f"of 127.0.0.1:{remote.port}, lag" in await cluster.actl("instance", "show", NAME)
    first = await follows(cluster)
    nodes = {member["name"]: member["node"] for member in status["members"]}

    # what is written there arrives at both; nothing is written here
    remote.value("INSERT INTO written SELECT generate_series(101, 200)")
    for node in nodes.values():
        reads = way_in(cluster, status, node, "ro")
        await eventually(lambda dsn=reads: count(dsn), lambda many: many == 200, within=20)
        with pytest.raises(psycopg.OperationalError, match="accepts no writes: it follows"):
            await read(way_in(cluster, status, node, "rw"), "SELECT 1")
    assert (
        "follows a remote primary"
        in (await asyncio.to_thread(cluster.ctl_result, "instance", "switchover", NAME)).stderr
    )

    # whoever follows it dies: the other one does, and nobody is promoted
    os.kill(cluster.postmaster(nodes[first], NAME), signal.SIGKILL)
    second = next(name for name in nodes if name != first)
    await eventually(lambda: follows(cluster), lambda name: name == second, within=40, what="the other one follows")
    remote.value("INSERT INTO written SELECT generate_series(201, 300)")
    reads = way_in(cluster, status, nodes[second], "ro")
    await eventually(lambda: count(reads), lambda many: many == 300, within=20)
    assert await read(reads, "SELECT pg_is_in_recovery()")
    await cluster.await_running(NAME)

    # promoted: it accepts writes, and has everything
    assert "no standby" not in await cluster.actl("instance", "promote", NAME, "--yes", "--wait", "--timeout", "60")
    status = await cluster.await_running(NAME)
    assert status["primary"] == second
    assert status["standby"] is None
    assert status["ha"]["sync"]["names"] == [first]
    dsn = await cluster.dsn(NAME)
    await read(dsn, "SELECT 1")
    async with await cluster.connect(dsn.replace("/orders", "/postgres")) as connection:
        await connection.execute("INSERT INTO written SELECT generate_series(301, 400)")
        row = await (await connection.execute("SELECT count(*), pg_is_in_recovery() FROM written")).fetchone()
    assert row == (400, False)
    remote.value("INSERT INTO written VALUES (0)")  # follows nobody any more
    assert "the standby instance was promoted" in await cluster.actl("instance", "history", NAME)
    assert "cannot be added" in await refused(cluster, document(remote))
