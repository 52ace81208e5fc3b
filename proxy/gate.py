"""What all clients of a process share: the table, the limits, the tasks, and the sums for the report."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

from core.clock import Clock
from core.log import EventLog
from proxy.admin.facts import Shown
from proxy.failures import Failures
from proxy.headcount import Count, Headcount
from proxy.inner_tls import InnerTls
from proxy.keys import Keys
from proxy.meters import Meters
from proxy.pools import Pools
from proxy.postgres.messages import HEADER_BYTES, error_fields
from proxy.postgres.prepared import Library
from proxy.postgres.requests import Pool
from proxy.postgres.verdicts import Verdicts
from proxy.slow_queries import SlowQueries
from proxy.table import Table
from proxy.verifiers import Verifiers

log = EventLog("proxy.gate")
REFUSALS_LOGGED_PER_S = 20  # a port scan, or a loop of clients that are not let in, must not fill the disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds, each named where it refuses."""

    processes: int = 1  # of this node's proxy: what is bounded for all of them together, each has its share of
    clients_max: int = 20_000
    waiters_max: int = 2_000  # of one instance, held until there is a primary
    logins_max: int = 32  # of one instance and kind, at once: servers start a process for each
    inquiries_max: int = 8  # of one instance, at once: what sessions carry
    startup_s: float = 15.0  # from connecting to a password that was checked, TLS handshake included


class Guest(Protocol):
    """A connection from outside, whatever it has become."""

    bytes_in: int

    @property
    def bytes_out(self) -> int: ...

    @property
    def idle(self) -> bool:
        """Nothing is lost when it ends now."""

    @property
    def ended(self) -> bool:
        """It has been told, and is only given time to read it."""

    @property
    def shown(self) -> Shown | None:
        """To who asks the proxy; None while it was not let in."""

    def shut_down(self) -> None:
        """End it, with a word if possible."""


class Tasks:
    """Owner of the tasks that clients cause: keeps them, and sees how they fail."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(
        self, work: Coroutine[Any, Any, None], name: str, failed: Callable[[], None] = lambda: None
    ) -> asyncio.Task[None]:
        """`failed` is called after an unexpected failure, which is logged here."""
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                log.unexpected("client_task_failed", error, task=name)
                failed()

        task.add_done_callback(ended)
        return task


async def _nowhere(_instance: str, _user: str) -> list[Count]:
    """There are no siblings."""
    return []


@dataclass(slots=True, kw_only=True)
class Gate:
    """One a process."""

    table: Table
    clock: Clock
    local_address: str
    tls: Callable[[], ssl.SSLContext | None]
    inner_tls: InnerTls = field(default_factory=InnerTls)
    meters: Meters = field(init=False)
    slow_queries: SlowQueries = field(init=False)
    pools: Pools = field(init=False)
    verifiers: Verifiers = field(init=False)
    failures: Failures = field(init=False)
    limits: Limits = field(default_factory=Limits)
    tasks: Tasks = field(default_factory=Tasks)
    headcount: Headcount = field(default_factory=Headcount)
    counted_elsewhere: Callable[[str, str], Awaitable[list[Count]]] = _nowhere
    guests: set[Guest] = field(default_factory=set)
    cancels: Keys = field(default_factory=Keys)
    statements: Pool = field(default_factory=Pool)  # that sessions have prepared
    library: Library = field(init=False)  # of those that are in transaction mode
    verdicts: Verdicts | None = None  # of statements that may be split off, once there are any
    no_parser: bool = False  # nothing is split off though it should be
    stopping: bool = False  # nobody new gets a server
    refused: int = 0
    bytes_in: int = 0  # of connections that have ended
    bytes_out: int = 0
    _paces: dict[tuple[str, str], asyncio.Semaphore] = field(default_factory=dict)
    _second: float = -1.0  # when the present second of refusals began
    _refused_then: int = 0

    def __post_init__(self) -> None:
        self.verifiers, self.failures = Verifiers(self.clock), Failures(self.clock)
        self.library = Library(self.statements)
        self.pools = Pools(self.clock, self.table, self.limits.processes, self.tasks.spawn)
        self.meters, self.slow_queries = Meters(self.clock.now()), SlowQueries(self.clock)

    def logins(self, instance: str, *, read_only: bool) -> asyncio.Semaphore:
        """To be held while a session logs in to a server."""
        kind = "read-only" if read_only else "read-write"
        return self._paces.setdefault((instance, kind), asyncio.Semaphore(self.limits.logins_max))

    def inquiries(self, instance: str) -> asyncio.Semaphore:
        """To be held while a server is asked what a session carries."""
        return self._paces.setdefault((instance, "inquiries"), asyncio.Semaphore(self.limits.inquiries_max))

    def refuses(self, *, client: str, instance: str, why: str, told: bytes = b"") -> None:
        """Count a client that is told no, and log it unless there were too many lately. `told`: the ErrorResponse."""
        self.refused += 1
        if told and self.table.route(instance) is not None:
            self.meters.inflow(instance).refuse(error_fields(told[HEADER_BYTES:]).get("C", "none"))
        now = self.clock.now()
        if now - self._second >= 1.0:
            left_out = self._refused_then - REFUSALS_LOGGED_PER_S
            if left_out > 0:
                log.info("refusals_left_out", count=left_out)
            self._second, self._refused_then = now, 0
        self._refused_then += 1
        if self._refused_then <= REFUSALS_LOGGED_PER_S:
            log.info("client_refused", client=client, instance=instance, why=why)

    def gone(self, guest: Guest) -> None:
        """It has ended, and its bytes count for the whole."""
        if guest in self.guests:
            if guest.shown is not None:
                guest.shown.settle()
            self.guests.discard(guest)
            self.bytes_in += guest.bytes_in
            self.bytes_out += guest.bytes_out

    def settle(self) -> None:
        """Bring the meters up to date."""
        for guest in self.guests:
            if guest.shown is not None:
                guest.shown.settle()

    def moved_bytes(self) -> tuple[int, int]:
        """In from clients, out to clients; connections under way included."""
        return (
            self.bytes_in + sum(guest.bytes_in for guest in self.guests),
            self.bytes_out + sum(guest.bytes_out for guest in self.guests),
        )
