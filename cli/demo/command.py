"""The verbs of `moorage-demo`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import click
import psycopg

from cli import connect, output, progress
from cli import status as overview
from cli.client import Client, Credentials
from cli.demo import tools, traces
from cli.demo.layout import Layout
from cli.demo.parts import PartError, first_error
from cli.demo.stand import INSTANCE, Stand, tidy
from cli.demo.steps import Steps
from cli.demo.story import check as play_check
from cli.demo.story import primary_of
from cli.main import run as run_command_line
from cli.session import confirm
from core.clock import SystemClock
from core.errors import DeniedError, NotFoundError, UnavailableError

PROGRAM = "moorage-demo"
CONNECT_WITHIN_S = 20.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def default_root() -> Path:
    """A short path, for sockets lie below it."""
    if os.getuid() == 0:
        return Path("/var/lib/moorage-demo")
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "moorage-demo"


_root_option = click.option(
    "--root", type=click.Path(path_type=Path), default=None, metavar="DIR", help="Folder of the demo."
)
_engine_option = click.option(
    "--engine",
    type=click.Choice(["embedded", "system"]),
    default="embedded",
    show_default=True,
    help="PostgreSQL of the Python wheel, or the newest below /usr/lib/postgresql.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def demo() -> None:
    """A highly available PostgreSQL on this machine, to look at and to break."""


@demo.command()
@_root_option
@_engine_option
@click.option("--reset", is_flag=True, help="Clear what an earlier demo has left, and start anew.")
@click.option("--yes", is_flag=True, help="Do not ask before clearing.")
def run(root: Path | None, engine: tools.EngineChoice, reset: bool, yes: bool) -> None:
    """Start everything, make demo/orders, and run until Ctrl-C; a second start resumes the same data."""
    layout = Layout((root or default_root()).absolute())
    with layout.locked():
        if reset and (layout.root / "demo.json").exists():
            confirm(f"Clear the demo in {layout.root} with all its data?", yes=yes)
        asyncio.run(_run(layout, engine, reset=reset))


async def _run(layout: Layout, choice: tools.EngineChoice, *, reset: bool) -> None:
    clock = SystemClock()
    steps = Steps(clock)
    etcd, engine = tools.find_etcd(), tools.find_engine(choice)
    await tidy(layout, steps, reset=reset)
    layout.prepare()
    stand = Stand(layout, etcd=etcd, engine=engine, steps=steps, clock=clock)
    output.note(f"everything lies below {layout.root}; Ctrl-C stops")
    try:
        await unless_told(_start_and_watch(stand, steps))
    except PartError as error:
        show_tail(error)
        raise
    finally:
        await _stop(stand)
    output.say(f"stopped; the data stays in {layout.root}, and `{PROGRAM} run` resumes it")


async def _stop(stand: Stand) -> None:
    """Whoever reads what is printed may end by the same Ctrl-C (`demo | tee`), or the terminal is closed: what runs is
    stopped all the same, if need be without a word."""
    try:
        output.say()
        await stand.stop()
    except (output.ReaderGone, BrokenPipeError):
        nobody = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nobody, stream.fileno())
        await stand.stop()


async def _start_and_watch(stand: Stand, steps: Steps) -> None:
    await stand.start()
    await stand.make_instance()
    async with stand.client() as client:
        credentials = await client.credentials(INSTANCE)
        page = await client.status()
    with steps.step("connect") as step:
        step.tell(await _greeting(credentials))
    _show_ready(stand, credentials, page, steps.total_s)
    await stand.parts.watch()


async def unless_told(work: Coroutine[Any, Any, None]) -> None:
    """Do the work until it ends, or until one of STOP_SIGNALS, which is an end like any other.

    A second signal is not caught any more: it ends the demo at once, and the next one tidies up.
    """
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, told.set)
    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(work, name="work")
            stopper = group.create_task(_cancel_when(told, task), name="stopper")
            await asyncio.wait({task})
            stopper.cancel()
    except BaseExceptionGroup as group_error:
        raise first_error(group_error) from None
    finally:
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)


async def _cancel_when(told: asyncio.Event, task: asyncio.Task[None]) -> None:
    await told.wait()
    task.cancel()


async def _greeting(credentials: Credentials) -> str:
    """What the primary says of itself, through the proxy."""
    uri = connect.uri(credentials)
    try:
        async with asyncio.timeout(CONNECT_WITHIN_S):
            connection = await psycopg.AsyncConnection.connect(uri, autocommit=True)
            async with connection:
                row = await (await connection.execute("show server_version")).fetchone()
    except (psycopg.Error, OSError, TimeoutError) as error:
        what = f"no connection through the proxy: {output.plain(error) or 'timed out'}"
        raise UnavailableError(what, object=INSTANCE) from error
    return f"connected as {credentials.user} through the proxy: PostgreSQL {row[0] if row else '?'}"


def show_tail(error: PartError) -> None:
    """The end of the log of a part that ended."""
    if error.tail:
        output.note(f"the last lines of {error.object}:")
        for line in error.tail:
            output.note(f"  {output.raw(line)}")


# --- what is said when it runs ----------------------------------------------------------------------------------------


def _show_ready(stand: Stand, credentials: Credentials, page: progress.Page, took_s: float) -> None:
    layout = stand.layout
    output.say()
    output.say(output.tone(f"{INSTANCE} is ready after {took_s:.0f} s", "bold"))
    output.say(f"  read-write  {connect.uri(credentials)}")
    output.say(f"  read-only   {connect.uri(credentials, read_only=True)}")
    output.say(f"  operators   {layout.operators} (gRPC, for moorctl; there is no web console yet)")
    output.say()
    overview.show(page, stand.wall())
    output.say()
    output.say(output.tone("Try next, in another terminal:", "bold"))
    folders = [Path(sys.executable).parent, *([] if connect.find_psql() else [stand.engine.bin_dir])]
    root = "" if layout.root == default_root() else f" --root {layout.root}"
    for command, why in (
        (f"export PATH={':'.join(map(str, folders))}:$PATH MOORAGE_CONFIG={layout.moorctl_config}", ""),
        (f"moorctl instance connect {INSTANCE}", "psql at the primary; --read-only: at a replica"),
        ("moorctl event list --follow", "watch what happens, while you"),
        (f"{PROGRAM} kill-primary{root}", "kill -9 the primary's postmaster, or"),
        (f"moorctl instance switchover {INSTANCE}", "move the primary in an orderly way"),
        (f"moorctl instance show {INSTANCE}", "members, conditions, history of leadership"),
        (
            f"ETCDCTL_API=3 {stand.etcd.etcdctl} --endpoints {layout.etcd_endpoint} get --prefix /moorage/ha/",
            "the truth in plain JSON",
        ),
    ):
        output.say(f"  {command}")
        if why:
            output.say(output.tone(f"      {why}", "dim"))
    output.say()
    output.say(f"Ctrl-C stops everything; `{PROGRAM} run{root}` resumes it, with --reset it starts anew.")
    sys.stdout.flush()


# --- other verbs ------------------------------------------------------------------------------------------------------


@demo.command("kill-primary")
@_root_option
def kill_primary(root: Path | None) -> None:
    """Kill -9 the postmaster of the primary of a running demo."""
    layout = Layout((root or default_root()).absolute())
    layout.load()
    if not layout.memory.processes:
        raise NotFoundError("no demo runs here", object=str(layout.root), hint=f"Start it: {PROGRAM} run")

    async def find() -> progress.Page:
        async with Client(layout.target(), SystemClock()) as client:
            return (await client.get("Instance", INSTANCE)).status

    member = primary_of(asyncio.run(find()))
    pid = traces.postmaster_pid(layout, node=member["node"], member=member["name"])
    if pid is None:
        raise NotFoundError("has no running postmaster", object=f"{INSTANCE}/{member['name']}")
    try:
        os.kill(pid, signal.SIGKILL)
    except PermissionError as error:
        hint = "Run this as the user who runs the demo."
        raise DeniedError(f"process {pid} is another user's", object=INSTANCE, hint=hint) from error
    output.say(f"kill -9 {pid}: that was {member['name']} on {member['node']}, the primary")


@demo.command()
@_engine_option
@click.option("--keep", is_flag=True, help="Keep the folder when something went wrong.")
def check(engine: tools.EngineChoice, keep: bool) -> None:
    """Play the whole story unattended, in a temporary folder and on free ports; takes up to 3 minutes."""
    asyncio.run(_check(engine, keep=keep))


async def _check(engine: tools.EngineChoice, *, keep: bool) -> None:
    clock = SystemClock()
    steps = Steps(clock)
    ended = False

    async def play() -> None:
        nonlocal ended
        await play_check(engine, steps, clock, keep=keep)
        ended = True

    try:
        await unless_told(play())
    except PartError as error:
        show_tail(error)
        raise
    if not ended:
        raise click.Abort
    output.say(output.tone(f"all is as promised, in {steps.total_s:.0f} s", "good"))


def main() -> None:
    """The console script."""
    sys.exit(run_command_line(demo, sys.argv[1:], program=PROGRAM, interrupted="interrupted"))
