"""Moorage as the other tests run it: etcd, one hub, three agents; clients know the proxies of all three nodes.

A node's proxy is part of the node: it dies and freezes with it. etcd and the hub run beside the nodes.
"""

from __future__ import annotations

import signal
from contextlib import AsyncExitStack
from importlib.metadata import version
from pathlib import Path

import psutil

from tests.bench.peers.base import CREATE_WITHIN_S, HEAL_WITHIN_S, SWITCHOVER_WITHIN_S, below, engine, send
from tests.support.cluster import INSTANCE, Cluster, running_cluster


class MoorageSystem:
    """See `base.System`."""

    name = "moorage"

    def __init__(self, root: Path) -> None:
        self.version = f"{version('moorage')}, defaults"
        self._root = root / self.name
        self._stack = AsyncExitStack()
        self._dsn = ""
        self._hit = ""

    @property
    def dsn(self) -> str:
        return self._dsn

    async def __aenter__(self) -> MoorageSystem:
        self._root.mkdir(mode=0o755)
        self._cluster: Cluster = await self._stack.enter_async_context(running_cluster(self._root))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def create(self) -> None:
        await self._cluster.create(mode="sync", timeout=CREATE_WITHIN_S - 30)  # less than the command has
        self._dsn = await self._cluster.dsn()

    async def primary(self) -> str:
        return await self._cluster.primary_node()

    async def switchover(self) -> None:
        await self._cluster.actl("instance", "switchover", INSTANCE, timeout=SWITCHOVER_WITHIN_S)

    async def crash_engine(self) -> None:
        node = await self.primary()
        send(engine(self._cluster.member_dir(node) / "data"), signal.SIGKILL)

    async def lose_node(self) -> None:
        self._hit = await self.primary()
        send(self._processes(), signal.SIGKILL)
        self._cluster.agents[self._hit].kill_everything()

    async def freeze_node(self) -> None:
        self._hit = await self.primary()
        send(self._processes(), signal.SIGSTOP)

    async def heal(self) -> None:
        if self._hit:
            send(self._processes(), signal.SIGCONT)
            agent, self._hit = self._cluster.agents[self._hit], ""
            if not agent.running():
                agent.start()
        await self._cluster.await_running(within=HEAL_WITHIN_S)

    def _processes(self) -> list[psutil.Process]:
        """Of the node that is hit, its agent first."""
        agent = self._cluster.agents[self._hit]
        return sorted(below(agent.root), key=lambda process: process.pid != agent.pid)
