"""`moorctl status`: the whole at a glance, worst first, for who was just woken."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from cli import instance_page, node, output
from cli.client import Thing
from cli.history_page import when
from cli.progress import worst_condition
from cli.session import Session, Verb, pass_session

DEGRADED = 9  # exit status of --check when something needs a look
PHASE_ORDER = ("Degraded", "Pending", "Creating", "Deleting", "Modifying", "Running")
PAUSED = "automatic failover is paused"  # how the condition's message begins
WELL = frozenset({"Running", "Modifying", "Creating", "Deleting"})
Page = dict[str, Any]


@click.command("status", cls=Verb)
@click.option("--check", is_flag=True, help=f"Exit with {DEGRADED} when something is degraded; for monitoring.")
@pass_session
def status_command(session: Session, check: bool) -> None:
    """Hubs, nodes and instances at a glance; what needs a look comes first."""
    page = session.run(lambda client: client.status())
    found = problems(page)
    if session.output != "table":
        output.dump({**page, "problems": found, "remarks": remarks(page)}, session.output)
    else:
        show(page, session.clock.wall())
    if check and found:
        raise click.exceptions.Exit(DEGRADED)


def problems(page: Page) -> list[str]:
    """What needs a person's look, a sentence each; empty when all is well."""
    silent = [f"node {one.get('name')} is silent" for one in _pages(page, "nodes") if one.get("silent")]
    amiss = []
    for one in _pages(page, "instances"):
        if one.get("phase") not in WELL:
            worst = worst_condition(one)
            amiss.append(f"instance {one.get('name')} is {one.get('phase')}{': ' + worst if worst else ''}")
    hubs = [] if _pages(page, "hubs") else ["no hub has registered itself"]
    return [output.plain(line) for line in (*hubs, *silent, *amiss)]


def remarks(page: Page) -> list[str]:
    """What is as somebody asked, and easily forgotten: nothing is wrong, so monitoring is not told."""
    lines = []
    for one in _pages(page, "instances"):
        ha = one.get("ha") or {}
        name = one.get("name")
        if ha.get("paused"):
            why = f" ({ha['pause_reason']})" if ha.get("pause_reason") else ""
            who = f"by {ha.get('paused_by') or 'an operator'} since {when(ha.get('paused_at'))}{why}"
            lines.append(f"instance {name}: {PAUSED} {who}")
        if wish := ha.get("scheduled"):
            whom = wish.get("target") or "the best replica"
            at = f"{when(wish.get('at'))}, by {wish.get('requested_by')}"
            lines.append(f"instance {name}: switchover to {whom} at {at}")
    return [output.plain(line) for line in lines]


def _pages(page: Page, key: str) -> list[Page]:
    found = page.get(key)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def show(page: Page, wall: float) -> None:
    """The overview for people."""
    found = problems(page)
    if found:
        for line in found:
            output.say(f"{output.tone('!', 'bad')} {line}")
    else:
        output.say(output.tone("all is well", "good"))
    for line in remarks(page):
        output.say(f"{output.tone('-', 'warn')} {line}")
    output.say()
    _show_hubs(_pages(page, "hubs"))
    _show_nodes(_pages(page, "nodes"))
    _show_instances(_pages(page, "instances"), wall)


def _show_hubs(hubs: Iterable[Page]) -> None:
    rows = [[hub.get("name"), hub.get("operator_address"), len(hub.get("nodes") or [])] for hub in hubs]
    output.table(["HUB", "OPERATOR ADDRESS", "NODES HEARD"], rows)
    output.say()


def _show_nodes(nodes: list[Page]) -> None:
    if not nodes:
        output.say("no nodes yet: moorctl node token makes a join token")
    else:
        ordered = sorted(nodes, key=lambda one: node.sort_key(str(one.get("name")), one))
        output.table(node.HEADERS, [node.row(str(one.get("name")), one) for one in ordered])
    output.say()


def _show_instances(instances: list[Page], wall: float) -> None:
    if not instances:
        output.say("no instances yet: moorctl instance create PROJECT/NAME --create-project")
        return
    things = [Thing(kind="Instance", name=str(one.get("name")), spec={}, status=one) for one in instances]
    things.sort(key=lambda one: (_rank(one.status), one.name))
    rows = [instance_page.row(one, wall) for one in things]
    for one, row in zip(things, rows, strict=True):
        if one.status.get("phase") not in WELL or str(row[-1]).startswith(PAUSED):
            row[-1] = ""  # it stands above
    output.table(["INSTANCE", *instance_page.HEADERS[1:]], rows)


def _rank(page: Page) -> int:
    phase = str(page.get("phase"))
    return PHASE_ORDER.index(phase) if phase in PHASE_ORDER else -1
