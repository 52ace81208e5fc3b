"""Real PostgreSQL members on loopback addresses: each as an agent would have it, cleaned up whatever a test did.

Engines run as user `postgres` when the tests run as root, else as oneself. Everything lies in a short directory that
this user can enter. Nothing is synced to disk: tests kill processes, not the machine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psycopg

from agent.engines.base import EngineSetup, MemberPaths, OsUser, TlsFiles
from agent.engines.postgres.engine import PostgresEngine
from agent.engines.postgres.install import find_engines
from agent.engines.postgres.process import PROGRAMS
from agent.ha.view import Engine, EngineState
from agent.supervise import processes
from core.clock import SystemClock
from core.identity import make_ca, make_csr, new_key_pem, sign_node_csr
from core.ids import InstanceRef, MemberName, MemberRef
from core.records import (
    DatabaseDesired,
    EngineOffer,
    MemberDesired,
    MemberSecrets,
    PeerMember,
    Replication,
    UserDesired,
)
from core.scram import make_verifier
from core.status import Role
from tests.support.ports import free_port
from tests.support.waiting import eventually

APP_PASSWORD = "app-secret"
REPLICATION_PASSWORD = "replication:secret\\1"  # with what a password file must escape
INSTANCE = InstanceRef("demo", "orders")
MIB = 1 << 20


def offers() -> dict[str, EngineOffer]:
    """Installed engines by name: `system` (Debian's, with TLS) and `wheel` (without)."""
    found: dict[str, EngineOffer] = {}
    for offer in find_engines([]):
        found.setdefault("system" if offer.bin_dir.startswith("/usr/lib/") else "wheel", offer)
    return found


def _new_base() -> Path:
    """In memory where there is room: most of a test's time would be files of initdb and copies."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 2048 * MIB
    return Path(tempfile.mkdtemp(prefix="moorage-pg-", dir=memory if roomy else "/tmp"))


@dataclass(slots=True)
class Site:
    """Members of one instance on one host, as if on as many nodes."""

    offer: EngineOffer
    parameters: dict[str, str] = field(default_factory=dict)
    replication: Replication = field(default_factory=Replication)
    unresponsive_after_s: float = 10.0
    disk_answers_within_s: float = 6.0
    base: Path = field(default_factory=_new_base)
    port: int = field(default_factory=free_port)
    engines: dict[str, PostgresEngine] = field(default_factory=dict)
    discarded: list[PostgresEngine] = field(default_factory=list)
    _ca: Any = None

    def __post_init__(self) -> None:
        self.base.chmod(0o755)
        self._ca = make_ca(now=time.time())

    # --- members ------------------------------------------------------------------------------------------------------

    def desired(self, member: str, **changes: Any) -> MemberDesired:
        record = MemberDesired(
            project=INSTANCE.project,
            instance=INSTANCE.instance,
            member=member,
            node=self.node(member),
            engine_version=self.offer.version,
            memory_bytes=256 * MIB,
            disk_bytes=2048 * MIB,
            engine_port=self.port,
            replication=self.replication,
            parameters=dict(self.parameters),
            databases=(DatabaseDesired(name="shop", owner="app", extensions=("pg_trgm",)),),
            users=(UserDesired(name="app", roles=("pg_monitor",)),),
        )
        return replace(record, **changes)

    @staticmethod
    def secrets() -> MemberSecrets:
        return MemberSecrets(
            replication_password=REPLICATION_PASSWORD,
            verifiers={"app": make_verifier(APP_PASSWORD, salt=b"0123456789abcdef")},
        )

    @staticmethod
    def node(member: str) -> str:
        return f"n{member.removeprefix('m')}"

    @staticmethod
    def address(member: str) -> str:
        return f"127.0.0.{20 + int(member.removeprefix('m'))}"

    def data_root(self, member: str) -> Path:
        return self.base / self.node(member)

    def paths(self, member: str) -> MemberPaths:
        return MemberPaths.below(self.data_root(member), MemberRef(INSTANCE, MemberName(member)))

    def identity(self, member: str) -> TlsFiles:
        """Certificate, key and CA of the member's node, made once."""
        folder = self.data_root(member) / "identity"
        files = TlsFiles(cert=folder / "node.crt", key=folder / "node.key", ca=folder / "ca.crt")
        if not files.cert.exists():
            folder.mkdir(parents=True)
            key = new_key_pem()
            request = make_csr(key, node=self.node(member), address=self.address(member))
            signed = sign_node_csr(
                self._ca, request, node=self.node(member), address=self.address(member), now=time.time()
            )
            files.key.touch(mode=0o600)
            files.key.write_bytes(key)
            files.cert.write_bytes(signed.cert_pem)
            files.ca.write_bytes(self._ca.cert_pem)
        return files

    def engine(self, member: str, **changes: Any) -> PostgresEngine:
        """A fresh object for the member, as a newly started agent makes one."""
        if member in self.engines:
            self.discarded.append(self.engines[member])
        run_as = OsUser.named("postgres") if os.getuid() == 0 else None
        engine = PostgresEngine(
            EngineSetup(
                desired=self.desired(member, **changes),
                secrets=self.secrets(),
                paths=self.paths(member),
                offer=self.offer,
                address=self.address(member),
                tls_files=self.identity(member) if self.offer.tls else None,
                run_as=run_as,
                clock=SystemClock(),
                durable=False,
                unresponsive_after_s=self.unresponsive_after_s,
                disk_answers_within_s=self.disk_answers_within_s,
            )
        )
        self.engines[member] = engine
        return engine

    def peer(self, member: str, *, role: Role = Role.UNKNOWN) -> PeerMember:
        return PeerMember(
            member=member,
            node=self.node(member),
            address=self.address(member),
            engine_port=self.port,
            peer_port=0,
            alive=True,
            role=role,
            engine_tls=self.offer.tls,
        )

    def introduce(self, *members: str) -> None:
        """Let each of these know the others."""
        for member in members:
            self.engines[member].set_peers(tuple(self.peer(other) for other in members if other != member))

    # --- ready-made situations ----------------------------------------------------------------------------------------

    async def primary(self, member: str = "m1", *, others: tuple[str, ...] = ()) -> PostgresEngine:
        """Initialised, started, converged; knows the others by name."""
        engine = self.engine(member)
        engine.set_peers(tuple(self.peer(other) for other in others))
        await engine.initialise()
        await engine.start_primary()
        assert await engine.converge()
        return engine

    async def replica(self, member: str, source: str = "m1") -> PostgresEngine:
        """Cloned, started and streaming."""
        engine = self.engine(member)
        engine.set_peers((self.peer(source),))
        await engine.clone(self.peer(source))
        await engine.start_replica(self.peer(source))
        await self.streams(engine)
        return engine

    @staticmethod
    async def streams(engine: PostgresEngine, *, within: float = 15) -> Engine:
        return await eventually(engine.observe, lambda seen: seen.streaming, within=within, what="streaming")

    @staticmethod
    async def runs(engine: PostgresEngine, *, within: float = 15) -> Engine:
        return await eventually(
            engine.observe, lambda seen: seen.state is EngineState.RUNNING, within=within, what="running"
        )

    # --- clients ------------------------------------------------------------------------------------------------------

    def conninfo(self, member: str, **changes: str) -> dict[str, str]:
        return {
            "host": self.address(member),
            "port": str(self.port),
            "user": "app",
            "password": APP_PASSWORD,
            "dbname": "shop",
            "connect_timeout": "5",
            **changes,
        }

    def sql(self, member: str, *statements: str, **changes: str) -> list[tuple[Any, ...]]:
        """Run them over TCP as a client; rows of the last one."""
        with psycopg.connect(**self.conninfo(member, **changes), autocommit=True) as connection:
            rows: list[tuple[Any, ...]] = []
            for statement in statements:
                cursor = connection.execute(statement)
                rows = cursor.fetchall() if cursor.description else []
            return rows

    def connect(self, member: str, **changes: str) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(**self.conninfo(member, **changes), autocommit=True)

    # --- processes ----------------------------------------------------------------------------------------------------

    def postmaster_pid(self, member: str) -> int:
        return int((self.paths(member).data / "postmaster.pid").read_text().split("\n", 1)[0])

    def processes(self, member: str) -> list[int]:
        """All processes of the member's engine, the postmaster included."""
        return [process.pid for process in processes.running_below(self.paths(member).root, PROGRAMS)]

    async def close(self) -> None:
        """Kill and remove everything."""
        for engine in self.discarded:
            await engine.aclose()
        for member, engine in self.engines.items():
            for pid in self.processes(member):
                _thaw(pid)
            await engine.destroy()
            assert not self.processes(member)
        shutil.rmtree(self.base, ignore_errors=True)


def _thaw(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
