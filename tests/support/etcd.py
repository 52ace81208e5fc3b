"""Real etcd members (Debian's, where it is installed) on free loopback ports, in folders of their own.

Debian's first on purpose: the wheel's 3.5.1, which a virtual environment puts on the PATH, may lose data when it is
killed, and tests kill members.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from core.identity import Identity, make_csr, new_key_pem, sign_node_csr
from hub.etcd.client import EtcdTls
from tests.support.ports import free_port
from tests.support.waiting import eventually

READY_WITHIN_S = 20.0
STOP_WITHIN_S = 10.0


def _program(name: str) -> str:
    system = Path("/usr/bin") / name
    return str(system) if system.exists() else shutil.which(name) or name


PROGRAM = _program("etcd")
CONTROL = _program("etcdctl")


def issue_etcd_tls(ca: Identity, folder: Path, name: str, address: str = "127.0.0.1") -> EtcdTls:
    """Certificate and key of `name` for `address` in files, good for either end; CN = name is the etcd user."""
    key = new_key_pem()
    signed = sign_node_csr(
        ca, make_csr(key, node=name, address=address), node=name, address=address, now=time.time() - 60
    )
    files = EtcdTls(ca=folder / "etcd-ca.crt", cert=folder / f"{name}.crt", key=folder / f"{name}.key")
    files.ca.write_bytes(ca.cert_pem)
    files.cert.write_bytes(signed.cert_pem)
    files.key.write_bytes(key)
    return files


class EtcdProcess:
    """One member. `kill` is SIGKILL and `stop` SIGTERM, either may be followed by `start`; `pause`/`resume` freeze and
    thaw it."""

    def __init__(
        self,
        root: Path,
        *,
        name: str = "e1",
        client_port: int = 0,
        peer_port: int = 0,
        address: str = "127.0.0.1",
        tls: EtcdTls | None = None,
        program: str = PROGRAM,
        options: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.root = root
        self.log = root / f"{name}.log"
        self.client_port = client_port or free_port()
        self.peer_port = peer_port or free_port()
        self.endpoint = f"{address}:{self.client_port}"
        self.tls = tls
        self.initial_cluster = f"{name}=http://127.0.0.1:{self.peer_port}"
        self._program = program
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    @asynccontextmanager
    async def running(*, program: str = PROGRAM, options: tuple[str, ...] = ()) -> AsyncIterator[EtcdProcess]:
        """One member, ready; gone with all its data at the end."""
        root = Path(tempfile.mkdtemp(prefix="moorage-etcd-"))
        etcd = EtcdProcess(root, program=program, options=options)
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
        client = f"{'https' if self.tls else 'http'}://{self.endpoint}"
        arguments = [
            *(self._program, "--name", self.name, "--data-dir", str(self.root / self.name)),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", self.initial_cluster, "--initial-cluster-state", "new"),
            *self._options,
        ]
        if self.tls:
            arguments += ["--client-cert-auth", "--trusted-ca-file", str(self.tls.ca)]
            arguments += ["--cert-file", str(self.tls.cert), "--key-file", str(self.tls.key)]
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(arguments, stdout=output, stderr=output, start_new_session=True)

    async def ctl(self, *arguments: str, tls: EtcdTls | None = None) -> int:
        """The exit status of an etcdctl command at this member, as whom `tls` names (default: the member itself)."""
        files = tls or self.tls
        as_whom = ["--cacert", files.ca, "--cert", files.cert, "--key", files.key] if files else []
        with self.log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *(CONTROL, "--endpoints", self.endpoint, "--command-timeout", "2s", *map(str, as_whom), *arguments),
                env={**os.environ, "ETCDCTL_API": "3"},
                stdout=output,
                stderr=output,
            )
        try:
            async with asyncio.timeout(READY_WITHIN_S):
                return await process.wait()
        finally:
            if process.returncode is None:
                process.kill()

    async def ready(self) -> None:
        async def healthy() -> bool:
            assert self._process is not None, "etcd was not started"
            assert self._process.poll() is None, f"etcd ended: {self.log.read_text()[-2000:]}"
            host, _, port = self.endpoint.rpartition(":")
            with socket.create_connection((host, int(port)), timeout=1):
                pass  # before it listens, etcdctl would wait out its timeout
            return await self.ctl("endpoint", "health") == 0

        await eventually(healthy, within=READY_WITHIN_S, what=f"etcd member {self.name} healthy")

    async def start(self) -> None:
        self.spawn()
        await self.ready()

    async def restore(self, snapshot: Path) -> None:
        """Start anew from what `ctl snapshot save` has saved, as an operator would after losing everything since."""
        self.kill()
        shutil.rmtree(self.root / self.name)
        peer = f"http://127.0.0.1:{self.peer_port}"
        assert (
            await self.ctl(
                *("snapshot", "restore", str(snapshot), "--data-dir", str(self.root / self.name), "--name", self.name),
                *("--initial-cluster", self.initial_cluster, "--initial-advertise-peer-urls", peer),
            )
            == 0
        ), self.log.read_text()[-2000:]
        await self.start()

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(timeout=STOP_WITHIN_S)

    def stop(self) -> None:
        """In an orderly way; a paused member must be resumed before."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(timeout=STOP_WITHIN_S)

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
    async def running(size: int = 3, *, ca: Identity | None = None) -> AsyncIterator[EtcdCluster]:
        """All members, ready. With a CA each has an address and a certificate of its own, and wants one of clients."""
        root = Path(tempfile.mkdtemp(prefix="moorage-etcd-"))
        members = []
        for number in range(1, size + 1):
            name, address = f"e{number}", f"127.0.0.{20 + number}" if ca else "127.0.0.1"
            tls = issue_etcd_tls(ca, root, name, address) if ca else None
            members.append(EtcdProcess(root, name=name, address=address, tls=tls))
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
