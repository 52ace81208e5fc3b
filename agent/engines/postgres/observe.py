"""What the engine is, asked over one connection that is kept open and renewed every few seconds.

An answer in time makes it RUNNING; a process without an answer for longer than the limit UNRESPONSIVE; in between the
last answer stands. The connection is renewed so that a postmaster that is frozen while old backends live is noticed.

A standby counts as RUNNING only when it has replayed all the log it holds and waits for more. Until then its position
would be too low, and a ballot cast with it could lose an acknowledged commit.

Timelines: a standby that streams says on which one. One that does not may have received part of a new timeline
without a restart point on it; the newest timeline that has a log file for its position tells.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Any

from agent.engines.base import EngineFacts
from agent.engines.postgres import faults
from agent.engines.postgres.configuration import Configuration
from agent.engines.postgres.control import ControlFile, segment_name
from agent.engines.postgres.member import Member
from agent.engines.postgres.process import Postmaster
from agent.engines.postgres.replication import conninfo_of_walreceiver, leads_to
from agent.engines.postgres.session import Row, Session
from agent.engines.postgres.settings import read_sync
from agent.engines.postgres.surroundings import Surroundings
from agent.engines.troubles import Cure, Diagnosis, Trouble, diagnosis_of
from agent.ha.view import Engine, EngineState, Fork, Standby
from agent.local import boot_id
from agent.supervise.base import ProcessId
from core.errors import EngineError, MoorageError, TimedOutError, UnavailableError
from core.log import EventLog
from core.positions import Lsn, WalPosition
from core.status import Role

log = EventLog("agent.observe")
CONNECT_S = 1.0
ANSWER_S = 2.0  # with CONNECT_S below the 5 s that the keeper allows
RENEW_AFTER_S = 10.0
SIZE_EVERY_S = 60.0
SEGMENT_BYTES = 16 << 20  # initdb's default, which is what `initdb` here uses
# What a server that lives says to a client it does not let in.
_NOT_YET = ("starting up", "shutting down", "not yet accepting", "not accepting connections", "recovery mode")
_FULL = ("too many clients", "remaining connection slots")
LACKS_LOG = "the primary no longer has the log this replica needs: it must be cloned anew"
UNKNOWN_UPSTREAM = "?"  # set to stream from somewhere, but not as it should be: no member is called so
_ALL_REPLAYED = ("RecoveryWalStream", "RecoveryRetrieveRetryInterval")  # the startup process waits for more log

_QUERY = """
SELECT pg_is_in_recovery() AS recovery,
  CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_current_wal_flush_lsn()::text END AS written,
  CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_walfile_name(pg_current_wal_lsn()) END AS segment,
  pg_last_wal_receive_lsn()::text AS received,
  pg_last_wal_replay_lsn()::text AS replayed,
  (SELECT timeline_id FROM pg_control_checkpoint()) AS checkpoint_timeline,
  (SELECT min_recovery_end_timeline FROM pg_control_recovery()) AS recovery_timeline,
  (SELECT system_identifier::text FROM pg_control_system()) AS system_id,
  current_setting('synchronous_standby_names') AS sync,
  current_setting('primary_conninfo') AS conninfo,
  (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()) AS clients,
  EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'walreceiver') AS receiving,
  (SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'startup') AS startup_waits,
  (SELECT coalesce(json_agg(name ORDER BY name), '[]') FROM pg_settings WHERE pending_restart) AS pending,
  (SELECT row_to_json(r) FROM (SELECT status, received_tli AS timeline, latest_end_lsn::text AS told, conninfo
     FROM pg_stat_wal_receiver) r) AS receiver,
  (SELECT coalesce(json_agg(json_build_object('member', application_name, 'flushed', flush_lsn::text,
       'streaming', state = 'streaming') ORDER BY application_name), '[]')
     FROM pg_stat_replication WHERE usename = %s AND NOT starts_with(application_name, 'pg_')) AS standbys
"""


@dataclass(slots=True)
class Remembered:
    """What holds for one process only; forgotten when another one is seen."""

    process: ProcessId
    answered_at: float
    timeline: int = 0
    told: Lsn = field(default_factory=Lsn)  # the furthest the primary spoke of, on `told_timeline`
    told_timeline: int = 0
    # Once all log on disk is replayed, what comes later is counted as received.
    caught_up: bool = False
    last: Engine | None = None


class Observer:
    """Keeps the connection and what was last seen."""

    def __init__(
        self,
        member: Member,
        postmaster: Postmaster,
        control: ControlFile,
        configuration: Configuration,
        surroundings: Surroundings,
    ) -> None:
        self._member = member
        self._surroundings = surroundings
        self._death: tuple[ProcessId, Diagnosis] | None = None  # of the last process, if it ended unexpectedly
        self._postmaster = postmaster
        self._control = control
        self._configuration = configuration
        self._session: Session | None = None
        self._opened_at = 0.0
        self._sized_at: float | None = None
        self._remembered: Remembered | None = None
        self._last: Engine | None = None
        self._fault: Diagnosis | None = None  # found by the look under way
        self.leader_forks: tuple[Fork, ...] = ()
        self.roles_problems: tuple[str, ...] = ()
        self.slot_notices: tuple[Diagnosis, ...] = ()
        self.facts = EngineFacts(full_version=member.setup.offer.full_version, tls=member.tls)

    async def observe(self) -> Engine:
        surroundings = self._surroundings
        surroundings.look()
        self._fault = None
        process = self._postmaster.find()
        if process is None:
            self.close()
            await self._postmaster.sweep()
            process = self._postmaster.find()  # started meanwhile
        if surroundings.silent is not None:
            engine = self._disk_is_silent(process, surroundings.silent)
        else:
            engine = await self._ended() if process is None else await self._alive(process)
        self.facts = replace(
            self.facts,
            tls=self._member.tls,
            problems=(*self._configuration.problems, *self.roles_problems),
            fault=self._fault,
            notices=(*surroundings.notices(), *(self.slot_notices if process is not None else ())),
        )
        full = surroundings.full
        return replace(engine, leader_forks=self.leader_forks, unfit=full.message if full is not None else "")

    def _disk_is_silent(self, process: ProcessId | None, why: Diagnosis) -> Engine:
        """Nothing is read that might wait for that disk: what was known last stands."""
        last = self._last or Engine(state=EngineState.CRASHED, role=self._role_on_disk())
        state = EngineState.UNRESPONSIVE if process is not None else EngineState.CRASHED
        self._fault = why
        return replace(last, state=state, clean=False, streaming=False, standbys=(), failure=why.message, broken=False)

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    # --- without a process --------------------------------------------------------------------------------------------

    async def _ended(self) -> Engine:
        member = self._member
        self._remembered = None
        self.facts = replace(self.facts, connections=0, lag_bytes=0, pending_restart=())
        if not member.has_data():
            self._fault = self._what_is_left()
            return Engine(state=EngineState.ABSENT, failure=_text(self._fault))
        try:
            control = await self._control.read()
        except (EngineError, TimedOutError) as error:
            return self._without_control(error)
        ended_well = member.label.asked_to_end or control.clean
        why = self._fault = None if ended_well else self._why_ended()
        now = member.setup.clock.now()
        self._last = Engine(
            state=EngineState.STOPPED if ended_well else EngineState.CRASHED,
            role=self._role_on_disk(),
            position=control.position,
            clean=control.clean and not control.standby,
            system_id=control.system_id,
            upstream=member.label.upstream if member.is_standby() else "",
            failure=_text(why),
            broken=why is not None and why.cure is Cure.COPY,
            retry_at=self._surroundings.deaths.retry_at(now),
        )
        return self._last

    def _what_is_left(self) -> Diagnosis | None:
        """Of a directory that once was whole, and that nobody has begun to replace."""
        member = self._member
        if member.label.begun or not (member.paths.data / "global").exists():
            return None
        evidence = f"{member.paths.data / 'PG_VERSION'} is missing"
        return Diagnosis(trouble=Trouble.DATA_INCOMPLETE, evidence=evidence)

    def _without_control(self, error: MoorageError) -> Engine:
        """Data that is damaged is as good as none: a new copy is all that helps. Data that only cannot be read now
        (programs removed, permissions taken, a disk with errors) is there all the same, and never given up for that."""
        diagnosis = self._fault = diagnosis_of(error)
        if diagnosis is not None and diagnosis.cure is Cure.COPY:
            return Engine(state=EngineState.ABSENT, failure=diagnosis.message)
        known = self._control.last
        return Engine(
            state=EngineState.CRASHED,
            role=self._role_on_disk(),
            position=known.position if known is not None else WalPosition(),
            system_id=known.system_id if known is not None else "",
            failure=_text(diagnosis) or str(error),
        )

    def _why_ended(self) -> Diagnosis | None:
        """Why the last process ended, which nobody had asked to; looked up once a process."""
        member = self._member
        process = member.label.process
        if not process.pid:
            return None
        if process.boot != boot_id():
            return Diagnosis(trouble=Trouble.ENDED_SILENTLY, evidence="the machine was restarted")
        if self._death is None or self._death[0] != process:
            why = faults.ended(self._postmaster.printed())
            self._death = (process, why)
            if self._postmaster.was_ready(process):
                self._surroundings.deaths.note(member.setup.clock.now(), why)
            log.warning("engine_death_explained", member=member.subject, reason=why.trouble.value, why=why.evidence)
        return self._death[1]

    @property
    def lacks_log(self) -> Diagnosis | None:
        """The running replica was last seen to need log that its primary no longer has."""
        last = self._last
        if last is None or last.state is not EngineState.RUNNING or not last.broken:
            return None
        return Diagnosis(trouble=Trouble.LOG_MISSING, evidence=f"{last.upstream} no longer has it")

    def _role_on_disk(self) -> Role:
        return Role.REPLICA if self._member.is_standby() else Role.PRIMARY

    # --- with a process -----------------------------------------------------------------------------------------------

    async def _alive(self, process: ProcessId) -> Engine:
        now = self._member.setup.clock.now()
        known = self._remembered
        if known is None or known.process != process:
            self.close()
            known = self._remembered = Remembered(process=process, answered_at=now)
        try:
            session = await self._open(now)
            row = await session.row(_QUERY, [self._member.replication_user], within_s=ANSWER_S)
            engine = self._read(row, known)
            await self._measure(session, now)
        except (EngineError, UnavailableError, TimedOutError) as error:
            self.close()
            return self._unanswered(known, error)
        known.answered_at, known.last = self._member.setup.clock.now(), engine
        self._last = engine
        self._postmaster.note_ready(process)
        return engine

    async def _open(self, now: float) -> Session:
        if self._session is not None and (self._session.closed or now - self._opened_at > RENEW_AFTER_S):
            self.close()
        if self._session is None:
            self._session = await Session.open(
                self._member.local_conninfo(),
                options={"statement_timeout": str(int(ANSWER_S * 1000))},
                within_s=CONNECT_S,
                subject=self._member.subject,
            )
            self._opened_at = now
        return self._session

    def _unanswered(self, known: Remembered, error: MoorageError) -> Engine:
        now = self._member.setup.clock.now()
        stale = known.last or Engine(state=EngineState.STARTING, role=self._role_on_disk())
        if any(words in error.what for words in _FULL):
            known.answered_at = now
            return stale
        starting = self._postmaster.status in ("", "starting", "standby", "stopping")
        if starting or any(words in error.what for words in _NOT_YET):
            known.answered_at = now
            return replace(stale, state=EngineState.STARTING, streaming=False, standbys=())
        if now - known.answered_at < self._member.setup.unresponsive_after_s:
            return stale
        log.warning("engine_unresponsive", member=self._member.subject, silent_s=round(now - known.answered_at, 1))
        return replace(stale, state=EngineState.UNRESPONSIVE, streaming=False)

    async def _measure(self, session: Session, now: float) -> None:
        """The size of all databases, now and then: it looks at every file."""
        if self._sized_at is not None and now - self._sized_at < SIZE_EVERY_S:
            return
        self._sized_at = now
        row = await session.row(
            "SELECT coalesce(sum(pg_database_size(oid)), 0)::bigint AS size FROM pg_database", within_s=ANSWER_S
        )
        self.facts = replace(self.facts, data_bytes=row["size"])

    # --- reading the answer -------------------------------------------------------------------------------------------

    def _read(self, row: Row, known: Remembered) -> Engine:
        self.facts = replace(self.facts, pending_restart=tuple(row["pending"]), connections=row["clients"])
        return self._replica(row, known) if row["recovery"] else self._primary(row)

    def _primary(self, row: Row) -> Engine:
        self.facts = replace(self.facts, lag_bytes=0)
        return Engine(
            state=EngineState.RUNNING,
            role=Role.PRIMARY,
            position=WalPosition(int(row["segment"][:8], 16), Lsn.parse(row["written"])),
            system_id=row["system_id"],
            standbys=tuple(
                Standby(member=s["member"], flushed=_lsn(s["flushed"]), streaming=bool(s["streaming"]))
                for s in row["standbys"]
            ),
            sync=read_sync(self._configuration.sync_file(), row["sync"]),
        )

    def _replica(self, row: Row, known: Remembered) -> Engine:
        receiver: dict[str, Any] | None = row["receiver"]
        received, replayed = _lsn(row["received"]), _lsn(row["replayed"])
        position = max(received, replayed)
        known.timeline = max(known.timeline, self._timeline(row, receiver, position))
        self._hear(receiver, received, known)
        self.facts = replace(self.facts, lag_bytes=max(0, known.told - replayed) if known.told.value else 0)
        known.caught_up = known.caught_up or receiver is not None or row["startup_waits"] in _ALL_REPLAYED
        upstream = self._upstream(row["conninfo"])
        streaming = self._streams(row, upstream)
        lacks_log = not streaming and self._postmaster.lacks_log()
        return Engine(
            state=EngineState.RUNNING if known.caught_up else EngineState.STARTING,
            role=Role.REPLICA,
            position=WalPosition(known.timeline, position),
            leader_lsn=known.told,
            system_id=row["system_id"],
            upstream=upstream,
            streaming=streaming,
            failure=LACKS_LOG if lacks_log else "",
            broken=lacks_log,
        )

    def _timeline(self, row: Row, receiver: dict[str, Any] | None, position: Lsn) -> int:
        certain = max(row["checkpoint_timeline"] or 0, row["recovery_timeline"] or 0)
        if receiver is not None and receiver["timeline"]:
            return max(certain, int(receiver["timeline"]))
        return max(certain, self._newest_log_timeline(position))

    def _newest_log_timeline(self, position: Lsn) -> int:
        suffix = segment_name(0, Lsn(max(0, position.value - 1)), SEGMENT_BYTES)[8:]
        try:
            names = os.listdir(self._member.paths.data / "pg_wal")
        except OSError:
            return 0
        return max((int(name[:8], 16) for name in names if len(name) == 24 and name[8:] == suffix), default=0)

    @staticmethod
    def _hear(receiver: dict[str, Any] | None, received: Lsn, known: Remembered) -> None:
        """How far the primary is: by its own word, and at least what came from it."""
        if receiver is None:
            return
        told = max(_lsn(receiver["told"]), received)
        if receiver["timeline"] != known.told_timeline:
            known.told, known.told_timeline = told, receiver["timeline"]
        known.told = max(known.told, told)

    def _upstream(self, conninfo: str) -> str:
        """Whom it is set to stream from, by what is in force: a change not yet reloaded does not count."""
        member, name = self._member, self._member.label.upstream
        if not conninfo:
            return ""
        peer = member.peer(name)
        if peer is None:
            return name or UNKNOWN_UPSTREAM
        return name if conninfo == conninfo_of_walreceiver(member, peer) else UNKNOWN_UPSTREAM

    def _streams(self, row: Row, upstream: str) -> bool:
        """Streams from its upstream. Of one that should stream from nobody: still has a receiver, in whatever state."""
        receiver: dict[str, Any] | None = row["receiver"]
        peer = self._member.peer(upstream)
        if not upstream:
            return bool(row["receiving"])
        if receiver is None or receiver["status"] != "streaming":
            return False
        return peer is None or leads_to(self._member, receiver["conninfo"] or "", peer)


def _text(diagnosis: Diagnosis | None) -> str:
    return diagnosis.message if diagnosis is not None else ""


def _lsn(text: str | None) -> Lsn:
    return Lsn.parse(text) if text else Lsn()
