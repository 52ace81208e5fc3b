"""Man pages from the programs' own help, so that they say what the programs do."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from datetime import datetime

import click

import agent.main
import cli.main
import hub.main
import proxy.main
from core.errors import ERRORS

SEE_ALSO = {
    "moorctl": "moorage-hub(8), moorage-agent(8)",
    "moorage-hub": "moorctl(1), moorage-agent(8)",
    "moorage-agent": "moorctl(1), moorage-hub(8), moorage-proxy(8)",
    "moorage-proxy": "moorage-agent(8)",
}
FILES = {
    "moorctl": (("~/.config/moorage/config.yaml", "Contexts: hubs, token and CA certificate; mode 0600."),),
    "moorage-hub": (
        ("/etc/moorage/hub.yaml", "Configuration."),
        ("/var/lib/moorage-hub/seal.key", "The key that seals secrets in etcd. Keep a copy in a safe place."),
        ("/var/lib/moorage-hub/admin.token", "The first operator's token."),
        ("/var/lib/moorage-hub/ca.crt", "The certificate that operators' programs trust."),
    ),
    "moorage-agent": (
        ("/etc/moorage/agent.yaml", "Configuration."),
        ("/var/lib/moorage", "The node's identity, the data of its databases, the proxy's log."),
    ),
    "moorage-proxy": (("/var/lib/moorage/proxy/proxy.log", "Its log."),),
}


def pages(when: datetime) -> dict[tuple[str, str], str]:
    """Text of each page by (package, file name)."""
    date = when.strftime("%Y-%m-%d")
    made = {
        ("hub", "moorage-hub.8"): clicked("moorage-hub", 8, hub.main.main, date),
        ("agent", "moorage-agent.8"): clicked("moorage-agent", 8, agent.main.main, date),
        ("agent", "moorage-proxy.8"): parsed("moorage-proxy", date),
        ("cli", "moorctl.1"): clicked("moorctl", 1, cli.main.moorctl, date),
    }
    top = click.Context(cli.main.moorctl, info_name="moorctl")
    for name, noun in sorted(cli.main.moorctl.commands.items()):
        if isinstance(noun, click.Group):
            title = f"moorctl-{name}"
            made["cli", f"{title}.1"] = clicked(title, 1, noun, date, parent=top)
    return made


def clicked(title: str, section: int, command: click.Command, date: str, *, parent: click.Context | None = None) -> str:
    """A page of a click program, or of one noun of it."""
    ctx = click.Context(command, info_name=title if parent is None else command.name, parent=parent)
    body = "".join(_command(ctx, commands_inside=parent is not None or title != "moorctl"))
    return _page(title, section, _summary(command), body, date)


def _page(title: str, section: int, summary: str, body: str, date: str) -> str:
    program = title if title in FILES else "moorctl"
    text = f".TH {escaped(title.upper())} {section} {date} Moorage\n"
    text += f".SH NAME\n{escaped(title)} \\- {escaped(summary)}\n{body}"
    if section == 1:
        states = dict(sorted((error.exit_code, error.code) for error in reversed(ERRORS)))
        text += ".SH EXIT STATUS\n.TP\n0\nDone.\n" + "".join(
            f".TP\n{c}\n{escaped(word)}\n" for c, word in states.items()
        )
    text += ".SH FILES\n" + "".join(f".TP\n{escaped(path)}\n{escaped(what)}\n" for path, what in FILES[program])
    others = SEE_ALSO[program] if title == program else "moorctl(1)"
    return f"{text}.SH SEE ALSO\n{escaped(others)}\n"


def _summary(command: click.Command) -> str:
    first = (command.help or "").strip().split("\n\n")[0]
    return " ".join(first.split()).rstrip(".")


def _command(ctx: click.Context, *, commands_inside: bool) -> Iterator[str]:
    command = ctx.command
    usage = " ".join(command.collect_usage_pieces(ctx))
    yield f".SH SYNOPSIS\n.B {escaped(ctx.command_path)}\n{escaped(usage)}\n"
    yield f".SH DESCRIPTION\n{prose(command.help or '')}"
    yield from _options(ctx, ".SH OPTIONS\n")
    if not isinstance(command, click.Group):
        return
    yield ".SH COMMANDS\n"
    for name, inner in sorted(command.commands.items()):
        if inner.hidden:
            continue
        below = click.Context(inner, info_name=name, parent=ctx)
        if isinstance(inner, click.Group) and not commands_inside:
            yield f".TP\n.B {escaped(name)}\n{escaped(_summary(inner))}; see moorctl-{escaped(name)}(1)\n"
            continue
        pieces = " ".join(inner.collect_usage_pieces(below))
        yield f".SS {escaped(below.command_path)} {escaped(pieces)}\n{prose(inner.help or '')}"
        yield from _options(below, "")


def _options(ctx: click.Context, heading: str) -> Iterator[str]:
    records = [record for param in ctx.command.get_params(ctx) if (record := param.get_help_record(ctx)) is not None]
    if records:
        yield heading
    for names, what in records:
        yield f".TP\n.B {escaped(names)}\n{escaped(what or '')}\n"


def parsed(title: str, date: str) -> str:
    """A page of a program that uses argparse: its help as it is."""
    shown, arguments = io.StringIO(), sys.argv
    sys.argv = [title, "--help"]
    try:
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            proxy.main.arguments()
    finally:
        sys.argv = arguments
    body = ".SH DESCRIPTION\nStarted by moorage-agent(8); nobody needs to start it by hand.\n"
    body += f".PP\n.nf\n{escaped(shown.getvalue())}.fi\n"
    return _page(title, 8, "connects clients with the primary or the replicas of their database", body, date)


def prose(text: str) -> str:
    """Paragraphs of a help text; one that begins with \\b keeps its lines."""
    out = []
    for paragraph in text.strip().split("\n\n"):
        lines = paragraph.strip("\n").splitlines()
        if lines and lines[0].strip() == "\b":
            out.append(".PP\n.nf\n" + "\n".join(escaped(line) for line in lines[1:]) + "\n.fi\n")
        else:
            out.append(f".PP\n{escaped(' '.join(paragraph.split()))}\n")
    return "".join(out)


def escaped(text: str) -> str:
    lines = text.replace("\\", "\\e").replace("-", "\\-").splitlines(keepends=True)
    return "".join(f"\\&{line}" if line[:1] in {".", "'"} else line for line in lines)
