"""Where a demo lies: one folder that holds everything, and one block of ports.

    ROOT/demo.json   ports, chosen once and kept, and the processes of the last run
    ROOT/demo.lock   held while a demo runs here
    ROOT/moorctl.yaml   context for moorctl
    ROOT/etcd  hub.yaml  hub/  n1.yaml  n1/  n2.yaml  n2/  n3.yaml  n3/  logs/

The folder's name must be short: PostgreSQL's Unix sockets lie below it, and a socket path has 107 bytes at most.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cli.settings import Target, read_secret_file
from core.errors import ConflictError, UnavailableError, UserError

ROOT_MAX_BYTES = 55  # leaves room for n1/run/<8 hex>/.s.PGSQL.<port>.lock below it
PREFERRED_BASE = 27300
BLOCK = 100  # ports of one demo: the lower ones for instances, those from ETCD_OFFSET on for the parts
ETCD_OFFSET = 79  # 27379 looks like etcd's own 2379
INSTANCE_PORTS = 75
BASES = range(10000, 15000, BLOCK)  # below the hub's own default range, and far below outgoing connections' ports
HUB_ADDRESS = "127.0.0.1"
LOCK = "demo.lock"
PASS_THROUGH = stat.S_IRWXU | stat.S_IXGRP | stat.S_IXOTH  # the engines' user must get through, not look around


@dataclass(frozen=True, slots=True)
class DemoNode:
    """A node and the loopback address that stands for its machine."""

    name: str
    address: str
    zone: str


NODES = (DemoNode("n1", "127.0.0.11", "a"), DemoNode("n2", "127.0.0.12", "b"), DemoNode("n3", "127.0.0.13", "c"))


@dataclass(frozen=True, slots=True)
class Ports:
    """All ports follow from the first one of the block."""

    base: int

    @property
    def etcd(self) -> int:
        return self.base + ETCD_OFFSET

    @property
    def etcd_peer(self) -> int:
        return self.base + ETCD_OFFSET + 1

    @property
    def agents(self) -> int:
        return self.base + ETCD_OFFSET + 2

    @property
    def operators(self) -> int:
        return self.base + ETCD_OFFSET + 3

    @property
    def peer(self) -> int:
        return self.base + ETCD_OFFSET + 4

    @property
    def metrics(self) -> int:
        return self.base + ETCD_OFFSET + 5

    @property
    def of_parts(self) -> tuple[int, ...]:
        return self.etcd, self.etcd_peer, self.agents, self.operators, self.peer, self.metrics

    @property
    def instances(self) -> tuple[int, int]:
        return self.base, self.base + INSTANCE_PORTS


@dataclass(slots=True)
class Memory:
    """demo.json. `processes` maps a part to pid and start time, so that a pid that now is another's is not touched."""

    base_port: int = 0
    processes: dict[str, tuple[int, float]] = field(default_factory=dict)


@dataclass(slots=True)
class Layout:
    """The folder of one demo."""

    root: Path
    memory: Memory = field(default_factory=Memory)

    @property
    def ports(self) -> Ports:
        return Ports(self.memory.base_port)

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def moorctl_config(self) -> Path:
        return self.root / "moorctl.yaml"

    @property
    def operators(self) -> str:
        return f"{HUB_ADDRESS}:{self.ports.operators}"

    @property
    def etcd_endpoint(self) -> str:
        return f"{HUB_ADDRESS}:{self.ports.etcd}"

    @property
    def etcd_data(self) -> Path:
        return self.root / "etcd"

    @property
    def hub_data(self) -> Path:
        return self.root / "hub"

    def config_of(self, part: str) -> Path:
        """hub, n1, n2 or n3."""
        return self.root / f"{part}.yaml"

    def data_of(self, node: str) -> Path:
        return self.root / node

    def target(self) -> Target:
        """How to reach the hub as its first admin."""
        token = read_secret_file(self.hub_data / "admin.token", "admin token")
        ca = read_secret_file(self.hub_data / "ca.crt", "CA certificate")
        return Target(name="demo", hubs=(self.operators,), token=token, ca_pem=ca.encode())

    # --- making ---

    def prepare(self) -> None:
        """Make the folder, remember or choose ports, write what moorctl needs. Doing it again changes nothing."""
        if len(os.fsencode(self.root)) > ROOT_MAX_BYTES:
            hint = f"Give a path of at most {ROOT_MAX_BYTES} bytes with --root: sockets lie below it."
            raise UserError("the path is too long", object=str(self.root), hint=hint)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            os.chmod(self.root, PASS_THROUGH)
            self.logs.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot be made: {error.strerror}", object=str(self.root)) from error
        self.load()
        if not self.memory.base_port:
            self.memory.base_port = free_block(PREFERRED_BASE)
            self.save()
        self._check_ports()
        context = {
            "hubs": [self.operators],
            "token_file": str(self.hub_data / "admin.token"),
            "ca_file": str(self.hub_data / "ca.crt"),
        }
        write_yaml(self.moorctl_config, {"current": "demo", "contexts": {"demo": context}}, mode=0o600)

    def _check_ports(self) -> None:
        """Those of the parts that are about to start; engines and proxies may still run from before."""
        ports = self.ports
        taken = busy([ports.etcd, ports.etcd_peer, ports.agents, ports.operators], [HUB_ADDRESS])
        taken += busy([ports.peer, ports.metrics], [node.address for node in NODES])
        if taken:
            hint = "Stop what listens there (ss -ltnp), or start anew on other ports with --reset."
            raise ConflictError(f"another program uses {', '.join(taken)}", object=str(self.root), hint=hint)

    def load(self) -> None:
        try:
            raw = json.loads((self.root / "demo.json").read_text())
            processes = {str(name): (int(pid), float(at)) for name, (pid, at) in raw["processes"].items()}
            self.memory = Memory(base_port=int(raw["base_port"]), processes=processes)
        except FileNotFoundError:
            self.memory = Memory()
        except (OSError, ValueError, KeyError, TypeError) as error:
            hint = "Start anew with --reset."
            raise UserError("cannot be understood", object=str(self.root / "demo.json"), hint=hint) from error

    def save(self) -> None:
        temporary = self.root / "demo.json.new"
        temporary.write_text(json.dumps(asdict(self.memory)))
        os.replace(temporary, self.root / "demo.json")

    def clear(self) -> None:
        """Empty the folder, but for the lock that we hold; only if it is a demo's."""
        found = [entry for entry in self.root.iterdir() if entry.name != LOCK] if self.root.exists() else []
        if found and not any(entry.name == "demo.json" for entry in found):
            raise UserError("is not empty, and no demo was ever run there", object=str(self.root))
        for entry in found:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        self.memory = Memory()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; ConflictError when another demo runs there."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            opened = open(self.root / LOCK, "a+")  # noqa: SIM115 - closed below
        except OSError as error:
            hint = "Give a folder of yours with --root."
            raise UserError(f"cannot be used: {error.strerror}", object=str(self.root), hint=hint) from error
        with opened as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                lock.seek(0)
                holder = lock.read().strip() or "another process"
                hint = "Stop it with Ctrl-C, or give another folder with --root."
                raise ConflictError(f"a demo runs here already ({holder})", object=str(self.root), hint=hint) from error
            lock.truncate(0)
            lock.write(f"pid {os.getpid()}")
            lock.flush()
            yield


def write_yaml(path: Path, content: dict[str, Any], *, mode: int = 0o644) -> None:
    """Write a file of the demo whole."""
    write_text(path, yaml.safe_dump(content, sort_keys=False), mode=mode)


def write_text(path: Path, text: str, *, mode: int) -> None:
    temporary = path.with_suffix(".new")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as file:
        file.write(text)
    os.replace(temporary, path)


# --- ports ----------------------------------------------------------------------------------------------------------


def free_block(preferred: int | None = None) -> int:
    """First port of a block in which nothing listens on any of the demo's addresses."""
    candidates = random.sample(list(BASES), len(BASES))
    for base in [*([preferred] if preferred else []), *candidates]:
        if not busy(range(base, base + BLOCK)):
            return base
    raise UnavailableError("no free block of 100 ports between 10000 and 15000")


ADDRESSES = (HUB_ADDRESS, *(node.address for node in NODES))


def busy(ports: Sequence[int], hosts: Sequence[str] = ADDRESSES) -> list[str]:
    """Where one of the ports cannot be bound."""
    taken = []
    for host in hosts:
        for port in ports:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((host, port))
                except OSError:
                    taken.append(f"{host}:{port}")
    return taken
