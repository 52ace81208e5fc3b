"""A data directory that has gone its own way, brought back behind the leader.

What may be there past the point where the leader's timeline left ours is the un-replicated tail: commits that this
member acknowledged (or was about to) and nobody else has. It is saved aside before anything is changed, and told.

Four ways back, the first that fits:
1. Nothing past the fork, or the same timeline: start as it is.
2. Only log past the fork, no data page has it (a stopped standby): cut the log there. Left alone, the engine would
   replay it before it asks the leader.
3. pg_rewind. It needs the leader's pg_control to show the new timeline, so the leader checkpoints first; it leaves the
   directory unusable when it is interrupted, so the label says `rewind` before its first byte; and it copies the
   leader's configuration, so ours is written again after it.
4. A new copy, when rewinding fails for whatever reason.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

from agent.engines.files import remove_tree, tree_bytes, write_owned
from agent.engines.postgres.configuration import Configuration
from agent.engines.postgres.control import ControlData, ControlFile, Tail, segment_name, tail_after
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
from core.clock import iso
from core.errors import EngineError, MoorageError, TimedOutError, UnavailableError, words
from core.log import EventLog
from core.positions import Lsn
from core.records import PeerMember

log = EventLog("agent.rewind")
SAVED_BYTES_MAX = 1 << 30
SAVED_DISK_SHARE = 16  # at most one sixteenth of the member's disk
SAVED_KEPT = 3  # directories; the oldest go first
OLD_DATA_DISK_SHARE = 4  # a whole directory is kept only when it is smaller than a quarter of the member's disk
CHECKPOINT_WITHIN_S = 120.0
SAVED_PREFIX = "diverged-"


class Rejoin:
    """One run for one stopped member behind one leader. `sentence` grows as things are done."""

    def __init__(self, member: Member, control: ControlFile, configuration: Configuration, leader: PeerMember) -> None:
        self._member = member
        self._control = control
        self._configuration = configuration
        self._leader = leader
        self._saved: Path | None = None
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
        """Without looking at what is there, which is kept if it is small enough."""
        self._keep_old = self._member.has_data()
        await self.copy(why)

    async def copy(self, why: str) -> None:
        """The last way."""
        member, leader = self._member, self._leader
        if self._keep_old and self._saved is None:
            self._saved = await self._new_place("whole")
        keep_at = await self._place_for_old_data()
        await copy_from(member, leader, keep_old_at=keep_at)
        self.sentence = f"{why}, was cloned from {leader.member}{self._where_saved()}"

    def _where_saved(self) -> str:
        kept = self._saved is not None and any(self._saved.iterdir())
        return f"; what only it had is kept in {self._saved}" if kept else ""

    async def _without_copy(self, system_id: str, timeline: int, forks: tuple[Fork, ...]) -> str:
        member, leader = self._member, self._leader
        control = await self._control.read()
        if control.system_id != system_id:
            raise EngineError(f"its data is of another database system than {leader.member}'s")
        mine = control.position.timeline
        fork = next((fork.lsn for fork in forks if fork.timeline == mine), None)
        if mine == timeline and self._own_history(mine) in (None, forks):
            self._keep_old = False
            return f"was on timeline {timeline} already"
        if fork is None:
            raise EngineError(f"its timeline {mine} is not in the history of {leader.member}'s timeline {timeline}")
        tail = await tail_after(member.tools, member.paths.data, mine, fork)
        if tail is None:
            self._keep_old = False
            return f"had nothing past {fork}, where timeline {mine} was left"
        await self._save(tail, control)
        lost = f"had {tail.commits} commits in {tail.end - tail.start} bytes of log past {fork} on timeline {mine}"
        if control.standby and control.position.lsn <= fork:
            await asyncio.to_thread(self._cut, tail, control)
            return f"{lost}, which were cut off"
        await self._rewind(timeline)
        return f"{lost} and was rewound to timeline {timeline}"

    def _own_history(self, timeline: int) -> tuple[Fork, ...] | None:
        """How the own data came to its timeline; None when its history file is not there. Two members that promoted
        themselves apart may both be on a timeline of the same number."""
        try:
            return parse_history((self._member.paths.data / "pg_wal" / f"{timeline:08X}.history").read_text())
        except (OSError, ValueError):
            return None

    # --- saving -----------------------------------------------------------------------------------------------------

    async def _save(self, tail: Tail, control: ControlData) -> None:
        budget = min(SAVED_BYTES_MAX, self._member.desired.disk_bytes // SAVED_DISK_SHARE)
        self._saved = await self._new_place(f"timeline{tail.timeline}")
        copied, left_out = await asyncio.to_thread(self._copy_segments, self._saved, tail, control, budget)
        log.warning(
            "diverged_log_saved",
            member=self._member.subject,
            directory=str(self._saved),
            segments=copied,
            left_out=left_out,
            commits=tail.commits,
        )

    async def _new_place(self, what: str) -> Path:
        at = iso(self._member.setup.clock.wall()).replace(":", "").replace("-", "")[:15]
        place = self._member.paths.root / f"{SAVED_PREFIX}{at}-{what}"
        await asyncio.to_thread(_drop_oldest, self._member.paths.root, keep=SAVED_KEPT - 1)
        place.mkdir(mode=0o700, exist_ok=True)
        return place

    def _copy_segments(self, into: Path, tail: Tail, control: ControlData, budget: int) -> tuple[int, int]:
        names = _segments(self._member.paths.data, tail, control)
        affordable = names[: max(1, budget // control.segment_bytes)]
        for name in affordable:
            shutil.copyfile(self._member.paths.data / "pg_wal" / name, into / name, follow_symlinks=False)
        return len(affordable), len(names) - len(affordable)

    async def _place_for_old_data(self) -> Path | None:
        """Beside the saved log, when it is small enough: log without data pages tells a person little."""
        member = self._member
        if self._saved is None or not member.paths.data.exists():
            return None
        size = await asyncio.to_thread(tree_bytes, member.paths.data)
        if size <= member.desired.disk_bytes // OLD_DATA_DISK_SHARE:
            return self._saved / "data"
        log.warning("old_data_not_kept", member=member.subject, size_bytes=size)
        return None

    # --- changing ---------------------------------------------------------------------------------------------------

    def _cut(self, tail: Tail, control: ControlData) -> None:
        """Zeros from the fork on, the first byte first: whatever is left behind it can no longer be reached."""
        first, *rest = _segments(self._member.paths.data, tail, control)
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


def _segments(data: Path, tail: Tail, control: ControlData) -> list[str]:
    """Log files of the tail, in order; always the first, even if only the engine's next start would make it."""
    low = segment_name(tail.timeline, tail.start, control.segment_bytes)
    high = segment_name(tail.timeline, Lsn(tail.end.value), control.segment_bytes)
    return sorted(name for name in os.listdir(data / "pg_wal") if len(name) == len(low) and low <= name <= high)


def _drop_oldest(root: Path, *, keep: int) -> None:
    saved = sorted(path for path in root.glob(f"{SAVED_PREFIX}*") if path.is_dir())
    for path in saved[: max(0, len(saved) - keep)]:
        remove_tree(path)
