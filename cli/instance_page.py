"""An instance as people see it: one line in a list, or everything on a page. Defensive: a field that a hub of another
version does not send is a dash, never an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cli import output, progress
from cli.client import Thing
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
        progress.worst_condition(page),
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
    replication = found.spec.get("replication") or {}
    output.say(f"replication: {output.plain(replication.get('mode', '-'))}")
    if found.spec.get("deletion_protection"):
        output.say("protected:   yes, delete is refused")
    for line in endpoint_lines(page):
        output.say(line)
    output.say()
    _show_members(progress.members_of(page), wall)
    _show_conditions(page, wall)
    _show_history(page, wall)


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
                member.get("message") or "",
            ]
        )
    headers = ["MEMBER", "ROLE", "STATE", "NODE", "ADDRESS", "LSN", "LAG", "SESSIONS", "FOR", "MESSAGE"]
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
    history = (page.get("ha") or {}).get("history") or []
    rows = [
        [change.get("term"), change.get("member"), output.age(change.get("at"), wall=wall), change.get("reason")]
        for change in history[-HISTORY_SHOWN:]
    ]
    if rows:
        output.say()
        output.table(["TERM", "LEADER", "AGO", "WHY"], rows)
