"""The hub's process: configuration in, one task group, an orderly end.

The order of the start is the promise: the ports are bound only after the mirror is in step with etcd, so whoever gets
through gets true answers, and balancers that only look at TCP wait as well. The end is the other way round: health says
NOT_SERVING, every held poll is answered and sent elsewhere, calls under way get ten seconds, then etcd is left.

Every long task lives in one task group, and none of them ends by itself. So when one fails (the mirror above all: a hub
with a dead watch would serve the past for ever), the process ends with an exit code that is not 0, and its supervisor
starts it anew. Nothing is lost by that: all that counts lies in etcd.
"""

from __future__ import annotations

import asyncio
import gc
import random
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import click

from core.clock import SystemClock
from core.config import load_config
from core.errors import MoorageError, UserError
from core.ids import InstanceRef
from core.log import EventLog, setup_logging
from core.notify import READY, STOPPING, keep_alive, tell
from core.records import MemberDesired, MemberSecrets
from core.sealing import Sealer
from hub.audit import AuditTrail
from hub.authority import Authority
from hub.board import Board
from hub.config import HubConfig
from hub.context import Hub
from hub.controllers import Controllers
from hub.etcd import keys
from hub.etcd.client import EtcdClient, EtcdTls
from hub.etcd.mirror import Changes, Mirror
from hub.etcd.store import Store
from hub.events import EventWriter
from hub.leases import BallotLeases, LeaseBook
from hub.liveness import Liveness
from hub.options import raise_descriptor_limit
from hub.presence import Presence
from hub.pulse import Pulse
from hub.secrets import Secrets
from hub.servers import Servers
from hub.setup import prepare

STOP_GRACE_S = 10.0
SYNC_REMINDER_S = 10.0
CRASHED = 70  # EX_SOFTWARE
BALLOT_TTLS = 2  # a ballot outlives one election: twice the node leases' time to live

log = EventLog("hub.main")


@click.group()
def main() -> None:
    """The hub of Moorage: keeps the desired state in etcd and answers agents, operators and newcomers."""


_config_option = click.option(
    "--config", "config_path", type=click.Path(path_type=Path), required=True, help="The hub's YAML file."
)


@main.command()
@_config_option
@click.option("--new-admin", is_flag=True, help="Make another admin token, for when the first one is lost.")
def init(config_path: Path, new_admin: bool) -> None:
    """Prepare etcd and this host; safe to repeat."""
    _run(lambda config: _init(config, new_admin=new_admin), config_path)


@main.command()
@_config_option
def run(config_path: Path) -> None:
    """Serve until SIGTERM."""
    _run(serve, config_path)


def _run(work: Callable[[HubConfig], Coroutine[Any, Any, None]], config_path: Path) -> None:
    """Expected failures become one line and their exit code; what nobody expected keeps its traceback, in the log."""
    try:
        config = load_config(config_path, HubConfig)
        setup_logging(level=config.log_level, fmt=config.log_format)
        asyncio.run(work(config))
    except MoorageError as error:
        _fail(error)
    except BaseExceptionGroup as group:
        expected, unexpected = group.split(MoorageError)
        if unexpected is not None or expected is None:
            log.unexpected("hub_crashed", group, exit_code=CRASHED)
            sys.exit(CRASHED)
        _fail(_first(expected))


def _fail(error: BaseException) -> None:
    click.echo(f"moorage-hub: {error}", err=True)
    sys.exit(error.exit_code if isinstance(error, MoorageError) else CRASHED)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


def _client(config: HubConfig) -> EtcdClient:
    files = config.etcd_tls
    tls = None if files is None else EtcdTls(ca=files.ca, cert=files.cert, key=files.key)
    return EtcdClient(config.etcd_endpoints, tls=tls)


async def _init(config: HubConfig, *, new_admin: bool) -> None:
    client = _client(config)
    try:
        prepared = await prepare(config, client, new_admin=new_admin)
    finally:
        await client.aclose()
    click.echo(f"store id           {prepared.store_id}")
    for made, what, path in (
        (prepared.made_seal_key, "seal key", config.seal_key_path),
        (prepared.made_admin_token, "admin token", config.admin_token_path),
        (True, "CA certificate", config.ca_path),
    ):
        click.echo(f"{what:18} {path}{'' if made else ' (left as it was)'}")


async def serve(config: HubConfig) -> None:
    """Run the hub until SIGTERM or SIGINT; raises when a task that must not end has ended."""
    client = _client(config)
    try:
        async with asyncio.TaskGroup() as group:
            await _serve(config, client, group)
    finally:
        await client.aclose()


async def _serve(config: HubConfig, client: EtcdClient, group: asyncio.TaskGroup) -> None:
    stopping = _stop_event()
    mirror = Mirror(client)
    tasks = [group.create_task(mirror.run(), name="mirror")]
    if await _in_step(mirror, stopping):
        hub = await assemble_hub(config, client, mirror)
        await _serve_in_step(hub, group, stopping)
    for task in tasks:
        task.cancel()
    log.info("hub_stopped", hub=config.name)


async def _serve_in_step(hub: Hub, group: asyncio.TaskGroup, stopping: asyncio.Event) -> None:
    """From the first open port to the last closed one."""
    pulse = Pulse(hub.clock, hub.liveness, hub.leases)
    presence = Presence(hub.config, clock=hub.clock, client=hub.client, mirror=hub.mirror, liveness=hub.liveness)
    servers = Servers(hub, pulse)
    try:
        await servers.start()
        tasks = [
            group.create_task(pulse.run(), name="pulse"),
            group.create_task(presence.run(), name="presence"),
            group.create_task(Controllers(hub).run(), name="controllers"),
            group.create_task(keep_alive(), name="watchdog"),
        ]
        gc.freeze()  # what lives now lives for ever; thousands of futures make full collections long
        log.info("hub_started", hub=hub.config.name, store_id=hub.mirror.store_id, nodes=len(hub.mirror.nodes))
        tell(READY)
        await stopping.wait()
        tell(STOPPING)
        log.info("hub_draining", hub=hub.config.name, polls=hub.board.waiting)
        for task in tasks:
            task.cancel()  # its twin takes the controllers' work over while this one still answers
        await presence.leave()
        await servers.drain(STOP_GRACE_S)
    finally:
        await servers.stop()


def _stop_event() -> asyncio.Event:
    """Set by SIGTERM and SIGINT."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    return stopping


async def _in_step(mirror: Mirror, stopping: asyncio.Event) -> bool:
    """Wait until the mirror has listed etcd, which may be away for long. False = told to stop meanwhile."""
    async with asyncio.TaskGroup() as group:
        waits = [group.create_task(mirror.synced.wait()), group.create_task(stopping.wait())]
        while not any(wait.done() for wait in waits):
            await asyncio.wait(waits, timeout=SYNC_REMINDER_S, return_when=asyncio.FIRST_COMPLETED)
            if not any(wait.done() for wait in waits):
                log.warning("etcd_awaited", seconds=SYNC_REMINDER_S)
        for wait in waits:
            wait.cancel()
    if stopping.is_set():
        return False
    if not mirror.store_id:
        raise UserError("etcd has not been prepared", object=keys.STORE_ID, hint="Run `moorage-hub init` first.")
    return True


async def assemble_hub(config: HubConfig, client: EtcdClient, mirror: Mirror) -> Hub:
    """All parts of a hub around a mirror that is in step."""
    raise_descriptor_limit()
    clock = SystemClock()
    store = Store(client, mirror)
    sealer = Sealer.load(config.seal_key_path)
    secrets = Secrets(sealer, store, mirror)
    hub = Hub(
        config=config,
        clock=clock,
        client=client,
        mirror=mirror,
        store=store,
        audit=AuditTrail(client, store, clock),
        authority=await Authority.load_or_create(store, mirror, sealer, config, clock=clock),
        secrets=secrets,
        liveness=Liveness(clock),
        events=EventWriter(store, config.name, clock=clock),
        board=Board(
            mirror,
            lambda member: _secrets_of(secrets, member),
            hold_s=(config.hold_min_s, config.hold_max_s),
            uniform=random.uniform,
        ),
        leases=LeaseBook(client, clock, ttl_s=config.lease_ttl_s),
        ballot_leases=BallotLeases(client, clock, ttl_s=BALLOT_TTLS * config.lease_ttl_s),
    )
    mirror.subscribe(hub.board.changed)
    mirror.subscribe(lambda changes: _forget_leavers(hub, changes))
    return hub


def _secrets_of(secrets: Secrets, member: MemberDesired) -> MemberSecrets:
    ref = InstanceRef(member.project, member.instance)
    users = [user.name for user in member.users]
    return secrets.member_secrets(ref, users, standby=member.standby is not None)


def _forget_leavers(hub: Hub, changes: Changes) -> None:
    """Memory about nodes ends with the nodes."""
    if changes.everything:
        hub.liveness.forget_all_but(frozenset(hub.mirror.nodes))
    for node in changes.nodes - hub.mirror.nodes.keys():
        hub.liveness.forget(node)
        hub.ballot_leases.forget(node)
