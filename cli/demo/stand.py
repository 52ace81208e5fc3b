"""A whole Moorage on this machine: etcd, hub, three agents, one instance; started and stopped step by step.

Every step looks first and does only what is missing, so a start after a stop, a crash or a half-finished start goes on
where things stand. Stopping goes the other way round: first all agents, so that none of them takes the end of another's
engine for a failure; then their engines, replicas before the primary; hub and etcd last.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

from cli import output, progress
from cli.client import Client, Thing
from cli.demo import tools
from cli.demo.layout import HUB_ADDRESS, NODES, PASS_THROUGH, DemoNode, Layout, write_text, write_yaml
from cli.demo.parts import Parts, end_leftovers, run_to_end
from cli.demo.steps import Steps
from core.clock import Clock
from core.errors import MoorageError, NotFoundError, TimedOutError, UnavailableError, UserError

T = TypeVar("T")
PROJECT = "demo"
INSTANCE = f"{PROJECT}/orders"
ETCD_WITHIN_S = 30.0
HUB_WITHIN_S = 30.0
AGENTS_WITHIN_S = 30.0
INSTANCE_WITHIN_S = 120.0
COMMAND_WITHIN_S = 60.0
HALT_WITHIN_S = 60.0
LOOK_EVERY_S = 0.1


class Stand:
    """One demo installation. `start` and `make_instance` may be called on whatever is there already."""

    def __init__(self, layout: Layout, *, etcd: tools.Etcd, engine: tools.Engine, steps: Steps, clock: Clock) -> None:
        self.layout = layout
        self.engine = engine
        self.parts = Parts(layout)
        self.etcd = etcd
        self._steps = steps
        self._clock = clock
        self._engine_user = tools.engine_user(engine)

    # --- start ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """etcd, hub and agents, until the hub hears all three nodes."""
        await self._start_etcd()
        await self._start_hub()
        with self._steps.step(f"agents {', '.join(node.name for node in NODES)}") as step:
            async with self.client() as client:
                for node in NODES:
                    await self._start_agent(client, node)
                await self.parts.guard(
                    self._eventually("all agents heard", AGENTS_WITHIN_S, lambda: _all_heard(client))
                )
            places = ", ".join(f"{node.name} at {node.address}" for node in NODES)
            runs_as = f", engines as user {self._engine_user}" if self._engine_user else ""
            step.tell(f"agents enrolled and heard: {places}{runs_as}")

    def wall(self) -> float:
        return self._clock.wall()

    def client(self) -> Client:
        return Client(self.layout.target(), self._clock)

    async def _start_etcd(self) -> None:
        ports, endpoint = self.layout.ports, self.layout.etcd_endpoint
        peer = f"http://{HUB_ADDRESS}:{ports.etcd_peer}"
        arguments = [
            *("--name", "demo", "--data-dir", str(self.layout.etcd_data)),
            *("--listen-client-urls", f"http://{endpoint}", "--advertise-client-urls", f"http://{endpoint}"),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"demo={peer}"),
            *("--auto-compaction-mode", "periodic", "--auto-compaction-retention", "1h"),
            *("--logger", "zap", "--log-outputs", "stderr", "--log-level", "warn"),
        ]
        with self._steps.step("etcd") as step:
            self.layout.etcd_data.mkdir(mode=0o700, exist_ok=True)
            await self.parts.start("etcd", [str(self.etcd.program), *arguments])
            await self.parts.guard(self._eventually("etcd", ETCD_WITHIN_S, lambda: _is_healthy(ports.etcd)))
            step.tell(f"etcd {self.etcd.version} at {endpoint} ({self.etcd.program})")

    async def _start_hub(self) -> None:
        layout, ports = self.layout, self.layout.ports
        config = {
            "name": "demo-hub",
            "etcd_endpoints": [layout.etcd_endpoint],
            "listen_agents": f"{HUB_ADDRESS}:{ports.agents}",
            "listen_operators": layout.operators,
            "data_dir": str(layout.hub_data),
            "port_range": list(ports.instances),
            "log_format": "console",
        }
        path = layout.config_of("hub")
        with self._steps.step("hub") as step:
            write_yaml(path, config)
            hub = tools.command("moorage-hub")
            init = run_to_end(
                "hub init", [hub, "init", "--config", str(path)], log=layout.logs / "hub.log", within_s=COMMAND_WITHIN_S
            )
            await self.parts.guard(init)
            await self.parts.start("hub", [hub, "run", "--config", str(path)])
            async with self.client() as client:
                await self.parts.guard(self._eventually("the hub", HUB_WITHIN_S, lambda: _answers(client)))
            step.tell(f"hub at {layout.operators} (operators) and {HUB_ADDRESS}:{ports.agents} (agents)")

    async def _start_agent(self, client: Client, node: DemoNode) -> None:
        layout = self.layout
        config = {
            "node": node.name,
            "address": node.address,
            "peer_port": layout.ports.peer,
            "metrics_listen": f"{node.address}:{layout.ports.metrics}",
            "data_root": str(layout.data_of(node.name)),
            "hubs": [f"{HUB_ADDRESS}:{layout.ports.agents}"],
            "zone": node.zone,
            "region": "demo",
            "engine_user": self._engine_user,
            "engine_dirs": [str(self.engine.bin_dir)],
            "log_format": "console",
        }
        path = layout.config_of(node.name)
        write_yaml(path, config)
        data = layout.data_of(node.name)
        data.mkdir(exist_ok=True)
        os.chmod(data, PASS_THROUGH)
        agent = tools.command("moorage-agent")
        if not (data / "identity" / "node.crt").exists():
            await self._enrol(client, node, agent)
        await self.parts.start(node.name, [agent, "run", "--config", str(path)])

    async def _enrol(self, client: Client, node: DemoNode, agent: str) -> None:
        token_file = self.layout.root / f"{node.name}.token"
        token = await client.join_token(node=node.name, ttl_s=600)
        write_text(token_file, token, mode=0o600)
        command = [
            *(agent, "enrol", "--config", str(self.layout.config_of(node.name))),
            *("--hub", self.layout.operators, "--token-file", str(token_file)),
        ]
        try:
            log = self.layout.logs / f"{node.name}.log"
            enrolment = run_to_end(f"{node.name} enrol", command, log=log, within_s=COMMAND_WITHIN_S)
            await self.parts.guard(enrolment)
        finally:
            token_file.unlink(missing_ok=True)

    # --- the instance -----------------------------------------------------------------------------------------------

    async def make_instance(self) -> None:
        """demo/orders with two synchronous replicas, if it is not there; until it runs."""
        async with self.client() as client:
            known = await _found(client)
            title = f"instance {INSTANCE}"
            with self._steps.step(f"{title} {'resumes' if known else 'is created'}", own_display=True) as step:
                generation = 0
                if known is None:
                    results = await client.apply(self.documents(), create_only=False)
                    generation = results[-1].generation
                goal = progress.running(INSTANCE, generation)
                hint = f"The agents' logs are in {self.layout.logs}."
                waiting = progress.wait_for(
                    client, [goal], timeout_s=INSTANCE_WITHIN_S, clock=self._clock, indent="         ", hint=hint
                )
                pages = await self.parts.guard(waiting)
                step.tell(f"{title} runs: {members_told(pages[INSTANCE] or {})}")

    def documents(self) -> list[dict[str, Any]]:
        """What a person would apply: small members, commits acknowledged when a replica has them."""
        project, name = INSTANCE.split("/")
        return [
            {"kind": "Project", "name": project},
            {
                "kind": "Instance",
                "project": project,
                "name": name,
                "engine_version": self.engine.major,
                "replicas": 2,
                "resources": {"cpu": 0.25, "memory": "256Mi", "disk": "1Gi"},
                "replication": {"mode": "sync"},
            },
        ]

    # --- stop -------------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Stop everything that was started, whatever state it is in. The first error is raised when all is stopped."""
        errors: list[MoorageError] = []
        order = await self._halting_order()
        running = self.parts.names
        agents = [node for node in order if node in running or self.layout.config_of(node).exists()]
        if agents:
            with self._steps.step("agents and engines stopped"):
                await asyncio.gather(*(self.parts.stop(node) for node in agents if node in running))
                *first, last = agents
                for found in await asyncio.gather(*(halt(self.layout, node) for node in first)):
                    errors += found
                errors += await halt(self.layout, last)
        for part in ("hub", "etcd"):
            if part in running:
                with self._steps.step(f"{part} stopped"):
                    await self.parts.stop(part)
        if errors:
            raise errors[0]

    async def _halting_order(self) -> list[str]:
        """Nodes with replicas first: a primary that stops last has sent everything."""
        names = [node.name for node in NODES]
        if "hub" not in self.parts.names:
            return names
        try:
            async with asyncio.timeout(3), self.client() as client:
                page = (await client.get("Instance", INSTANCE)).status
        except (MoorageError, TimeoutError):
            return names
        last = {str(m.get("node")) for m in progress.members_of(page) if m.get("name") == page.get("primary")}
        return sorted(names, key=lambda name: name in last)

    # --- waiting ----------------------------------------------------------------------------------------------------

    async def _eventually(self, what: str, within_s: float, look: Callable[[], Awaitable[bool]]) -> None:
        """Until `look` says yes. TimedOutError tells what was waited for."""
        deadline = self._clock.now() + within_s
        while not await look():
            if self._clock.now() > deadline:
                raise TimedOutError(f"does not answer within {within_s:g} s", object=what)
            await asyncio.sleep(LOOK_EVERY_S)


async def halt(layout: Layout, node: str) -> list[MoorageError]:
    """Stop engines and proxy of a node whose agent has ended; what went wrong, if anything."""
    command = [tools.command("moorage-agent"), "halt", "--config", str(layout.config_of(node))]
    try:
        await run_to_end(f"{node} halt", command, log=layout.logs / f"{node}.log", within_s=HALT_WITHIN_S)
    except MoorageError as error:
        return [error]
    return []


async def tidy(layout: Layout, steps: Steps, *, reset: bool) -> None:
    """End what a demo that was killed has left running; with `reset` remove all of it."""
    if not reset:
        layout.load()
    else:
        with suppress(UserError):  # what cannot be understood is about to go
            layout.load()
    left = await asyncio.to_thread(end_leftovers, layout) if layout.memory.processes else []
    if left:
        output.note(f"ended what an earlier demo had left running: {', '.join(left)}")
    if not reset:
        return
    with steps.step(f"{layout.root} cleared"):
        for node in NODES:
            if layout.config_of(node.name).exists():
                await halt(layout, node.name)
        layout.clear()


async def _is_healthy(etcd_port: int) -> bool:
    """etcd's own word, by HTTP: it has a leader, and a write went through."""
    try:
        async with asyncio.timeout(3):
            reader, writer = await asyncio.open_connection(HUB_ADDRESS, etcd_port)
            try:
                writer.write(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")
                return b'"true"' in await reader.read(4096)
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


async def _answers(client: Client) -> bool:
    try:
        await client.status()
    except (UnavailableError, TimedOutError):
        return False
    return True


async def _all_heard(client: Client) -> bool:
    page = await client.status()
    heard = {node.get("name") for node in page.get("nodes") or [] if not node.get("silent") and node.get("heard_by")}
    return heard >= {node.name for node in NODES}


async def _found(client: Client) -> Thing | None:
    try:
        return await client.get("Instance", INSTANCE)
    except NotFoundError:
        return None


def members_told(page: dict[str, Any]) -> str:
    """Such as `m1 primary on n1, m2 replica on n2`."""
    return ", ".join(f"{m.get('name')} {m.get('role')} on {m.get('node')}" for m in progress.members_of(page))
