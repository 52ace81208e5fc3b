"""`moorctl project`: what instances are grouped, bounded and owned by."""

from __future__ import annotations

from typing import Any

import click

from cli import output
from cli.apply import show_applied
from cli.session import Noun, Session, complete_names, confirm, pass_session
from core.errors import UserError
from core.specs import parse_document


@click.group(cls=Noun)
def project() -> None:
    """Projects, and how much they may take."""


@project.command()
@click.argument("name")
@click.option("--max-instances", type=int, help="Number of instances at most.")
@click.option("--max-cpu", type=float, help="Cores over all members at most.")
@click.option("--max-memory", metavar="SIZE", help="Memory over all members at most, such as 64Gi.")
@click.option("--max-disk", metavar="SIZE", help="Disk over all members at most.")
@click.option("--region", "regions", multiple=True, metavar="NAME", help="Region members may live in; repeatable.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Free label; repeatable.")
@pass_session
def create(session: Session, /, name: str, regions: tuple[str, ...], labels: tuple[str, ...], **bounds: Any) -> None:
    """Create a project."""
    quota = {field.removeprefix("max_"): bound for field, bound in bounds.items() if bound is not None}
    document: dict[str, Any] = {"kind": "Project", "name": name}
    if quota:
        document["quota"] = quota
    if regions:
        document["allowed_regions"] = list(regions)
    if labels:
        document["labels"] = dict(_label(text) for text in labels)
    parse_document(document, where=f"project {name}")
    results = session.run(lambda client: client.apply([document], create_only=True))
    show_applied(results, session.output)


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"{text!r} is not KEY=VALUE", object="--label")
    return key, value


@project.command("list")
@pass_session
def list_projects(session: Session) -> None:
    """All projects and what they take."""
    found = session.run(lambda client: client.all("Project"))
    if session.output != "table":
        output.dump([one.page() for one in found], session.output)
    elif not found:
        output.note("no projects; make one with: moorctl project create NAME")
    else:
        rows = [[one.name, *_usage(one.spec, one.status)] for one in found]
        output.table(["NAME", "INSTANCES", "CPU", "MEMORY", "DISK"], rows)


def _usage(spec: dict[str, Any], status: dict[str, Any]) -> list[str]:
    """Such as `2/10`: taken and allowed, or just taken where there is no bound."""
    usage, quota = status.get("usage") or {}, spec.get("quota") or {}
    cells = []
    for field in ("instances", "cpu", "memory", "disk"):
        text = output.size if field in {"memory", "disk"} else _number
        taken, bound = text(usage.get(field)), quota.get(field)
        cells.append(f"{taken}/{text(bound)}" if bound is not None else taken)
    return cells


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else "-"


@project.command()
@click.argument("name", shell_complete=complete_names("Project"))
@pass_session
def show(session: Session, name: str) -> None:
    """A project in full."""
    found = session.run(lambda client: client.get("Project", name))
    if session.output != "table":
        output.dump(found.page(), session.output)
        return
    output.say(f"name:       {output.plain(found.name)}")
    labels = ", ".join(f"{key}={value}" for key, value in (found.spec.get("labels") or {}).items())
    output.say(f"labels:     {output.plain(labels) or '-'}")
    output.say(f"regions:    {output.plain(', '.join(found.spec.get('allowed_regions') or [])) or 'any'}")
    for field, text in zip(("instances", "cpu", "memory", "disk"), _usage(found.spec, found.status), strict=True):
        output.say(f"{field + ':':11} {text}")
    for member in found.status.get("instances") or []:
        output.say(f"  {output.plain(member)}")


@project.command()
@click.argument("name", shell_complete=complete_names("Project"))
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_session
def delete(session: Session, name: str, yes: bool) -> None:
    """Delete a project; it must hold no instance any more."""
    session.run(lambda client: client.get("Project", name))
    confirm(f"Delete project {name}?", yes=yes)
    session.run(lambda client: client.delete("Project", name))
    if session.output != "table":
        output.dump({"name": name, "deleted": True}, session.output)
    else:
        output.say(f"project {output.plain(name)} deleted")
