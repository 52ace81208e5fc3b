"""Settings, access rules, slots, roles and databases of a running engine made as desired, and the sync set in force.

A reload reaches the processes of an engine one by one. Where the next step depends on it, its effect is looked for.
"""

from __future__ import annotations

import asyncio

from agent.engines.postgres import roles
from agent.engines.postgres.configuration import Configuration
from agent.engines.postgres.kept import Kept
from agent.engines.postgres.member import Member, slot_name
from agent.engines.postgres.observe import Observer
from agent.engines.postgres.process import Postmaster
from agent.engines.postgres.session import Session
from agent.engines.postgres.settings import closed_sync, sync_setting
from agent.engines.postgres.slots import settle_slots
from agent.engines.postgres.surroundings import Surroundings
from agent.engines.waiting import until
from core.errors import EngineError, words
from core.log import EventLog
from core.records import PeerMember, SyncRecord

log = EventLog("agent.engine")
STATEMENT_S = 5.0
CHECKPOINT_WITHIN_S = 600.0
IN_FORCE_WITHIN_S = 5.0


class Convergence:
    """Of one member; every call opens a session of its own or is given one."""

    def __init__(
        self,
        member: Member,
        *,
        postmaster: Postmaster,
        configuration: Configuration,
        observer: Observer,
        kept: Kept,
        surroundings: Surroundings,
    ) -> None:
        self._member = member
        self._postmaster = postmaster
        self._configuration = configuration
        self._observer = observer
        self._kept = kept
        self._surroundings = surroundings

    # --- the whole ----------------------------------------------------------------------------------------------------

    async def converge(self) -> bool:
        member, postmaster = self._member, self._postmaster
        if postmaster.find() is None or postmaster.status != "ready" or self._surroundings.owes:
            return False
        await asyncio.to_thread(self._kept.prune, filling=self._surroundings.filling)
        changed = await self._configuration.write()
        async with member.session(within_s=roles.STATEMENT_S) as session:
            primary = not await in_recovery(session)
            if changed:
                await session.rows("SELECT pg_reload_conf()", within_s=STATEMENT_S)
            problems = [
                f"pg_hba.conf line {row['line_number']}: {row['error']}"
                for row in await session.rows(
                    "SELECT line_number, error FROM pg_hba_file_rules WHERE error IS NOT NULL", within_s=STATEMENT_S
                )
            ]
            settled = not member.peers_told or await self.settle(session, primary=primary)
            if primary:
                problems += (await roles.Declared(member, session).converge()).problems
        self._observer.roles_problems = tuple(problems)
        if not primary:
            await self.apply_sync(closed_sync(member.desired))
        return settled

    async def settle(self, session: Session, *, primary: bool) -> bool:
        """Slots, and the setting that names those which logical replication waits for: it may only name slots that
        exist, so it is written once they do."""
        member = self._member
        leads = primary or member.leads_standby
        wanted = {slot_name(peer.member) for peer in member.peers if _streams_from(peer, member, leads=leads)}
        settled = await settle_slots(
            session, wanted=wanted, major=member.setup.offer.version, primary=primary, within_s=STATEMENT_S
        )
        self._observer.slot_notices = settled.notices
        self._configuration.slots_here, self._configuration.slots_active = settled.members, settled.active
        if await self._configuration.write():
            await session.rows("SELECT pg_reload_conf()", within_s=STATEMENT_S)
        return settled.complete

    # --- the sync set -------------------------------------------------------------------------------------------------

    async def apply_sync(self, sync: SyncRecord) -> None:
        member, postmaster = self._member, self._postmaster
        member.need_data()
        changed = self._configuration.write_sync(sync)
        wanted = sync_setting(sync)
        if postmaster.find() is None:
            return
        if postmaster.status != "ready":
            postmaster.reload()
            return
        async with member.session(within_s=STATEMENT_S) as session:
            before = await _setting(session, "synchronous_standby_names")
            if before == wanted and not changed:
                return
            await self.reload_until(session, "synchronous_standby_names", wanted)
            await self._await_walsenders(session, sync.names if wanted else ())
            if sync.names:
                await self._release_waiting(session)
        if wanted and not before:
            # Backends skip the wait altogether until the checkpointer has raised a flag in shared memory. It reads its
            # configuration before each checkpoint, so a checkpoint that ends proves that the flag is up.
            await checkpoint(member)

    async def close(self, session: Session, sync: SyncRecord) -> None:
        """On a replica about to be promoted: the set that it opens with, in force before it can take a write."""
        changed, wanted = self._configuration.write_sync(sync), sync_setting(sync)
        if changed or await _setting(session, "synchronous_standby_names") != wanted:
            await self.reload_until(session, "synchronous_standby_names", wanted)

    async def _release_waiting(self, session: Session) -> None:
        """Commits that wait are looked at only when a standby answers, and one that has everything is silent until its
        next status a second later. So give all something to answer: a commit of nothing, which itself does not wait."""
        try:
            await session.rows("SELECT pg_logical_emit_message(true, 'moorage', '')", within_s=STATEMENT_S)
        except EngineError as error:
            log.warning("commits_not_released", member=self._member.subject, why=words(error))

    async def _await_walsenders(self, session: Session, names: tuple[str, ...]) -> None:
        """Each walsender releases waiting commits by the list it has read itself: see that all have read the new."""
        ask = (
            "SELECT count(*) AS stale FROM pg_stat_replication WHERE state = 'streaming'"
            " AND NOT starts_with(application_name, 'pg_') AND (sync_priority > 0) <> (application_name = ANY(%s))"
        )

        async def all_read() -> bool:
            return not (await session.row(ask, [list(names)], within_s=STATEMENT_S))["stale"]

        what = "a walsender did not take the new sync set"
        await until(all_read, within_s=IN_FORCE_WITHIN_S, what=what, subject=self._member.subject)

    async def reload_until(self, session: Session, name: str, wanted: str) -> None:
        """Reload, and wait until the session has the setting: all processes get the signal at the same moment."""
        await session.rows("SELECT pg_reload_conf()", within_s=STATEMENT_S)

        async def in_force() -> bool:
            return await _setting(session, name) == wanted

        what = f"{name} did not come in force"
        await until(in_force, within_s=IN_FORCE_WITHIN_S, what=what, subject=self._member.subject, every_s=0.003)


async def checkpoint(member: Member) -> None:
    """Now, as fast as the disk can."""
    async with member.session(within_s=CHECKPOINT_WITHIN_S) as session:
        await session.rows("CHECKPOINT", within_s=CHECKPOINT_WITHIN_S)


def _streams_from(peer: PeerMember, member: Member, *, leads: bool) -> bool:
    """Whether the peer has a slot here. One that is to stream from a replica has it there and nowhere else: a slot that
    nobody uses holds log up to the limit."""
    return peer.upstream == member.name if peer.upstream else leads


async def in_recovery(session: Session) -> bool:
    return bool((await session.row("SELECT pg_is_in_recovery() AS yes", within_s=STATEMENT_S))["yes"])


async def _setting(session: Session, name: str) -> str:
    return str((await session.row("SELECT current_setting(%s) AS value", [name], within_s=STATEMENT_S))["value"])
