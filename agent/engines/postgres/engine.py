"""`PostgresEngine`: one member's PostgreSQL, as the agent's keeper drives it (`agent.engines.base.Engine`).

Only sequences are here; how each step is done is in the modules beside. The caller runs one long call at a time;
`observe` and `fence` may come at any moment, and a fence wins: a start that is under way is called off.
"""

from __future__ import annotations

import asyncio
import contextlib

from agent.engines.base import EngineFacts, EngineSetup
from agent.engines.files import remove_tree, write_owned
from agent.engines.postgres import initdb, roles
from agent.engines.postgres.configuration import Configuration
from agent.engines.postgres.control import ControlFile
from agent.engines.postgres.member import Label, Member, slot_name
from agent.engines.postgres.observe import Observer
from agent.engines.postgres.process import Postmaster, StartPreventedError
from agent.engines.postgres.replication import conninfo_of_walreceiver, copy_from, history, settle_slots
from agent.engines.postgres.rewind import Rejoin
from agent.engines.postgres.session import Session
from agent.engines.postgres.settings import closed_sync, sync_setting
from agent.engines.waiting import until
from agent.ha.view import Engine, EngineState, Fork
from agent.supervise.detached import Detached
from core.errors import EngineError, MoorageError, words
from core.log import EventLog
from core.records import MemberDesired, MemberSecrets, PeerMember, SyncRecord

log = EventLog("agent.engine")
START_WAIT_S = 60.0  # longer recoveries go on, observed as STARTING
CATCH_UP_WAIT_S = 300.0
PROMOTE_WITHIN_S = 60.0
CHECKPOINT_WITHIN_S = 600.0
IN_FORCE_WITHIN_S = 5.0
STREAM_WAIT_S = 5.0
NO_RECEIVER_FOR_S = 0.1
STATEMENT_S = 5.0
DESTROY_STOP_S = 4.0
RELEASE_WITHIN_S = 10.0


class PostgresEngine:
    """See `agent.engines.base.Engine` for what each call promises."""

    def __init__(self, setup: EngineSetup) -> None:
        self.setup = setup
        self._member = Member(setup)
        self._postmaster = Postmaster(self._member, Detached())
        self._control = ControlFile(self._member.tools, setup.paths.data)
        self._configuration = Configuration(self._member, self._control)
        self._observer = Observer(self._member, self._postmaster, self._control, self._configuration)
        self._background: asyncio.Task[None] | None = None  # the checkpoint after a promotion

    # --- what is wanted, what is --------------------------------------------------------------------------------------

    def update(self, desired: MemberDesired, secrets: MemberSecrets) -> None:
        self._member.desired, self._member.secrets = desired, secrets

    def set_peers(self, peers: tuple[PeerMember, ...]) -> None:
        self._member.tell_peers(peers)

    async def observe(self) -> Engine:
        return await self._observer.observe()

    def facts(self) -> EngineFacts:
        return self._observer.facts

    async def wait_died(self) -> None:
        await self._postmaster.died()

    # --- making -------------------------------------------------------------------------------------------------------

    async def initialise(self) -> None:
        member = self._member
        member.check_socket_path()
        await self._postmaster.stop()
        await initdb.initialise(member)
        self._configuration.write_sync(closed_sync(member.desired))
        await self._configuration.write()
        member.relabel(begun="", upstream="", asked_to_end=True, proven={}, refused={})

    async def clone(self, source: PeerMember) -> None:
        member = self._member
        member.check_socket_path()
        member.remember_peer(source)
        await self._postmaster.stop()
        self._configuration.write_credentials()
        await copy_from(member, source)
        await self._finish_copy(source)

    async def _finish_copy(self, source: PeerMember) -> None:
        self._member.relabel(upstream=source.member)
        self._configuration.write_sync(closed_sync(self._member.desired))
        await self._configuration.write()
        self._member.relabel(begun="", asked_to_end=True)

    async def rejoin(self, leader: PeerMember, *, anew: bool = False) -> str:
        member = self._member
        member.check_socket_path()
        member.remember_peer(leader)
        await self._postmaster.stop()
        self._configuration.write_credentials()
        job = Rejoin(member, self._control, self._configuration, leader)
        if anew:
            await job.copy_anew("had log of its own under the number of another's timeline")
        else:
            await job.bring_back()
        why = ""
        if not member.label.begun:
            why = await self._why_useless(leader)
        if why:
            await self._postmaster.stop()
            await job.copy(why)
        if member.label.begun:
            await self._finish_copy(leader)
            await self.start_replica(leader)
        log.info("rejoined", member=member.subject, leader=leader.member, how=job.sentence)
        return job.sentence

    async def _why_useless(self, leader: PeerMember) -> str:
        """Start as replica; the reason when what was brought back cannot be used after all."""
        try:
            await self.start_replica(leader)
        except StartPreventedError:
            raise
        except EngineError as error:
            return f"did not start after it was brought back ({error.what})"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STREAM_WAIT_S):
                while not (await self.observe()).streaming:
                    if self._postmaster.lacks_log():
                        return f"needed log that {leader.member} no longer has"
                    await asyncio.sleep(0.05)
        return ""

    # --- starting -----------------------------------------------------------------------------------------------------

    async def start_primary(self) -> None:
        member, postmaster = self._member, self._postmaster
        member.need_data()
        if postmaster.find() is not None:
            if postmaster.status != "stopping":
                await self._lead_if_standby()
                return
            # Half-way through a stop that was given up: an immediate end is quicker than waiting for the orderly one.
            await self.fence(2.0)
        if member.is_standby() or (await self._control.read()).standby:
            # Its log may go on elsewhere: never on the same timeline.
            await self.start_replica(None)
            await self._await_all_replayed()
            await self.promote()
            return
        member.relabel(upstream="")
        self._configuration.write_sync(closed_sync(member.desired))
        await self._configuration.write()
        await self._start()

    async def _lead_if_standby(self) -> None:
        if self._member.is_standby():
            await self._await_all_replayed()
            await self.promote()

    async def _await_all_replayed(self) -> None:
        async def replayed() -> bool:
            return (await self.observe()).state is EngineState.RUNNING

        await until(replayed, within_s=CATCH_UP_WAIT_S, what="did not replay its own log", subject=self._member.subject)

    async def start_replica(self, upstream: PeerMember | None) -> None:
        member, postmaster = self._member, self._postmaster
        member.need_data()
        if upstream is not None:
            member.remember_peer(upstream)
        if postmaster.find() is not None:
            if not member.is_standby():
                raise EngineError("runs as primary", object=member.subject, hint="Stop it first.")
            if upstream is not None:
                await self.follow(upstream)
            return
        write_owned(member.paths.data / "standby.signal", b"", member.setup.run_as)
        self._observer.leader_forks = ()
        member.relabel(upstream=upstream.member if upstream else "")
        self._configuration.write_sync(closed_sync(member.desired))
        await self._configuration.write()
        await self._start()

    async def _start(self) -> None:
        """With the user's parameters; when it does not start with them, with those it last started with."""
        member, postmaster, configuration = self._member, self._postmaster, self._configuration
        try:
            ready = await postmaster.start(within_s=START_WAIT_S)
        except StartPreventedError:
            raise
        except EngineError as error:
            if configuration.user == member.label.proven:
                raise
            log.error("parameters_refused", member=member.subject, why=error.what)
            member.relabel(refused=dict(member.desired.parameters))
            await configuration.write()
            try:
                ready = await postmaster.start(within_s=START_WAIT_S)
            except EngineError:
                member.relabel(refused={})  # they were not the reason
                raise error from None
        if ready:
            member.relabel(proven=configuration.user)

    # --- ending -------------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        self._drop_background()
        await self._postmaster.stop()

    async def fence(self, within_s: float) -> None:
        self._drop_background()
        await self._postmaster.fence(within_s)

    async def destroy(self) -> None:
        member, paths = self._member, self._member.paths
        await self.fence(DESTROY_STOP_S)
        self._observer.close()
        await self._release_shared_memory()
        await asyncio.to_thread(remove_tree, paths.sockets)
        await asyncio.to_thread(remove_tree, paths.root)
        member.label = Label()

    async def _release_shared_memory(self) -> None:
        """A postmaster that was killed leaves shared memory which only its next start removes. Let one start fail, on
        purpose and after it has cleaned up; the data is going to be deleted."""
        member, data = self._member, self._member.paths.data
        if not (data / "postmaster.pid").exists():
            return
        write_owned(data / "backup_label", b"not a backup label\n", member.setup.run_as)
        quiet = ("-c", "listen_addresses=", "-c", "logging_collector=off", "-c", "shared_preload_libraries=")
        with contextlib.suppress(MoorageError):
            await member.tools.attempt("postgres", "-D", str(data), *quiet, within_s=RELEASE_WITHIN_S)

    async def aclose(self) -> None:
        self._drop_background()
        self._observer.close()

    # --- leading and following ----------------------------------------------------------------------------------------

    async def promote(self) -> None:
        member = self._member
        async with member.session(within_s=STATEMENT_S) as session:
            if not await _in_recovery(session):
                return
            await session.rows("SELECT pg_promote(false)", within_s=STATEMENT_S)

            async def promoted() -> bool:
                return not await _in_recovery(session)

            await until(promoted, within_s=PROMOTE_WITHIN_S, what="was not promoted", subject=member.subject)
            log.info("engine_promoted", member=member.subject)
            self._observer.leader_forks = ()
            member.relabel(upstream="")
            try:
                # At once, not with the next converge: a standby that is refused tries again only after a pause.
                if await self._configuration.write():
                    await session.rows("SELECT pg_reload_conf()", within_s=STATEMENT_S)
                await self._settle_slots(session, primary=True)
            except (MoorageError, OSError) as error:
                log.warning("not_ready_for_standbys", member=member.subject, why=words(error))
        self._begin_checkpoint()

    def _begin_checkpoint(self) -> None:
        """Members that rewind must see the new timeline in pg_control; whoever promotes need not wait for that."""
        self._drop_background()
        task = asyncio.get_running_loop().create_task(self.checkpoint(), name=f"checkpoint {self._member.subject}")
        task.add_done_callback(self._checkpoint_ended)
        self._background = task

    def _checkpoint_ended(self, task: asyncio.Task[None]) -> None:
        if self._background is task:
            self._background = None
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.warning("checkpoint_failed", member=self._member.subject, why=words(error))

    def _drop_background(self) -> None:
        if self._background is not None:
            self._background.cancel()
            self._background = None

    async def checkpoint(self) -> None:
        async with self._member.session(within_s=CHECKPOINT_WITHIN_S) as session:
            await session.rows("CHECKPOINT", within_s=CHECKPOINT_WITHIN_S)

    async def follow(self, leader: PeerMember | None) -> None:
        member = self._member
        if leader is not None:
            member.remember_peer(leader)
        self._observer.leader_forks = ()
        member.relabel(upstream=leader.member if leader else "")
        await self._configuration.write()
        wanted = conninfo_of_walreceiver(member, leader) if leader else ""
        async with member.session(within_s=STATEMENT_S) as session:
            await self._reload_until(session, "primary_conninfo", wanted)
            if leader is None:
                await self._await_no_receiver(session)

    async def _await_no_receiver(self, session: Session) -> None:
        """The startup process ends the receiver when it has read the new setting, and might start one with the old
        setting before that: so none must be seen for a while."""
        quiet_since: float | None = None

        async def none_left() -> bool:
            nonlocal quiet_since
            row = await session.row(
                "SELECT count(*) AS receivers FROM pg_stat_activity WHERE backend_type = 'walreceiver'",
                within_s=STATEMENT_S,
            )
            now = self.setup.clock.now()
            quiet_since = None if row["receivers"] else now if quiet_since is None else quiet_since
            return quiet_since is not None and now - quiet_since >= NO_RECEIVER_FOR_S

        what = "the stream from the former primary did not end"
        await until(none_left, within_s=IN_FORCE_WITHIN_S, what=what, subject=self._member.subject)

    async def timeline_forks(self, leader: PeerMember) -> tuple[Fork, ...]:
        _, _, forks = await history(self._member, leader)
        self._observer.leader_forks = forks
        return forks

    # --- synchronous replication --------------------------------------------------------------------------------------

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
            await self._reload_until(session, "synchronous_standby_names", wanted)
            await self._await_walsenders(session, sync.names if wanted else ())
        if wanted and not before:
            # Backends skip the wait altogether until the checkpointer has raised a flag in shared memory. It reads its
            # configuration before each checkpoint, so a checkpoint that ends proves that the flag is up.
            await self.checkpoint()

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

    async def _reload_until(self, session: Session, name: str, wanted: str) -> None:
        await session.rows("SELECT pg_reload_conf()", within_s=STATEMENT_S)

        async def in_force() -> bool:
            return await _setting(session, name) == wanted

        what = f"{name} did not come in force"
        await until(in_force, within_s=IN_FORCE_WITHIN_S, what=what, subject=self._member.subject)

    # --- converging ---------------------------------------------------------------------------------------------------

    async def converge(self) -> bool:
        member, postmaster = self._member, self._postmaster
        if postmaster.find() is None or postmaster.status != "ready":
            return False
        changed = await self._configuration.write()
        async with member.session(within_s=roles.STATEMENT_S) as session:
            primary = not await _in_recovery(session)
            if changed:
                await session.rows("SELECT pg_reload_conf()", within_s=STATEMENT_S)
            problems = [
                f"pg_hba.conf line {row['line_number']}: {row['error']}"
                for row in await session.rows(
                    "SELECT line_number, error FROM pg_hba_file_rules WHERE error IS NOT NULL", within_s=STATEMENT_S
                )
            ]
            settled = not member.peers_told or await self._settle_slots(session, primary=primary)
            if primary:
                problems += (await roles.Declared(member, session).converge()).problems
        self._observer.roles_problems = tuple(problems)
        if not primary:
            await self.apply_sync(closed_sync(member.desired))
        return settled

    async def _settle_slots(self, session: Session, *, primary: bool) -> bool:
        wanted = {slot_name(peer.member) for peer in self._member.peers} if primary else set[str]()
        return await settle_slots(session, wanted=wanted, within_s=STATEMENT_S)


async def _in_recovery(session: Session) -> bool:
    return bool((await session.row("SELECT pg_is_in_recovery() AS yes", within_s=STATEMENT_S))["yes"])


async def _setting(session: Session, name: str) -> str:
    return str((await session.row("SELECT current_setting(%s) AS value", [name], within_s=STATEMENT_S))["value"])
