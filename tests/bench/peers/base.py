"""What a system under test can do for the bench, and what all of them share: three nodes, their faults, their end.

A node is a folder; everything that works below it (agent, engine, proxy) is the node. So a fault means the same to
each system: the same signals, sent to the same set of processes, in the same order.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import psutil

from tests.support.agent import engine_user
from tests.support.cluster import DEBIAN_BIN

NODES = ("n1", "n2", "n3")
END_WITHIN_S = 10.0
CREATE_WITHIN_S = 120.0
HEAL_WITHIN_S = 100.0
SWITCHOVER_WITHIN_S = 75.0


class Missing(Exception):
    """A peer cannot be had on this machine; the text says what is missing."""


class System(Protocol):
    """One highly available PostgreSQL of three members, entered as an asynchronous context manager.

    Entering starts what lives beside the nodes (etcd, hub, monitor, balancer); leaving ends everything. A fault hits
    the primary of that moment and returns when that is done; `switchover` returns when the system says it is over.
    `heal` undoes the fault and returns when all three members are whole again, or raises AssertionError.
    """

    name: str
    version: str

    async def __aenter__(self) -> System: ...
    async def __aexit__(self, *_: object) -> None: ...
    @property
    def dsn(self) -> str:
        """The entry that the system recommends to clients, known after `create`."""

    async def create(self) -> None: ...
    async def primary(self) -> str: ...
    async def switchover(self) -> None: ...
    async def crash_engine(self) -> None: ...
    async def lose_node(self) -> None: ...
    async def freeze_node(self) -> None: ...
    async def heal(self) -> None: ...


# --- processes --------------------------------------------------------------------------------------------------------


def below(folder: Path) -> list[psutil.Process]:
    """Every process with this folder in its command line or as its working directory, or started by such a one."""
    found: dict[int, psutil.Process] = {}
    others = []
    for process in psutil.process_iter(["cmdline", "cwd", "ppid"]):
        words = [*(process.info["cmdline"] or ()), process.info["cwd"] or ""]
        if process.pid == os.getpid():
            continue
        if any(_within(word, folder) for word in words):
            found[process.pid] = process
        else:
            others.append(process)
    while children := [process for process in others if process.info["ppid"] in found and process.pid not in found]:
        found.update((process.pid, process) for process in children)
    return list(found.values())


def _within(word: str, folder: Path) -> bool:
    return word == str(folder) or f"{folder}/" in word


def engine(data: Path) -> list[psutil.Process]:
    """The postmaster of a data directory, then its children."""
    postmaster = psutil.Process(int((data / "postmaster.pid").read_text().split()[0]))
    return [postmaster, *postmaster.children(recursive=True)]


def send(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    """To all in this order, as fast as can be; those gone meanwhile are gone."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            os.kill(process.pid, number)


def end_all(folder: Path) -> None:
    """Kill what works below a folder until nothing is left: what is killed last may have forked meanwhile."""
    deadline = time.monotonic() + END_WITHIN_S
    while left := [process for process in below(folder) if process.status() != psutil.STATUS_ZOMBIE]:
        send(left, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise AssertionError(f"still alive below {folder}: {left}")
        time.sleep(0.02)


def as_engine_user(command: Sequence[str]) -> list[str]:
    """The command, run by the unprivileged user when this is root: PostgreSQL and its keepers refuse root."""
    user = engine_user()
    return [*(["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"] if user else []), *command]


def own_folder(path: Path) -> Path:
    """A new folder of the engines' user."""
    path.mkdir(parents=True)
    if user := engine_user():
        shutil.chown(path, user, user)
    return path


def environment(home: Path, **more: str) -> dict[str, str]:
    """Of a process that shall leave nothing outside its node's folder."""
    return {"PATH": f"{DEBIAN_BIN}:/usr/bin:/bin", "HOME": str(home), "LC_ALL": "C.UTF-8", **more}


def run(command: Sequence[str], env: Mapping[str, str], *, cwd: Path, within_s: float) -> str:
    """Standard output of a command of the engines' user; AssertionError with what it said."""
    result = subprocess.run(
        as_engine_user(command), env=dict(env), cwd=cwd, capture_output=True, text=True, timeout=within_s
    )
    assert result.returncode == 0, f"{' '.join(command)}: {(result.stderr or result.stdout).strip()[-2000:]}"
    return result.stdout


class Daemon:
    """A long-running program of a peer with a folder of its own, which is its node."""

    def __init__(self, folder: Path, command: Sequence[str], env: Mapping[str, str], *, drop_root: bool = True) -> None:
        self.folder = folder
        self.log = folder / "agent.log"
        self._command = as_engine_user(command) if drop_root else list(command)
        self._env = dict(env)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, env=self._env, cwd=self.folder, stdout=output, stderr=output, start_new_session=True
            )

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def freeze(self) -> None:
        send(self._all(), signal.SIGSTOP)

    def thaw(self) -> None:
        send(self._all(), signal.SIGCONT)

    def lose(self) -> None:
        """Power off: everything of the node at one moment, then whatever slipped through."""
        send(self._all(), signal.SIGKILL)
        self.end()

    def end(self) -> None:
        end_all(self.folder)
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=END_WITHIN_S)

    def tail(self) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return f"--- {self.log}\n" + "\n".join(text.splitlines()[-25:])

    def _all(self) -> list[psutil.Process]:
        """The agent first, so that it cannot answer to what happens to its engine."""
        found = below(self.folder)
        first = self._process.pid if self._process else 0
        return sorted(found, key=lambda process: process.pid != first)
