"""`moorctl token`: who may use the hubs as an operator, and with which role."""

from __future__ import annotations

from typing import Any

import click

from cli import output
from cli.session import Noun, Session, confirm, pass_session, tell
from core.clock import iso

ROLES = ("viewer", "operator", "admin")


@click.group(cls=Noun)
def token() -> None:
    """Operator tokens: who may use the hubs, and for what.

    viewer reads; operator also changes instances and sees their passwords; admin also changes projects, nodes, join
    tokens and operator tokens.
    """


@token.command("list")
@pass_session
def list_tokens(session: Session) -> None:
    """All operator tokens, without their secrets."""
    found = session.run(lambda client: client.operator_tokens())
    if session.output != "table":
        output.dump(
            [{**one, "created_at": iso(one["created_at"]) if one["created_at"] else None} for one in found],
            session.output,
        )
        return
    wall = session.clock.wall()
    output.table(["NAME", "ROLE", "ID", "AGE", ""], [_row(one, wall) for one in found])


def _row(one: dict[str, Any], wall: float) -> list[object]:
    age = output.duration(wall - one["created_at"]) if one["created_at"] else "-"
    return [one["name"], one["role"], one["id"], age, "you" if one["own"] else ""]


@token.command()
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), default="viewer", show_default=True, help="What it is good for.")
@pass_session
def create(session: Session, name: str, role: str) -> None:
    """Make an operator token. It is shown once and kept nowhere."""
    text, token_id = session.run(lambda client: client.create_operator_token(name, role))
    if session.output != "table":
        output.dump({"token": text, "id": token_id, "name": name, "role": role}, session.output)
        return
    output.say(text)
    output.note(f"{role} token {token_id} for {output.plain(name)}; keep it in a file of mode 0600, then:")
    output.note(f"  moorctl context set NAME --hub {session.target().hubs[0]} --token-file FILE --ca-file FILE")


@token.command()
@click.argument("token", metavar="ID|NAME")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_session
def revoke(session: Session, token: str, yes: bool) -> None:
    """Make an operator token worthless, at once and at every hub."""
    confirm(f"Revoke operator token {token}?", yes=yes)
    token_id, name = session.run(lambda client: client.revoke_operator_token(token))
    tell(session, {"id": token_id, "name": name, "revoked": True}, f"token {token_id} of {name} revoked")
