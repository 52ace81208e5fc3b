"""A real agent process with a node of its own on a loopback address."""

from __future__ import annotations

import asyncio
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import yaml

from tests.support.ports import free_port

PROGRAM = str(Path(sys.executable).parent / "moorage-agent")


def engine_user() -> str | None:
    """An unprivileged OS user for engines, when the tests run as root."""
    if os.getuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


class AgentProcess:
    """One node: `stop` is SIGTERM, `kill` SIGKILL, `pause`/`resume` SIGSTOP/SIGCONT, `halt` stops engines too."""

    def __init__(self, root: Path, *, node: str, address: str, zone: str = "", engine_dirs: Sequence[str] = ()) -> None:
        self.node = node
        self.address = address
        self.root = root
        self.metrics = f"{address}:{free_port()}"
        self.log = root / "agent.log"
        self.config = root / "agent.yaml"
        self._process: subprocess.Popen[bytes] | None = None
        root.mkdir(parents=True)
        root.chmod(0o755)
        fields = {
            "node": node,
            "address": address,
            "peer_port": free_port(),
            "metrics_listen": self.metrics,
            "data_root": str(root / "data"),
            "zone": zone,
            "engine_user": engine_user(),
            "engine_dirs": list(engine_dirs),
            "log_level": "debug",
        }
        self.config.write_text(yaml.safe_dump(fields))

    @property
    def data_root(self) -> Path:
        return self.root / "data"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the agent was not started"
        return self._process.pid

    def enrol(self, hub: str, token: str) -> subprocess.CompletedProcess[str]:
        arguments = [PROGRAM, "enrol", "--config", str(self.config), "--hub", hub, "--token", token]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=30)

    def start(self) -> None:
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [PROGRAM, "run", "--config", str(self.config)], stdout=output, stderr=output, start_new_session=True
            )

    def stop(self) -> int:
        return self._end(signal.SIGTERM, 10)

    def kill(self) -> int:
        return self._end(signal.SIGKILL, 10)

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def halt(self) -> subprocess.CompletedProcess[str]:
        """Stop engines and proxy in an orderly way; the agent must be stopped."""
        arguments = [PROGRAM, "halt", "--config", str(self.config)]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=60)

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def children(self) -> list[psutil.Process]:
        """Every process that works below this node's data root: engines, their children, the proxy."""
        found = []
        for process in psutil.process_iter(["pid", "cmdline", "cwd"]):
            words = " ".join(process.info["cmdline"] or ()) + " " + (process.info["cwd"] or "")
            if str(self.data_root) in words and process.pid != os.getpid():
                found.append(process)
        return found

    def kill_everything(self) -> None:
        """The node is gone: agent, engine and proxy die at one moment."""
        if self.running():
            self.kill()
        for process in self.children():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue

    def _end(self, number: signal.Signals, within_s: float) -> int:
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(number)
            if number is signal.SIGTERM:
                self._process.send_signal(signal.SIGCONT)
        return self._process.wait(timeout=within_s)


async def wait_pid_gone(pid: int, within: float) -> None:
    """Until no process (or only a zombie) has this pid."""
    async with asyncio.timeout(within):
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            await asyncio.sleep(0.02)
