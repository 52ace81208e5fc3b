"""Pure arithmetic of the side-by-side bench: gaps from acknowledgements, rounds into rows, rows into tables.

Everything printed, and everything written to `docs/benchmarks.md`, is made here from `Round`s and `Creation`s, which is
also all that the JSON file must hold: pieces that were run one by one are put together from their files.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

OURS = "moorage"
SYSTEMS = {
    "moorage": "Moorage",
    "pgaf": "pg_auto_failover",
    "patroni_fast": "Patroni, fastest",
    "patroni": "Patroni, defaults",
    "patroni_shipped": "Patroni, fastest, shipped checks",
}
CASES = {
    "switchover": "planned switchover",
    "engine_crash": "engine crash",
    "node_loss": "node loss",
    "node_freeze": "frozen node",
}
BEGIN = "<!-- ha_peers: written by the bench -->"
END = "<!-- ha_peers: end -->"


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One fault to one system. Without recovery `gap_s` is how long was waited; `lost` -1: nobody could be asked."""

    system: str
    case: str
    number: int
    gap_s: float
    recovered: bool
    healed: bool
    heal_s: float  # from undoing the fault until all three members were whole
    heal_gap_s: float  # longest pause of writes meanwhile
    errors: int  # all that the client saw: failed writes and refused connections
    failed_writes: int
    lost: int
    doubtful: int  # commits that the server itself called local only
    said: tuple[str, ...]  # the different errors that the client saw, most frequent first
    note: str = ""

    @staticmethod
    def read(fields: Mapping[str, Any]) -> Round:
        """From its JSON."""
        return Round(**{**fields, "said": tuple(fields["said"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Creation:
    """Seconds from nothing to three members, all streaming, and a first client at the recommended entry."""

    system: str
    seconds: float
    version: str


@dataclass(frozen=True, slots=True)
class Spread:
    """Of several rounds."""

    low: float
    middle: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        return Spread(min(values), statistics.median(values), max(values))


def longest_gap(times: Iterable[float], since: float, until: float) -> float:
    """The longest pause between two acknowledgements that touches the time from `since` to `until`.

    The last acknowledgement before `since` and the first after `until` count; when one of them is missing, the border
    stands for it, so silence to the end is a gap and not nothing.
    """
    if until < since:
        raise ValueError("the time ends before it begins")
    inside: list[float] = []
    before, after = since, until
    for when in sorted(times):
        if when < since:
            before = when
        elif when <= until:
            inside.append(when)
        else:
            after = when
            break
    return max(later - earlier for earlier, later in pairwise([before, *inside, after]))


def most_frequent(texts: Iterable[str], most: int = 5) -> tuple[str, ...]:
    """Different texts, the most frequent first."""
    return tuple(text for text, _ in Counter(texts).most_common(most))


def count_between(times: Iterable[float], since: float, until: float) -> int:
    return sum(since <= when <= until for when in times)


def spreads(rounds: Iterable[Round], metric: str = "gap_s") -> dict[tuple[str, str], Spread]:
    """By (system, case)."""
    values: dict[tuple[str, str], list[float]] = {}
    for one in rounds:
        values.setdefault((one.system, one.case), []).append(float(getattr(one, metric)))
    return {key: Spread.of(found) for key, found in values.items()}


def ratios(gaps: Mapping[tuple[str, str], Spread], ours: str = OURS) -> dict[tuple[str, str], float]:
    """Median of ours to median of the peer by (peer, case); less than 1 is better for us."""
    return {
        (system, case): gaps[ours, case].middle / spread.middle
        for (system, case), spread in gaps.items()
        if system != ours and (ours, case) in gaps and spread.middle > 0
    }


def rows(rounds: Sequence[Round], creations: Sequence[Creation]) -> list[dict[str, Any]]:
    """The common form of all benches: case, system, metric, unit, value."""
    made: list[dict[str, Any]] = []

    def add(case: str, system: str, metric: str, unit: str, value: float) -> None:
        made.append({"case": case, "system": system, "metric": metric, "unit": unit, "value": round(value, 4)})

    gaps = spreads(rounds)
    for (system, case), spread in gaps.items():
        add(case, system, "write_gap_median", "s", spread.middle)
        add(case, system, "write_gap_min", "s", spread.low)
        add(case, system, "write_gap_max", "s", spread.high)
        group = [one for one in rounds if (one.system, one.case) == (system, case)]
        add(case, system, "client_errors_median", "count", statistics.median(one.errors for one in group))
        add(case, system, "failed_writes_median", "count", statistics.median(one.failed_writes for one in group))
        add(case, system, "lost_writes", "count", sum(max(one.lost, 0) for one in group))
        add(case, system, "heal_median", "s", statistics.median(one.heal_s for one in group))
        add(case, system, "rounds", "count", len(group))
        add(case, system, "rounds_without_recovery", "count", sum(not one.recovered for one in group))
        add(case, system, "rounds_not_healed", "count", sum(not one.healed for one in group))
    for (system, case), ratio in ratios(gaps).items():
        add(case, system, "moorage_to_peer", "x", ratio)
    for system, spread in _creation_spreads(creations).items():
        add("create_three_members", system, "to_whole_median", "s", spread.middle)
    return made


def tables(rounds: Sequence[Round], creations: Sequence[Creation]) -> str:
    """Markdown for people: ratios, then absolute figures, then what clients saw."""
    systems = [name for name in SYSTEMS if any(one.system == name for one in (*rounds, *creations))]
    cases = [name for name in CASES if any(one.case == name for one in rounds)]
    gaps, created = spreads(rounds), _creation_spreads(creations)
    found = ratios(gaps)
    parts: list[str] = []
    if found:
        peers = [name for name in systems if name != OURS]
        lines = [
            [CASES[case], *(_ratio(found.get((peer, case))) for peer in peers)]
            for case in cases
            if any((peer, case) in found for peer in peers)
        ]
        parts += ["Moorage's write gap as a share of the peer's (medians; less than 1: Moorage is faster):"]
        parts += [markdown(["fault", *(SYSTEMS[peer] for peer in peers)], lines)]
    if gaps or created:
        lines = [[CASES[case], *(_spread(gaps.get((name, case))) for name in systems)] for case in cases]
        lines += [["create three members", *(_spread(created.get(name)) for name in systems)]]
        parts += ["Write gap in seconds, as the client saw it: median (min - max):"]
        parts += [markdown(["fault", *(SYSTEMS[name] for name in systems)], lines)]
    if rounds:
        errors = spreads(rounds, "errors")
        lines = [[CASES[case], *(_errors(rounds, errors, name, case) for name in systems)] for case in cases]
        parts += ["Errors at the client in a round (median), and acknowledged writes lost in all rounds:"]
        parts += [markdown(["fault", *(SYSTEMS[name] for name in systems)], lines)]
    parts += remarks(rounds, creations)
    return "\n\n".join(parts)


def remarks(rounds: Sequence[Round], creations: Sequence[Creation]) -> list[str]:
    """What the medians do not show."""
    said = []
    versions = {one.system: one.version for one in creations}
    if versions:
        said.append("; ".join(f"{SYSTEMS[name]}: {versions[name]}" for name in SYSTEMS if name in versions) + ".")
    for one in rounds:
        trouble = []
        if not one.recovered:
            trouble.append(f"no writes again within {one.gap_s:.0f} s")
        if not one.healed:
            trouble.append("not whole again within the bound")
        if one.lost < 0:
            trouble.append("the table could not be read")
        if trouble:
            what = ", ".join(trouble) + (f" ({one.note})" if one.note else "")
            said.append(f"{SYSTEMS[one.system]}, {CASES[one.case]}, round {one.number}: {what}.")
    return said


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table whose columns are even in plain text too."""
    table = [list(head), *(list(line) for line in lines)]
    widths = [max(len(line[column]) for line in table) for column in range(len(head))]
    shown = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in table
    ]
    return "\n".join([shown[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *shown[1:]])


def between_markers(document: str, text: str, first: str = BEGIN, last: str = END) -> str:
    """The document with `text` in place of what stood between the markers."""
    begin, end = document.find(first), document.find(last)
    if begin < 0 or end < begin:
        raise ValueError(f"the document has no part between {first!r} and {last!r}")
    return f"{document[: begin + len(first)]}\n\n{text.strip()}\n\n{document[end:]}"


def _creation_spreads(creations: Iterable[Creation]) -> dict[str, Spread]:
    values: dict[str, list[float]] = {}
    for one in creations:
        values.setdefault(one.system, []).append(one.seconds)
    return {name: Spread.of(found) for name, found in values.items()}


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} (1/{1 / value:.1f})" if value < 1 else f"{value:.2f}"


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return ""
    if spread.low == spread.high:
        return f"{spread.middle:.2f}"
    return f"{spread.middle:.2f} ({spread.low:.2f} - {spread.high:.2f})"


def _errors(rounds: Sequence[Round], errors: Mapping[tuple[str, str], Spread], system: str, case: str) -> str:
    if (system, case) not in errors:
        return ""
    lost = sum(max(one.lost, 0) for one in rounds if (one.system, one.case) == (system, case))
    return f"{errors[system, case].middle:.0f}, {lost} lost"
