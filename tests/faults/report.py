"""What a run prints, and what it writes into docs/faults.md."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from tests.faults.runner import Round
from tests.faults.scene import Fault

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "faults.md"
BEGIN, END = "<!-- made by ./dev faults --write-docs: begin -->", "<!-- end -->"


def by_fault(rounds: Iterable[Round]) -> dict[str, list[Round]]:
    found: dict[str, list[Round]] = {}
    for one in rounds:
        found.setdefault(one.fault, []).append(one)
    return found


def spread(rounds: Sequence[Round], value: Callable[[Round], float]) -> str:
    """Minimum, median and maximum; one figure when there is one round."""
    values = [value(one) for one in rounds if not one.failure or value(one)]
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return "/".join(f"{figure:.1f}" for figure in (min(values), statistics.median(values), max(values)))


def verdict(fault: Fault, rounds: Sequence[Round]) -> str:
    """How the bound was kept, by the median; `!` = something that must never happen did, or a round failed."""
    if any(one.broken for one in rounds):
        return "BROKEN"
    if any(one.failure for one in rounds):
        return "FAILED"
    if fault.bound_s is None:
        return "-"
    kept = statistics.median(one.write_gap_s for one in rounds) <= fault.bound_s
    errors = fault.no_errors and any(one.errors for one in rounds)
    return f"<={fault.bound_s:g}" if kept and not errors else f">{fault.bound_s:g}" if not kept else "errors"


def counts(rounds: Sequence[Round]) -> str:
    """Lost, doubled, phantom, wrong sums, split: each the sum of all rounds."""
    figures = ("lost", "doubled", "phantom", "wrong_sums", "split")
    return " ".join(str(sum(getattr(one, figure) for one in rounds)) for figure in figures)


def table(faults: Sequence[Fault], rounds: Sequence[Round]) -> str:
    """Readable on 100 columns."""
    lines = [
        f"{'fault':22} {'write gap s':15} {'bound':6} {'read gap s':15} {'healthy s':15} L D P S 2 {'stale s':>7} errs",
    ]
    known = by_fault(rounds)
    for fault in faults:
        seen = known.get(fault.name, [])
        if seen:
            lines.append(
                f"{fault.name:22} {spread(seen, lambda r: r.write_gap_s):15} {verdict(fault, seen):6} "
                f"{spread(seen, lambda r: r.read_gap_s):15} {spread(seen, lambda r: r.health_s):15} {counts(seen)} "
                f"{max(r.stale_s for r in seen):7.2f} {round(statistics.median(r.errors for r in seen)):4}"
            )
    lines.append(
        "gaps and time to health: min/median/max; L lost, D doubled, P phantom writes, S wrong sums, 2 two primaries;\n"
        "stale s: how long an engine took writes past the proxies beside its successor; errs: at clients, median"
    )
    return "\n".join(lines)


def write_json(file: Path, rounds: Sequence[Round], *, mode: str, seed: int) -> None:
    told = {"mode": mode, "seed": seed, "rounds": [asdict(one) for one in rounds]}
    file.write_text(json.dumps(told, indent=1) + "\n")


def write_document(faults: Sequence[Fault], rounds: Sequence[Round], command: str, document: Path = DOCUMENT) -> None:
    """Put the table between the marks of the document."""
    text = document.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    document.write_text(f"{head}{BEGIN}\n{_markdown(faults, rounds, command)}\n{END}{tail}")


def _markdown(faults: Sequence[Fault], rounds: Sequence[Round], command: str) -> str:
    known = by_fault(rounds)
    lines = [
        f"Made by `{command}`. Times in seconds, minimum/median/maximum of the rounds; counts are sums of all rounds.",
        "",
        "| fault | write gap | bound | read gap | healthy after | lost | doubled | phantom | sums | two primaries "
        "| past the proxies | errors |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for fault in faults:
        seen = known.get(fault.name, [])
        if not seen:
            continue
        cells = [
            f"`{fault.name}`",
            spread(seen, lambda r: r.write_gap_s),
            verdict(fault, seen).replace("<=", "≤ ").replace(">", "over ").replace("-", "none"),
            spread(seen, lambda r: r.read_gap_s),
            spread(seen, lambda r: r.health_s),
            *counts(seen).split(),
            f"{max(r.stale_s for r in seen):.2f}",
            str(round(statistics.median(r.errors for r in seen))),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    written = sum(one.acknowledged for one in rounds)
    lines += ["", f"{len(rounds)} rounds, {written:,} acknowledged writes."]
    return "\n".join(lines)
