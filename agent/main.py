"""`moorage-agent`: `enrol` once, `run` for ever, `restart-proxy` without a cut, `halt` to stop what the node runs.

`run` ends on SIGTERM and leaves engines and proxy running: the next agent adopts them. An unexpected failure of any
part ends the process with status 1; the supervisor starts it anew.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click

from agent.config import AgentConfig
from agent.context import NodeContext
from agent.engines.base import Engine as EngineDriver
from agent.engines.base import EngineSetup, MemberPaths, OsUser, TlsFiles
from agent.engines.postgres.engine import PostgresEngine
from agent.engines.postgres.install import find_engines
from agent.engines.rubbish import Rubbish
from agent.enrol import enrol, enrolled, hub_addresses, keep_renewed
from agent.exposition import exposition
from agent.facts import node_facts
from agent.fleet import Fleet, ask_restart
from agent.fleet import halt as halt_proxy
from agent.heartbeat import Heartbeat, LeaderLease, NodeLease
from agent.link import HubLink
from agent.local import LocalFiles
from agent.members import Members
from agent.metrics import MetricsServer, node_figures
from agent.peer import Peers, PeerServer, PeerService
from agent.pull import Puller
from agent.reporter import Reporter
from agent.verifiers import Desk
from core.clock import SystemClock
from core.config import load_config
from core.errors import ConflictError, EngineError, MoorageError, UserError
from core.ids import InstanceRef, MemberName, MemberRef
from core.log import EventLog, setup_logging
from core.notify import READY, STOPPING, keep_alive, tell
from core.records import EngineOffer, MemberDesired, MemberSecrets, NodeState
from core.routes import ProxyReport

log = EventLog("agent.main")
FACTS_EVERY_S = 300.0
HALT_PROXY_WITHIN_S = 8.0
T = TypeVar("T")


class Agent:
    """All parts of one agent, wired up."""

    def __init__(self, config: AgentConfig) -> None:
        self.config = config
        self.clock = SystemClock()
        self.offers = find_engines(config.engine_dirs)
        self.files = LocalFiles(config.data_root)
        self.link = HubLink(hub_addresses(config), config.identity_dir)
        self.reporter = Reporter(config.node, self.link, self.clock)
        self.lease = NodeLease(self.files)
        self.node = NodeContext(
            config=config,
            clock=self.clock,
            link=self.link,
            files=self.files,
            lease=self.lease,
            peers=Peers(config.identity_dir),
            reporter=self.reporter,
            routes_changed=self._routes_changed,
            routes_settled=self._routes_settled,
            kick_heartbeat=self._kick_heartbeat,
            started_at=self.clock.now(),
        )
        self.rubbish = Rubbish(config.data_root / "rubbish", self.clock)
        self.members = Members(self.node, driver_factory(config, self.offers, self.rubbish))
        self.proxy = Fleet(config, self.members.routes, Desk(self.members.keepers, self.node.peers))
        self.puller = Puller(config.node, self.link, self.files, self._take_state)
        self.peer_server = PeerServer(
            config.address, config.peer_port, config.identity_dir, PeerService(self.members.answerer)
        )
        self.heartbeat = Heartbeat(
            node=config.node,
            data_root=str(config.data_root),
            link=self.link,
            lease=self.lease,
            clock=self.clock,
            samples=self.members.samples,
            applied_revision=lambda: self.puller.revision,
            on_leaders=self._take_leaders,
            on_resync=self.reporter.resync,
        )

    def _routes_changed(self) -> None:
        self.proxy.changed()

    async def _routes_settled(self, timeout_s: float) -> ProxyReport:
        return await self.proxy.settled(timeout_s)

    def _kick_heartbeat(self) -> None:
        self.heartbeat.kick()

    def _take_state(self, state: NodeState, store_id: str) -> None:
        """From disk or from a hub. Only now does this agent do its work, so only now does it call itself ready."""
        self.members.apply(state, store_id)
        tell(READY)

    def _take_leaders(self, leaders: dict[InstanceRef, LeaderLease]) -> None:
        self.node.leaders = leaders
        self.node.hub_seen_at = self.heartbeat.answered_at
        self.proxy.changed()

    async def run(self) -> None:
        """Until cancelled, or until a part fails."""
        self.reporter.facts(node_facts(self.config, self.offers))
        await self.peer_server.start()
        try:
            async with asyncio.TaskGroup() as group:
                parts: dict[str, Coroutine[Any, Any, None]] = {
                    "members": self.members.run(),
                    "rubbish": self.rubbish.run(),
                    "proxy": self.proxy.run(),
                    "pull": self.puller.run(),
                    "heartbeat": self.heartbeat.run(),
                    "reporter": self.reporter.run(),
                    "facts": self._keep_facts(),
                    "watchdog": keep_alive(),
                    "certificate": keep_renewed(self.config, self.link, self.clock, self._certificate_renewed),
                }
                if self.config.metrics_listen is not None:
                    parts["metrics"] = MetricsServer(self.config.metrics_listen, self._metrics).run()
                for name, part in parts.items():
                    group.create_task(_for_ever(name, part), name=name)
                log.info("agent_started", node=self.config.node, hubs=",".join(hub_addresses(self.config)))
        finally:
            tell(STOPPING)
            await self.peer_server.stop()
            await self.node.peers.close()
            await self.link.close()

    def _metrics(self) -> str:
        return exposition(
            node_figures(
                self.config,
                self.clock,
                members=self.members,
                heartbeat=self.heartbeat,
                proxy=self.proxy,
                since=self.node.started_at,
            )
        )

    async def _keep_facts(self) -> None:
        while True:
            await asyncio.sleep(FACTS_EVERY_S)
            self.reporter.facts(node_facts(self.config, self.offers))

    async def _certificate_renewed(self) -> None:
        await self.link.reconnect()
        await self.node.peers.close()
        await self.peer_server.restart()


def driver_factory(
    config: AgentConfig, offers: tuple[EngineOffer, ...], rubbish: Rubbish | None = None
) -> Callable[[MemberRef, MemberDesired, MemberSecrets], EngineDriver]:
    """How a member's engine is driven on this node."""
    run_as = OsUser.named(config.engine_user) if config.engine_user and os.getuid() == 0 else None
    identity = config.identity_dir
    tls = TlsFiles(cert=identity / "node.crt", key=identity / "node.key", ca=identity / "ca.crt")

    def make(ref: MemberRef, desired: MemberDesired, secrets: MemberSecrets) -> EngineDriver:
        offer = next((o for o in offers if o.engine == desired.engine and o.version == desired.engine_version), None)
        if offer is None:
            raise EngineError(
                f"{desired.engine} {desired.engine_version} is not installed on {config.node}",
                object=str(ref),
                hint="Install it and start the agent again.",
            )
        paths = MemberPaths.below(config.data_root, ref)
        paths.root.mkdir(parents=True, exist_ok=True)
        return PostgresEngine(
            EngineSetup(
                desired=desired,
                secrets=secrets,
                paths=paths,
                offer=offer,
                address=config.address,
                tls_files=tls if offer.tls else None,
                run_as=run_as,
                clock=SystemClock(),
                rubbish=rubbish,
            )
        )

    return make


async def halt(config: AgentConfig) -> None:
    """Stop every engine of this node in an orderly way, then the proxy. The agent must not be running."""
    offers = find_engines(config.engine_dirs)
    make = driver_factory(config, offers)
    state = LocalFiles(config.data_root).pulled().state
    failures: list[str] = []

    async def stop(desired: MemberDesired) -> None:
        ref = MemberRef(InstanceRef(desired.project, desired.instance), MemberName(desired.member))
        try:
            driver = make(ref, desired, state.secrets.get(ref.key, MemberSecrets()))
            await driver.observe()
            await driver.stop()
        except (MoorageError, OSError) as error:
            failures.append(f"{ref}: {error}")

    async with asyncio.TaskGroup() as group:
        for desired in state.members:
            group.create_task(stop(desired), name=f"stop {desired.member}")
    await halt_proxy(config, HALT_PROXY_WITHIN_S)
    if failures:
        raise EngineError("; ".join(failures), object=config.node)


async def _for_ever(name: str, part: Coroutine[Any, Any, None]) -> None:
    """A part that ends, in whatever way but by our own wish, ends the agent: half an agent is worse than none."""
    try:
        await part
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
    raise RuntimeError(f"the agent's {name} has ended, which it never should")


# --- command line ---------------------------------------------------------------------------------------------------


def _lock(config: AgentConfig) -> int:
    """Hold the node's lock until the process ends: one agent a data root."""
    config.data_root.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(config.data_root / "agent.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ConflictError(
            "another agent runs with this data root", object=str(config.data_root), hint="Stop it first."
        ) from error
    return descriptor


async def _until_signal(work: Coroutine[Any, Any, None]) -> None:
    """Run `work` until it ends or SIGTERM or SIGINT asks to stop."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        log.info("agent_stopped")


def _checked(run: Callable[[], T]) -> T:
    try:
        return run()
    except MoorageError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


@click.group()
def main() -> None:
    """The agent of one Moorage node."""


_CONFIG = click.option("--config", "path", type=click.Path(path_type=Path), default=Path("/etc/moorage/agent.yaml"))


@main.command("enrol")
@_CONFIG
@click.option("--hub", required=True, help="host:port of a hub's operator port")
@click.option("--token", help="Join token; visible to other users of this machine, --token-file is not")
@click.option("--token-file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def enrol_command(path: Path, hub: str, token: str | None, token_file: Path | None) -> None:
    """Exchange a join token for this node's certificate."""

    def work() -> list[str]:
        config = load_config(path, AgentConfig)
        _lock(config)
        text = token or (token_file.read_text().strip() if token_file else "")
        if not text:
            raise UserError("no join token", hint="Give --token-file; `moorctl node token` makes one.")
        facts = node_facts(config, find_engines(config.engine_dirs))
        return asyncio.run(enrol(config, hub=hub, token=text, facts=facts))

    hubs = _checked(work)
    click.echo(f"enrolled; hubs: {', '.join(hubs)}")


@main.command("run")
@_CONFIG
def run_command(path: Path) -> None:
    """Run the agent until SIGTERM."""

    def work() -> None:
        config = load_config(path, AgentConfig)
        setup_logging(level=config.log_level, fmt=config.log_format)
        _lock(config)
        if not enrolled(config.identity_dir):
            raise UserError(f"{config.node} is not enrolled", hint="Run `moorage-agent enrol` with a join token first.")

        async def go() -> None:
            agent = Agent(config)
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, agent.proxy.restart)
            await _until_signal(agent.run())

        asyncio.run(go())

    _checked(work)


@main.command("restart-proxy")
@_CONFIG
def restart_proxy_command(path: Path) -> None:
    """Have this node's agent put new proxy processes in the place of the present ones; no client is cut."""

    def work() -> int:
        return ask_restart(load_config(path, AgentConfig))

    click.echo(f"asked for; the agent starts generation {_checked(work)}, and the former serves on whom it has")


@main.command("halt")
@_CONFIG
def halt_command(path: Path) -> None:
    """Stop this node's engines and proxy in an orderly way; the agent must be stopped."""

    def work() -> None:
        config = load_config(path, AgentConfig)
        setup_logging(level=config.log_level, fmt=config.log_format)
        _lock(config)
        asyncio.run(halt(config))

    _checked(work)


if __name__ == "__main__":
    main()
