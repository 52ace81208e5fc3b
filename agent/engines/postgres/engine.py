"""`PostgresEngine`: one member's PostgreSQL, as the agent's keeper drives it (`agent.engines.base.Engine`).

Only sequences are here; how each step is done is in the modules beside. The caller runs one long call at a time;
`observe` and `fence` may come at any moment, and a fence wins: a start that is under way is called off.
"""

from __future__ import annotations

import asyncio
import contextlib

from agent.engines.base import EngineFacts, EngineSetup
from agent.engines.files import remove_tree, write_owned
from agent.engines.postgres import faults, initdb, passwords, timelines
from agent.engines.postgres.configuration import Configuration
from agent.engines.postgres.control import ControlFile
from agent.engines.postgres.converge import IN_FORCE_WITHIN_S, STATEMENT_S, Convergence, checkpoint, in_recovery
from agent.engines.postgres.kept import Kept
from agent.engines.postgres.member import Label, Member
from agent.engines.postgres.observe import Observer
from agent.engines.postgres.process import Postmaster, StartPreventedError
from agent.engines.postgres.replication import conninfo_of_walreceiver, copy_from, history
from agent.engines.postgres.rewind import Rejoin, may_hold_own_writes
from agent.engines.postgres.session import Session
from agent.engines.postgres.settings import closed_sync
from agent.engines.postgres.surroundings import Surroundings
from agent.engines.troubles import Cure, Diagnosis, TroubleError, diagnosis_of
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
CHECKPOINT_AFTER_S = 0.5  # of a promotion: the commits that have waited for it go first
STREAM_WAIT_S = 5.0
STREAMS_LOOKS = 3
NO_RECEIVER_FOR_S = 0.1
DESTROY_STOP_S = 4.0
RELEASE_WITHIN_S = 10.0


class PostgresEngine:
    """See `agent.engines.base.Engine` for what each call promises."""

    def __init__(self, setup: EngineSetup) -> None:
        self.setup = setup
        self._member = Member(setup)
        self._surroundings = Surroundings(self._member)
        self._postmaster = Postmaster(self._member, Detached(), lambda: self._surroundings.silent is not None)
        self._control = ControlFile(self._member.tools, setup.paths.data)
        self._configuration = Configuration(self._member, self._control)
        self._observer = Observer(
            self._member, self._postmaster, self._control, self._configuration, self._surroundings
        )
        self._remove = setup.rubbish.throw if setup.rubbish is not None else remove_tree
        self._failed_start: Diagnosis | None = None
        self._kept = Kept(self._member, self._remove)
        self._convergence = Convergence(
            self._member,
            postmaster=self._postmaster,
            configuration=self._configuration,
            observer=self._observer,
            kept=self._kept,
            surroundings=self._surroundings,
        )
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

    async def verifiers(self, users: list[str]) -> dict[str, str | None]:
        return await passwords.verifiers(self._member, users)

    async def wait_died(self) -> None:
        await self._postmaster.died()

    # --- making -------------------------------------------------------------------------------------------------------

    async def initialise(self) -> None:
        member = self._member
        member.check_socket_path()
        self._surroundings.check_answers()
        await self._postmaster.stop()
        await initdb.initialise(member, remove=self._remove)
        self._configuration.write_sync(closed_sync(member.desired))
        await self._configuration.write()
        member.relabel(begun="", upstream="", asked_to_end=True, proven={}, refused={})

    async def clone(self, source: PeerMember) -> None:
        member = self._member
        member.check_socket_path()
        self._surroundings.check_answers()
        member.remember_peer(source)
        await self._postmaster.stop()
        self._configuration.write_credentials()
        if may_hold_own_writes(member):
            job = Rejoin(member, self._control, self._configuration, self._kept, source)
            await job.copy_anew("had no usable data")
            log.warning("cloned_over_former_data", member=member.subject, how=job.sentence)
        else:
            await copy_from(member, source, remove=self._remove)
        await self._finish_copy(source)

    @property
    def _damaged(self) -> Diagnosis | None:
        """Why the data cannot be used, as far as the last start or the last look tells."""
        found = (self._failed_start, self._observer.facts.fault)
        return next((known for known in found if known is not None and known.cure is Cure.COPY), None)

    async def _finish_copy(self, source: PeerMember) -> None:
        self._member.relabel(upstream=source.member)
        self._configuration.write_sync(closed_sync(self._member.desired))
        await self._configuration.write()
        self._member.relabel(begun="", asked_to_end=True)
        self._failed_start = None

    async def rejoin(self, leader: PeerMember, *, anew: bool = False) -> str:
        member = self._member
        member.check_socket_path()
        self._surroundings.check_answers()
        damaged = self._damaged or self._observer.lacks_log
        member.remember_peer(leader)
        await self._postmaster.stop()
        self._configuration.write_credentials()
        job = Rejoin(member, self._control, self._configuration, self._kept, leader)
        if anew:
            await job.copy_anew("had log of its own under the number of another's timeline")
        elif damaged is not None:
            await job.copy_anew(f"could not be used ({damaged.trouble.value}: {damaged.evidence})")
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
            diagnosis = diagnosis_of(error)
            if diagnosis is not None and diagnosis.cure is Cure.LOOK:
                raise  # nothing is wrong with the data
            return f"did not start after it was brought back ({error.what})"
        in_a_row = 0  # a stream that is refused shows as one for a moment
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STREAM_WAIT_S):
                while in_a_row < STREAMS_LOOKS:
                    in_a_row = in_a_row + 1 if (await self.observe()).streaming else 0
                    if self._postmaster.lacks_log():
                        return f"needed log that {leader.member} no longer has"
                    await asyncio.sleep(0.03)
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
        self._check_start()
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
        self._check_start()
        write_owned(member.paths.data / "standby.signal", b"", member.setup.run_as)
        self._observer.leader_forks = ()
        member.relabel(upstream=upstream.member if upstream else "")
        self._configuration.write_sync(closed_sync(member.desired))
        await self._configuration.write()
        await self._start()

    def _check_start(self) -> None:
        """TroubleError with what would keep the engine from starting; nothing has been written before."""
        self._failed_start = None
        try:
            self._surroundings.check_start()
        except TroubleError as error:
            self._failed_start = error.diagnosis
            raise

    async def _start(self) -> None:
        """With the user's parameters; when it does not start with them, with those it last started with."""
        member, postmaster, configuration = self._member, self._postmaster, self._configuration
        self._failed_start = None
        try:
            ready = await postmaster.start(within_s=START_WAIT_S)
        except StartPreventedError:
            raise
        except EngineError as error:
            self._failed_start = diagnosis_of(error)
            if configuration.user == member.label.proven or faults.not_of_parameters(diagnosis_of(error)):
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
        self._surroundings.close()
        await asyncio.to_thread(remove_tree, paths.sockets)
        await asyncio.to_thread(self._remove, paths.root)
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
        self._surroundings.close()

    # --- leading and following ----------------------------------------------------------------------------------------

    async def make_ready(self) -> None:
        async with self._member.session(within_s=STATEMENT_S) as session:
            if await in_recovery(session):
                await self._ready_for_standbys(session)

    async def promote(self, sync: SyncRecord | None = None, *, above: int = 0) -> None:
        member = self._member
        self._surroundings.check_room()  # a new timeline begins with writes
        async with member.session(within_s=STATEMENT_S) as session:
            if not await in_recovery(session):
                return
            await self._convergence.close(session, sync or closed_sync(member.desired))
            # Before it is the primary: standbys turn to it meanwhile, and one that is refused tries again only later.
            await self._ready_for_standbys(session)
            timelines.pass_over(member, above)
            await session.rows("SELECT pg_promote(false)", within_s=STATEMENT_S)

            async def promoted() -> bool:
                return not await in_recovery(session)

            await until(promoted, within_s=PROMOTE_WITHIN_S, what="was not promoted", subject=member.subject)
            log.info("engine_promoted", member=member.subject)
            self._observer.leader_forks = ()
            member.relabel(durable=False, upstream="")
        self._begin_checkpoint()

    async def _ready_for_standbys(self, session: Session) -> None:
        try:
            await self._convergence.settle(session, primary=True)
        except (MoorageError, OSError) as error:
            log.warning("not_ready_for_standbys", member=self._member.subject, why=words(error))

    def _begin_checkpoint(self) -> None:
        """Members that rewind must see the new timeline in pg_control; whoever promotes need not wait for that."""
        self._drop_background()
        work = self._checkpoint_soon()
        task = asyncio.get_running_loop().create_task(work, name=f"checkpoint {self._member.subject}")
        task.add_done_callback(self._checkpoint_ended)
        self._background = task

    async def _checkpoint_soon(self) -> None:
        await asyncio.sleep(CHECKPOINT_AFTER_S)
        await self.checkpoint()

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
        await checkpoint(self._member)

    async def follow(self, leader: PeerMember | None) -> None:
        member = self._member
        if leader is not None:
            member.remember_peer(leader)
        self._observer.leader_forks = ()
        member.relabel(upstream=leader.member if leader else "")
        await self._configuration.write()
        wanted = conninfo_of_walreceiver(member, leader) if leader else ""
        async with member.session(within_s=STATEMENT_S) as session:
            await self._convergence.reload_until(session, "primary_conninfo", wanted)
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

    # --- settings and the sync set ------------------------------------------------------------------------------------

    async def apply_sync(self, sync: SyncRecord) -> None:
        await self._convergence.apply_sync(sync)

    async def converge(self) -> bool:
        return await self._convergence.converge()
