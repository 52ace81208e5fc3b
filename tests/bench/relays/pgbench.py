"""pgbench: its command lines, what it prints, and the log of its transactions. Nothing here runs it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.bench.relays.cases import Case
from tests.support.bench import percentile

SAMPLING_RATE = 0.25  # of transactions that are logged: enough for a p99, without the log being a load
_COUNT = re.compile(r"^number of transactions actually processed: (\d+)", re.MULTILINE)
_FAILED = re.compile(r"^number of failed transactions: (\d+)", re.MULTILINE)
_TPS = re.compile(r"^tps = ([\d.]+) ", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What pgbench says at the end. `tps` leaves out the time of the first connections."""

    transactions: int
    tps: float

    @property
    def seconds(self) -> float:
        """Of the transactions alone."""
        return self.transactions / self.tps


@dataclass(frozen=True, slots=True)
class Logged:
    """What its transactions say, each by itself."""

    p50_ms: float
    p99_ms: float
    end: float  # when the last one ended, time of day


def arguments(case: Case, seconds: float, *, conninfo: str, log_prefix: str) -> list[str]:
    """Behind `pgbench`."""
    return [
        *("-n", "-S", "-M", "simple" if case.kind == "connect" else case.kind),
        *("-c", str(case.clients), "-j", str(min(case.clients, 2)), "-T", str(max(1, round(seconds)))),
        *(["-C"] if case.kind == "connect" else []),
        *("-l", f"--log-prefix={log_prefix}", f"--sampling-rate={SAMPLING_RATE}"),
        conninfo,
    ]


def read_outcome(text: str) -> Outcome:
    """ValueError when it is not the report of a whole run, or a transaction failed."""
    count, tps, failed = _COUNT.search(text), _TPS.search(text), _FAILED.search(text)
    if count is None or tps is None or "Run was aborted" in text:
        raise ValueError(f"pgbench did not come to its end: {text.strip()[-500:]}")
    if failed is not None and int(failed[1]):
        raise ValueError(f"{failed[1]} transactions failed")
    outcome = Outcome(int(count[1]), float(tps[1]))
    if outcome.transactions == 0 or outcome.tps <= 0:
        raise ValueError("no transaction came to its end")
    return outcome


def read_logs(lines: Iterable[str]) -> Logged:
    """Lines `client number microseconds script second microsecond`. ValueError when there are none."""
    took_us: list[int] = []
    end = 0.0
    for line in lines:
        words = line.split()
        took_us.append(int(words[2]))
        end = max(end, int(words[4]) + int(words[5]) / 1e6)
    if not took_us:
        raise ValueError("pgbench has logged no transaction")
    return Logged(percentile(took_us, 0.5) / 1e3, percentile(took_us, 0.99) / 1e3, end)


def used_between(samples: Sequence[tuple[float, float]], begin: float, end: float) -> float:
    """Processor seconds used in a time, from (time of day, seconds used so far), by straight lines between samples."""
    return _at(samples, end) - _at(samples, begin)


def _at(samples: Sequence[tuple[float, float]], when: float) -> float:
    earlier = samples[0]
    for sample in samples:
        if sample[0] >= when:
            if sample[0] == earlier[0]:
                return sample[1]
            share = (when - earlier[0]) / (sample[0] - earlier[0])
            return earlier[1] + share * (sample[1] - earlier[1])
        earlier = sample
    return earlier[1]
