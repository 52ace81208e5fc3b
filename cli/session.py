"""What all verbs of `moorctl` share: which context, which format, and the way to the hub.

`Verb` and `Noun` are click's Command and Group that take the shared options at any place: `moorctl -o json node list`
and `moorctl node list -o json` are the same. A flag wins over the environment, the environment over the file.
"""

from __future__ import annotations

import asyncio
import difflib
import re
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from cli import output
from cli.client import Client, KindName
from cli.settings import ContextFile, Target, config_path, read_secret_file
from core.clock import Clock, SystemClock
from core.config import split_host_port
from core.errors import MoorageError, UserError

T = TypeVar("T")

_TIME = re.compile(r"(\d{1,9}(?:\.\d+)?)([smhd]?)")
_SECONDS_IN = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(slots=True)
class Session:
    """One run of `moorctl`. Empty fields were not given."""

    config: str = ""
    context: str = ""
    hubs: tuple[str, ...] = ()
    token_file: str = ""
    ca_file: str = ""
    output: output.Format = "table"
    debug: bool = False
    clock: Clock = field(default_factory=SystemClock)

    @property
    def config_file(self) -> Path:
        return Path(self.config) if self.config else config_path()

    def target(self) -> Target:
        """The hub to ask and how: the context, overridden by flags. UserError when something is missing."""
        if self.hubs and self.token_file and self.ca_file:
            target = Target(name=self.context or "flags")
        else:
            target = ContextFile.load(self.config_file).target(self.context)
        if self.hubs:
            target = replace(target, hubs=self.hubs)
        if self.token_file:
            target = replace(target, token=read_secret_file(Path(self.token_file), "--token-file"))
        if self.ca_file:
            target = replace(target, ca_pem=read_secret_file(Path(self.ca_file), "--ca-file").encode())
        return target.checked()

    def run(self, work: Callable[[Client], Awaitable[T]]) -> T:
        """Do the work with an open connection, closed afterwards whatever happens."""
        target = self.target()

        async def with_client() -> T:
            async with Client(target, self.clock) as client:
                return await work(client)

        return asyncio.run(with_client())


pass_session = click.make_pass_decorator(Session, ensure=True)


def _store(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Keep a shared option in the session; one that was not given must not undo an outer one."""
    if ctx.get_parameter_source(str(param.name)) is ParameterSource.DEFAULT:
        return
    if param.name == "hubs":
        value = tuple(part.strip() for text in value for part in text.split(",") if part.strip())
        for address in value:
            try:
                split_host_port(address)
            except ValueError as error:
                raise UserError(str(error), object="--hub") from error
    setattr(ctx.ensure_object(Session), param.name, value)


def _shared_options(*, outermost: bool) -> list[click.Option]:
    """The environment is read once, at the outermost command, so that it never beats a flag given there."""

    def env(name: str) -> str | None:
        return name if outermost else None

    def option(*names: str, **settings: Any) -> click.Option:
        return click.Option(list(names), expose_value=False, callback=_store, is_eager=True, **settings)

    hidden = not outermost
    return [
        option("-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table", help="Output format."),
        option("--context", envvar=env("MOORAGE_CONTEXT"), hidden=hidden, help="Context to use.", metavar="NAME"),
        option("--config", envvar=env("MOORAGE_CONFIG"), hidden=hidden, help="File of contexts.", metavar="FILE"),
        option("--hub", "hubs", multiple=True, hidden=hidden, metavar="HOST:PORT", help="Operator address of a hub."),
        option("--token-file", hidden=hidden, metavar="FILE", help="File with the operator token."),
        option("--ca-file", hidden=hidden, metavar="FILE", help="File with the CA certificate of the hubs."),
        option("--debug", is_flag=True, hidden=hidden, help="Show a traceback when something fails."),
    ]


class Verb(click.Command):
    """A command that also takes the shared options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        taken = {name for param in self.params for name in param.opts}
        self.params += [option for option in _shared_options(outermost=False) if not taken.intersection(option.opts)]


class Noun(click.Group):
    """A group of verbs; a misspelt one is answered with the nearest."""

    command_class = Verb
    group_class = type

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            if not near:
                raise
            raise click.UsageError(f"No such command {args[0]!r}; did you mean {near[0]!r}?", ctx) from error


class Root(Noun):
    """The outermost group."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _shared_options(outermost=True)


class Seconds(click.ParamType[float]):
    """A time such as 90, 1.5s, 30m, 2h or 1d, as seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = _TIME.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a time: write 90s, 30m, 2h or 1d", param, ctx)
        return float(match[1]) * _SECONDS_IN[match[2]]


def confirm(question: str, *, yes: bool) -> None:
    """Go on only when `--yes` was given or a person agrees; UserError where nobody can be asked."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UserError("not done: it needs to be confirmed", hint="Give --yes where nobody can answer a question.")
    if not click.confirm(question, err=True):
        raise click.Abort


def confirm_by_name(question: str, name: str, *, yes: bool) -> None:
    """As `confirm`, for what cannot be undone: a person types the name of what it is done to."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UserError("not done: it needs to be confirmed", hint="Give --yes where nobody can answer a question.")
    if click.prompt(f"{question} Type {name} to confirm", default="", show_default=False, err=True).strip() != name:
        output.note("that is not the name: nothing is done")
        raise click.Abort


def tell(session: Session, page: dict[str, Any], line: str) -> None:
    """What was done: the page for programs, the line for people."""
    if session.output != "table":
        output.dump(page, session.output)
    else:
        output.say(output.plain(line))


COMPLETE_S = 1.5  # a person has pressed Tab: no answer is better than a late one


def complete_names(kind: KindName) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Completion of the names of a kind, by asking the hub; nothing when it does not answer soon."""

    def complete(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
        session = ctx.ensure_object(Session)

        async def ask(client: Client) -> list[str]:
            async with asyncio.timeout(COMPLETE_S):
                return [one.name for one in await client.all(kind)]

        try:
            return [name for name in session.run(ask) if name.startswith(incomplete)]
        except (MoorageError, TimeoutError, OSError):
            return []

    return complete
