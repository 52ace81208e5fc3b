"""The main job, played unattended: create, connect, write, lose the primary, go on, switch over, count, delete.

Each step raises at the first thing that is not as promised, so that a check which ends well has seen all of it. It
runs in a temporary folder and on free ports, beside whatever else the machine does, and removes everything at the end,
also after a failure.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import psycopg

from cli import connect, output, progress
from cli.client import Client, Credentials
from cli.demo import tools, traces
from cli.demo.layout import Layout, Memory, free_block
from cli.demo.parts import run_to_end, tail
from cli.demo.stand import INSTANCE, Stand
from cli.demo.steps import Steps
from cli.demo.writer import CREATE, PROBE, SELECT, Writer
from core.clock import Clock
from core.errors import EngineError, MoorageError, NotFoundError, TimedOutError

CHECK_WITHIN_S = 170.0
STEP_WITHIN_S = 60.0
WRITES_WANTED = 100  # acknowledged ones before something is done to the primary, and after it
PSQL_WITHIN_S = 30.0


class Story:
    """The check on one stand. `primary` is the page of the member that leads, as last seen."""

    def __init__(self, stand: Stand, steps: Steps, clock: Clock) -> None:
        self._stand = stand
        self._steps = steps
        self._clock = clock

    async def play(self) -> None:
        await self._stand.start()
        await self._stand.make_instance()
        await self._stand.parts.guard(self._use())

    async def _use(self) -> None:
        async with self._stand.client() as client:
            credentials = await client.credentials(INSTANCE)
            tls = connect.checked_tls(credentials, self._stand.layout.root)
            await self._connect_by_psql(credentials, tls)
            uri = connect.uri(credentials, tls=tls)
            await self._connect_by_driver(uri, connect.uri(credentials, read_only=True, tls=tls))
            writer = Writer(uri, self._clock)
            await self._while_writing(writer, client)
            await self._count(writer, uri)
            await self._delete(client, credentials)

    async def _connect_by_psql(self, credentials: Credentials, tls: connect.Tls) -> None:
        psql = connect.find_psql([self._stand.engine.bin_dir])
        if psql is None:
            raise NotFoundError("no psql on this machine", hint="Install postgresql-client.")
        with self._steps.step("psql") as step:
            usable = connect.usable_tls(psql, credentials, tls)
            told = []
            for read_only in (False, True):
                variables = connect.environment(credentials, usable, read_only=read_only)
                told.append(await self._psql(psql, variables, "select pg_is_in_recovery()"))
            if told != ["f", "t"]:
                raise MoorageError(f"psql found recovery {told[0]} at the read-write port and {told[1]} at read-only")
            how = "TLS, certificate checked" if usable.mode == "verify-full" else "no TLS"
            step.tell(
                f"psql reaches the primary at port {credentials.rw_port}, a replica at {credentials.ro_port} ({how})"
            )

    async def _psql(self, psql: str, variables: dict[str, str], sql: str) -> str:
        assignments = [f"{name}={value}" for name, value in variables.items()]
        command = ["/usr/bin/env", *assignments, psql, "-X", "-A", "-t", "-c", sql]
        log = self._stand.layout.logs / "psql.log"
        return (await run_to_end("psql", command, log=log, within_s=PSQL_WITHIN_S)).strip()

    async def _connect_by_driver(self, uri: str, read_only_uri: str) -> None:
        with self._steps.step("psycopg") as step:
            async with asyncio.timeout(STEP_WITHIN_S), await _connected(uri) as connection:
                await connection.execute(CREATE)
                version = (await (await connection.execute("show server_version")).fetchone() or ("?",))[0]
                encrypted = connection.pgconn.ssl_in_use
            async with asyncio.timeout(STEP_WITHIN_S), await _connected(read_only_uri) as connection:
                try:
                    await connection.execute(PROBE)
                except psycopg.errors.ReadOnlySqlTransaction:
                    pass
                else:
                    raise MoorageError("a write went through the read-only port")
            step.tell(f"psycopg creates a table on PostgreSQL {version} {'over TLS' if encrypted else 'without TLS'}")

    # --- with a writer running ------------------------------------------------------------------------------------

    async def _while_writing(self, writer: Writer, client: Client) -> None:
        """Everything that is done to the primary while a client writes to it."""
        async with asyncio.TaskGroup() as group:
            task = group.create_task(writer.run(), name="writer")
            with self._steps.step("writing every 5 ms") as step:
                await writer.until_written(WRITES_WANTED, STEP_WITHIN_S)
                step.tell(f"writing every 5 ms: {len(writer.acknowledged)} writes acknowledged")
            await self._kill_primary(writer, client)
            await self._heal(client)
            await self._switch_over(writer, client)
            task.cancel()

    async def _kill_primary(self, writer: Writer, client: Client) -> None:
        before = await self._page(client)
        member = primary_of(before)
        with self._steps.step(f"kill -9 of the primary {member['name']} on {member['node']}") as step:
            pid = traces.postmaster_pid(self._stand.layout, node=member["node"], member=member["name"])
            if pid is None:
                raise NotFoundError("has no running postmaster", object=f"{INSTANCE}/{member['name']}")
            at = self._clock.now()
            os.kill(pid, signal.SIGKILL)  # children of the postmaster see it end and go by themselves
            await writer.until_written(WRITES_WANTED, STEP_WITHIN_S)
            gap = writer.longest_gap_s(at)
            step.tell(f"kill -9 {pid}, the primary {member['name']}: writes go on after {gap:.2f} s")
        self._before_kill = before

    async def _heal(self, client: Client) -> None:
        """The killed primary comes back as a replica of the new one."""
        old, term = primary_of(self._before_kill)["name"], _term(self._before_kill)

        def judge(page: progress.Page | None, _waited_s: float) -> progress.Verdict:
            if page is None or _term(page) <= term:
                return progress.NotYet("no new term yet")
            members = progress.members_of(page)
            replicas = {member.get("name") for member in members if member.get("role") == "replica"}
            well = all(member.get("state") == "running" for member in members)
            if page.get("phase") == "Running" and well and old in replicas:
                return progress.Reached()
            return progress.NotYet(progress.worst_condition(page) or f"{old} is no replica yet")

        with self._steps.step(f"{old} comes back as a replica", own_display=True) as step:
            goal = progress.Goal(name=INSTANCE, judge=judge, what="Running")
            page = await self._wait(client, goal)
            step.tell(f"{primary_of(page)['name']} leads in term {_term(page)}; {old} is back as a replica")

    async def _switch_over(self, writer: Writer, client: Client) -> None:
        before = await self._page(client)
        old = primary_of(before)["name"]
        failures = len(writer.failures)
        with self._steps.step("switchover", own_display=True) as step:
            at = self._clock.now()
            request = await client.switchover(INSTANCE)
            page = await self._wait(client, progress.switched(INSTANCE, request, before_term=_term(before)))
            await writer.until_written(WRITES_WANTED, STEP_WITHIN_S)
            errors = len(writer.failures) - failures
            new, gap = primary_of(page)["name"], writer.longest_gap_s(at)
            step.tell(f"switchover from {old} to {new}: writes pause {gap:.2f} s, {errors} error(s) at the client")

    async def _wait(self, client: Client, goal: progress.Goal) -> progress.Page:
        pages = await progress.wait_for(
            client, [goal], timeout_s=STEP_WITHIN_S, clock=self._clock, indent="         ", hint=""
        )
        return pages[INSTANCE] or {}

    async def _page(self, client: Client) -> progress.Page:
        return (await client.get("Instance", INSTANCE)).status

    # --- the reckoning ----------------------------------------------------------------------------------------------

    async def _count(self, writer: Writer, uri: str) -> None:
        with self._steps.step("acknowledged writes") as step:
            async with asyncio.timeout(STEP_WITHIN_S), await _connected(uri) as connection:
                rows = await (await connection.execute(SELECT)).fetchall()
            present = {int(row[0]) for row in rows}
            lost = [number for number, _ in writer.acknowledged if number not in present]
            if lost:
                raise MoorageError(
                    f"{len(lost)} of {len(writer.acknowledged)} acknowledged writes are lost: {lost[:10]}"
                )
            step.tell(f"all {len(writer.acknowledged)} acknowledged writes are there")

    async def _delete(self, client: Client, credentials: Credentials) -> None:
        page = await self._page(client)
        engine_port = int((page.get("endpoints") or {}).get("engine_port") or credentials.rw_port)
        with self._steps.step("delete", own_display=True) as step:
            await client.delete("Instance", INSTANCE)
            await self._wait(client, progress.gone(INSTANCE))
            await self._eventually_empty("files", lambda: traces.member_files(self._stand.layout))
            ports = (engine_port, credentials.rw_port, credentials.ro_port)
            await self._eventually_empty("ports", lambda: traces.listening(ports))
            step.tell("instance deleted: no file, no port left")

    async def _eventually_empty(self, what: str, look: Any) -> None:
        """A hub may know of the end a moment before the agents' last clean-up."""
        deadline = self._clock.now() + 10.0
        while True:
            left = await asyncio.to_thread(look)
            if not left:
                return
            if self._clock.now() > deadline:
                raise MoorageError(f"{what} left behind: {', '.join(left[:5])}", object=INSTANCE)
            await asyncio.sleep(0.2)


async def check(choice: tools.EngineChoice, steps: Steps, clock: Clock, *, keep: bool = False) -> None:
    """The whole story in a temporary folder; raises at the first thing wrong, and cleans up in any case.

    `keep` leaves the folder when something was wrong.
    """
    etcd, engine = tools.find_etcd(), tools.find_engine(choice)
    root = Path(tempfile.mkdtemp(prefix="moorage-check-"))
    try:
        layout = Layout(root, Memory(base_port=free_block()))
        layout.save()
        layout.prepare()
        stand = Stand(layout, etcd=etcd, engine=engine, steps=steps, clock=clock)
    except BaseException:
        shutil.rmtree(root)
        raise
    try:
        async with asyncio.timeout(CHECK_WITHIN_S):
            await Story(stand, steps, clock).play()
        await stand.stop()
        _look_for_traces(layout)
    except BaseException as error:
        if not isinstance(error, asyncio.CancelledError):
            _show_tails(layout)
        await _clean_up_after_failure(stand, steps, keep=keep)
        if isinstance(error, MoorageError) and str(layout.root) in error.hint and not keep:
            error.hint = "Run it again with --keep to keep the logs."
        if isinstance(error, TimeoutError):
            raise TimedOutError(f"the check took longer than {CHECK_WITHIN_S:g} s") from error
        if isinstance(error, psycopg.Error):
            raise EngineError(f"{type(error).__name__}: {output.plain(error)}", object=INSTANCE) from error
        raise
    with steps.step("clean up") as step:
        shutil.rmtree(root)
        step.tell("nothing is left: no process, no port, no file")


def _look_for_traces(layout: Layout) -> None:
    """MoorageError when anything still runs or listens. The instance's own ports were looked at when it was deleted."""
    left = traces.processes(layout.root) + traces.listening(layout.ports.of_parts)
    if left:
        raise MoorageError(f"left behind: {'; '.join(left)}", object="check")


async def _clean_up_after_failure(stand: Stand, steps: Steps, *, keep: bool) -> None:
    """Everything goes, by force if need be; trouble on the way is told, and does not hide what went wrong before."""
    layout = stand.layout
    try:
        await stand.stop()
    except MoorageError as error:
        output.note(f"while stopping: {error}")
    traces.kill_all(layout.root)
    if keep:
        output.note(f"kept: {layout.root}")
    else:
        shutil.rmtree(layout.root, ignore_errors=True)


def _show_tails(layout: Layout) -> None:
    """The last lines of every log: the folder will be gone."""
    for log in sorted(layout.logs.glob("*.log")):
        lines = tail(log)
        if lines:
            output.note(f"--- {log.name}")
            for line in lines:
                output.note(f"  {output.raw(line)}")


def primary_of(page: progress.Page) -> dict[str, Any]:
    """The member that leads; NotFoundError when none does."""
    for member in progress.members_of(page):
        if member.get("name") == page.get("primary"):
            return member
    raise NotFoundError("has no primary now", object=INSTANCE, hint=f"See: moorctl instance show {INSTANCE}")


def _term(page: progress.Page) -> int:
    return int((page.get("ha") or {}).get("term") or 0)


async def _connected(uri: str) -> psycopg.AsyncConnection[tuple[Any, ...]]:
    return await psycopg.AsyncConnection.connect(uri, autocommit=True)
