"""The code's manners, as far as a program can see them."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("core", "hub", "agent", "proxy", "cli")
FUNCTION_LINES_MAX = 70  # one screen
FILE_LINES_MAX = 620
BANNED_WORDS = re.compile(r"\b(master|slave)\b", re.IGNORECASE)
# A call that has a better place, and which.
BANNED_CALLS = {
    "time.time": "core.clock",
    "time.monotonic": "core.clock",
    "asyncio.wait_for": "asyncio.timeout",
    "asyncio.create_task": "a TaskGroup",
}


def sources() -> list[Path]:
    return [path for part in PARTS for path in sorted((ROOT / part).rglob("*.py"))]


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_source_file_keeps_its_manners(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    problems = [
        f"{node.name} has {(node.end_lineno or 0) - node.lineno + 1} lines"
        for node in functions(tree)
        if (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES_MAX
    ]
    story = ast.get_docstring(tree)
    if not story or story.startswith("TODO"):
        problems.append("the module tells no story in a docstring")
    if text.count("\n") > FILE_LINES_MAX:
        problems.append(f"{text.count(chr(10))} lines: time to split")
    problems += [f"says {match[0]!r}" for match in BANNED_WORDS.finditer(text)]
    problems += [
        f"TODO without an issue: {line.strip()}" for line in text.splitlines() if re.search(r"\bTODO\b(?! #\d)", line)
    ]
    if path != ROOT / "core" / "clock.py":
        problems += [f"calls {name}, use {BANNED_CALLS[name]}" for name in called(tree) if name in BANNED_CALLS]
    assert not problems


def called(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
        ):
            yield f"{node.func.value.id}.{node.func.attr}"


@pytest.mark.parametrize("folder", ["packaging", "systemd"])
def test_folders_named_like_libraries_hold_no_python_package(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists(), "it would shadow the library of that name"


def test_our_top_level_names_belong_to_us_alone() -> None:
    owners = packages_distributions()
    for name in (*PARTS, "protos"):
        assert set(owners.get(name, ["moorage"])) == {"moorage"}


def test_import_contracts_hold() -> None:
    result = subprocess.run(["lint-imports", "--no-logo"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout


def test_core_stays_small() -> None:
    files = [path for path in (ROOT / "core").glob("*.py") if path.name != "__init__.py"]
    lines = sum(path.read_text().count("\n") for path in (ROOT / "core").rglob("*.py"))
    assert len(files) <= 16
    assert lines <= 3450, f"{lines} lines: what do not two parts use?"
