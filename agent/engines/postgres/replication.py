"""Between members: how one connects to another, timeline histories, and copies of whole data directories.

Every connection between members is the replication user's. Where both ends have TLS it is verified in full: the
server's certificate must be of the node that the member lives on, whatever address it was reached at. Both the
client's certificate and its password are at hand; which one is asked for is the server's choice (`hba`).
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from agent.engines.disk import PROBE_FILE
from agent.engines.files import make_owned_directory, remove_tree, tree_bytes, write_owned
from agent.engines.postgres.member import Member, slot_name
from agent.engines.postgres.session import Session
from agent.engines.postgres.slots import make_fresh
from agent.ha.view import Fork
from core.errors import EngineError
from core.log import EventLog
from core.positions import Lsn
from core.records import REMOTE, PeerMember
from core.status import Role

log = EventLog("agent.replication")
PEER_ANSWER_S = 5.0
REMOTE_CA = "remote-ca.crt"
COPY_BASE_S = 600.0
COPY_BYTES_PER_S = 5 << 20  # a copy slower than this is broken, not slow
ROOM_FACTOR = 1.2  # a copy beside the old directory needs its size and some log
_SETTLED = {  # a peer that vanished is noticed by the connection itself
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}


# --- connecting -----------------------------------------------------------------------------------------------------


def _conninfo(member: Member, peer: PeerMember, **more: str) -> dict[str, str]:
    if peer.member == REMOTE:
        return {**_of_remote(member), **_SETTLED, "connect_timeout": "10", **more}
    return {
        "host": peer.node,
        "hostaddr": peer.address,
        "port": str(peer.engine_port),
        "user": member.replication_user,
        **_SETTLED,
        **more,
    }


def _of_remote(member: Member) -> dict[str, str]:
    """Of several hosts the one that accepts writes; a single one is followed whatever it is. The file with its
    certificates is written beside ours."""
    remote = member.desired.standby
    if remote is None:
        raise EngineError("follows no remote primary (any more)", object=member.subject)
    pairs = [address.rpartition(":") for address in remote.hosts]
    parameters = {
        "host": ",".join(host.strip("[]") for host, _, _ in pairs),
        "port": ",".join(port for _, _, port in pairs),
        "user": remote.user,
        "sslmode": remote.sslmode,
        "target_session_attrs": "read-write" if len(pairs) > 1 else "any",
    }
    return {**parameters, "sslrootcert": str(member.paths.tls / REMOTE_CA)} if remote.ca else parameters


def _tls_parameters(member: Member, peer: PeerMember, *, cert: Path, key: Path, ca: Path) -> dict[str, str]:
    if peer.member == REMOTE:
        return {}  # as the document says
    if not member.tls:
        return {"sslmode": "prefer"}
    identity = {"sslcert": str(cert), "sslkey": str(key)}
    if peer.engine_tls:
        return {**identity, "sslmode": "verify-full", "sslrootcert": str(ca)}
    return {**identity, "sslmode": "prefer"}  # it may only not have reported yet: TLS is tried, not demanded


def conninfo_of_tools(member: Member, peer: PeerMember, **more: str) -> str:
    """For programs that run as the engine's user: with its copies of the credentials."""
    tls = member.paths.tls
    encryption = _tls_parameters(member, peer, cert=tls / "node.crt", key=tls / "node.key", ca=tls / "ca.crt")
    return make_conninfo(**_conninfo(member, peer, passfile=str(member.paths.passfile), **encryption, **more))


def conninfo_of_walreceiver(member: Member, peer: PeerMember) -> str:
    """primary_conninfo; the application name is what synchronous_standby_names and pg_stat_replication know. The
    database is for carrying over logical slots, which is done in SQL."""
    if peer.member == REMOTE:
        # Another name than a member's: the remote primary may be an instance whose sync set names members of its own.
        return conninfo_of_tools(member, peer, application_name=member.subject.replace("/", "."))
    database = {"dbname": "postgres"} if member.carries_slots_over else {}
    return conninfo_of_tools(member, peer, application_name=member.name, **database)


def leads_to(member: Member, conninfo: str, peer: PeerMember) -> bool:
    """Whether a connection string is one to this peer."""
    parts = conninfo_to_dict(conninfo)
    if peer.member == REMOTE:
        remote = _of_remote(member)
        return parts.get("host") == remote["host"] and str(parts.get("port")) == remote["port"]
    return parts.get("hostaddr") == peer.address and str(parts.get("port")) == str(peer.engine_port)


@asynccontextmanager
async def remote_session(member: Member, peer: PeerMember, *, walsender: bool) -> AsyncIterator[Session]:
    """The agent's own connection to another member: the replication protocol, or SQL in database postgres."""
    encryption = {"sslmode": "prefer"}
    files = member.setup.tls_files
    if files is not None:
        encryption = _tls_parameters(member, peer, cert=files.cert, key=files.key, ca=files.ca)
    where = {"replication": "true"} if walsender else {"dbname": "postgres"}
    password = {"password": member.replication_password} if member.replication_password else {}
    session = await Session.open(
        _conninfo(member, peer, application_name="moorage-agent", **where, **encryption, **password),
        options={},
        within_s=PEER_ANSWER_S,
        subject=f"{member.subject} to {peer.member}",
    )
    try:
        yield session
    finally:
        session.close()


# --- timelines ------------------------------------------------------------------------------------------------------


async def history(member: Member, peer: PeerMember) -> tuple[str, int, tuple[Fork, ...]]:
    """System identifier and timeline of a peer, and where each earlier timeline was left."""
    async with remote_session(member, peer, walsender=True) as session:
        system = await session.row("IDENTIFY_SYSTEM", within_s=PEER_ANSWER_S)
        system_id, timeline = _text(system["systemid"]), int(system["timeline"])
        if timeline == 1:
            return system_id, 1, ()
        told = await session.row(f"TIMELINE_HISTORY {timeline}", within_s=PEER_ANSWER_S)
    return system_id, timeline, parse_history(_text(told["content"]))


def _text(value: str | bytes) -> str:
    """Outside of a database there is no encoding, and psycopg leaves text as bytes."""
    return value if isinstance(value, str) else bytes(value).decode()


def parse_history(text: str) -> tuple[Fork, ...]:
    """A timeline history file: number, position and reason, a line each. ValueError when it is not one."""
    forks = []
    for line in text.splitlines():
        parts = line.split(None, 2)
        if parts and not parts[0].startswith("#"):
            forks.append(Fork(timeline=int(parts[0]), lsn=Lsn.parse(parts[1])))
    return tuple(forks)


# --- copies ---------------------------------------------------------------------------------------------------------


Remove = Callable[[Path], None]  # gets rid of a directory


async def copy_from(
    member: Member, source: PeerMember, *, remove: Remove = remove_tree, keep_old_at: Path | None = None
) -> None:
    """Replace the data directory by a copy of the source's, as a standby's.

    The old directory stays as it is until the copy is whole, if there is room for both: a source that dies meanwhile
    may have been the only other one. `keep_old_at` moves it there then. From its end on the label says `clone`; the
    caller takes the label off when the new one is configured.
    """
    paths, owner = member.paths, member.setup.run_as
    await asyncio.to_thread(remove, paths.incoming)
    await history(member, source)  # it answers and lets us in: only now may anything be given up for it
    slot: tuple[str, ...] = ()
    if source.member == REMOTE:
        given = member.desired.standby.slot if member.desired.standby is not None else ""
        slot = ("--slot", given) if given else ()
    elif source.role is not Role.REPLICA:
        async with remote_session(member, source, walsender=True) as session:
            await make_fresh(session, slot_name(member.name), PEER_ANSWER_S)
        slot = ("--slot", slot_name(member.name))
    await _make_room(member)  # really removed: the room is needed now
    make_owned_directory(paths.incoming, owner)
    arguments = [
        *("--pgdata", str(paths.incoming), "--dbname", conninfo_of_tools(member, source), "--no-password"),
        *("--wal-method", "stream", "--checkpoint", "fast", *slot),
    ]
    if not member.setup.durable:
        arguments.append("--no-sync")
    within_s = COPY_BASE_S + member.desired.disk_bytes / COPY_BYTES_PER_S
    await member.tools.run("pg_basebackup", *arguments, within_s=within_s)
    write_owned(paths.incoming / "standby.signal", b"", owner)
    for name in ("moorage.sync.conf", PROBE_FILE):  # the source's
        (paths.incoming / name).unlink(missing_ok=True)
    await _take_place(member, remove, keep_old_at)


async def _make_room(member: Member) -> None:
    data = member.paths.data
    if not data.exists():
        return
    size = await asyncio.to_thread(tree_bytes, data)
    if shutil.disk_usage(member.paths.root).free < size * ROOM_FACTOR:
        log.warning("old_data_removed", member=member.subject, reason="no room for a copy beside it", size_bytes=size)
        member.relabel(begun="clone")
        await asyncio.to_thread(remove_tree, data)


async def _take_place(member: Member, remove: Remove, keep_old_at: Path | None) -> None:
    paths = member.paths
    member.relabel(begun="clone")
    if paths.data.exists() and keep_old_at is not None:
        paths.data.rename(keep_old_at)
    await asyncio.to_thread(remove, paths.data)
    paths.incoming.rename(paths.data)
