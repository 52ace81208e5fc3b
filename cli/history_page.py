"""Changes of leadership as a person reads them at night: one paragraph each, newest last, on 80 columns.

A paragraph says when and who, then why, what was seen and by whom, which ballots there were, how long each step took
and whether anything may have been lost. What is not known (an older version did not write it) is left out rather than
shown as an empty field. Pure: entries in, lines out.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cli import output

WIDTH_MIN = 60
_LABEL = 10  # columns of the labels, the indentation included
_HEADLINES: Mapping[str, str] = {
    "led": "{member} took the leadership",
    "opened": "{member} accepts writes",
    "released": "{member} gave the leadership up",
    "switchover_ended": "a change that was asked for did not happen",
    "ordered": "a forced failover to {member} was ordered",
    "forced": "{member} took the leadership by force",
    "paused": "automatic failover was paused",
    "resumed": "automatic failover was resumed",
    "unbound": "the standby instance was promoted",
}
Entry = Mapping[str, Any]


def history_lines(entries: Sequence[Entry], width: int = 80) -> list[str]:
    """All paragraphs, an empty line between two."""
    width = max(width, WIDTH_MIN)
    lines: list[str] = []
    for entry in entries:
        lines += [*([""] if lines else []), *_paragraph(entry, width)]
    return lines


def _paragraph(entry: Entry, width: int) -> Iterator[str]:
    yield from textwrap.wrap(_head(entry), width, subsequent_indent="  ") or [""]
    for label, text in _fields(entry):
        for number, line in enumerate(textwrap.wrap(text, width - _LABEL) or [""]):
            yield f"  {label if number == 0 else '':{_LABEL - 2}}{line}"


def _head(entry: Entry) -> str:
    """Such as `2026-11-25 01:02:03 UTC  term 4  m2 took the leadership`."""
    template = _HEADLINES.get(_text(entry, "kind"), "{member}" if _text(entry, "member") else "change of leadership")
    parts = [
        when(entry.get("at")),
        f"term {entry['term']}" if _is_number(entry.get("term")) else "",
        template.format(member=_text(entry, "member") or "a member"),
    ]
    return "  ".join(part for part in parts if part)


def _fields(entry: Entry) -> Iterator[tuple[str, str]]:
    """Label and text of what is known, in the order in which one asks."""
    if reason := _text(entry, "reason"):
        yield "why", reason
    seen, seen_by = _text(entry, "seen"), _text(entry, "seen_by")
    if seen and seen not in _text(entry, "reason"):
        yield "seen", f"{seen} (by {seen_by})" if seen_by else seen
    elif seen_by and seen_by not in _text(entry, "reason"):
        yield "by", seen_by
    leaderless_s = entry.get("leaderless_s")
    if _is_number(leaderless_s) and leaderless_s:
        yield "leader", f"nobody led for {leaderless_s:.1f} s, as {_text(entry, 'member') or 'it'} saw it"
    for number, ballot in enumerate(_list(entry, "ballots")):
        yield "ballots" if number == 0 else "", output.plain(ballot)
    if steps := steps_text(entry):
        yield "took", steps
    if log := _log(entry):
        yield "log", log
    if loss := _text(entry, "loss"):
        yield "lost", "nothing that was acknowledged" if loss == "none" else loss


def steps_text(entry: Entry) -> str:
    """Such as `stop 0.12 s, promote 0.31 s; 0.43 s in all`; empty when no step was measured."""
    known = [
        (output.plain(step.get("name")), step["took_s"])
        for step in _list(entry, "steps")
        if isinstance(step, Mapping) and _is_number(step.get("took_s"))
    ]
    if not known:
        return ""
    parts = ", ".join(f"{name} {took_s:.2f} s" for name, took_s in known)
    total = f"; {sum(took_s for _, took_s in known):.2f} s in all" if len(known) > 1 else ""
    return f"{parts}{total}"


_BEFORE_HOLD = "checkpointed"  # the step of a switchover during which clients go on


def held_s(entries: Sequence[Entry], term: int) -> float | None:
    """How long clients were held by the switchover that ended `term`, as far as both primaries tell: from the first
    hold to the first acknowledged commit of the next term. None when it is not told."""
    old = _took(entries, "released", term)
    new = _took(entries, "opened", term + 1)
    return old + new if old is not None and new is not None else None


def _took(entries: Sequence[Entry], kind: str, term: int) -> float | None:
    entry = next((one for one in reversed(entries) if one.get("kind") == kind and one.get("term") == term), {})
    known = [
        step["took_s"]
        for step in _list(entry, "steps")
        if isinstance(step, Mapping) and _is_number(step.get("took_s")) and step.get("name") != _BEFORE_HOLD
    ]
    return sum(known) if known else None


def _log(entry: Entry) -> str:
    timeline, lsn = entry.get("timeline"), _text(entry, "lsn")
    if not lsn or lsn == "0/0":
        return ""
    return f"at {lsn} on timeline {timeline}" if _is_number(timeline) and timeline else f"at {lsn}"


def when(at: object) -> str:
    """An ISO time as people say it, such as `2026-11-25 01:02:03 UTC`; empty for what is none."""
    if not isinstance(at, str) or "T" not in at:
        return ""
    return f"{output.plain(at)[:19].replace('T', ' ')} UTC"


def _text(entry: Entry, field: str) -> str:
    value = entry.get(field)
    return output.plain(value) if isinstance(value, str) else ""


def _list(entry: Entry, field: str) -> Sequence[Any]:
    value = entry.get(field)
    return value if isinstance(value, list) else []


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
