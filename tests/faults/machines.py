"""Machines as network namespaces on one bridge, and the ways in which a machine or its cable can fail.

The yard is the network namespace of the box: it holds the bridge, and the driver with its clients lives there at
10.90.0.1. A process belongs to the machine in whose network namespace it is, so that "everything on this machine" is
a question to /proc, whoever started it and whosever child it has become.

Cuts are packet filters at the receiving end: the sender learns nothing, as with a cable that was pulled somewhere else.
What a power-off leaves on disk includes the page cache: it is the machine that dies here, not its disks.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

BRIDGE = "yard"
YARD_ADDRESS = "10.90.0.1"
Chain = Literal["in", "out"]
RESTART_AFTER_S = 2.0  # a service that ended is started again by its supervisor
LOOK_EVERY_S = 0.1
COMMAND_S = 10.0
KILLED_WITHIN_S = 10.0
BEGIN_BYTES = 64 << 10  # of a service's log: what it says at its start is among them
FILTER = """
table ip yard {
    chain in { type filter hook input priority 0; }
    chain out { type filter hook output priority 0; }
}
"""


def run(*command: str, input: str | None = None) -> str:
    """Standard output; RuntimeError with what it said when it fails."""
    result = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, input=input)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}: {result.stderr.strip()} {input or ''}")
    return result.stdout


@dataclass(slots=True)
class Service:
    """One supervised program of a machine: while `wanted`, whoever watches starts it again when it has ended."""

    name: str
    argv: Sequence[str]
    log: Path
    env: dict[str, str] = field(default_factory=dict)
    wanted: bool = False
    process: subprocess.Popen[bytes] | None = None
    ended_at: float = 0.0
    killed: bool = False  # by us; an end that nobody caused is told as an incident
    ready_event: str = ""  # what it logs when it has begun its work; empty = it works as soon as it runs
    log_from: int = 0  # where the log of the present process begins

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def working(self) -> bool:
        """Runs, and has said that it has begun."""
        if not self.running or not self.ready_event:
            return self.running
        with self.log.open("rb") as log:
            log.seek(self.log_from)
            return f'"event": "{self.ready_event}"'.encode() in log.read(BEGIN_BYTES)


@dataclass(frozen=True, slots=True)
class Rule:
    """A packet filter's rule in force."""

    place: Place
    chain: Chain
    handle: int

    def lift(self) -> None:
        place = self.place
        run(*place.inside("nft", "delete", "rule", "ip", "yard", self.chain, "handle", str(self.handle)))


class Place:
    """A network namespace: the yard itself (the driver's) or a machine."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address

    def inside(self, *command: str) -> list[str]:
        """The command, to be run in here."""
        return list(command)

    def filter(self, rules: Iterable[str], chain: Chain = "in") -> list[Rule]:
        """All in force at one moment."""
        script = "".join(f"add rule ip yard {chain} {rule}\n" for rule in rules)
        told = run(*self.inside("nft", "--echo", "--handle", "-f", "-"), input=script)
        return [Rule(self, chain, int(number)) for number in re.findall(r"# handle (\d+)", told)]

    def unfilter(self) -> None:
        run(*self.inside("nft", "-f", "-"), input="flush chain ip yard in\nflush chain ip yard out\n")

    def make_filter(self) -> None:
        run(*self.inside("nft", "-f", "-"), input=FILTER)


class Machine(Place):
    """A namespace with services in it."""

    def __init__(self, name: str, address: str, root: Path) -> None:
        super().__init__(name, address)
        self.root = root
        self.services: dict[str, Service] = {}
        self.incidents: list[str] = []
        self.powered = True
        self._namespace = 0

    def inside(self, *command: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.name}", "--", *command]

    @property
    def port(self) -> str:
        """The yard's end of the cable."""
        return f"v-{self.name}"

    def make(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o755)
        run("ip", "netns", "add", self.name)
        run("ip", "link", "add", self.port, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        run("ip", "link", "set", self.port, "master", BRIDGE, "up")
        run(*self.inside("ip", "addr", "add", f"{self.address}/24", "dev", "eth0"))
        run(*self.inside("ip", "link", "set", "eth0", "up"))
        run(*self.inside("ip", "link", "set", "lo", "up"))
        self.make_filter()
        self._namespace = os.stat(f"/run/netns/{self.name}").st_ino

    def unmake(self) -> None:
        """The cable by name: with the namespace alone it would go some time later."""
        self.kill_all()
        run("ip", "link", "del", self.port)
        run("ip", "netns", "del", self.name)

    # --- processes ------------------------------------------------------------------------------------------------

    def pids(self) -> list[int]:
        """Every process of the machine."""
        mine = f"net:[{self._namespace}]"
        return [pid for pid in _all_pids() if _link(pid, "ns/net") == mine]

    def engine_pids(self, below: Path) -> list[int]:
        """Processes of the engine (and its tools) that work in this folder."""
        top = str(below)
        found = []
        for pid in self.pids():
            where = _link(pid, "cwd")
            if where == top or where.startswith(f"{top}/"):
                found.append(pid)
        return found

    def start(self, service: Service) -> None:
        service.wanted = True
        service.killed = False
        service.ended_at = 0.0
        service.log_from = service.log.stat().st_size if service.log.exists() else 0
        with service.log.open("ab") as output:
            service.process = subprocess.Popen(
                self.inside(*service.argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**os.environ, **service.env},
            )

    def stop(self, service: Service, number: signal.Signals = signal.SIGKILL) -> None:
        """End it and leave it ended."""
        service.wanted = False
        self.crash(service, number)

    def crash(self, service: Service, number: signal.Signals = signal.SIGKILL) -> None:
        """End it; its supervisor will start it again if it is still wanted."""
        service.killed = True
        if service.process is not None and service.running:
            service.process.send_signal(number)

    def look_after(self, now: float) -> None:
        """What a supervisor does: start again what has ended, some time later."""
        for service in self.services.values():
            if not service.wanted or service.process is None or service.running:
                continue
            if not service.ended_at:
                service.ended_at = now
                if not service.killed:
                    self.incidents.append(f"{service.name} ended by itself, status {service.process.returncode}")
            elif now - service.ended_at >= RESTART_AFTER_S:
                self.start(service)

    # --- what can happen to a machine ---------------------------------------------------------------------------

    def kill_all(self) -> None:
        """Every process dies at one moment."""
        deadline = time.monotonic() + KILLED_WITHIN_S
        while pids := self.pids():
            for pid in pids:
                _signal(pid, signal.SIGKILL)
            for service in self.services.values():
                if service.process is not None:
                    service.process.poll()
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name}: {pids} do not die")

    def power_off(self) -> None:
        """The cable first: a machine without power does not tell its peers that their connections are over."""
        self.powered = False
        run("ip", "link", "set", self.port, "down")
        for service in self.services.values():
            service.wanted = False
            service.killed = True
        self.kill_all()

    def power_on(self) -> None:
        self.powered = True
        run("ip", "link", "set", self.port, "up")
        for service in self.services.values():
            self.start(service)

    def freeze(self, pids: Iterable[int] | None = None) -> None:
        """Stop processes where they are (default: all)."""
        for pid in self.pids() if pids is None else pids:
            _signal(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        for pid in self.pids():
            _signal(pid, signal.SIGCONT)


class Supervisor:
    """Looks after all machines; a task of the site."""

    def __init__(self, machines: Sequence[Machine]) -> None:
        self._machines = machines

    async def run(self) -> None:
        while True:
            for machine in self._machines:
                machine.look_after(time.monotonic())
            await asyncio.sleep(LOOK_EVERY_S)


def make_yard() -> Place:
    """The bridge, with the driver's own address on it. Once in a box."""
    Path("/run/netns").mkdir(parents=True, exist_ok=True)
    run("mount", "-t", "tmpfs", "tmpfs", "/run/netns")
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "addr", "add", f"{YARD_ADDRESS}/24", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    yard = Place("yard", YARD_ADDRESS)
    yard.make_filter()
    return yard


def drop(sources: Sequence[Place], targets: Sequence[Place]) -> list[Rule]:
    """Nothing of what the sources send reaches the targets."""
    rules = [f"ip saddr {source.address} drop" for source in sources]
    return [rule for target in targets for rule in target.filter(rules)]


def separate(one: Sequence[Place], others: Sequence[Place]) -> list[Rule]:
    """Neither side hears the other."""
    return [*drop(one, others), *drop(others, one)]


def _all_pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdecimal()]


def _link(pid: int, name: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/{name}")
    except OSError:
        return ""


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def kill(pids: Iterable[int]) -> None:
    for pid in pids:
        _signal(pid, signal.SIGKILL)


def lift(rules: Iterable[Rule]) -> None:
    for rule in rules:
        rule.lift()
