"""Patroni as its documentation sets it up: etcd, three nodes, HAProxy in front asking their REST interface.

Two configurations: the defaults, with HAProxy's checks as in the file that Patroni ships (every 3 s, 3 to fall, 2 to
rise); and the fastest values that the documentation allows (ttl 20, loop_wait 1, retry_timeout 3, primary_start_timeout
0), with quick checks, so that the balancer is not what is measured. A third one, not in the usual run, has the fastest
values with the shipped checks. etcd and HAProxy run beside the nodes and are not hit by faults.

HAProxy tries a server that refuses connections again after a second, twice (`retries 2`, as shipped): a client that
comes while Patroni still calls the dead server primary waits two seconds. So gaps of Patroni are often near 2 or 4 s.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.bench.peers.base import (
    CREATE_WITHIN_S,
    DEBIAN_BIN,
    HEAL_WITHIN_S,
    NODES,
    SWITCHOVER_WITHIN_S,
    Daemon,
    Missing,
    engine,
    environment,
    own_folder,
    send,
)
from tests.support.etcd import EtcdProcess
from tests.support.ports import free_port
from tests.support.waiting import eventually

VERSION = "4.1.5"
REQUIREMENTS = (f"patroni[etcd3]=={VERSION}", "psycopg[binary]>=3.2,<4")
INSTALL_WITHIN_S = 240
HAPROXY = Path("/usr/sbin/haproxy")
ASK_WITHIN_S = 2.0


@dataclass(frozen=True, slots=True)
class Configuration:
    """What differs between the configurations."""

    name: str
    dcs: dict[str, int]
    checks: str = "inter 3s fall 3 rise 2"


_FASTEST = {"ttl": 20, "loop_wait": 1, "retry_timeout": 3, "primary_start_timeout": 0}
DEFAULTS = Configuration("patroni", {})
FASTEST = Configuration("patroni_fast", _FASTEST, "inter 500ms fall 2 rise 1")
SHIPPED_CHECKS = Configuration("patroni_shipped", _FASTEST)


def install() -> Path:
    """Patroni in an environment of its own below ours, made once; its `bin`."""
    folder = Path(sys.prefix) / "bench" / f"patroni-{VERSION}"
    done = folder / ".installed"
    if not HAPROXY.exists():
        raise Missing("haproxy is not installed: apt install haproxy")
    if not done.exists():
        quiet = ["--quiet", "--disable-pip-version-check"]
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(folder)],
            [str(folder / "bin" / "python"), "-m", "pip", "install", *quiet, *REQUIREMENTS],
        ):
            try:
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_WITHIN_S)
            except subprocess.SubprocessError as error:
                raise Missing(f"cannot be installed: {error}: {getattr(error, 'stderr', None) or ''}") from error
        done.touch()
    return folder / "bin"


class PatroniSystem:
    """See `base.System`."""

    def __init__(self, root: Path, configuration: Configuration) -> None:
        self.name = configuration.name
        self.version = f"{VERSION}, " + (
            ", ".join(f"{key} {value}" for key, value in configuration.dcs.items()) or "ttl 30, loop_wait 10"
        )
        self.version += f", HAProxy checks {configuration.checks}"
        self._bin = install()
        self._root = root / self.name
        self._configuration = configuration
        self._stack = AsyncExitStack()
        self._entry = free_port()
        self._sql = {node: free_port() for node in NODES}
        self._rest = {node: free_port() for node in NODES}
        self._daemons: dict[str, Daemon] = {}
        self._hit = ""

    @property
    def dsn(self) -> str:
        return f"host=127.0.0.1 port={self._entry} user=postgres password=postgres dbname=postgres"

    async def __aenter__(self) -> PatroniSystem:
        try:
            self._root.mkdir(mode=0o755)
            etcd = await self._stack.enter_async_context(EtcdProcess.running())
            for node in NODES:
                self._daemons[node] = self._node(node, etcd.endpoint)
            self._start_balancer()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for daemon in self._daemons.values():
            daemon.end()
        await self._stack.aclose()

    async def create(self) -> None:
        for daemon in self._daemons.values():
            daemon.start()
        await self._await_whole(CREATE_WITHIN_S)

    async def primary(self) -> str:
        members = await self._members()
        return next(member["name"] for member in members if member["role"] == "leader")

    async def switchover(self) -> None:
        node = await self.primary()
        await asyncio.to_thread(self._ask, node, "/switchover", {"leader": node}, SWITCHOVER_WITHIN_S)

    async def crash_engine(self) -> None:
        node = await self.primary()
        send(engine(self._root / node / "data"), signal.SIGKILL)

    async def lose_node(self) -> None:
        self._hit = await self.primary()
        self._daemons[self._hit].lose()

    async def freeze_node(self) -> None:
        self._hit = await self.primary()
        self._daemons[self._hit].freeze()

    async def heal(self) -> None:
        if self._hit:
            daemon, self._hit = self._daemons[self._hit], ""
            daemon.thaw()
            if not daemon.running():
                daemon.start()
        await self._await_whole(HEAL_WITHIN_S)

    # --- what is running ----------------------------------------------------------------------------------------------

    def _node(self, node: str, etcd: str) -> Daemon:
        folder = own_folder(self._root / node)
        config = folder / "patroni.yml"
        config.write_text(yaml.safe_dump(self._config(node, etcd)))
        return Daemon(folder, [str(self._bin / "patroni"), str(config)], environment(folder))

    def _config(self, node: str, etcd: str) -> dict[str, Any]:
        """After the example that Patroni ships; synchronous mode, strict."""
        folder = self._root / node
        sql, rest = f"127.0.0.1:{self._sql[node]}", f"127.0.0.1:{self._rest[node]}"
        dcs = {
            **self._configuration.dcs,
            "synchronous_mode": True,
            "synchronous_mode_strict": True,
            "maximum_lag_on_failover": 1048576,
            "postgresql": {"use_pg_rewind": True, "use_slots": True},
        }
        return {
            "scope": "bench",
            "name": node,
            "restapi": {"listen": rest, "connect_address": rest},
            "etcd3": {"host": etcd},
            "bootstrap": {"dcs": dcs, "initdb": [{"encoding": "UTF8"}, "data-checksums"]},
            "postgresql": {
                "listen": sql,
                "connect_address": sql,
                "data_dir": str(folder / "data"),
                "bin_dir": DEBIAN_BIN,
                "pgpass": str(folder / "pgpass"),
                "authentication": {
                    "replication": {"username": "replicator", "password": "replicator"},
                    "superuser": {"username": "postgres", "password": "postgres"},
                    "rewind": {"username": "rewinder", "password": "rewinder"},
                },
                "pg_hba": [
                    "host replication replicator 127.0.0.1/32 scram-sha-256",
                    "host all all 127.0.0.1/32 scram-sha-256",
                ],
                "parameters": {"unix_socket_directories": str(folder), "password_encryption": "scram-sha-256"},
            },
        }

    def _start_balancer(self) -> None:
        folder = self._root / "haproxy"
        folder.mkdir()
        servers = [
            f"  server {node} 127.0.0.1:{self._sql[node]} maxconn 100 check port {self._rest[node]}" for node in NODES
        ]
        text = "\n".join(
            [
                *("global", "  maxconn 100"),
                *("defaults", "  mode tcp", "  retries 2", "  timeout client 30m", "  timeout connect 4s"),
                *("  timeout server 30m", "  timeout check 5s"),
                *("listen primary", f"  bind 127.0.0.1:{self._entry}", "  option httpchk OPTIONS /primary"),
                "  http-check expect status 200",
                f"  default-server {self._configuration.checks} on-marked-down shutdown-sessions",
                *(*servers, ""),
            ]
        )
        (folder / "haproxy.cfg").write_text(text)
        balancer = Daemon(
            folder, [str(HAPROXY), "-db", "-f", str(folder / "haproxy.cfg")], environment(folder), drop_root=False
        )
        balancer.start()
        self._stack.callback(balancer.end)

    # --- what it says -------------------------------------------------------------------------------------------------

    async def _members(self) -> list[dict[str, Any]]:
        """As any node tells; LookupError when none answers."""
        for node in NODES:
            try:
                answer = await asyncio.to_thread(self._ask, node, "/cluster", None, ASK_WITHIN_S)
            except (OSError, ValueError):
                continue
            members: list[dict[str, Any]] = json.loads(answer)["members"]
            return members
        raise LookupError("no Patroni answers")

    def _ask(self, node: str, path: str, body: dict[str, str] | None, within_s: float) -> str:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self._rest[node]}{path}", data=data)
        try:
            with urllib.request.urlopen(request, timeout=within_s) as answer:
                text: str = answer.read().decode()
                return text
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{path}: {error.code} {error.read().decode(errors='replace')}") from error

    async def _await_whole(self, within_s: float) -> None:
        def whole(members: list[dict[str, Any]]) -> bool:
            roles = sorted(member["role"] for member in members)
            states = sorted(str(member["state"]) for member in members)
            return roles == ["leader", "replica", "sync_standby"] and states == ["running", "streaming", "streaming"]

        try:
            await eventually(self._members, whole, within=within_s, every=0.2, what=f"{self.name} whole")
        except AssertionError as error:
            logs = "\n".join(daemon.tail() for daemon in self._daemons.values())
            raise AssertionError(f"{error}\n{logs}") from error
