"""A real hub process on free ports, with its own folder, on a given etcd.

Hubs of one test share their parent folder, and so the seal key and the first admin's token, which an operator would
carry from the first hub to the others by hand.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from core.identity import make_csr, new_key_pem
from protos.v1 import agent_pb2, agent_pb2_grpc, operator_pb2, operator_pb2_grpc
from tests.support.ports import free_port
from tests.support.waiting import eventually

PROGRAM = str(Path(sys.executable).parent / "moorage-hub")
SERVER_NAME = (("grpc.ssl_target_name_override", "moorage-hub"),)
START_WITHIN_S = 20.0


class HubProcess:
    """`start` prepares and waits until it serves; `kill` is SIGKILL, `stop` SIGTERM; both may be followed by `start`.

    `fields` go into the configuration as they are, such as `lease_ttl_s=3`.
    """

    def __init__(self, root: Path, etcd_endpoint: str, *, name: str = "hub1", **fields: Any) -> None:
        self.root = root
        self.name = name
        self.log = root / "hub.log"
        self.config = root / "hub.yaml"
        self.agents_address = f"127.0.0.1:{free_port()}"
        self.operators_address = f"127.0.0.1:{free_port()}"
        self.admin_token_file = root.parent / "admin.token"
        self.ca_file = root / "ca.crt"
        self._process: subprocess.Popen[bytes] | None = None
        root.mkdir(parents=True)
        told = {
            "name": name,
            "etcd_endpoints": [etcd_endpoint],
            "listen_agents": self.agents_address,
            "listen_operators": self.operators_address,
            "data_dir": str(root),
            "seal_key_file": str(root.parent / "seal.key"),
            "admin_token_file": str(self.admin_token_file),
            "log_level": "debug",
            "log_format": "json",
            **fields,
        }
        self.config.write_text(yaml.safe_dump(told))

    @property
    def admin_token(self) -> str:
        return self.admin_token_file.read_text().strip()

    @property
    def ca_pem(self) -> bytes:
        return self.ca_file.read_bytes()

    @property
    def pid(self) -> int:
        assert self._process is not None, "the hub was not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    # --- life -----------------------------------------------------------------------------------------------------

    def init(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [PROGRAM, "init", "--config", str(self.config), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    async def start(self) -> None:
        """Prepare (once is enough, again is harmless) and run until it serves."""
        if not self.ca_file.exists():
            result = await asyncio.to_thread(self.init)
            assert result.returncode == 0, f"{result.stdout}{result.stderr}"
        self.spawn()
        await self.serving()

    def spawn(self) -> None:
        """Run, and wait for nothing."""
        assert not self.running, "the hub runs already"
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [PROGRAM, "run", "--config", str(self.config)], stdout=output, stderr=output, start_new_session=True
            )

    async def serving(self, within: float = START_WITHIN_S) -> None:
        """Wait until health says SERVING. AssertionError with the log's end when the process has ended instead."""

        async def look() -> bool:
            if not self.running:
                raise SystemError(f"hub {self.name} has ended: {self.tail()}")
            return await self.health() == health_pb2.HealthCheckResponse.SERVING

        await eventually(look, within=within, what=f"hub {self.name} serves")

    async def health(self) -> int:
        """What the operator port's health service says; 0 (UNKNOWN) when nobody answers."""
        async with self.operators_channel() as channel:
            try:
                answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
            except grpc.aio.AioRpcError:
                return 0
            status: int = answer.status
            return status

    def kill(self) -> int:
        """SIGKILL; harmless when it does not run."""
        return self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM, and wait for the exit code."""
        return self._end(signal.SIGTERM)

    async def restart(self) -> None:
        """kill -9 and start anew."""
        self.kill()
        await self.start()

    def terminate(self) -> None:
        """SIGTERM, without waiting."""
        os.kill(self.pid, signal.SIGTERM)

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def _end(self, number: signal.Signals) -> int:
        if self._process is None:
            return 0
        if self.running:
            os.kill(self.pid, number)
        try:
            return self._process.wait(timeout=25)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(timeout=5)
            raise

    async def exited(self, within: float = 20) -> int:
        """Its exit code, once it has ended by itself."""
        process = self._process
        assert process is not None
        return await asyncio.to_thread(process.wait, within)

    def tail(self, lines: int = 20) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    # --- ways in --------------------------------------------------------------------------------------------------

    def operators_channel(self) -> grpc.aio.Channel:
        """To the operator port, by the CA's certificate only."""
        credentials = grpc.ssl_channel_credentials(root_certificates=self.ca_pem)
        return grpc.aio.secure_channel(self.operators_address, credentials, options=SERVER_NAME)

    def agents_channel(self, node: NodeIdentity | None, options: tuple[tuple[str, int], ...] = ()) -> grpc.aio.Channel:
        """To the agent port as a node; None = without a certificate."""
        credentials = grpc.ssl_channel_credentials(
            root_certificates=self.ca_pem,
            private_key=node.key_pem if node else None,
            certificate_chain=node.certificate_pem if node else None,
        )
        return grpc.aio.secure_channel(self.agents_address, credentials, options=(*SERVER_NAME, *options))

    async def enrol(self, node: str, address: str = "127.0.0.1", **facts: Any) -> NodeIdentity:
        """Make a node of this name, by a fresh join token as a machine would."""
        key_pem = new_key_pem()
        metadata = (("authorization", f"Bearer {self.admin_token}"),)
        async with self.operators_channel() as channel:
            operators = operator_pb2_grpc.OperatorServiceStub(channel)
            request = operator_pb2.CreateJoinTokenRequest(node=node)
            token = (await operators.CreateJoinToken(request, metadata=metadata, timeout=10)).token
            told = {"peer_port": 7, "cpu": 4.0, "memory_bytes": 8 << 30, "disk_bytes": 99 << 30, "agent_version": "0"}
            enrolled = await agent_pb2_grpc.EnrolServiceStub(channel).Enrol(
                agent_pb2.EnrolRequest(
                    token=token,
                    node_id=node,
                    csr_pem=make_csr(key_pem, node=node, address=address),
                    facts=agent_pb2.NodeFacts(**{**told, "address": address, **facts}),
                ),
                timeout=10,
            )
        return NodeIdentity(node, key_pem, enrolled.certificate_pem)

    @asynccontextmanager
    async def agent(self, node: NodeIdentity | None) -> AsyncIterator[agent_pb2_grpc.AgentServiceStub]:
        """The agent service as that node sees it."""
        async with self.agents_channel(node) as channel:
            yield agent_pb2_grpc.AgentServiceStub(channel)


class NodeIdentity:
    """What an enrolled node holds."""

    def __init__(self, name: str, key_pem: bytes, certificate_pem: bytes) -> None:
        self.name = name
        self.key_pem = key_pem
        self.certificate_pem = certificate_pem
