"""A process of the proxy beside the agent: started, adopted by whichever agent comes next, ended.

It outlives the agent, so that an agent restart cuts no client session. A process has a *place*: its generation, which
grows with each restart of the node's proxy, and its index in that generation. Its files are named by that. Its command
line says all of its settings and the release it belongs to, so it is known from outside whether it still fits.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import psutil

from agent.config import AgentConfig
from agent.generations import Place
from agent.supervise.processes import identify
from core.errors import EngineError
from core.log import EventLog

log = EventLog("agent.proxies")
START_TIMEOUT_S = 10.0
LOOK_S = 0.02
_PID_FILE = re.compile(r"proxy-(\d+)-(\d+)\.pid")


class ProxyProcess:
    """Whether it lives or not."""

    def __init__(self, config: AgentConfig, place: Place) -> None:
        self.place = place
        self.name = f"{place.generation}-{place.index}"
        self._config = config
        self._dir = config.proxy_dir
        self.socket = self._dir / f"control-{self.name}.sock"
        self._pid_file = self._dir / f"proxy-{self.name}.pid"
        self._child: subprocess.Popen[bytes] | None = None  # ours to reap when it ends

    @property
    def adopted(self) -> bool:
        """Another agent has started it."""
        return self._child is None

    def pid(self) -> int | None:
        """If the pid file names a living process that truly is this one."""
        process = self._process()
        return process.pid if process is not None else None

    def fits(self) -> bool:
        """It would be started today as it was then. One that ends at this moment is none that does not fit."""
        process = self._process()
        expected = [self._command() or "", *self._arguments()]
        with contextlib.suppress(psutil.Error):
            return process is None or (process.cmdline() or expected)[-len(expected) :] == expected
        return True

    def _process(self) -> psutil.Process | None:
        """Our own child lives until it has been reaped, though it removes its pid file before it ends. Another that was
        started a moment ago has no command line yet, and is one all the same."""
        try:
            if self._child is not None:
                return psutil.Process(self._child.pid) if self._child.poll() is None else None
            pid, started = map(int, self._pid_file.read_text().split()[:2])
            identity, process = identify(pid), psutil.Process(pid)
            same = identity is not None and identity.started == started
            return process if same and str(self.socket) in (process.cmdline() or [str(self.socket)]) else None
        except (OSError, ValueError, psutil.Error):
            return None

    def _command(self) -> str | None:
        return shutil.which(self._config.proxy_command, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")

    def _arguments(self) -> list[str]:
        config, identity = self._config, self._config.identity_dir
        return [
            *("--address", config.address, "--control", str(self.socket), "--siblings", str(self._dir)),
            *("--generation", str(self.place.generation), "--index", str(self.place.index)),
            *("--processes", str(config.proxy_process_count), "--release", version("moorage")),
            *("--cert", str(identity / "node.crt"), "--key", str(identity / "node.key")),
            *("--ca", str(identity / "ca.crt")),
            *("--pid-file", str(self._pid_file), "--log-level", config.log_level, "--log-format", "json"),
        ]

    async def start(self) -> None:
        """It must not live. EngineError when it does not come up."""
        self._dir.mkdir(parents=True, exist_ok=True)
        self.clear()
        command = self._command()
        if command is None:
            raise EngineError(f"{self._config.proxy_command} not found", hint="Install moorage-agent's proxy.")
        with (self._dir / "proxy.log").open("ab") as output:
            # A session of its own: signals to the agent's group and the agent's death do not reach it.
            child = subprocess.Popen(  # noqa: ASYNC220 - returns at once, and the child is not waited for
                [command, *self._arguments()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd="/",
            )
        # It writes this itself, but later: an agent that follows must find it also if this one dies now.
        self._child = child
        identity = identify(child.pid)
        if identity is not None:
            self._pid_file.write_text(f"{child.pid} {identity.started}\n")
        await self._await_socket(child)
        log.info("proxy_started", process=self.name, pid=child.pid)

    async def _await_socket(self, child: subprocess.Popen[bytes]) -> None:
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while not self.socket.exists():
                    if child.poll() is not None:
                        tail = (self._dir / "proxy.log").read_bytes()[-500:].decode(errors="replace")
                        raise EngineError(f"proxy ended with {child.returncode}: {tail}", object=self.name)
                    await asyncio.sleep(LOOK_S)
        except TimeoutError as error:
            child.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(child.wait, START_TIMEOUT_S)
            raise EngineError(
                f"proxy did not open {self.socket} within {START_TIMEOUT_S} s", object=self.name
            ) from error

    def clear(self) -> None:
        """Remove what a dead process has left: the pid file last, for it is what the others are found by."""
        for file in (self.socket, self._dir / f"family-{self.name}.sock", self._pid_file):
            file.unlink(missing_ok=True)

    async def halt(self, within_s: float) -> None:
        """End it in an orderly way, by force when it does not within the time."""
        process = self._process()
        if process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM)
            if not await asyncio.to_thread(_wait_gone, process, within_s):
                process.kill()
                await asyncio.to_thread(_wait_gone, process, within_s)


def found(config: AgentConfig) -> dict[Place, ProxyProcess]:
    """All that have a pid file, dead ones included."""
    with contextlib.suppress(FileNotFoundError):
        matches = [_PID_FILE.fullmatch(name) for name in os.listdir(config.proxy_dir)]
        places = sorted(Place(int(match[1]), int(match[2])) for match in matches if match is not None)
        return {place: ProxyProcess(config, place) for place in places}
    return {}


def _wait_gone(process: psutil.Process, within_s: float) -> bool:
    try:
        process.wait(timeout=within_s)
    except psutil.TimeoutExpired:
        return False
    return True
