"""`moorctl apply` and `diff`: documents from YAML files to the hub, mistakes blamed on file and line.

Every document is checked here with the same models as in the hub, so that a mistake is found before anything is sent,
and is told with the line it stands on, which the hub cannot know. What is sent is what was written: defaults are the
hub's to fill in.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import yaml
from pydantic import ValidationError

from cli import output, progress
from cli.client import Applied, Client
from cli.session import Seconds, Session, Verb, pass_session
from core.errors import MoorageError, UserError
from core.specs import parse_document

MAX_FILE_BYTES = 4 << 20  # the hub's own limit for an apply
DIFFERENCES = 1  # exit status of diff, as of diff(1); trouble is above it
DIFF_TROUBLE = 70  # exit status of diff for what elsewhere is 1
SIGNS = {"created": "+", "changed": "~", "unchanged": "="}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A checked document and where it stands."""

    where: str
    document: dict[str, Any]


# --- reading --------------------------------------------------------------------------------------------------------


def read_sources(paths: Sequence[str]) -> list[Source]:
    """The documents of all files in order; a folder means its *.yaml and *.yml files by name, `-` standard input."""
    sources = [source for path in paths for file in _files(path) for source in _of_file(file)]
    if not sources:
        raise UserError("there is no document", object=", ".join(paths))
    return sources


def _files(path: str) -> list[str]:
    folder = Path(path)
    if path == "-" or not folder.is_dir():
        return [path]
    found = sorted(str(file) for file in folder.iterdir() if file.suffix in {".yaml", ".yml"})
    if not found:
        raise UserError("holds no *.yaml file", object=path)
    return found


def _of_file(path: str) -> Iterator[Source]:
    name = "standard input" if path == "-" else path
    try:
        data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1) if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", object=name) from error
    if len(data) > MAX_FILE_BYTES:
        raise UserError(f"is larger than {MAX_FILE_BYTES} bytes", object=name)
    yield from parse_sources(data, name)


def parse_sources(data: bytes, name: str) -> Iterator[Source]:
    """The documents in YAML text (so JSON too). UserError names file, line, document and field."""
    number = 0
    try:
        loader = yaml.SafeLoader(_decoded(data, name))  # looks for control characters already
        while loader.check_node():
            node = loader.get_node()
            assert node is not None  # check_node has said so
            number += 1
            _refuse_doubles(node, name)
            raw = loader.construct_document(node)
            if raw is not None:  # a lone `---` or comment
                yield _source(raw, node, name, number)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else 1
        raise UserError(f"not valid YAML: {error.problem}", object=f"{name}:{line}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"not valid YAML: {output.plain(error)}", object=name) from error


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UserError("not valid YAML: not UTF-8 text", object=name) from error


def _source(raw: object, node: yaml.Node, name: str, number: int) -> Source:
    start = f"{name}:{node.start_mark.line + 1}: document {number}"
    try:
        parse_document(raw, where=start)
    except UserError as error:
        problem = error.__cause__
        if isinstance(problem, ValidationError):
            line = _line(node, problem.errors()[0]["loc"])
            raise UserError(error.what, object=f"{name}:{line}: document {number}", hint=error.hint) from error
        raise
    assert isinstance(raw, dict)  # parse_document has refused all else
    return Source(where=start, document=raw)


def _refuse_doubles(node: yaml.Node, name: str) -> None:
    """YAML lets the last of two equal fields win; a person who wrote both meant something else."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_doubles(item, name)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        if str(key.value) in seen:
            raise UserError(f"{key.value} is given twice; keep one", object=f"{name}:{key.start_mark.line + 1}")
        seen.add(str(key.value))
        _refuse_doubles(value, name)


def _line(node: yaml.Node, loc: Sequence[int | str]) -> int:
    """Line of the innermost part of `loc` that is written."""
    line = node.start_mark.line + 1
    for part in loc:
        child: yaml.Node | None = None
        if isinstance(node, yaml.MappingNode):
            pair = next((pair for pair in node.value if pair[0].value == str(part)), None)
            if pair is not None:
                line, child = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            child = node.value[part]
            line = child.start_mark.line + 1
        if child is None:
            break
        node = child
    return line


# --- verbs ----------------------------------------------------------------------------------------------------------


def show_applied(results: Sequence[Applied], form: output.Format, *, dry_run: bool = False) -> None:
    """What became (dry_run: would become) of each document."""
    if form != "table":
        output.dump([result.page() for result in results], form)
        return
    for result in results:
        name = f"{result.kind.lower()} {result.name}"
        output.say(f"{SIGNS.get(result.outcome, '?')} {name}" if dry_run else f"{name} {result.outcome}")
        if result.outcome != "unchanged" or dry_run:
            for change in result.changes:
                output.say(f"    {output.plain(change)}")


async def wait_until_running(client: Client, session: Session, results: Sequence[Applied], timeout_s: float) -> None:
    """Until every instance among the results runs as applied."""
    goals = [progress.running(result.name, result.generation) for result in results if result.kind == "Instance"]
    if goals:
        await progress.wait_for(client, goals, timeout_s=timeout_s, clock=session.clock)


wait_options = (
    click.option("--wait/--no-wait", default=True, help="Wait until it is done (default), or return at once."),
    click.option(
        "--timeout", type=Seconds(), default="5m", show_default=True, metavar="TIME", help="Wait at most so long."
    ),
)

_file_option = click.option(
    "-f", "--file", "files", multiple=True, required=True, metavar="FILE", type=click.Path(allow_dash=True),
    help="YAML file with one or more documents, folder of such files, or - for standard input; repeatable.",
)  # fmt: skip


@click.command("apply", cls=Verb)
@_file_option
@wait_options[0]
@wait_options[1]
@pass_session
def apply_command(session: Session, files: tuple[str, ...], wait: bool, timeout: float) -> None:
    """Make the world as the documents say. Applying the same again changes nothing."""
    documents = [source.document for source in read_sources(files)]

    async def work(client: Client) -> None:
        results = await client.apply(documents)
        show_applied(results, session.output)
        if wait:
            await wait_until_running(client, session, results, timeout)

    session.run(work)


@click.command("diff", cls=Verb)
@_file_option
@pass_session
def diff_command(session: Session, files: tuple[str, ...]) -> None:
    """What apply would change. Exit status: 0 nothing, 1 something, above 1 an error."""
    try:
        documents = [source.document for source in read_sources(files)]
        results = session.run(lambda client: client.apply(documents, dry_run=True))
    except MoorageError as error:
        if error.exit_code != DIFFERENCES:
            raise
        output.fail(error)
        raise click.exceptions.Exit(DIFF_TROUBLE) from error
    different = [result for result in results if result.outcome != "unchanged"]
    show_applied(different if session.output == "table" else results, session.output, dry_run=True)
    if different:
        raise click.exceptions.Exit(DIFFERENCES)
