"""`moorctl context`: the verbs on the file of contexts. None of them asks a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from cli import output
from cli.session import Noun, Session, confirm, pass_session
from cli.settings import ContextConfig, ContextFile, Target, read_secret_file
from core.errors import NotFoundError, UserError
from core.ids import check_name


@click.group(cls=Noun)
def context() -> None:
    """Which hubs to talk to, and as whom."""


def names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Completion of context names."""
    file = ContextFile.load(ctx.ensure_object(Session).config_file)
    return sorted(name for name in file.config.contexts if name.startswith(incomplete))


@context.command("set")
@click.argument("name", shell_complete=names)
@click.option("--use/--no-use", default=None, help="Make it the current one (default: if there is none).")
@pass_session
def set_context(session: Session, name: str, use: bool | None) -> None:
    """Make or change a context from --hub, --token-file and --ca-file.

    Token and certificate are copied into the file of contexts, so the given files may go afterwards. What is not given
    stays as it is.
    """
    file = ContextFile.load(session.config_file)
    try:
        check_name(name, "context name")
    except ValueError as error:
        raise UserError(str(error), object="context") from error
    known = file.config.contexts.get(name)
    settings: dict[str, Any] = known.model_dump() if known is not None else {}
    if session.hubs:
        settings["hubs"] = session.hubs
    if session.token_file:
        token = read_secret_file(Path(session.token_file), "--token-file")
        settings |= {"token": token, "token_file": None}
    if session.ca_file:
        settings |= {"ca": read_secret_file(Path(session.ca_file), "--ca-file") + "\n", "ca_file": None}
    made = _checked(name, settings)
    current = name if use or (use is None and not file.config.current) else file.config.current
    contexts = {**file.config.contexts, name: made}
    file.config = file.config.model_copy(update={"current": current, "contexts": contexts})
    file.target(name).checked()
    file.save()
    output.say(f"context {name} {'changed' if known else 'created'}{' (current)' if current == name else ''}")


def _checked(name: str, settings: dict[str, Any]) -> ContextConfig:
    if not settings.get("hubs"):
        raise UserError("no hub address", object=f"context {name}", hint="Give --hub HOST:PORT, the operator port.")
    try:
        return ContextConfig.model_validate(settings)
    except ValidationError as error:
        raise UserError(error.errors()[0]["msg"], object=f"context {name}") from error


@context.command("use")
@click.argument("name", shell_complete=names)
@pass_session
def use_context(session: Session, name: str) -> None:
    """Make a context the current one."""
    file = ContextFile.load(session.config_file)
    file.context(name)
    file.config = file.config.model_copy(update={"current": name})
    file.save()
    output.say(f"current context is {name}")


@context.command("list")
@pass_session
def list_contexts(session: Session) -> None:
    """All contexts."""
    file = ContextFile.load(session.config_file)
    contexts = sorted(file.config.contexts.items())
    if session.output != "table":
        current = file.config.current
        found = [{"name": name, "current": name == current, "hubs": list(known.hubs)} for name, known in contexts]
        output.dump(found, session.output)
    elif not contexts:
        output.note(f"no contexts in {file.path}; make one with: moorctl context set NAME --hub HOST:PORT ...")
    else:
        rows = [["*" if name == file.config.current else "", name, ", ".join(known.hubs)] for name, known in contexts]
        output.table(["", "NAME", "HUBS"], rows)


@context.command("show")
@click.argument("name", required=False, default="", shell_complete=names)
@pass_session
def show_context(session: Session, name: str) -> None:
    """One context (the current one when none is named); never its token."""
    file = ContextFile.load(session.config_file)
    chosen, known = file.context(name or session.context)
    shown = {
        "name": chosen,
        "current": chosen == file.config.current,
        "hubs": list(known.hubs),
        "token": _token_shown(file.target(chosen)),
        "token_file": str(known.token_file) if known.token_file else None,
        "ca_file": str(known.ca_file) if known.ca_file else None,
        "file": str(file.path),
    }
    if session.output != "table":
        output.dump(shown, session.output)
        return
    for field, value in shown.items():
        if value is not None:
            output.say(f"{field + ':':12}{', '.join(value) if isinstance(value, list) else value}")


def _token_shown(target: Target) -> str:
    """The token's id, which is no secret, without the secret."""
    parts = target.token.split(".")
    return f"{parts[0]}.{parts[1]}.(hidden)" if len(parts) == 3 else "(none)"


@context.command("delete")
@click.argument("name", shell_complete=names)
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_session
def delete_context(session: Session, name: str, yes: bool) -> None:
    """Forget a context and its token."""
    file = ContextFile.load(session.config_file)
    if name not in file.config.contexts:
        raise NotFoundError(f"context {name!r} does not exist", object=str(file.path))
    confirm(f"Forget context {name} with its token?", yes=yes)
    contexts = {known: value for known, value in file.config.contexts.items() if known != name}
    current = "" if file.config.current == name else file.config.current
    file.config = file.config.model_copy(update={"current": current, "contexts": contexts})
    file.save()
    output.say(f"context {name} deleted")
