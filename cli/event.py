"""`moorctl event`: what happened, and what happens."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import click

from cli import output
from cli.client import Client
from cli.output import Tone
from cli.session import Noun, Session, pass_session
from core.clock import iso
from core.errors import UnavailableError

RECONNECT_S = 1.0
REMEMBERED = 2000  # events told already: as many as a hub keeps at hand and would tell again
TONES: dict[str, Tone] = {"error": "bad", "warning": "warn"}


@click.group(cls=Noun)
def event() -> None:
    """What happened to nodes and instances."""


@event.command("list")
@click.option("--follow", "-F", is_flag=True, help="Go on with new ones until interrupted.")
@click.option(
    "--object", "prefix", default="", metavar="PREFIX", help="Only of objects that begin so: demo/orders, node/."
)
@click.option("--limit", type=click.IntRange(1, REMEMBERED), default=100, show_default=True, help="Past ones at most.")
@pass_session
def list_events(session: Session, follow: bool, prefix: str, limit: int) -> None:
    """Events, oldest first."""

    async def work(client: Client) -> None:
        events = following(client, prefix, limit) if follow else client.events(prefix=prefix, limit=limit)
        told = 0
        async for one in events:
            told += 1
            show(one, session.output)
        if not told and session.output == "table":
            output.note("no events")

    session.run(work)


def show(one: dict[str, Any], form: output.Format) -> None:
    """One event on one line (a YAML document of its own in YAML)."""
    if form != "table":
        output.dump_lines([one], form)
        return
    at = iso(float(one.get("at") or 0))[:19].replace("T", " ")
    name = output.plain(one.get("event"))
    how = TONES.get(str(one.get("severity")))
    shown = output.tone(f"{name:<26}", how) if how else f"{name:<26}"
    output.say(f"{at}  {output.plain(one.get('object')):<22}  {shown}  {output.plain(one.get('message'))}".rstrip())


async def following(client: Client, prefix: str, limit: int) -> AsyncGenerator[dict[str, Any]]:
    """Events for ever: a hub that goes away is replaced by the next, and nothing is told twice."""
    told: deque[str] = deque(maxlen=REMEMBERED)
    lost = False
    while True:
        try:
            async with aclosing(client.events(prefix=prefix, limit=limit, follow=True)) as events:
                async for one in events:
                    mark = json.dumps(one, sort_keys=True)
                    if mark not in told:
                        told.append(mark)
                        yield one
                    lost = False
        except UnavailableError as error:
            if not told and not lost:
                raise
            if not lost:
                output.note(f"{error.object}: {error.what}; trying again")
            lost = True
        await asyncio.sleep(RECONNECT_S)
