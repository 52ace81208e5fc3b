"""Pure: what is counted while clients are served, at a price that a query does not feel.

Everybody who serves the same user and database of an instance shares one `Meter`, whose numbers only grow. What a
session's time went to is told by its `Stopwatch`: it runs from the first byte of a query to the ReadyForQuery that ends
it, and knows how much of that the client has waited for a server. Where a client asks ahead, an answer's time counts
from the answer before it.

Users and databases are names that clients bring, so the number of meters is bounded; who comes later shares one.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from heapq import nlargest
from operator import add

from core.figures import BOUNDS_S, BUCKETS, Figures

METERS_MAX = 5_000  # of a process; one has some 600 bytes
OTHERS = "(others)"  # user and database of those beyond
PERIOD_S = 60.0  # over which averages are made
FIGURES_MAX = 4_000  # instances in one report, at 500 bytes: a line of the control socket bears no more
COMPLAINTS_MAX = 64  # SQLSTATEs told apart, of one instance: those of the proxy are fewer
NEVER = math.inf
_US = 1_000_000


class Wishes:
    """Of one instance: what of its queries is told."""

    __slots__ = ("slow_s",)

    def __init__(self) -> None:
        self.slow_s = NEVER  # queries that took as long are logged


class Meter:
    """Of one user and database."""

    __slots__ = (
        "bytes_in", "bytes_out", "closed", "database", "ended", "errors", "held_s", "instance", "logins", "moved",
        "opened", "queries", "query_counts", "query_s", "reused", "slow", "transaction_s", "transactions", "user",
        "wait_counts", "wait_s", "waits", "wishes",
    )  # fmt: skip

    def __init__(self, instance: str, user: str, database: str, wishes: Wishes | None = None) -> None:
        self.instance = instance
        self.wishes = wishes or Wishes()
        self.user = user
        self.database = database
        self.queries = self.transactions = self.slow = self.waits = self.logins = 0
        self.bytes_in = self.bytes_out = 0
        self.query_s = self.held_s = self.transaction_s = self.wait_s = 0.0
        self.opened = self.closed = self.reused = self.moved = 0
        self.query_counts = [0] * BUCKETS
        self.wait_counts = [0] * BUCKETS
        self.errors: dict[str, int] = {}
        self.ended: dict[str, int] = {}

    def waited(self, seconds: float) -> None:
        """A client has been given a server after so long."""
        self.waits += 1
        self.wait_s += seconds
        self.wait_counts[bisect_left(BOUNDS_S, seconds)] += 1

    def failed(self, sqlstate: str) -> None:
        """A server has said so. Functions may raise any; one that was not read whole is empty."""
        kind = sqlstate[:2] or OTHERS
        if kind not in self.errors and len(self.errors) >= COMPLAINTS_MAX:
            kind = OTHERS
        self.errors[kind] = self.errors.get(kind, 0) + 1

    def told(self, sqlstate: str) -> None:
        """The proxy has said so to a client that it had let in."""
        self.ended[sqlstate] = self.ended.get(sqlstate, 0) + 1

    def add_to(self, total: Meter) -> None:
        """The same as adding figures, at a fifth of the price."""
        total.queries += self.queries
        total.transactions += self.transactions
        total.slow += self.slow
        total.waits += self.waits
        total.logins += self.logins
        total.bytes_in += self.bytes_in
        total.bytes_out += self.bytes_out
        total.query_s += self.query_s
        total.held_s += self.held_s
        total.transaction_s += self.transaction_s
        total.wait_s += self.wait_s
        total.opened += self.opened
        total.closed += self.closed
        total.reused += self.reused
        total.moved += self.moved
        if self.queries:
            total.query_counts = list(map(add, total.query_counts, self.query_counts))
        if self.waits:
            total.wait_counts = list(map(add, total.wait_counts, self.wait_counts))
        for kind, count in self.errors.items():
            total.errors[kind] = total.errors.get(kind, 0) + count
        for sqlstate, count in self.ended.items():
            total.ended[sqlstate] = total.ended.get(sqlstate, 0) + count

    def figures(self, inflow: Inflow | None = None) -> Figures:
        """`inflow`: of its instance, if that is to be told as well."""
        return Figures(
            queries=self.queries,
            transactions=self.transactions,
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
            query_us=round(self.query_s * _US),
            held_us=round(self.held_s * _US),
            transaction_us=round(self.transaction_s * _US),
            waits=self.waits,
            wait_us=round(self.wait_s * _US),
            logins=self.logins,
            opened=self.opened,
            closed=self.closed,
            reused=self.reused,
            moved=self.moved,
            slow=self.slow,
            cancels=inflow.cancels if inflow is not None else 0,
            refused=dict(inflow.refused) if inflow is not None else {},
            query_counts=_trimmed(self.query_counts),
            wait_counts=_trimmed(self.wait_counts),
            errors=dict(self.errors),
            ended=dict(self.ended),
        )


def _trimmed(counts: list[int]) -> tuple[int, ...]:
    last = max((at for at, count in enumerate(counts) if count), default=-1)
    return tuple(counts[: last + 1])


class Stopwatch:
    """One a session. `running`: a query is under way."""

    __slots__ = ("_began_at", "_held_at", "_held_s", "asked_at", "meter", "running")

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.running = False
        self.asked_at = 0.0  # when the present query began, or the last one
        self._began_at = 0.0  # its transaction; 0 = in none
        self._held_at = 0.0  # since when it waits for a server; 0 = it does not
        self._held_s = 0.0  # of the present query

    def start(self, now: float) -> None:
        """The first byte of a query, whose last one has been answered."""
        self.running = True
        self.asked_at = now
        self._held_s = 0.0
        if not self._began_at:
            self._began_at = now

    def hold(self, now: float) -> None:
        """There is no server to send it to."""
        if not self._held_at:
            self._held_at = now

    def release(self, now: float) -> None:
        """Now there is one."""
        if self._held_at:
            held_s = now - self._held_at
            self._held_at = 0.0
            self.meter.waited(held_s)
            if self.running:
                self._held_s += held_s
                self.meter.held_s += held_s

    def held_since(self) -> float:
        """0 when it does not wait."""
        return self._held_at

    def answered(self, count: int, idle: bool, more: bool, now: float) -> float:
        """So many ReadyForQuery have come. `idle`: no transaction is open after them; `more`: others are owed yet.
        Seconds that each has taken."""
        meter = self.meter
        took_s = now - self.asked_at
        meter.queries += count
        meter.query_s += took_s
        if count > 1:
            took_s /= count
        meter.query_counts[bisect_left(BOUNDS_S, took_s)] += count
        if idle:
            # Of several at once only the last state is known: they are taken for transactions of their own.
            meter.transactions += count
            meter.transaction_s += now - self._began_at
            self._began_at = now if more else 0.0
        if more:
            self.asked_at = now
        self.running = more
        return took_s

    @property
    def held_s(self) -> float:
        """How long the query that was answered last had waited for a server."""
        return self._held_s


class Inflow:
    """Of one instance: who came, whatever became of it."""

    __slots__ = ("cancels", "refused")

    def __init__(self) -> None:
        self.cancels = 0
        self.refused: dict[str, int] = {}

    def refuse(self, sqlstate: str) -> None:
        """A client was told no, in these words."""
        if sqlstate not in self.refused and len(self.refused) >= COMPLAINTS_MAX:
            sqlstate = OTHERS
        self.refused[sqlstate] = self.refused.get(sqlstate, 0) + 1


@dataclass(frozen=True, slots=True)
class Stretch:
    """Figures at two moments, so many seconds apart."""

    before: Figures
    after: Figures
    seconds: float


class Meters:
    """All of a process."""

    def __init__(self, now: float = 0.0, *, meters_max: int = METERS_MAX, figures_max: int = FIGURES_MAX) -> None:
        self._meters_max = meters_max
        self._figures_max = figures_max
        self._meters: dict[tuple[str, str, str], Meter] = {}
        self._inflows: dict[str, Inflow] = {}
        self._wishes: dict[str, Wishes] = {}
        self._older: dict[tuple[str, str, str], Figures] = {}
        self._newer: dict[tuple[str, str, str], Figures] = {}
        self._older_at = self._newer_at = now

    def of(self, instance: str, user: str, database: str) -> Meter:
        meter = self._meters.get((instance, user, database))
        if meter is None:
            if len(self._meters) >= self._meters_max and (user, database) != (OTHERS, OTHERS):
                return self.of(instance, OTHERS, OTHERS)
            meter = Meter(instance, user, database, self._wishes_of(instance))
            self._meters[instance, user, database] = meter
        return meter

    def _wishes_of(self, instance: str) -> Wishes:
        return self._wishes.setdefault(instance, Wishes())

    def wish(self, slow_s: Mapping[str, float]) -> None:
        """By instance: those that are served, and from when on a query of theirs is slow (0 = none is). Others are
        forgotten."""
        for instance, seconds in slow_s.items():
            self._wishes_of(instance).slow_s = seconds or NEVER
        self._keep_only(slow_s)

    def inflow(self, instance: str) -> Inflow:
        inflow = self._inflows.get(instance)
        if inflow is None:
            inflow = self._inflows[instance] = Inflow()
        return inflow

    def of_instance(self, instance: str) -> list[Meter]:
        return [meter for meter in self._meters.values() if meter.instance == instance]

    def _keep_only(self, instances: Container[str]) -> None:
        for key in [key for key in self._meters if key[0] not in instances]:
            del self._meters[key]
            _ = self._older.pop(key, None), self._newer.pop(key, None)
        for instance in [instance for instance in self._inflows if instance not in instances]:
            del self._inflows[instance]
        for instance in [instance for instance in self._wishes if instance not in instances]:
            del self._wishes[instance]

    def figures_of(self, instance: str) -> Figures:
        total = Meter(instance, "", "")
        for meter in self.of_instance(instance):
            meter.add_to(total)
        return total.figures(self._inflows.get(instance))

    def figures(self) -> dict[str, Figures]:
        """Of each instance that has any, at most `figures_max` of them: then those with the most clients so far."""
        totals = {instance: Meter(instance, "", "") for instance in self._inflows}
        for meter in self._meters.values():
            total = totals.get(meter.instance)
            if total is None:
                total = totals[meter.instance] = Meter(meter.instance, "", "")
            meter.add_to(total)
        told: Iterable[Meter] = totals.values()
        if len(totals) > self._figures_max:
            told = nlargest(self._figures_max, told, key=lambda total: (total.logins, total.queries))
        return {total.instance: total.figures(self._inflows.get(total.instance)) for total in told}

    # --- averages -------------------------------------------------------------------------------------------------

    def roll(self, now: float) -> None:
        """To be called now and then: a period may have ended."""
        if now - self._newer_at >= PERIOD_S:
            self._older, self._older_at = self._newer, self._newer_at
            self._newer, self._newer_at = {key: meter.figures() for key, meter in self._meters.items()}, now

    def last_period(self, instance: str, now: float) -> Iterator[tuple[Meter, Stretch]]:
        """What each meter of the instance has counted in the last whole period; in the present one if it is the
        first."""
        whole = self._newer_at > self._older_at
        seconds = self._newer_at - self._older_at if whole else max(now - self._newer_at, 1e-9)
        for key, meter in self._meters.items():
            if key[0] == instance:
                after = self._newer.get(key, Figures()) if whole else meter.figures()
                yield meter, Stretch(self._older.get(key, Figures()), after, seconds)
