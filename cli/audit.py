"""`moorctl audit`: who changed what, and whether that trail is whole.

Each entry names the SHA-256 of the one before, over its very bytes; the hub only hands the texts out. So the check is
made here, by the program that asks, and needs no trust in the hub beyond the head that somebody has noted before.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import click

from cli import output
from cli.client import AuditPage, Client
from cli.session import Noun, Session, pass_session
from core.errors import ConflictError, UserError

FIRST = "0" * 64


@click.group(cls=Noun)
def audit() -> None:
    """The audit trail: who changed what, when and from where. For admins."""


@audit.command("list")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="The last so many.")
@click.option("--object", "prefix", default="", metavar="PREFIX", help="Only of objects that begin so, among those.")
@pass_session
def list_entries(session: Session, limit: int, prefix: str) -> None:
    """The last entries, oldest first."""

    async def work(client: Client) -> list[dict[str, Any]]:
        newest = await client.audit(after=0, limit=1)
        texts = await _texts(client, after=max(0, newest.head_seq - limit), until=newest.head_seq)
        return [json.loads(text) for text in texts]

    found = [one for one in session.run(work) if str(one.get("object")).startswith(prefix)]
    if session.output != "table":
        output.dump(found, session.output)
        return
    output.table(["NO", "AT", "WHO", "FROM", "WHAT", "OBJECT", "CHANGE"], [row for one in found for row in _rows(one)])


def _rows(one: dict[str, Any]) -> list[list[object]]:
    """An entry's changes in a line each; who and what only in the first."""
    head = [one["seq"], str(one["at"])[:19].replace("T", " "), one["operator"], one["from"], one["verb"], one["object"]]
    lines = [_change(change) for change in one["changes"]] or [""]
    return [[*(head if at == 0 else [""] * len(head)), line] for at, line in enumerate(lines)]


def _change(change: dict[str, Any]) -> str:
    if "read" in change:
        return f"read {change['read']}"
    if "left_out" in change:
        return f"and {change['left_out']} more"
    if "before" not in change:
        return f"{change['key']}: {'deleted' if change.get('deleted') else 'written'}"
    before, after = (json.dumps(change[side]) for side in ("before", "after"))
    where = change["field"] or change["key"]
    return f"{where}: {_short(before)} -> {_short(after)}"


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


@audit.command()
@click.option(
    "--head", "noted", metavar="NO:SHA256", default="", help="A head that was noted before: it must be in the trail."
)
@pass_session
def verify(session: Session, noted: str) -> None:
    """Check that no entry was altered, removed or put in between. Exit status 4 when one was.

    Note the head that is shown, away from the hubs, and give it the next time: then it is seen also when the trail's
    end was cut off, or all of it written anew.
    """
    seq, digest = _parsed(noted)

    async def work(client: Client) -> tuple[list[str], AuditPage]:
        newest = await client.audit(after=0, limit=1)
        return await _texts(client, after=0, until=newest.head_seq), newest

    texts, newest = session.run(work)
    check(texts, newest.head_seq, newest.head_sha256)
    if seq and (seq > len(texts) or hashlib.sha256(texts[seq - 1].encode()).hexdigest() != digest):
        raise ConflictError(f"entry {seq} is not the one that was noted", object="audit", hint=_HINT)
    facts = {"entries": len(texts), "head": f"{newest.head_seq}:{newest.head_sha256}"}
    if session.output != "table":
        output.dump(facts, session.output)
    else:
        output.say(f"{len(texts)} entries, unbroken; head {facts['head']}")


_HINT = "Somebody has changed the trail in etcd. Compare it with a snapshot of etcd, and with the hubs' logs."


def check(texts: list[str], head_seq: int, head_sha256: str) -> None:
    """Pure. ConflictError at the first entry that does not follow on the one before, or an end that is not the head."""
    previous = FIRST
    for number, text in enumerate(texts, start=1):
        try:
            entry = json.loads(text)
            follows = (entry["seq"], entry["previous"]) == (number, previous)
        except (ValueError, KeyError, TypeError):
            follows = False
        if not follows:
            what = f"the trail is broken at entry {number}: it does not follow on the one before"
            raise ConflictError(what, object="audit", hint=_HINT)
        previous = hashlib.sha256(text.encode()).hexdigest()
    if (head_seq, head_sha256) != (len(texts), previous):
        raise ConflictError(f"the trail's head does not fit its last entry, {len(texts)}", object="audit", hint=_HINT)


def _parsed(noted: str) -> tuple[int, str]:
    if not noted:
        return 0, ""
    number, _, digest = noted.partition(":")
    if not number.isdecimal() or int(number) < 1 or len(digest) != len(FIRST):
        raise UserError(f"{noted!r} is not NO:SHA256", object="--head", hint="moorctl audit verify shows one.")
    return int(number), digest.lower()


async def _texts(client: Client, *, after: int, until: int) -> list[str]:
    found: list[str] = []
    while after + len(found) < until:
        page = await client.audit(after=after + len(found), limit=until - after - len(found))
        if not page.entries:
            break
        found += page.entries
    return found
