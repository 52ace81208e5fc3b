"""A data directory that has gone its own way, brought back behind the leader.

What may be there past the point where the leader's timeline left ours is the un-replicated tail: commits that this
member acknowledged (or was about to) and nobody else has. It is saved aside (`kept`) before anything is changed, and
told.

Whether the leader's history is ours is seen from the whole of both, not from timeline numbers: two members that
promoted themselves apart are on timelines of the same number. Where the own history cannot be read, it is not ours.

Four ways back, the first that fits:
1. Nothing past the fork, or the same timeline: start as it is.
2. Only log past the fork, no data page has it (a stopped standby): cut the log there. Left alone, the engine would
   replay it before it asks the leader.
3. pg_rewind. It needs the leader's pg_control to show the new timeline, so the leader checkpoints first; it leaves the
   directory unusable when it is interrupted, so the label says `rewind` before its first byte, and anything but success
   ends in a copy; and it copies the leader's configuration, so ours is written again after it.
4. A new copy, when the data is damaged, or rewinding fails for whatever reason.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from agent.engines.files import write_owned
from agent.engines.postgres.configuration import Configuration
from agent.engines.postgres.control import ControlData, ControlFile, Tail, tail_after
from agent.engines.postgres.kept import Kept, Saved, segments_of
from agent.engines.postgres.member import Member
from agent.engines.postgres.replication import (
    COPY_BASE_S,
    COPY_BYTES_PER_S,
    PEER_ANSWER_S,
    conninfo_of_tools,
    copy_from,
    history,
    parse_history,
    remote_session,
)
from agent.ha.view import Fork
from core.errors import EngineError, MoorageError, TimedOutError, UnavailableError, words
from core.log import EventLog
from core.positions import Lsn
from core.records import REMOTE, PeerMember

log = EventLog("agent.rewind")
CHECKPOINT_WITHIN_S = 120.0
History = tuple[Fork, ...]


class Rejoin:
    """One run for one stopped member behind one leader. `sentence` grows as things are done."""

    def __init__(
        self, member: Member, control: ControlFile, configuration: Configuration, kept: Kept, leader: PeerMember
    ) -> None:
        self._member = member
        self._kept = kept
        self._control = control
        self._configuration = configuration
        self._leader = leader
        self._saved: Saved | None = None
        self._whole: Path | None = None  # where the old directory is kept
        self._keep_old = False  # the old directory may hold what nobody else has, and no fork tells from where on
        self.sentence = ""

    async def bring_back(self) -> None:
        """Afterwards the directory is a standby's of the leader. UnavailableError and TimedOutError: the leader did not
        answer, and the directory is as it was unless a rewind was under way."""
        member, leader = self._member, self._leader
        if not member.has_data():
            await self.copy("had no usable data")
            return
        self._keep_old = True
        told = await history(member, leader)  # an error here is the leader's, and no reason to give the data up
        try:
            how = await self._without_copy(*told)
        except (MoorageError, OSError) as error:
            if isinstance(error, UnavailableError | TimedOutError) and not member.label.begun:
                raise
            log.warning("rewind_impossible", member=member.subject, leader=leader.member, why=words(error))
            await self.copy(f"could not be rewound ({words(error)})")
            return
        write_owned(member.paths.data / "standby.signal", b"", member.setup.run_as)
        member.relabel(begun="")
        self.sentence = f"{how}, now follows {leader.member}{self._where_saved()}"

    async def copy_anew(self, why: str) -> None:
        """Without looking at what is there. It is kept if it is small enough and may hold what nobody else has: a
        standby's holds only what it was sent."""
        self._keep_old = may_hold_own_writes(self._member)
        await self.copy(why)

    async def copy(self, why: str) -> None:
        """The last way."""
        member, leader = self._member, self._leader
        keep_at = await self._place_for_old_data()
        await copy_from(member, leader, remove=self._kept.remove, keep_old_at=keep_at)
        self._whole = keep_at if keep_at is not None and keep_at.exists() else None
        self.sentence = f"{why}, was cloned from {leader.member}{self._where_saved()}"

    def _where_saved(self) -> str:
        saved = f"; {self._saved}" if self._saved is not None else ""
        return f"{saved}; its former data is kept in {self._whole}" if self._whole is not None else saved

    async def _without_copy(self, system_id: str, timeline: int, forks: tuple[Fork, ...]) -> str:
        member, leader = self._member, self._leader
        control = await self._control.read()
        if control.system_id != system_id:
            raise EngineError(f"its data is of another database system than {leader.member}'s")
        mine = control.position.timeline
        fork = self._fork(mine, timeline, forks)
        if fork is None:
            self._keep_old = False
            return f"was on timeline {timeline} already"
        tail = await tail_after(member.tools, member.paths.data, mine, fork)
        if tail is None:
            self._keep_old = False
            return f"had nothing past {fork}, where timeline {mine} was left"
        self._saved = await asyncio.to_thread(self._kept.save_log, tail, control)
        lost = f"had {tail.commits} commits past {fork}, where {leader.member} left timeline {mine}"
        if control.standby and control.position.lsn <= fork:
            await asyncio.to_thread(self._cut, tail, control)
            return f"{lost}, which were cut off"
        if leader.member == REMOTE:
            raise EngineError(f"{lost}; a remote primary is not asked for single files")
        await self._rewind(timeline)
        return f"{lost} and was rewound to timeline {timeline}"

    def _fork(self, mine: int, timeline: int, forks: History) -> Lsn | None:
        """Where the leader's history left the own timeline; None when it is still on it. EngineError when the histories
        have parted before, or may have."""
        leader, own = self._leader.member, self._own_history(mine)
        common = forks if mine == timeline else forks[: next((i for i, f in enumerate(forks) if f.timeline == mine), 0)]
        if mine != timeline and all(fork.timeline != mine for fork in forks):
            raise EngineError(f"its timeline {mine} is not in the history of {leader}'s timeline {timeline}")
        if own is None:
            raise EngineError(f"the history of its own timeline {mine} cannot be read")
        if own != common:
            raise EngineError(f"its history up to timeline {mine} is not {leader}'s")
        return next((fork.lsn for fork in forks if fork.timeline == mine), None)

    def _own_history(self, timeline: int) -> History | None:
        """How the own data came to its timeline; None when its history file is not there. Nothing came before 1."""
        if timeline == 1:
            return ()
        try:
            return parse_history((self._member.paths.data / "pg_wal" / f"{timeline:08X}.history").read_text())
        except (OSError, ValueError):
            return None

    async def _place_for_old_data(self) -> Path | None:
        """Beside the saved log, when it is small enough: log without data pages tells a person little."""
        member = self._member
        if not self._keep_old or not member.paths.data.exists():
            return None
        if not await asyncio.to_thread(self._kept.room_for_data):
            return None
        return (self._saved.place if self._saved is not None else self._kept.new_place(0)) / "data"

    # --- changing ---------------------------------------------------------------------------------------------------

    def _cut(self, tail: Tail, control: ControlData) -> None:
        """Zeros from the fork on, the first byte first: whatever is left behind it can no longer be reached."""
        first, *rest = segments_of(self._member.paths.data, tail, control)
        wal = self._member.paths.data / "pg_wal"
        with (wal / first).open("r+b") as segment:
            offset = tail.start.value % control.segment_bytes
            segment.seek(offset)
            segment.write(bytes(control.segment_bytes - offset))
            segment.flush()
            os.fsync(segment.fileno())
        for name in rest:
            (wal / name).unlink(missing_ok=True)

    async def _rewind(self, timeline: int) -> None:
        member, data = self._member, self._member.paths.data
        await self._await_checkpoint(timeline)
        member.relabel(begun="rewind", upstream="")
        # A crashed directory is recovered first, in single-user mode, which refuses a standby's.
        for name in ("standby.signal", "recovery.signal"):
            (data / name).unlink(missing_ok=True)
        await self._configuration.write()
        arguments = ["--target-pgdata", str(data), "--source-server"]
        arguments.append(conninfo_of_tools(member, self._leader, dbname="postgres"))
        if not member.setup.durable:
            arguments.append("--no-sync")
        within_s = COPY_BASE_S + member.desired.disk_bytes / COPY_BYTES_PER_S
        await member.tools.run("pg_rewind", *arguments, within_s=within_s)
        (data / "moorage.sync.conf").unlink(missing_ok=True)  # the leader's

    async def _await_checkpoint(self, timeline: int) -> None:
        """pg_rewind believes the leader's pg_control, which shows the new timeline only after its first checkpoint."""
        async with remote_session(self._member, self._leader, walsender=False) as session:
            ask = "SELECT timeline_id AS timeline FROM pg_control_checkpoint()"
            try:
                async with asyncio.timeout(CHECKPOINT_WITHIN_S):
                    while (await session.row(ask, within_s=PEER_ANSWER_S))["timeline"] < timeline:
                        if self._member.setup.offer.version >= 15:  # pg_checkpoint lets the replication user do so
                            await session.rows("CHECKPOINT", within_s=CHECKPOINT_WITHIN_S)
                        else:
                            await asyncio.sleep(0.1)
            except TimeoutError as error:
                raise TimedOutError(f"{self._leader.member} made no checkpoint on timeline {timeline}") from error


def may_hold_own_writes(member: Member) -> bool:
    """The data directory is, or was before a rewind that did not end, that of a member that led."""
    if not member.paths.data.exists() or member.label.begun in ("clone", "initialise"):
        return False
    return member.label.begun == "rewind" or not member.is_standby()
