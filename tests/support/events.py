"""Every event that a part may log, found in its sources: name, level and fields. What those of the proxy mean is
written by hand in docs/reference/events.txt; a test fails when one has no meaning, or a meaning no event."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("proxy", "agent", "hub", "core")
MEANINGS = ROOT / "docs" / "reference" / "events.txt"
_LEVELS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error", "unexpected": "error"}
_INTRODUCTION = """\
# Events in the logs

Made from the sources and from `docs/reference/events.txt` by `./dev docs`.

Each line of a log is one event: `at`, `level`, `component`, `event`, and the fields below (JSON where a machine reads,
columns on a terminal). Names and fields are stable; sentences in fields such as `why` and `error` are for people, and
may change. *error*: a person must act. *warning*: may have to. *info*: something changed. *debug*: the rest. Lines of
an error that nobody expected carry its `traceback` as well.
"""


@dataclass(slots=True)
class Event:
    """One name, wherever it is logged."""

    name: str
    part: str
    levels: set[str] = field(default_factory=set)
    fields: list[str] = field(default_factory=list)
    components: set[str] = field(default_factory=set)


def events() -> list[Event]:
    """In order of part and name."""
    found: dict[tuple[str, str], Event] = {}
    for part in PARTS:
        for path in sorted((ROOT / part).rglob("*.py")):
            tree = ast.parse(path.read_text())
            component = _component(tree)
            for name, level, fields in _calls(tree):
                event = found.setdefault((part, name), Event(name, part))
                event.levels.add(level)
                event.components.add(component)
                event.fields += [one for one in fields if one not in event.fields]
    order = {part: number for number, part in enumerate(PARTS)}
    return sorted(found.values(), key=lambda event: (order[event.part], event.name))


def _component(tree: ast.AST) -> str:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="EventLog"), args=[ast.Constant(value=str(name))]):
                return name
    return ""


def _calls(tree: ast.AST) -> Iterator[tuple[str, str, list[str]]]:
    """Name, level and fields of each; also of those whose name is given to a function that logs it."""
    yield from _direct(tree)
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            passed = {one.arg for one in function.args.args}
            for call in ast.walk(function):
                match call:
                    case ast.Call(func=ast.Attribute(value=value, attr=level), args=[ast.Name(id=name), *_]) if (
                        level in _LEVELS and _is_log(value) and name in passed
                    ):
                        fields = [one.arg for one in call.keywords if one.arg]
                        yield from ((text, _LEVELS[level], fields) for text in _names_given(tree, function.name))


def _names_given(tree: ast.AST, function: str) -> Iterator[str]:
    """The first argument of each call of that function."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr=called) | ast.Name(id=called), args=[name, *_]) if called == function:
                yield from _names(name)


def _direct(tree: ast.AST) -> Iterator[tuple[str, str, list[str]]]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=value, attr=level), args=[name, *_], keywords=keywords) if (
                level in _LEVELS and _is_log(value)
            ):
                for text in _names(name):
                    yield text, _LEVELS[level], [one.arg for one in keywords if one.arg]


def _is_log(value: ast.expr) -> bool:
    return (isinstance(value, ast.Name) and value.id == "log") or (
        isinstance(value, ast.Attribute) and value.attr in ("log", "_log")
    )


def _names(name: ast.expr) -> list[str]:
    """An event may be one of two."""
    match name:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.IfExp(body=one, orelse=other):
            return [*_names(one), *_names(other)]
        case _:
            return []


def meanings() -> dict[str, str]:
    """By event: a sentence."""
    lines = [line for line in MEANINGS.read_text().splitlines() if line and not line.startswith("#")]
    return {name: meaning.strip() for name, _, meaning in (line.partition(":") for line in lines)}


def page() -> str:
    told, lines = meanings(), [_INTRODUCTION]
    for part in PARTS:
        mine = [event for event in events() if event.part == part]
        if not mine:
            continue
        explained = part == "proxy"
        lines.append(f"## {part}\n")
        lines += _HEADS[explained]
        for event in mine:
            fields = ", ".join(f"`{one}`" for one in event.fields)
            cells = [f"`{event.name}`", ", ".join(sorted(event.levels)), fields]
            cells += [told.get(event.name, "")] if explained else [", ".join(sorted(event.components))]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


_HEADS = {
    True: ["| event | level | fields | meaning |", "|---|---|---|---|"],
    False: ["| event | level | fields | component |", "|---|---|---|---|"],
}
