"""Real etcd members (Debian's) on free loopback ports, in folders of their own."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.ports import free_port
from tests.support.waiting import eventually

PROGRAM = shutil.which("etcd") or "/usr/bin/etcd"
READY_WITHIN_S = 20.0


class EtcdProcess:
    """One member. `kill` is SIGKILL and may be followed by `start`; `pause`/`resume` freeze and thaw it."""

    def __init__(self, root: Path, *, name: str = "e1", client_port: int = 0, peer_port: int = 0) -> None:
        self.name = name
        self.root = root
        self.log = root / f"{name}.log"
        self.client_port = client_port or free_port()
        self.peer_port = peer_port or free_port()
        self.endpoint = f"127.0.0.1:{self.client_port}"
        self.initial_cluster = f"{name}=http://127.0.0.1:{self.peer_port}"
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    @asynccontextmanager
    async def running() -> AsyncIterator[EtcdProcess]:
        """One member, ready; gone with all its data at the end."""
        root = Path(tempfile.mkdtemp(prefix="moorage-etcd-"))
        etcd = EtcdProcess(root)
        try:
            await etcd.start()
            yield etcd
        finally:
            etcd.kill()
            shutil.rmtree(root, ignore_errors=True)

    @property
    def pid(self) -> int:
        assert self._process is not None, "etcd was not started"
        return self._process.pid

    def spawn(self) -> None:
        """Start without waiting: a member of three is ready only with another one."""
        peer = f"http://127.0.0.1:{self.peer_port}"
        arguments = [
            *(PROGRAM, "--name", self.name, "--data-dir", str(self.root / self.name)),
            *("--listen-client-urls", f"http://{self.endpoint}", "--advertise-client-urls", f"http://{self.endpoint}"),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", self.initial_cluster, "--initial-cluster-state", "new"),
        ]
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(arguments, stdout=output, stderr=output, start_new_session=True)

    async def ready(self) -> None:
        async def healthy() -> bool:
            command = ["etcdctl", "--endpoints", self.endpoint, "--command-timeout", "2s", "endpoint", "health"]
            process = await asyncio.create_subprocess_exec(
                *command,
                env={**os.environ, "ETCDCTL_API": "3"},
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            return await process.wait() == 0

        await eventually(healthy, within=READY_WITHIN_S, what=f"etcd member {self.name} healthy")

    async def start(self) -> None:
        self.spawn()
        await self.ready()

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(timeout=10)

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


class EtcdCluster:
    """Three members."""

    def __init__(self, members: list[EtcdProcess]) -> None:
        self.members = members

    @property
    def endpoints(self) -> list[str]:
        return [member.endpoint for member in self.members]

    @staticmethod
    @asynccontextmanager
    async def running(size: int = 3) -> AsyncIterator[EtcdCluster]:
        """All members, ready."""
        root = Path(tempfile.mkdtemp(prefix="moorage-etcd-"))
        members = [EtcdProcess(root, name=f"e{number}") for number in range(1, size + 1)]
        together = ",".join(member.initial_cluster for member in members)
        try:
            for member in members:
                member.initial_cluster = together
                member.spawn()
            for member in members:
                await member.ready()
            yield EtcdCluster(members)
        finally:
            for member in members:
                member.kill()
            shutil.rmtree(root, ignore_errors=True)
