"""Replication slots: those of members are made, bounded and dropped here; those of users are left alone, and told of.

A member's slot keeps the log that the member has yet to fetch, up to `max_slot_wal_keep_size`: a member that is away
for longer is cloned anew rather than the primary's disk filled. Members that are gone have none.

Logical slots live on the primary only. From PostgreSQL 17 on those made with `failover = true` are carried over to the
replicas; a former primary still has its own under the same name, which stand in the way and are dropped there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql

from agent.engines.postgres.member import CARRIED_OVER_FROM, SLOT_PREFIX
from agent.engines.postgres.session import Row, Session
from agent.engines.troubles import Diagnosis, Trouble
from core.errors import EngineError
from core.log import EventLog

log = EventLog("agent.slots")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """Slots as they are after a look."""

    complete: bool  # all is as wanted
    members: frozenset[str]  # slots of members that exist
    active: frozenset[str] = frozenset()  # those whose member is connected
    notices: tuple[Diagnosis, ...] = ()


async def settle_slots(session: Session, *, wanted: set[str], major: int, primary: bool, within_s: float) -> Settled:
    """Make the wanted slots of members, drop our others and those whose log is lost."""
    rows = await _slots(session, major, within_s)
    complete, present, notices = True, set[str](), list[Diagnosis]()
    for row in rows:
        name, lost = row["name"], row["wal_status"] == "lost"
        if not _is_members(row):
            continue
        if lost:
            notices.append(Diagnosis(trouble=Trouble.SLOT_LOST, evidence=f"slot {name}"))
        if name in wanted and not lost:
            present.add(name)
        elif row["active"]:
            complete = False  # its user is still connected; it goes with the next round
            present.add(name)
        else:
            await _drop(session, name, within_s, why="its log is lost" if lost else "its member is gone")
    for name in sorted(wanted - present):
        await session.rows("SELECT pg_create_physical_replication_slot(%s, true)", [name], within_s=within_s)
        log.info("slot_created", slot=name)
    if not primary:
        await _drop_former(session, rows, within_s)
    notices += _behind(rows)
    notices += _left_behind(rows, major, replicas=bool(wanted)) if primary else []
    active = frozenset(str(row["name"]) for row in rows if row["active"]) & wanted
    return Settled(complete=complete, members=frozenset(present | wanted), active=active, notices=tuple(notices))


async def _slots(session: Session, major: int, within_s: float) -> list[Row]:
    carried = "failover, synced" if major >= CARRIED_OVER_FROM else "false AS failover, false AS synced"
    ask = (
        f"SELECT slot_name AS name, slot_type AS type, active, wal_status, {carried}"  # noqa: S608 - constants
        " FROM pg_replication_slots WHERE NOT temporary ORDER BY slot_name"
    )
    return await session.rows(ask, within_s=within_s)


def _is_members(row: Row) -> bool:
    return row["type"] == "physical" and str(row["name"]).startswith(SLOT_PREFIX)


async def _drop(session: Session, name: str, within_s: float, *, why: str) -> None:
    await session.rows("SELECT pg_drop_replication_slot(%s)", [name], within_s=within_s)
    log.info("slot_dropped", slot=name, why=why)


async def _drop_former(session: Session, rows: Sequence[Row], within_s: float) -> None:
    """On a replica: slots it had as a primary, which the present primary's copies of the same names cannot replace."""
    for row in rows:
        if row["type"] == "logical" and row["failover"] and not row["synced"] and not row["active"]:
            await _drop(session, str(row["name"]), within_s, why="the primary's takes its place")


def _behind(rows: Sequence[Row]) -> list[Diagnosis]:
    """Slots that hold more log than is to be kept, or have lost some; members' lost ones are told of by whoever drops
    them."""
    named = {
        status: [str(row["name"]) for row in rows if row["wal_status"] == status and not _lost_members(row)]
        for status in ("unreserved", "lost")
    }
    return [
        Diagnosis(trouble=Trouble.SLOT_FALLS_BEHIND, evidence=f"{', '.join(names)}: {status}")
        for status, names in named.items()
        if names
    ][:1]


def _lost_members(row: Row) -> bool:
    return _is_members(row) and row["wal_status"] == "lost"


def _left_behind(rows: Sequence[Row], major: int, *, replicas: bool) -> list[Diagnosis]:
    """Logical slots that a change of primary would end."""
    names = [str(row["name"]) for row in rows if row["type"] == "logical" and not row["failover"]]
    if not names or not replicas:
        return []
    how = "made without failover = true" if major >= CARRIED_OVER_FROM else f"PostgreSQL {major} carries none over"
    return [Diagnosis(trouble=Trouble.SLOTS_NOT_CARRIED_OVER, evidence=f"{', '.join(names)}: {how}")]


async def make_fresh(session: Session, name: str, within_s: float) -> None:
    """The own slot on the primary, over the replication protocol, holding the log from now on; an old one may have lost
    what it held."""
    for command, harmless in (
        ("DROP_REPLICATION_SLOT {} WAIT", "does not exist"),
        ("CREATE_REPLICATION_SLOT {} PHYSICAL RESERVE_WAL", "already exists"),  # the primary was quicker
    ):
        try:
            await session.rows(sql.SQL(command).format(sql.Identifier(name)), within_s=within_s)
        except EngineError as error:
            if harmless not in str(error):
                raise
