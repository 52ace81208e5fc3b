"""A whole Moorage on this machine: etcd, hubs, one agent for each of 127.0.0.11 .. 13, driven through `moorctl`.

Used by integration tests and benches alike. Leaving the context ends every process it started and shows the logs of
a failed test.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg

from tests.support.agent import AgentProcess
from tests.support.etcd import EtcdProcess
from tests.support.hub import HubProcess
from tests.support.waiting import eventually

MOORCTL = str(Path(sys.executable).parent / "moorctl")
DEBIAN_BIN = "/usr/lib/postgresql/15/bin"
INSTANCE = "demo/orders"


class Cluster:
    """`etcd`, `hubs`, `agents` by node name; `ctl()` runs moorctl as the first admin."""

    def __init__(self, root: Path, etcd: EtcdProcess, hubs: list[HubProcess], agents: dict[str, AgentProcess]) -> None:
        self.root = root
        self.etcd = etcd
        self.hubs = hubs
        self.agents = agents

    # --- moorctl --------------------------------------------------------------------------------------------------

    def ctl(self, *arguments: str, check: bool = True, timeout: float = 120, input: str | None = None) -> str:
        """Standard output; AssertionError with what it said when it fails and `check`."""
        result = self.ctl_result(*arguments, timeout=timeout, input=input)
        assert not check or result.returncode == 0, f"moorctl {' '.join(arguments)}: {result.stderr or result.stdout}"
        return result.stdout

    def ctl_result(
        self, *arguments: str, timeout: float = 120, input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        hub = self.hubs[0]
        hubs = [part for other in self.hubs for part in ("--hub", other.operators_address)]
        command = [MOORCTL, *hubs, "--token-file", str(hub.admin_token_file), "--ca-file", str(hub.ca_file)]
        return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=timeout, input=input)

    async def actl(self, *arguments: str, check: bool = True, timeout: float = 120) -> str:
        return await asyncio.to_thread(self.ctl, *arguments, check=check, timeout=timeout)

    async def show(self, name: str = INSTANCE) -> dict[str, Any]:
        """The instance as `moorctl instance show -o json` tells it."""
        shown: dict[str, Any] = json.loads(await self.actl("instance", "show", name, "-o", "json"))
        return shown

    async def create(self, name: str = INSTANCE, *, replicas: int = 2, mode: str = "sync", timeout: float = 90) -> None:
        arguments = ["instance", "create", name, "--replicas", str(replicas), "--mode", mode, "--create-project"]
        arguments += ["--engine-version", "15"]  # Debian's, which has TLS
        await self.actl(
            *arguments, "--memory", "256Mi", "--disk", "1Gi", "--cpu", "0.25", "--wait", "--timeout", str(timeout)
        )

    async def status(self, name: str = INSTANCE) -> dict[str, Any]:
        shown = await self.show(name)
        status: dict[str, Any] = shown.get("status", shown)
        return status

    async def await_running(self, name: str = INSTANCE, *, within: float = 60) -> dict[str, Any]:
        return await eventually(
            lambda: self.status(name),
            lambda status: status["phase"] == "Running",
            within=within,
            every=0.3,
            what=f"{name} Running",
        )

    async def primary_node(self, name: str = INSTANCE) -> str:
        """The node whose member leads."""
        status = await self.status(name)
        assert status["primary"], f"{name} has no primary: {status}"
        return next(member["node"] for member in status["members"] if member["name"] == status["primary"])

    async def etcd_keys(self, prefix: str) -> list[str]:
        """All keys with this prefix, by etcdctl."""
        command = ["etcdctl", "--endpoints", self.etcd.endpoint, "get", "--prefix", "--keys-only", prefix]
        environment = {**os.environ, "ETCDCTL_API": "3"}
        run = subprocess.run
        result = await asyncio.to_thread(run, command, capture_output=True, text=True, timeout=20, env=environment)
        assert result.returncode == 0, result.stderr
        return [line for line in result.stdout.splitlines() if line]

    async def etcd_values(self, prefix: str) -> str:
        """All keys and values with this prefix, as text."""
        command = ["etcdctl", "--endpoints", self.etcd.endpoint, "get", "--prefix", prefix]
        environment = {**os.environ, "ETCDCTL_API": "3"}
        result = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=20, env=environment)
        assert result.returncode == 0, result.stderr
        return result.stdout.decode(errors="replace")

    # --- clients --------------------------------------------------------------------------------------------------

    async def dsn(self, name: str = INSTANCE, *, read_only: bool = False) -> str:
        """A connection string over all proxies."""
        extra = ["--read-only"] if read_only else []
        return (await self.actl("instance", "connect", name, "--print", *extra)).strip()

    async def connect(self, dsn: str, **options: Any) -> psycopg.AsyncConnection[Any]:
        return await psycopg.AsyncConnection.connect(dsn, autocommit=True, connect_timeout=15, **options)

    # --- engines --------------------------------------------------------------------------------------------------

    def member_dir(self, node: str, name: str = INSTANCE) -> Path:
        found = sorted((self.agents[node].data_root / "members").glob(f"{name.replace('/', '.')}.*"))
        assert found, f"no member of {name} on {node}"
        return found[0]

    def postmaster(self, node: str, name: str = INSTANCE) -> int:
        """Pid of the engine on a node."""
        return int((self.member_dir(node, name) / "data" / "postmaster.pid").read_text().split()[0])

    # --- end ------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        for agent in self.agents.values():
            agent.kill_everything()
        for hub in self.hubs:
            hub.kill()

    def logs(self) -> str:
        """The tails of all logs, for a failed test."""
        files = [agent.log for agent in self.agents.values()]
        files += [path for agent in self.agents.values() for path in agent.data_root.glob("members/*/engine.log")]
        files += [path for agent in self.agents.values() for path in agent.data_root.glob("proxy/proxy.log")]
        files += [hub.log for hub in self.hubs]
        return "\n".join(f"--- {path}\n{tail(path)}" for path in files if path.exists())


def tail(path: Path, lines: int = 60) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


@asynccontextmanager
async def running_cluster(
    root: Path, *, nodes: int = 3, hubs: int = 1, engine_dirs: Sequence[str] = (DEBIAN_BIN,)
) -> AsyncIterator[Cluster]:
    """Everything up and enrolled; `root` must be short and open to the engines' user."""
    async with EtcdProcess.running() as etcd:
        cluster = Cluster(root, etcd, [], {})
        try:
            for number in range(1, hubs + 1):
                cluster.hubs.append(await _start_hub(root, etcd, number))
            for number in range(1, nodes + 1):
                await _join(cluster, number, engine_dirs)
            yield cluster
        except BaseException:
            sys.stderr.write(cluster.logs())
            raise
        finally:
            await cluster.close()


async def _start_hub(root: Path, etcd: EtcdProcess, number: int) -> HubProcess:
    hub = HubProcess(root / f"hub{number}", etcd.endpoint, name=f"hub{number}")
    await hub.start()
    return hub


async def _join(cluster: Cluster, number: int, engine_dirs: Sequence[str]) -> None:
    node = f"n{number}"
    agent = AgentProcess(
        cluster.root / node, node=node, address=f"127.0.0.{10 + number}", zone=f"z{number}", engine_dirs=engine_dirs
    )
    token = (await cluster.actl("node", "token", node)).strip().splitlines()[-1]
    result = await asyncio.to_thread(agent.enrol, cluster.hubs[0].operators_address, token)
    assert result.returncode == 0, result.stderr
    agent.start()
    cluster.agents[node] = agent


@asynccontextmanager
async def short_root(name: str) -> AsyncIterator[Path]:
    """A short folder that an unprivileged engine user may enter: socket paths must stay under 100 bytes."""
    root = Path("/tmp") / f"mt-{os.getpid()}-{name}"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(mode=0o755)
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)
