"""What a forced failover would do and lose, before a person who has to decide. Pure: the hub's plan in, lines out."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from cli import output
from cli.output import Cell, Tone

Plan = Mapping[str, Any]


def plan_lines(plan: Plan, width: int = 80) -> list[str]:
    """All of it: the state, what is waited for, the members, and what becomes of the target."""
    lines = [_head(plan), _modes(plan), ""]
    lines.append("No automatic failover happens because:")
    lines += list(_wrapped(plan.get("waits_for"), width, bullet="- "))
    members = [one for one in _list(plan.get("members")) if isinstance(one, dict)]
    if members:
        lines += ["", *output.table_lines(_HEADERS, [_row(one) for one in members])]
    lines += ["", *verdict_lines(plan, width)]
    return lines


def verdict_lines(plan: Plan, width: int = 80) -> list[str]:
    """What a forced failover to the target would mean."""
    target, obstacle = plan.get("target"), plan.get("obstacle")
    if obstacle:
        who = f"A failover to {output.plain(target)}" if target else "A failover"
        return list(_wrapped([f"{who} cannot be forced: {output.plain(obstacle)}"], width))
    how: Tone = "bad" if plan.get("loss") != "none" else "warn"
    meant = f"A failover to {output.plain(target)}: {output.plain(plan.get('loss_text'))}."
    lines = [output.tone(line, how) for line in _wrapped([meant], width)]
    if plan.get("advice"):
        lines += list(_wrapped([f"Better: {output.plain(plan['advice'])}."], width))
    return lines


_HEADERS = ["MEMBER", "NODE", "LAST HEARD OF AT", "BEHIND", "LOSS", "CANNOT LEAD BECAUSE"]


def _row(one: Mapping[str, Any]) -> list[object]:
    lsn, age = one.get("lsn"), one.get("position_age_s")
    at = f"{lsn} tl {one.get('timeline')}" if lsn else "not known here"
    if lsn:
        ballot = one.get("position_from") == "ballot"
        at += ", its ballot" if ballot else f", {age:.0f} s ago" if isinstance(age, int | float) else ""
    loss = str(one.get("loss") or "-")
    how: Tone | None = "warn" if loss != "none" else None
    behind = one.get("behind_bytes")
    return [one.get("name"), one.get("node"), at, output.size(behind), Cell(loss, how), one.get("obstacle") or ""]


def _head(plan: Plan) -> str:
    name, term, last = plan.get("name"), plan.get("term"), plan.get("last_leader")
    if plan.get("primary_alive"):
        return output.plain(f"{name}: {plan.get('leader')} leads in term {term} and is alive")
    if plan.get("leader"):
        return output.plain(f"{name}: {plan.get('leader')} holds the leadership in term {term}, but is not well")
    return output.plain(f"{name}: nobody leads since term {term} of {last}")


def _modes(plan: Plan) -> str:
    """How commits are acknowledged, and who has them."""
    mode, sync = plan.get("mode"), plan.get("sync")
    known = sync if isinstance(sync, dict) else {}
    names = ", ".join(output.plain(name) for name in _list(known.get("names")))
    if mode == "async":
        return "replication async: a commit is acknowledged before any replica has it"
    strict = ", strict" if plan.get("strict") is True else ", not strict" if plan.get("strict") is False else ""
    if not names:
        return f"replication {mode}{strict}: on record as having every commit: {plan.get('last_leader')} only"
    return f"replication {mode}{strict}: every acknowledged commit is on the primary and on {known.get('k')} of {names}"


def _wrapped(texts: object, width: int, bullet: str = "") -> Iterator[str]:
    for text in _list(texts):
        indent = " " * (len(bullet) + 2) if bullet else ""
        first = f"  {bullet}" if bullet else ""
        yield from textwrap.wrap(output.plain(text), width, initial_indent=first, subsequent_indent=indent)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
