"""An instance as people see it: one line in a list, or everything on a page. Defensive: a field that a hub of another
version does not send is a dash, never an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cli import output, progress
from cli.client import Thing
from cli.history_page import when
from cli.output import Cell

HEADERS = ["NAME", "PHASE", "PRIMARY", "MEMBERS", "ENGINE", "AGE", "MESSAGE"]
PHASE_TONES: dict[str, output.Tone] = {
    "Running": "good",
    "Degraded": "bad",
    "Pending": "warn",
    "Creating": "warn",
    "Modifying": "warn",
    "Deleting": "warn",
}
HISTORY_SHOWN = 5


def row(one: Thing, wall: float) -> list[object]:
    """An instance in one line."""
    page = one.status
    members = progress.members_of(page)
    well = sum(member.get("state") == "running" and not member.get("silent") for member in members)
    versions = sorted({str(member["engine_version"]) for member in members if member.get("engine_version")})
    primary = next((f"{m.get('name')}@{m.get('node')}" for m in members if m.get("name") == page.get("primary")), "-")
    return [
        one.name,
        phase_cell(page),
        primary,
        Cell(f"{well}/{len(members)}", None if well == len(members) else "warn"),
        f"{one.spec.get('engine', '')} {', '.join(versions)}".strip() or "-",
        output.age(page.get("created_at"), wall=wall),
        progress.worst_condition(page) or (f"standby {standby}" if (standby := standby_text(page)) else ""),
    ]


def phase_cell(page: dict[str, Any]) -> Cell:
    phase = str(page.get("phase") or "unknown")
    return Cell(phase, PHASE_TONES.get(phase))


def show(found: Thing, wall: float) -> None:
    page = found.status
    generation, observed = page.get("generation"), page.get("observed_generation")
    output.say(f"name:        {output.plain(found.name)}")
    phase = phase_cell(page)
    output.say(f"phase:       {output.tone(phase, phase.how or 'bold')} for {output.age(page.get('since'), wall=wall)}")
    output.say(f"generation:  {generation}{'' if generation == observed else f' (members are at {observed})'}")
    output.say(f"replication: {replication_text(found.spec)}")
    if standby := standby_text(page):
        output.say(f"standby:     {standby}")
    for line in leadership_lines(page, wall):
        output.say(line)
    if found.spec.get("deletion_protection"):
        output.say("protected:   yes, delete is refused")
    for line in endpoint_lines(page):
        output.say(line)
    output.say()
    _show_members(progress.members_of(page), wall)
    _show_conditions(page, wall)
    _show_history(page, wall)


def standby_text(page: dict[str, Any]) -> str:
    """Such as `of db1:5432, lag 12.0Ki`; empty of an instance that follows nobody."""
    standby = page.get("standby")
    if not isinstance(standby, dict):
        return ""
    whom = output.plain(", ".join(str(host) for host in standby.get("hosts") or []) or "a remote primary")
    if not standby.get("streaming"):
        return f"of {whom}, not streaming"
    return f"of {whom}, lag {output.size(standby.get('lag_bytes'))}"


def replication_text(spec: dict[str, Any]) -> str:
    """How commits are acknowledged, such as `quorum of 2, strict`."""
    replication = spec.get("replication") or {}
    mode = output.plain(replication.get("mode", "-"))
    if mode in ("-", "async"):
        return mode
    many = f" of {replication.get('k')}" if mode == "quorum" else ""
    return f"{mode}{many}, {'strict' if replication.get('strict', True) else 'not strict'}"


def leadership_lines(page: dict[str, Any], wall: float) -> list[str]:
    """What operators have asked about leadership and is not over: pause, appointment, requests."""
    ha = page.get("ha") or {}
    lines = []
    if ha.get("paused"):
        why = f" ({output.plain(ha['pause_reason'])})" if ha.get("pause_reason") else ""
        who = output.plain(ha.get("paused_by") or "an operator")
        lines.append(f"failover:    paused by {who} {output.age(ha.get('paused_at'), wall=wall)} ago{why}")
    if wish := ha.get("scheduled"):
        whom = output.plain(wish.get("target") or "the best replica")
        at = f"{when(wish.get('at'))}, in {output.until(wish.get('at'), wall=wall)}"
        lines.append(f"scheduled:   switchover to {whom} at {at}, by {output.plain(wish.get('requested_by'))}")
    if request := ha.get("switchover"):
        whom = output.plain(request.get("target") or "the best replica")
        lines.append(f"under way:   switchover to {whom}, by {output.plain(request.get('requested_by'))}")
    if order := ha.get("forced"):
        who = output.plain(order.get("requested_by"))
        lines.append(f"under way:   forced failover to {output.plain(order.get('target'))}, by {who}")
    return lines


def tags_text(member: dict[str, Any]) -> str:
    """What is particular to a member, such as `no_failover priority=10`."""
    tags = member.get("tags")
    if not isinstance(tags, dict):
        return ""
    return " ".join(name if value is True else f"{name}={value}" for name, value in tags.items() if value)


def endpoint_lines(page: dict[str, Any]) -> list[str]:
    """The ways in, one line each; none until the instance is placed."""
    endpoints = page.get("endpoints") or {}
    lines = []
    for key, label in (("rw", "read-write:"), ("ro", "read-only:")):
        way = endpoints.get(key)
        if isinstance(way, dict):
            hosts = ",".join(f"{host}:{way.get('port')}" for host in way.get("hosts") or [])
            lines.append(f"{label:12} {output.plain(hosts)}")
    return lines


def _show_members(members: Sequence[dict[str, Any]], wall: float) -> None:
    rows = []
    tagged = any(tags_text(member) for member in members)
    for member in members:
        state = str(member.get("state") or "unknown")
        how: output.Tone | None = "good" if state == "running" else "bad" if state in {"failed", "crashed"} else "warn"
        if member.get("silent"):
            state, how = f"{state} (node silent)", "bad"
        sessions = member.get("connections")
        rows.append(
            [
                member.get("name"),
                member.get("role"),
                Cell(state, how),
                member.get("node"),
                member.get("address"),
                member.get("lsn") or "-",
                output.size(member.get("lag_bytes")),
                "-" if sessions is None else sessions,
                output.age(member.get("since"), wall=wall),
                *([tags_text(member) or "-"] if tagged else []),
                member.get("message") or "",
            ]
        )
    headers = ["MEMBER", "ROLE", "STATE", "NODE", "ADDRESS", "LSN", "LAG", "SESSIONS", "FOR"]
    headers += [*(["TAGS"] if tagged else []), "MESSAGE"]
    if rows:
        output.table(headers, rows)


def _show_conditions(page: dict[str, Any], wall: float) -> None:
    rows = [
        [
            condition.get("type"), "true" if condition.get("status") else "false", condition.get("reason"),
            output.age(condition.get("since"), wall=wall), condition.get("message"),
        ]
        for condition in page.get("conditions") or []
    ]  # fmt: skip
    if rows:
        output.say()
        output.table(["CONDITION", "STATUS", "REASON", "FOR", "MESSAGE"], rows)


def _show_history(page: dict[str, Any], wall: float) -> None:
    told = (page.get("ha") or {}).get("history") or []
    history = [change for change in told if change.get("kind") != "opened"]  # it follows from the line before
    rows = [
        [change.get("term"), change.get("member"), output.age(change.get("at"), wall=wall), change.get("reason")]
        for change in history[-HISTORY_SHOWN:]
    ]
    if rows:
        output.say()
        output.table(["TERM", "LEADER", "AGO", "WHY"], rows)
