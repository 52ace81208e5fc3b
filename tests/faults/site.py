"""A whole installation in a box: three etcd members, two hubs, three nodes, each on a machine of its own.

It is set up as an operator would: configuration files, `moorage-hub init`, join tokens, `moorctl instance create`.
Times of the product are its defaults; a supervisor starts again what has ended, as systemd would.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import yaml

from agent.engines.base import MemberPaths
from cli.client import Client
from cli.settings import Target
from core.clock import SystemClock
from core.errors import MoorageError
from core.ids import InstanceRef, MemberName, MemberRef
from tests.faults import volumes
from tests.faults.machines import YARD_ADDRESS, Machine, Place, Service, Supervisor
from tests.support.etcd import PROGRAM as ETCD
from tests.support.waiting import eventually

PROGRAMS = Path(sys.executable).parent
ENGINE_DIR = "/usr/lib/postgresql/15/bin"
INSTANCE = "demo/orders"
AGENTS_PORT, OPERATORS_PORT, PEER_PORT = 7400, 7401, 7402
ETCD_PORT, ETCD_PEER_PORT = 2379, 2380
ASK_S = 4.0
UP_WITHIN_S = 60.0
CATCH_UP_S = 0.15
SMALL = ("--memory", "256Mi", "--disk", "1Gi", "--cpu", "0.2", "--engine-version", "15")


class Site:
    """`nodes` by name, `hubs`, `etcds`; `yard` is where the driver and its clients are."""

    def __init__(self, root: Path, yard: Place, *, mode: str, special: bool) -> None:
        self.root = root
        self.yard = yard
        self.mode = mode
        self.special = special
        self.etcds = [Machine(f"e{n}", f"10.90.0.{30 + n}", root / f"e{n}") for n in (1, 2, 3)]
        self.hubs = [Machine(f"h{n}", f"10.90.0.{20 + n}", root / f"h{n}") for n in (1, 2)]
        self.nodes = {f"n{n}": Machine(f"n{n}", f"10.90.0.{10 + n}", root / f"n{n}") for n in (1, 2, 3)}
        self.dsn = self.read_dsn = ""
        self._client: Client | None = None

    @property
    def machines(self) -> list[Machine]:
        return [*self.etcds, *self.hubs, *self.nodes.values()]

    def others(self, *without: Machine) -> list[Place]:
        """Everyone else, the clients' yard included."""
        return [self.yard, *(machine for machine in self.machines if machine not in without)]

    # --- operators ------------------------------------------------------------------------------------------------

    def ctl(self, *arguments: str, timeout: float = 90) -> str:
        hubs = [word for hub in self.hubs for word in ("--hub", f"{hub.address}:{OPERATORS_PORT}")]
        who = ["--token-file", str(self.root / "admin.token"), "--ca-file", str(self.hubs[0].root / "ca.crt")]
        command = [str(PROGRAMS / "moorctl"), *hubs, *who, *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        if result.returncode:
            raise AssertionError(f"moorctl {' '.join(arguments)}: {result.stderr or result.stdout}")
        return result.stdout

    async def actl(self, *arguments: str, timeout: float = 90) -> str:
        return await asyncio.to_thread(self.ctl, *arguments, timeout=timeout)

    async def page(self, instance: str = INSTANCE) -> dict[str, Any]:
        """The instance's status as the hubs tell it; AssertionError when they cannot."""
        if self._client is None:
            hubs = tuple(f"{hub.address}:{OPERATORS_PORT}" for hub in self.hubs)
            token = (self.root / "admin.token").read_text().strip()
            target = Target(name="faults", hubs=hubs, token=token, ca_pem=(self.hubs[0].root / "ca.crt").read_bytes())
            self._client = Client(target, SystemClock())
        try:
            async with asyncio.timeout(ASK_S):
                return (await self._client.get("Instance", instance)).status
        except (MoorageError, TimeoutError) as error:
            raise AssertionError(f"the hubs do not answer: {error!r}") from error

    # --- members --------------------------------------------------------------------------------------------------

    async def primary(self) -> Machine:
        page = await self.page()
        name = next((m["node"] for m in page["members"] if m["name"] == page["primary"]), None)
        assert name is not None, f"no primary: {page['phase']}"
        return self.nodes[name]

    async def replicas(self) -> list[Machine]:
        primary = await self.primary()
        return [node for node in self.nodes.values() if node is not primary]

    async def sync_replica(self) -> Machine:
        """A replica that the sync set names, else any."""
        page, primary = await self.page(), await self.primary()
        names = page["ha"]["sync"]["names"]
        in_set = [self.nodes[m["node"]] for m in page["members"] if m["name"] in names]
        return next(node for node in [*in_set, *self.nodes.values()] if node is not primary)

    def member_paths(self, node: Machine, instance: str = INSTANCE) -> MemberPaths | None:
        """None when the node has no member of the instance."""
        data_root = node.root / "data"
        key = instance.replace("/", ".")
        found = sorted((data_root / "members").glob(f"{key}.*"))
        if not found:
            return None
        project, _, name = instance.partition("/")
        member = MemberName(found[0].name.removeprefix(f"{key}."))
        return MemberPaths.below(data_root, MemberRef(InstanceRef(project, name), member))

    def engine_pids(self, node: Machine, instance: str = INSTANCE) -> list[int]:
        paths = self.member_paths(node, instance)
        return node.engine_pids(paths.root) if paths else []

    def local_dsn(self, node: Machine, instance: str = INSTANCE) -> str | None:
        """Into the engine by its Unix socket, as its superuser; None when it does not listen."""
        paths = self.member_paths(node, instance)
        sockets = [entry.name for entry in paths.sockets.glob(".s.PGSQL.*")] if paths else []
        port = next((name.rpartition(".")[2] for name in sockets if not name.endswith(".lock")), None)
        if paths is None or port is None:
            return None
        return f"host={paths.sockets} port={port} user=postgres dbname=postgres connect_timeout=2"

    async def direct(self, node: Machine, query: str) -> list[tuple[Any, ...]]:
        """One query at the engine itself; AssertionError when it does not answer."""

        def ask() -> list[tuple[Any, ...]]:
            dsn = self.local_dsn(node)
            assert dsn is not None, f"no engine on {node.name}"
            with psycopg.connect(dsn, autocommit=True, options="-c statement_timeout=2000") as connection:
                return connection.execute(query).fetchall()

        try:
            return await asyncio.to_thread(ask)
        except psycopg.Error as error:
            raise AssertionError(f"{node.name}: {error}") from error

    # --- health ---------------------------------------------------------------------------------------------------

    async def ailment(self) -> str:
        """What keeps the instance from full health; empty when nothing does."""
        off = [machine.name for machine in self.machines if not machine.powered]
        if off:
            return f"off: {off}"
        page = await self.page()
        if page["phase"] != "Running":
            false = [c["reason"] for c in page["conditions"] if not c["status"]]
            return f"{page['phase']}: {false} {[(m['name'], m['state'], m['message']) for m in page['members']]}"
        states = {m["name"]: (m["role"], m["state"], m["streaming_from"]) for m in page["members"]}
        wanted = {
            name: ("primary", "running", "") if name == page["primary"] else ("replica", "running", page["primary"])
            for name in states
        }
        if states != wanted:
            return f"members: {states}"
        return await self._unfollowed(await self.primary())

    async def _unfollowed(self, primary: Machine) -> str:
        """Which node's engine does not have by now what the primary has flushed a moment ago, by the engines' own word:
        for what the hubs tell of a node that went silent may be some seconds old."""
        lost = [f"{m.name} {s.name}" for m in self.machines for s in m.services.values() if not s.working]
        if lost:
            return f"not at work: {lost}"
        flushed = (await self.direct(primary, "SELECT pg_current_wal_flush_lsn()::text"))[0][0]
        await asyncio.sleep(CATCH_UP_S)
        got = "pg_last_wal_receive_lsn()"
        has_it = f"SELECT pg_is_in_recovery() AND {got} >= '{flushed}', {got}::text, pg_last_wal_replay_lsn()::text"
        replicas = [node for node in self.nodes.values() if node is not primary]
        answers = await asyncio.gather(*(self.direct(node, has_it) for node in replicas))
        behind = [
            f"{node.name} has received {answer[0][1]} and replayed {answer[0][2]} of {flushed}"
            for node, answer in zip(replicas, answers, strict=True)
            if not answer[0][0]
        ]
        return ", ".join(behind)

    async def await_healthy(self, within: float) -> None:
        await eventually(self.ailment, lambda ill: not ill, within=within, every=0.25, what="full health")

    # --- life -----------------------------------------------------------------------------------------------------

    @staticmethod
    @asynccontextmanager
    async def running(root: Path, yard: Place, *, mode: str = "sync", special: bool = False) -> AsyncIterator[Site]:
        """Up, with the instance running and healthy. `special`: nodes have small volumes and clocks that can be set."""
        root.mkdir(mode=0o755)
        site = Site(root, yard, mode=mode, special=special)
        made: list[Machine] = []
        try:
            for machine in site.machines:
                machine.make()
                made.append(machine)
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(Supervisor(site.machines).run(), name="supervisor")
                try:
                    await site._set_up()
                    yield site
                finally:
                    watching.cancel()
        finally:
            if site._client is not None:
                await site._client.__aexit__()
            for machine in made:
                machine.unmake()
            yard.unfilter()
            volumes.unmount_below(root)

    async def _set_up(self) -> None:
        for etcd in self.etcds:
            self._add_etcd(etcd)
        for hub in self.hubs:
            self._configure_hub(hub)
        await eventually(self._init_hub, within=UP_WITHIN_S, every=0.3, what="the first hub's init")
        for hub in self.hubs:
            await asyncio.to_thread(self._command, hub, "moorage-hub", "init")
            self._add(hub, Service("hub", self._words(hub, "moorage-hub", "run"), hub.root / "hub.log"))
        await eventually(
            lambda: self.actl("node", "list"), within=UP_WITHIN_S, every=0.3, what="hubs serve", good=lambda _: True
        )
        for node in self.nodes.values():
            await self._join(node)
        await self._create(INSTANCE, replicas=2, mode=self.mode)
        await self.await_healthy(UP_WITHIN_S)
        self.dsn = (await self.actl("instance", "connect", INSTANCE, "--print")).strip()
        self.read_dsn = (await self.actl("instance", "connect", INSTANCE, "--print", "--read-only")).strip()

    async def _init_hub(self) -> bool:
        await asyncio.to_thread(self._command, self.hubs[0], "moorage-hub", "init")
        return True

    async def _create(self, instance: str, *, replicas: int, mode: str) -> None:
        how = ["--replicas", str(replicas), "--mode", mode, "--create-project", *SMALL]
        how += ["--k", "1"] if mode == "quorum" else []
        await self.actl("instance", "create", instance, *how, "--wait", "--timeout", str(UP_WITHIN_S), timeout=90)

    def _add(self, machine: Machine, service: Service) -> None:
        machine.services[service.name] = service
        machine.start(service)

    def _add_etcd(self, machine: Machine) -> None:
        client = f"http://{machine.address}:{ETCD_PORT}"
        peer = f"http://{machine.address}:{ETCD_PEER_PORT}"
        everyone = ",".join(f"{etcd.name}=http://{etcd.address}:{ETCD_PEER_PORT}" for etcd in self.etcds)
        argv = [
            *(ETCD, "--name", machine.name, "--data-dir", str(machine.root / "etcd")),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", everyone, "--initial-cluster-state", "new"),
        ]
        self._add(machine, Service("etcd", argv, machine.root / "etcd.log"))

    def _configure_hub(self, hub: Machine) -> None:
        told = {
            "name": hub.name,
            "etcd_endpoints": [f"{etcd.address}:{ETCD_PORT}" for etcd in self.etcds],
            "listen_agents": f"{hub.address}:{AGENTS_PORT}",
            "listen_operators": f"{hub.address}:{OPERATORS_PORT}",
            "data_dir": str(hub.root),
            "seal_key_file": str(self.root / "seal.key"),
            "admin_token_file": str(self.root / "admin.token"),
            "log_level": "debug",
            "log_format": "json",
        }
        (hub.root / "config.yaml").write_text(yaml.safe_dump(told))

    async def _join(self, node: Machine) -> None:
        if self.special:
            volumes.mount(node.root / "data.img", node.root / "data")
        told = {
            "node": node.name,
            "address": node.address,
            "peer_port": PEER_PORT,
            "data_root": str(node.root / "data"),
            "zone": f"z-{node.name}",
            "engine_user": "postgres",
            "engine_dirs": [ENGINE_DIR],
            "log_level": "debug",
            "log_format": "json",
        }
        (node.root / "config.yaml").write_text(yaml.safe_dump(told))
        token = (await self.actl("node", "token", node.name)).strip().splitlines()[-1]
        hub = f"{self.hubs[0].address}:{OPERATORS_PORT}"
        await asyncio.to_thread(self._command, node, "moorage-agent", "enrol", "--hub", hub, "--token", token)
        env = volumes.clock_environment(self.root, node.root) if self.special else {}
        argv = self._words(node, "moorage-agent", "run")
        self._add(node, Service("agent", argv, node.root / "agent.log", env, ready_event="agent_started"))

    def _words(self, machine: Machine, program: str, *verb: str) -> list[str]:
        return [str(PROGRAMS / program), verb[0], "--config", str(machine.root / "config.yaml"), *verb[1:]]

    def _command(self, machine: Machine, program: str, *verb: str) -> str:
        command = machine.inside(*self._words(machine, program, *verb))
        result = subprocess.run(command, capture_output=True, text=True, timeout=40)
        if result.returncode:
            raise AssertionError(f"{program} {verb[0]}: {result.stdout}{result.stderr}")
        return result.stdout

    # --- what happened --------------------------------------------------------------------------------------------

    def incidents(self) -> list[str]:
        """What has ended by itself since the last call."""
        found = [f"{machine.name}: {text}" for machine in self.machines for text in machine.incidents]
        for machine in self.machines:
            machine.incidents.clear()
        return found

    def log_sizes(self) -> dict[str, int]:
        """Where the agents' logs end now."""
        return {name: node.services["agent"].log.stat().st_size for name, node in self.nodes.items()}


class LogWatch:
    """Waits for an event in the agents' logs, from the moment it is made."""

    def __init__(self, site: Site, nodes: list[Machine] | None = None) -> None:
        self._logs = {node.name: node.services["agent"].log for node in nodes or list(site.nodes.values())}
        self._read = {name: log.stat().st_size for name, log in self._logs.items()}

    async def event(self, name: str, *, within: float, **fields: str) -> str:
        """Name of the node that told it. AssertionError when none does."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            for node in self._logs:
                for line in self._new(node):
                    if line.get("event") == name and all(line.get(key) == value for key, value in fields.items()):
                        return node
            await asyncio.sleep(0.005)
        raise AssertionError(f"no agent told {name} {fields} within {within} s")

    def _new(self, node: str) -> list[dict[str, Any]]:
        with self._logs[node].open("rb") as log:
            log.seek(self._read[node])
            data = log.read()
        whole, _, _ = data.rpartition(b"\n")
        self._read[node] += len(whole) + 1 if whole else 0
        lines = []
        for text in whole.splitlines():
            with suppress(ValueError):
                lines.append(json.loads(text))
        return [line for line in lines if isinstance(line, dict)]


assert YARD_ADDRESS.startswith("10.90.0."), "machines and yard share one network"
