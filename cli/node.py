"""`moorctl node`: the machines that databases live on."""

from __future__ import annotations

from typing import Any

import click

from cli import output
from cli.client import Thing
from cli.output import Cell
from cli.session import Noun, Seconds, Session, complete_names, confirm, pass_session
from core.errors import UserError

TTL_MAX_S = 2**32 - 1  # as the wire carries it; the hub's own bound is far lower


@click.group(cls=Noun)
def node() -> None:
    """Nodes: the machines that databases live on."""


_node_argument = click.argument("name", shell_complete=complete_names("Node"))


def sort_key(name: str, status: dict[str, Any]) -> tuple[bool, bool, str]:
    """Silent nodes first, then cordoned ones: what needs a look stands where it is seen."""
    return not status.get("silent"), not status.get("cordoned"), name


def state_cell(status: dict[str, Any]) -> Cell:
    if status.get("silent"):
        return Cell("silent", "bad")
    return Cell("cordoned", "warn") if status.get("cordoned") else Cell("ready", "good")


def row(name: str, status: dict[str, Any]) -> list[object]:
    """A node in one line."""
    free, capacity = status.get("free") or {}, status.get("capacity") or {}
    heard = status.get("last_heard_s")
    engines = sorted({f"{e.get('engine')} {e.get('version')}" for e in status.get("engines") or []})
    return [
        name,
        state_cell(status),
        status.get("address") or "-",
        "/".join(part for part in (status.get("region"), status.get("zone")) if part) or "-",
        len(status.get("members") or []),
        f"{_number(free.get('cpu'))}/{_number(capacity.get('cpu'))}",
        f"{output.size(free.get('memory_bytes'))}/{output.size(capacity.get('memory_bytes'))}",
        f"{output.size(free.get('disk_bytes'))}/{output.size(capacity.get('disk_bytes'))}",
        f"{output.duration(heard)} ago" if isinstance(heard, int | float) else "-",
        ", ".join(engines) or "none",
    ]


HEADERS = ["NODE", "STATE", "ADDRESS", "PLACE", "MEMBERS", "FREE CPU", "FREE MEMORY", "FREE DISK", "HEARD", "ENGINES"]


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else "-"


@node.command("list")
@pass_session
def list_nodes(session: Session) -> None:
    """All nodes, silent ones first."""
    found = session.run(lambda client: client.all("Node"))
    if session.output != "table":
        output.dump([one.page() for one in found], session.output)
    elif not found:
        output.note("no nodes; make a join token with: moorctl node token, then run moorage-agent enrol on the machine")
    else:
        ordered = sorted(found, key=lambda one: sort_key(one.name, one.status))
        output.table(HEADERS, [row(one.name, one.status) for one in ordered])


@node.command()
@_node_argument
@pass_session
def show(session: Session, name: str) -> None:
    """A node in full."""
    found = session.run(lambda client: client.get("Node", name))
    if session.output != "table":
        output.dump(found.page(), session.output)
    else:
        _show(found, session.clock.wall())


def _show(found: Thing, wall: float) -> None:
    status = found.status
    state = state_cell(status)
    heard = status.get("last_heard_s")
    load = status.get("load") or {}
    labels = ", ".join(f"{key}={value}" for key, value in (found.spec.get("labels") or {}).items())
    fields: dict[str, object] = {
        "name": found.name,
        "state": output.tone(state, state.how or "bold"),
        "address": f"{status.get('address')}, peer port {status.get('peer_port')}",
        "zone": status.get("zone") or "-",
        "region": status.get("region") or "-",
        "labels": labels or "-",
        "heard": f"{output.duration(heard)} ago by {', '.join(status.get('heard_by') or []) or 'this hub'}"
        if isinstance(heard, int | float)
        else f"by {', '.join(status.get('heard_by') or []) or 'nobody'}",
        "enrolled": f"{output.age(status.get('enrolled_at'), wall=wall)} ago",
        "agent": status.get("agent_version") or "-",
    }
    for field, value in fields.items():
        output.say(f"{field + ':':10} {value if field == 'state' else output.plain(value)}")
    free, capacity = status.get("free") or {}, status.get("capacity") or {}
    rows = [
        ["cpu", _number(capacity.get("cpu")), _number(free.get("cpu")), _percent(load.get("cpu_used"))],
        ["memory", *_sizes("memory_bytes", capacity, free), output.size(load.get("memory_used_bytes"))],
        ["disk", *_sizes("disk_bytes", capacity, free), output.size(load.get("disk_used_bytes"))],
    ]
    output.say()
    output.table(["RESOURCE", "CAPACITY", "NOT PROMISED", "USED NOW"], rows)
    if status.get("engines"):
        output.say()
        engines = [
            [e.get("engine"), e.get("full_version"), "yes" if e.get("tls") else "no", e.get("bin_dir")]
            for e in status["engines"]
        ]
        output.table(["ENGINE", "VERSION", "TLS", "PROGRAMS"], engines)
    if status.get("members"):
        output.say()
        output.table(["MEMBER"], [[member] for member in status["members"]])


def _sizes(field: str, *pages: dict[str, Any]) -> list[str]:
    return [output.size(page.get(field)) for page in pages]


def _percent(value: object) -> str:
    return f"{value:.0%}" if isinstance(value, int | float) else "-"


@node.command()
@_node_argument
@pass_session
def cordon(session: Session, name: str) -> None:
    """Close a node for new members; those there stay."""
    _cordon(session, name, cordoned=True)


@node.command()
@_node_argument
@pass_session
def uncordon(session: Session, name: str) -> None:
    """Open a node for new members again."""
    _cordon(session, name, cordoned=False)


def _cordon(session: Session, name: str, *, cordoned: bool) -> None:
    session.run(lambda client: client.cordon(name, cordoned=cordoned))
    if session.output != "table":
        output.dump({"name": name, "cordoned": cordoned}, session.output)
    else:
        output.say(f"node {output.plain(name)} {'cordoned' if cordoned else 'uncordoned'}")


@node.command()
@click.argument("name", required=False, default="", metavar="[NODE]")
@click.option("--ttl", type=Seconds(), default="1h", show_default=True, metavar="TIME", help="How long it is good for.")
@pass_session
def token(session: Session, name: str, ttl: float) -> None:
    """Make a one-time join token: for one node when it is named, else for any."""
    ttl_s = int(ttl)
    if not 0 < ttl_s <= TTL_MAX_S:
        raise UserError(f"{ttl:g} s is too short or too long", object="--ttl", hint="Such as 30m, 2h or 1d.")
    text = session.run(lambda client: client.join_token(node=name, ttl_s=ttl_s))
    if session.output != "table":
        output.dump({"token": text, "node": name or None, "ttl_s": ttl_s}, session.output)
        return
    output.say(text)
    output.note(f"good once, for {name or 'any node'}, within {output.duration(ttl)}; on that machine run:")
    output.note(
        f"  moorage-agent enrol --config /etc/moorage/agent.yaml --hub {session.target().hubs[0]} --token TOKEN"
    )


@node.command()
@_node_argument
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_session
def delete(session: Session, name: str, yes: bool) -> None:
    """Remove a node that holds no member; it must enrol anew to come back."""
    session.run(lambda client: client.get("Node", name))
    confirm(f"Remove node {name}?", yes=yes)
    session.run(lambda client: client.delete("Node", name))
    if session.output != "table":
        output.dump({"name": name, "deleted": True}, session.output)
    else:
        output.say(f"node {output.plain(name)} removed")
