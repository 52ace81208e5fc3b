"""`moorctl instance`: databases, from create to delete."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from cli import connect, instance_page, output, progress
from cli.apply import show_applied, wait_options, wait_until_running
from cli.client import Applied, Client
from cli.instance_document import Wishes, base_document, document_for
from cli.session import Noun, Session, complete_names, confirm, pass_session, tell
from core.errors import ConflictError, MoorageError, NotFoundError, UserError
from core.ids import InstanceRef

name_argument = click.argument("name", metavar="PROJECT/NAME", shell_complete=complete_names("Instance"))


@click.group(cls=Noun)
def instance() -> None:
    """Database instances."""


def checked_name(name: str) -> str:
    """The name itself; UserError tells the form."""
    try:
        return str(InstanceRef.parse(name))
    except ValueError as error:
        raise UserError(str(error), object="instance") from error


# --- create ---------------------------------------------------------------------------------------------------------


@instance.command()
@click.argument("name", metavar="PROJECT/NAME")
@click.option("--replicas", type=int, help="Members beside the primary.")
@click.option("--engine-version", type=int, help="Major version of PostgreSQL (default: the newest there is).")
@click.option("--cpu", type=float, help="Cores of each member.")
@click.option("--memory", metavar="SIZE", help="Memory of each member, such as 2Gi.")
@click.option("--disk", metavar="SIZE", help="Disk of each member, such as 20Gi.")
@click.option(
    "--mode", type=click.Choice(["async", "sync", "quorum"]), help="When a commit is acknowledged, see above."
)
@click.option("--quorum", type=click.IntRange(1, 8), metavar="K", help="Mode quorum: when K replicas have confirmed.")
@click.option("--k", "k", type=int, hidden=True, help="With --mode quorum: how many replicas must confirm.")
@click.option("--strict/--no-strict", default=None, help="sync, quorum: wait for replicas, or go on alone, see above.")
@click.option("--param", "parameters", multiple=True, metavar="NAME=VALUE", help="Engine parameter; repeatable.")
@click.option("--database", "databases", multiple=True, metavar="NAME", help="Database (default app); repeatable.")
@click.option("--user", "users", multiple=True, metavar="NAME", help="User (default app); the first owns databases.")
@click.option("--extension", "extensions", multiple=True, metavar="NAME", help="Extension in the databases.")
@click.option("--file", "-f", metavar="FILE", help="YAML file with the Instance document that the flags add to.")
@click.option("--create-project", is_flag=True, help="Create the project as well if it is missing.")
@wait_options[0]
@wait_options[1]
@pass_session
def create(
    session: Session, /, *, name: str, file: str | None, create_project: bool, wait: bool, timeout: float, **wishes: Any
) -> None:
    """Create an instance and wait until it runs.

    \b
    async   a commit is acknowledged at once; a failover may lose the last moments
    sync    ... when one replica has it, quorum: when K have; no failover loses it
    --strict (default) while too few replicas are there, commits wait: nothing acknowledged can be lost.
    --no-strict        the primary goes on with fewer, at last alone; if it is lost then, its return is waited for.

    Passwords are made by the hub: `moorctl instance connect` uses them, `connect --print` shows them.
    """
    ref = InstanceRef.parse(checked_name(name))
    document = document_for(ref, Wishes(**wishes), base_document(file))

    async def work(client: Client) -> None:
        documents = [document]
        if create_project and await _is_missing(client, ref.project):
            documents.insert(0, {"kind": "Project", "name": ref.project})
        results = await _create(client, documents, ref)
        if session.output == "table" or not wait:
            show_applied(results, session.output)
        if wait:
            await wait_until_running(client, session, results, timeout)
            await _tell_created(client, session, str(ref))

    session.run(work)


async def _is_missing(client: Client, project: str) -> bool:
    try:
        await client.get("Project", project)
    except NotFoundError:
        return True
    return False


async def _create(client: Client, documents: Sequence[dict[str, Any]], ref: InstanceRef) -> tuple[Applied, ...]:
    try:
        return await client.apply(documents, create_only=True)
    except NotFoundError as error:
        if len(documents) == 1 and await _is_missing(client, ref.project):
            hint = f"Create it: moorctl project create {ref.project} (or give --create-project)."
            raise NotFoundError(f"project {ref.project!r} does not exist", object=str(ref), hint=hint) from error
        raise


async def _tell_created(client: Client, session: Session, name: str) -> None:
    found = await client.get("Instance", name)
    if session.output != "table":
        output.dump(found.page(), session.output)
        return
    for line in instance_page.endpoint_lines(found.status):
        output.say(line)
    output.say(f"connect:     moorctl instance connect {name}")


# --- looking --------------------------------------------------------------------------------------------------------


@instance.command("list")
@click.option("--project", default="", metavar="NAME", help="Only of this project.")
@pass_session
def list_instances(session: Session, project: str) -> None:
    """All instances."""
    found = session.run(lambda client: client.all("Instance", project=project))
    if session.output != "table":
        output.dump([one.page() for one in found], session.output)
    elif not found:
        output.note("no instances; make one with: moorctl instance create PROJECT/NAME --create-project")
    else:
        wall = session.clock.wall()
        output.table(instance_page.HEADERS, [instance_page.row(one, wall) for one in found])


@instance.command()
@name_argument
@pass_session
def show(session: Session, name: str) -> None:
    """An instance in full: members, conditions, ways in, changes of leadership."""
    checked = checked_name(name)
    found = session.run(lambda client: client.get("Instance", checked))
    if session.output != "table":
        output.dump(found.page(), session.output)
    else:
        instance_page.show(found, session.clock.wall())


@instance.command()
@click.argument("name", required=False, default="", metavar="[PROJECT/NAME]", shell_complete=complete_names("Instance"))
@click.option("-f", "--file", metavar="FILE", help="An Instance document to place on paper.")
@pass_session
def explain(session: Session, name: str, file: str | None) -> None:
    """Why members are where they are, or why they cannot be placed; and what is waited for while nobody leads."""
    if bool(name) is bool(file):
        raise UserError("name either an instance or a file with -f", object="explain")
    document = base_document(file) if file else None
    checked = checked_name(name) if name else ""
    lines, explanation = session.run(lambda client: client.explain(name=checked, document=document))
    if session.output != "table":
        output.dump(explanation, session.output)
        return
    for line in lines:
        output.say(output.plain(line) if line == line.lstrip() else f"  {output.plain(line)}")


# --- changing -------------------------------------------------------------------------------------------------------


@instance.command()
@name_argument
@wait_options[0]
@wait_options[1]
@pass_session
def restart(session: Session, name: str, wait: bool, timeout: float) -> None:
    """Restart the engines one after another, the primary last."""
    checked = checked_name(name)

    async def work(client: Client) -> int:
        number = await client.restart(checked)
        if wait:
            goal = progress.restarted(checked, number)
            await progress.wait_for(client, [goal], timeout_s=timeout, clock=session.clock)
        return number

    number = session.run(work)
    tell(
        session, {"name": checked, "restart_id": number}, f"instance {checked} {'restarted' if wait else 'restarting'}"
    )


@instance.command()
@name_argument
@click.option("--yes", is_flag=True, help="Do not ask.")
@wait_options[0]
@wait_options[1]
@pass_session
def delete(session: Session, name: str, yes: bool, wait: bool, timeout: float) -> None:
    """Delete an instance with all its data."""
    checked = checked_name(name)
    found = session.run(lambda client: client.get("Instance", checked))
    if found.spec.get("deletion_protection"):
        hint = "Apply its document with deletion_protection: false first."
        raise ConflictError("instance is protected against deletion", object=checked, hint=hint)
    members = len(progress.members_of(found.status))
    confirm(f"Delete instance {checked} with the data of its {members} member(s)?", yes=yes)

    async def work(client: Client) -> None:
        await client.delete("Instance", checked)
        if wait:
            await progress.wait_for(client, [progress.gone(checked)], timeout_s=timeout, clock=session.clock)

    session.run(work)
    tell(session, {"name": checked, "deleted": wait}, f"instance {checked} {'deleted' if wait else 'is being deleted'}")


# --- connect --------------------------------------------------------------------------------------------------------


@instance.command("connect")
@name_argument
@click.option("--read-only", is_flag=True, help="To the port for reads, which goes to replicas.")
@click.option("--user", default="", metavar="USER", help="As this user (default: the first declared one).")
@click.option("--print", "only_print", is_flag=True, help="Print the connection URI, password included.")
@click.argument("psql_arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- PSQL ARGUMENTS]")
@pass_session
def connect_command(
    session: Session, /, *, name: str, read_only: bool, user: str, only_print: bool, psql_arguments: tuple[str, ...]
) -> None:
    """Open psql at an instance, or print how to connect."""
    checked = checked_name(name)
    credentials = session.run(lambda client: client.credentials(checked, user))
    known_ca = Path(session.ca_file) if session.ca_file else None
    tls = connect.checked_tls(credentials, session.config_file.parent, known_ca=known_ca)
    psql = connect.find_psql()
    if only_print or psql is None:
        if not only_print:
            output.note("psql is not on PATH (install postgresql-client); connect with:")
        text = connect.uri(credentials, read_only=read_only, tls=tls)
        output.say(text if session.output == "table" else json.dumps({"uri": text}))
        return
    usable = connect.usable_tls(psql, credentials, tls)
    try:
        connect.exec_psql(psql, connect.environment(credentials, usable, read_only=read_only), psql_arguments)
    except OSError as error:
        raise MoorageError(f"{psql} cannot be started: {error.strerror}") from error
