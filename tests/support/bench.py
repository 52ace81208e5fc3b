"""The common form of all benchmarks: a table for people and, with `--json FILE`, the same rows for programs."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure: what was done, by which system, what was measured, in which unit."""

    case: str
    system: str
    metric: str
    unit: str
    value: float


class Rows:
    """Collects figures; `finish()` prints and writes them."""

    def __init__(self, json_file: Path | None) -> None:
        self._json_file = json_file
        self._rows: list[Row] = []

    def add(self, case: str, system: str, metric: str, unit: str, value: float) -> None:
        self._rows.append(Row(case=case, system=system, metric=metric, unit=unit, value=round(value, 4)))

    def add_spread(self, case: str, system: str, metric: str, unit: str, values: Sequence[float]) -> None:
        """Median, minimum and maximum of several rounds."""
        self.add(case, system, f"{metric}_median", unit, statistics.median(values))
        self.add(case, system, f"{metric}_min", unit, min(values))
        self.add(case, system, f"{metric}_max", unit, max(values))

    def finish(self) -> None:
        print(f"{'case':26} {'system':18} {'metric':28} {'value':>12} unit")
        for row in self._rows:
            print(f"{row.case:26} {row.system:18} {row.metric:28} {row.value:12.3f} {row.unit}")
        if self._json_file is not None:
            self._json_file.write_text(json.dumps({"rows": [asdict(row) for row in self._rows]}, indent=1) + "\n")


def parser(story: str) -> argparse.ArgumentParser:
    """With the options that every benchmark has."""
    made = argparse.ArgumentParser(description=story, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON too")
    return made


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0..1) of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
