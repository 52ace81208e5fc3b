"""pg_auto_failover as its documentation sets it up: a monitor, three nodes that take part in the write quorum.

With `number_sync_standbys` 1 a commit waits for one of the two standbys. There is no balancer: clients get the
monitor's connection string, which names all nodes and asks for `target_session_attrs=read-write`. The monitor runs
beside the nodes and is not hit by faults. All settings are the defaults.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

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
    run,
    send,
)
from tests.support.ports import free_port
from tests.support.waiting import eventually

COMMON = ("--pgctl", f"{DEBIAN_BIN}/pg_ctl", "--hostname", "127.0.0.1", "--auth", "trust", "--no-ssl")
COMMAND_WITHIN_S = 60.0
ASK_WITHIN_S = 3


def find() -> tuple[str, str]:
    """The program and its version."""
    program = shutil.which("pg_autoctl", path="/usr/bin:" + DEBIAN_BIN)
    extension = Path(DEBIAN_BIN).parent / "lib" / "pgautofailover.so"
    if program is None or not extension.exists():
        raise Missing("not installed: apt install pg-auto-failover-cli postgresql-15-auto-failover")
    said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=COMMAND_WITHIN_S).stdout
    return program, said.split("\n")[0].removeprefix("pg_autoctl version ")


class PgafSystem:
    """See `base.System`."""

    name = "pgaf"

    def __init__(self, root: Path) -> None:
        self._program, number = find()
        self.version = f"{number}, defaults, number_sync_standbys 1"
        self._root = root / self.name
        self._ports = {node: free_port() for node in ("monitor", *NODES)}
        self._daemons: dict[str, Daemon] = {}
        self._dsn = ""
        self._hit = ""

    @property
    def dsn(self) -> str:
        return self._dsn

    async def __aenter__(self) -> PgafSystem:
        try:
            self._root.mkdir(mode=0o755)
            await asyncio.to_thread(self._create_node, "monitor", "monitor")
            await eventually(self._states, lambda states: states == [], within=CREATE_WITHIN_S, what="the monitor")
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for daemon in self._daemons.values():
            daemon.end()

    async def create(self) -> None:
        """One after the other: the first becomes the primary, the others copy from it."""
        for node in NODES:
            await asyncio.to_thread(self._create_node, node, "postgres", "--name", node, "--monitor", self._monitor)
        await self._await_whole(CREATE_WITHIN_S)
        # By the monitor's function: the command of version 2.0 refuses every number.
        await self._query("SELECT pgautofailover.set_formation_number_sync_standbys('default', 1)")
        await self._await_whole(CREATE_WITHIN_S)
        uri = await asyncio.to_thread(self._ctl, "monitor", "show", "uri", "--formation", "default")
        self._dsn = self._with_user(uri.strip())

    async def primary(self) -> str:
        return next(state["name"] for state in await self._states() if state["goal"] in {"primary", "wait_primary"})

    async def switchover(self) -> None:
        await asyncio.to_thread(self._ctl, "monitor", "perform", "switchover", within_s=SWITCHOVER_WITHIN_S)

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

    # --- nodes --------------------------------------------------------------------------------------------------------

    @property
    def _monitor(self) -> str:
        return f"postgres://autoctl_node@127.0.0.1:{self._ports['monitor']}/pg_auto_failover?sslmode=prefer"

    def _create_node(self, node: str, kind: str, *more: str) -> None:
        """Create it, then run it for good."""
        folder = own_folder(self._root / node)
        data = ("--pgdata", str(folder / "data"))
        port = ("--pgport", str(self._ports[node]))
        env = self._env(node)
        run([self._program, "create", kind, *data, *port, *COMMON, *more], env, cwd=folder, within_s=COMMAND_WITHIN_S)
        daemon = Daemon(folder, [self._program, "run", *data], env)
        self._daemons[node] = daemon
        daemon.start()

    def _env(self, node: str) -> dict[str, str]:
        """Configuration, state and pid files go below the node's folder, too."""
        folder = self._root / node
        return environment(
            folder,
            XDG_CONFIG_HOME=str(folder / "config"),
            XDG_DATA_HOME=str(folder / "share"),
            XDG_RUNTIME_DIR=str(folder),
            PG_AUTOCTL_DEBUG="0",
        )

    def _ctl(self, node: str, *words: str, within_s: float = COMMAND_WITHIN_S) -> str:
        folder = self._root / node
        command = [self._program, *words, "--pgdata", str(folder / "data")]
        return run(command, self._env(node), cwd=folder, within_s=within_s)

    @staticmethod
    def _with_user(uri: str) -> str:
        scheme, _, rest = uri.partition("://")
        return f"{scheme}://postgres@{rest}"

    # --- what it says -------------------------------------------------------------------------------------------------

    async def _states(self) -> list[dict[str, Any]]:
        """Of all nodes, as the monitor knows them: name, reported state, goal, health."""
        return await self._query(
            """SELECT nodename AS name, reportedstate::text AS reported, goalstate::text AS goal, health
               FROM pgautofailover.node"""
        )

    async def _query(self, query: str) -> list[dict[str, Any]]:
        try:
            async with await psycopg.AsyncConnection.connect(
                self._monitor, autocommit=True, connect_timeout=ASK_WITHIN_S, row_factory=dict_row
            ) as connection:
                return await (await connection.execute(query)).fetchall()
        except psycopg.Error as error:
            raise LookupError(f"the monitor does not answer: {error}") from error

    async def _await_whole(self, within_s: float) -> None:
        def whole(states: list[dict[str, Any]]) -> bool:
            settled = all(state["reported"] == state["goal"] and state["health"] == 1 for state in states)
            return settled and sorted(state["goal"] for state in states) == ["primary", "secondary", "secondary"]

        try:
            await eventually(self._states, whole, within=within_s, every=0.2, what="pgaf whole")
        except AssertionError as error:
            logs = "\n".join(daemon.tail() for daemon in self._daemons.values())
            raise AssertionError(f"{error}\n{logs}") from error
