"""docs/faults.md names only faults and tests that exist, and the table fits between its marks."""

from __future__ import annotations

import re
from pathlib import Path

from tests.faults import catalogue, report
from tests.faults.runner import Round

ROOT = Path(__file__).resolve().parents[2]
_TEST = re.compile(r"`(test_\w+)`")
_DEFINED = re.compile(r"^\s*(?:async )?def (test_\w+)", re.MULTILINE)
_FAULTS = re.compile(r"\bfaults? ((?:`\w+`(?:, )?)+)")


def test_named_tests_exist() -> None:
    defined = {name for path in (ROOT / "tests").rglob("test_*.py") for name in _DEFINED.findall(path.read_text())}
    named = set(_TEST.findall(report.DOCUMENT.read_text()))
    assert len(named) > 30
    assert sorted(named - defined) == []


def test_named_faults_exist() -> None:
    named = {name for group in _FAULTS.findall(report.DOCUMENT.read_text()) for name in re.findall(r"`(\w+)`", group)}
    assert len(named) > 10
    assert sorted(named - set(catalogue.FAULTS)) == []


def test_the_table_is_put_between_the_marks_and_replaces_the_former_one(tmp_path: Path) -> None:
    document = tmp_path / "faults.md"
    document.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    fault = catalogue.FAULTS["engine_kill"]()
    rounds = [Round(fault=fault.name, round=n + 1, write_gap_s=gap) for n, gap in enumerate((0.5, 0.7, 2.0))]
    report.write_document([fault], rounds, "./dev faults", document)
    report.write_document([fault], rounds, "./dev faults", document)
    text = document.read_text()
    assert text.startswith(f"before\n{report.BEGIN}\nMade by `./dev faults`.")
    assert text.endswith(f"{report.END}\nafter\n")
    assert text.count("| `engine_kill` | 0.5/0.7/2.0 | ≤ 1 |") == 1
    assert "old" not in text


def test_a_table_line_has_at_most_a_hundred_columns() -> None:
    faults = [fault() for fault in catalogue.CLASSES]
    rounds = [Round(fault=fault.name, round=n, write_gap_s=21.87, errors=954) for fault in faults for n in (1, 2, 3)]
    assert (
        max(len(line) for line in report.table(faults, rounds).splitlines() if line.startswith(faults[0].name)) <= 100
    )
