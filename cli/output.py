"""Everything that is written to the terminal, and nothing else writes there.

Answers go to standard output, remarks and errors to standard error, so that a pipe sees answers only. Text that comes
from elsewhere (messages of the hub, names in files) passes `plain` before it is shown: no escape sequence in an event
can move the reader's cursor. Colour is used on terminals only, and never carries meaning alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Literal

import click
import yaml

from core.errors import MoorageError

Format = Literal["table", "json", "yaml"]
Tone = Literal["good", "warn", "bad", "dim", "bold"]

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_STYLES: dict[Tone, dict[str, Any]] = {
    "good": {"fg": "green"},
    "warn": {"fg": "yellow"},
    "bad": {"fg": "red", "bold": True},
    "dim": {"dim": True},
    "bold": {"bold": True},
}
MESSAGE_MAX = 2000  # an engine's complaint may be long; a screen of it tells enough


def plain(text: object) -> str:
    """The text on one line, without control characters."""
    return _CONTROL.sub(" ", str(text)).strip()


def raw(line: str) -> str:
    """A line of a log: without control characters, its indentation kept."""
    return _CONTROL.sub(" ", line).rstrip()


class ReaderGone(Exception):
    """Nobody reads standard output any more, as with `moorctl event list | head`."""


def say(line: str = "") -> None:
    """One line of the answer. ReaderGone when nobody takes it."""
    try:
        click.echo(line)
    except BrokenPipeError as error:
        raise ReaderGone from error


def note(line: str) -> None:
    """One line beside the answer: progress, hints, warnings."""
    click.echo(line, err=True)


def fail(error: MoorageError) -> None:
    """The error in at most three lines: what of which object, then what to do next."""
    what = plain(error.what)[:MESSAGE_MAX] or error.code
    head = f"{plain(error.object)}: {what}" if error.object else what
    note(f"{tone('error:', 'bad', err=True)} {head}")
    if error.hint:
        note(f"  {plain(error.hint)}")


def coloured(*, err: bool = False) -> bool:
    """Whether the stream is a terminal whose owner has not switched colours off."""
    stream = sys.stderr if err else sys.stdout
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def tone(text: str, how: Tone, *, err: bool = False) -> str:
    """The text, styled where styling is shown."""
    return click.style(text, **_STYLES[how]) if coloured(err=err) else text


def dump(value: object, form: Literal["json", "yaml"]) -> None:
    """A value for programs."""
    if form == "json":
        say(json.dumps(value, indent=2, ensure_ascii=False))
    else:
        say(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120).rstrip("\n"))


def dump_lines(values: Iterable[object], form: Literal["json", "yaml"]) -> None:
    """Values that come one by one: one JSON a line, or YAML documents."""
    for value in values:
        if form == "json":
            say(json.dumps(value, ensure_ascii=False))
        else:
            say("---\n" + yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120).rstrip("\n"))


def width() -> int:
    """Columns for running text: the terminal's, but no more than are read with ease; 80 where there is none."""
    return max(60, min(100, shutil.get_terminal_size((80, 24)).columns))


# --- tables ---------------------------------------------------------------------------------------------------------


class Cell(str):
    """A table cell with a tone; it is as wide as its text."""

    __slots__ = ("how",)
    how: Tone | None

    def __new__(cls, text: object, how: Tone | None = None) -> Cell:
        cell = super().__new__(cls, plain(text))
        cell.how = how
        return cell


def table(headers: Sequence[str], rows: Sequence[Sequence[object]], *, indent: str = "") -> None:
    """Columns two spaces apart; numbers stay left, as in kubectl, so that cut and awk see fields."""
    for line in table_lines(headers, rows, indent=indent):
        say(line)


def table_lines(headers: Sequence[str], rows: Sequence[Sequence[object]], *, indent: str = "") -> list[str]:
    cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    grid = [[Cell(header, "dim") for header in headers], *cells]
    widths = [max(len(row[column]) for row in grid) for column in range(len(headers))]
    return [indent + _row(row, widths) for row in grid]


def _row(row: Sequence[Cell], widths: Sequence[int]) -> str:
    parts = []
    for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
        shown = tone(str(cell), cell.how) if cell.how else str(cell)
        last = column == len(widths) - 1
        parts.append(shown if last else shown + " " * (width - len(cell)))
    return "  ".join(parts).rstrip()


# --- values for people ----------------------------------------------------------------------------------------------


def size(value: object) -> str:
    """Bytes such as 1.5Gi; a dash for what is not known."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "-"
    for unit, factor in (("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)):
        if abs(value) >= factor:
            return f"{value / factor:.1f}".rstrip("0").rstrip(".") + unit
    return str(int(value))


def duration(seconds: float) -> str:
    """Such as 4s, 12m, 3h, 5d."""
    for unit, factor in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * factor:
            return f"{int(seconds // factor)}{unit}"
    return f"{max(0, int(seconds))}s"


def age(text: object, *, wall: float) -> str:
    """How long ago an ISO time was; a dash for what is none."""
    at = _wall_of(text)
    return "-" if at is None else duration(wall - at)


def until(text: object, *, wall: float) -> str:
    """How long it is to an ISO time; a dash for what is none."""
    at = _wall_of(text)
    return "-" if at is None else duration(at - wall)


def _wall_of(text: object) -> float | None:
    if not isinstance(text, str):
        return None
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None
