"""Generated files in the repository are what the sources make of them today."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.events import events, meanings
from tests.support.protos import ROOT, generate
from tests.support.reference import pages


def test_generated_protos_are_not_stale(tmp_path: Path) -> None:
    generate(tmp_path)
    made = {path.relative_to(tmp_path) for path in tmp_path.rglob("*_pb2*.py*")}
    kept = {path.relative_to(ROOT) for path in (ROOT / "protos").rglob("*_pb2*.py*") if "__pycache__" not in path.parts}
    assert made == kept, "run ./dev protos"
    stale = [str(path) for path in made if (tmp_path / path).read_bytes() != (ROOT / path).read_bytes()]
    assert not stale, f"run ./dev protos: {stale}"


def test_protos_are_lint_clean() -> None:
    result = subprocess.run(["buf", "lint"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr


def test_generated_reference_is_not_stale() -> None:
    for name, text in pages().items():
        kept = ROOT / "docs" / "reference" / name
        assert kept.read_text() == text, f"{kept}: run ./dev docs"


def test_every_event_of_the_proxy_is_explained_and_no_other() -> None:
    assert sorted(meanings()) == [event.name for event in events() if event.part == "proxy"], (
        "docs/reference/events.txt"
    )
