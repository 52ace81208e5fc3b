"""Documents name files that exist and commands that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_PATH = re.compile(r"`((?:hub|agent|proxy|cli|core|protos|tests|docs|systemd|packaging)/[\w./*-]+)`")
_COMMAND = re.compile(r"^moorctl ((?:[a-z]+ ?){1,2})", re.MULTILINE)
_TEST = re.compile(r"`(test_\w+)`")
_DEFINED = re.compile(r"^\s*(?:async )?def (test_\w+)", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)#:]+)\)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_named_files_exist(document: Path) -> None:
    text = document.read_text()
    missing = [name for name in _PATH.findall(text) if not list(ROOT.glob(name.rstrip("/")))]
    missing += [link for link in _LINK.findall(text) if not (document.parent / link).exists()]
    assert not missing


def test_tests_that_documents_name_exist() -> None:
    defined = {name for path in (ROOT / "tests").rglob("test_*.py") for name in _DEFINED.findall(path.read_text())}
    named = {name for document in DOCUMENTS for name in _TEST.findall(document.read_text())}
    assert len(named) > 80
    assert sorted(named - defined) == []


def test_the_readmes_moorctl_commands_exist() -> None:
    moorctl = str(Path(sys.executable).parent / "moorctl")
    commands = {tuple(found.split()) for found in _COMMAND.findall((ROOT / "README.md").read_text())}
    assert len(commands) > 5
    for words in commands:
        result = subprocess.run([moorctl, *words, "--help"], capture_output=True, text=True, timeout=30)
        assert result.returncode == 0, f"moorctl {' '.join(words)}: {result.stderr}"
