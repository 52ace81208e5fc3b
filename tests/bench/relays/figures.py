"""Pure arithmetic of the proxy bench: slices into medians, medians and pairs into ratios, these into rows and tables.

A *slice* is a few seconds of one case at one system; the systems take turns, so slices of one round stand beside each
other in time. A ratio is the median over the rounds of ours to theirs in the same round: what the machine did besides
hits both.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.bench.peers.figures import markdown
from tests.bench.relays.cases import IDLE_SHARING, SYSTEMS, all_cases

OURS = "moorage"
BEGIN = "<!-- proxy: written by the bench -->"
END = "<!-- proxy: end -->"
UNITS = {
    "tps": "1/s",
    "cpu_us_per_transaction": "us",
    "p50_ms": "ms",
    "p99_ms": "ms",
    "added_p50_us": "us",
    "kb_an_idle_client": "kB",
    "others_share": "share",
}
RATIOS = {  # name of the ratio by metric; throughput is the one that is meant when nothing else is said
    "tps": "ratio_to",
    "cpu_us_per_transaction": "cpu_ratio_to",
    "p99_ms": "p99_ratio_to",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """What was measured in one go."""

    case: str
    system: str
    number: int  # of the round
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class Bound:
    """What we want to reach: a metric of ours, at least or at most so much."""

    case: str
    metric: str
    limit: float
    least: bool

    def kept_by(self, value: float) -> bool:
        return value >= self.limit if self.least else value <= self.limit


BOUNDS = (
    Bound("prepared_64_session", "ratio_to_pgbouncer", 1.0, least=True),
    Bound("prepared_64_session", "cpu_ratio_to_pgbouncer", 1.5, least=False),
    Bound("prepared_64_session", "p99_ratio_to_pgbouncer", 1.5, least=False),
    Bound("prepared_64_session", "ratio_to_haproxy", 0.9, least=True),
    Bound("prepared_1_session", "added_p50_us", 60.0, least=False),
    Bound("login_8_session", "ratio_to_pgbouncer", 0.8, least=True),
    Bound("idle_1000_session", "kb_an_idle_client", 12.0, least=False),
    Bound("extended_64_transaction", "ratio_to_pgbouncer", 0.8, least=True),
    Bound("extended_64_transaction", "cpu_ratio_to_pgbouncer", 1.5, least=False),
    Bound("extended_64_transaction", "p99_ratio_to_pgbouncer", 1.5, least=False),
    Bound(f"idle_{IDLE_SHARING}_transaction", "kb_an_idle_client", 12.0, least=False),
)
Figures = dict[tuple[str, str, str], float]  # by case, system, metric


def medians(slices: Iterable[Slice]) -> Figures:
    values: dict[tuple[str, str, str], list[float]] = {}
    for one in slices:
        for metric, value in one.metrics.items():
            values.setdefault((one.case, one.system, metric), []).append(value)
    return {key: statistics.median(found) for key, found in values.items()}


def ratios(slices: Sequence[Slice]) -> Figures:
    """Of each system to each other one that is no build of ours; rounds that only one of them has seen do not count."""
    rounds: dict[tuple[str, str, int], Mapping[str, float]] = {}
    for one in slices:
        rounds[one.case, one.system, one.number] = one.metrics
    found: dict[tuple[str, str, str], list[float]] = {}
    for (case, system, number), metrics in rounds.items():
        for peer in SYSTEMS:
            theirs = rounds.get((case, peer, number), {})
            if peer == system:
                continue
            for metric, name in RATIOS.items():
                if metric in metrics and theirs.get(metric, 0) > 0:
                    found.setdefault((case, system, f"{name}_{peer}"), []).append(metrics[metric] / theirs[metric])
    return {key: statistics.median(values) for key, values in found.items()}


def added(slices: Sequence[Slice]) -> Figures:
    """Microseconds that a system adds to a lone client's median."""
    rounds = {(one.case, one.system, one.number): one.metrics for one in slices}
    found: dict[tuple[str, str, str], list[float]] = {}
    for (case, system, number), metrics in rounds.items():
        alone = rounds.get((case, "direct", number), {})
        if "_1_" in case and system != "direct" and "p50_ms" in metrics and "p50_ms" in alone:
            key = (case, system, "added_p50_us")
            found.setdefault(key, []).append(1000 * (metrics["p50_ms"] - alone["p50_ms"]))
    return {key: statistics.median(values) for key, values in found.items()}


def figures(slices: Sequence[Slice]) -> Figures:
    """Everything, in the order of cases and systems."""
    found = {**medians(slices), **added(slices), **ratios(slices)}
    cases = [case.name for case in all_cases()]
    systems = list(SYSTEMS)
    return dict(sorted(found.items(), key=lambda item: (cases.index(item[0][0]), systems.index(item[0][1]))))


def rows(slices: Sequence[Slice]) -> list[dict[str, Any]]:
    """The common form of all benches."""
    return [
        {"case": case, "system": system, "metric": metric, "unit": UNITS.get(metric, "x"), "value": round(value, 4)}
        for (case, system, metric), value in figures(slices).items()
    ]


# --- tables -----------------------------------------------------------------------------------------------------------


def tables(slices: Sequence[Slice]) -> str:
    """Markdown for people: bounds, ratios, costs, latencies, then the rest."""
    found = figures(slices)
    parts = [
        *_part("What we want to reach, and what it is now:", ["case", "figure", "wanted", "now"], _bounds(found)),
        *_part(
            "Moorage's throughput as a share of the peer's (more is better):",
            ["case", *(SYSTEMS[peer] for peer in _peers(found))],
            _compared(found, "ratio_to"),
        ),
    ]
    for metric, title, digits in (
        ("tps", "Transactions a second (`connect`, `login`: connections a second)", 0),
        ("cpu_us_per_transaction", "Processor time of the proxy, microseconds a transaction", 1),
        ("p50_ms", "Median latency, ms", 2),
        ("p99_ms", "99th percentile of latency, ms", 2),
        ("added_p50_us", "Added to the median of one client, microseconds", 0),
        ("kb_an_idle_client", "Memory of the proxy for an idle client with its server connection, kB", 1),
    ):
        systems = [name for name in SYSTEMS if any(key[1:] == (name, metric) for key in found)]
        head = ["case", *(SYSTEMS[name] for name in systems)]
        parts += _part(f"{title}:", head, _of_metric(found, metric, systems, digits))
    shares = sorted(one.metrics["others_share"] for one in slices if "others_share" in one.metrics)
    if shares:
        middle, high = statistics.median(shares), shares[int(0.9 * (len(shares) - 1))]
        rounds = max(one.number for one in slices)
        parts.append(
            f"Others took {middle:.0%} of the machine meanwhile (median of {len(shares)} slices in up to {rounds} "
            f"rounds; {high:.0%} in the most disturbed tenth)."
        )
    return "\n\n".join(parts)


def _part(title: str, head: list[str], lines: list[list[str]]) -> list[str]:
    return [title, markdown(head, lines)] if lines else []


def _bounds(found: Figures) -> list[list[str]]:
    lines = []
    for bound in BOUNDS:
        value = found.get((bound.case, OURS, bound.metric))
        if value is not None:
            wanted = f"{'≥' if bound.least else '≤'} {bound.limit:g}"
            now = f"{value:.2f}{'' if bound.kept_by(value) else ' (not yet)'}"
            lines.append([f"`{bound.case}`", f"`{bound.metric}`", wanted, now])
    return lines


def _peers(found: Figures) -> list[str]:
    return [name for name in SYSTEMS if any(key[1:] == (OURS, f"ratio_to_{name}") for key in found)]


def _compared(found: Figures, name: str) -> list[list[str]]:
    peers = _peers(found)
    cases = dict.fromkeys(case for case, system, metric in found if system == OURS and metric.startswith(f"{name}_"))
    return [[f"`{case}`", *(_shown(found.get((case, OURS, f"{name}_{peer}")), 2) for peer in peers)] for case in cases]


def _of_metric(found: Figures, metric: str, systems: Sequence[str], digits: int) -> list[list[str]]:
    cases = dict.fromkeys(key[0] for key in found if key[2] == metric)
    return [[f"`{case}`", *(_shown(found.get((case, name, metric)), digits) for name in systems)] for case in cases]


def _shown(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
