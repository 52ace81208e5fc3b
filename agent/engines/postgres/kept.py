"""What only this member had, put aside before its data is made to follow another: `<member>/kept/<time>-tl<N>/`.

There lie the log segments past the point where the leader's history left the member's own, and, where no log could tell
what was there or the data was copied anew, the whole former directory as `data`. Nothing reads them but people:
`pg_waldump -p <directory> -t <timeline> -s <lsn>` shows what was written.

It is a courtesy with bounds: the newest `LOGS_KEPT` places, at most one whole directory and that for a week, and no
whole directory while the disk is filling, for an instance that stops is worse than a copy that is missed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.engines.files import tree_bytes
from agent.engines.postgres.control import ControlData, Tail, segment_name
from agent.engines.postgres.member import Member
from core.clock import iso
from core.log import EventLog
from core.positions import Lsn

log = EventLog("agent.kept")
LOGS_KEPT = 3
LOG_BYTES_MAX = 1 << 30
LOG_DISK_SHARE = 16  # at most one sixteenth of the member's disk
DATA_DISK_SHARE = 4  # a whole directory is kept only when it is smaller than a quarter of the member's disk
DATA_KEPT_S = 7 * 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """Log that was put aside."""

    place: Path
    tail: Tail
    segments: int
    left_out: int  # segments beyond the budget

    def __str__(self) -> str:
        tail, partly = self.tail, f", but for the last {self.left_out} segments," if self.left_out else ""
        return (
            f"{tail.end - tail.start} bytes of log from {tail.start} to {tail.end} on timeline {tail.timeline} are kept"
            f"{partly} in {self.place}: look with `pg_waldump -p {self.place} -t {tail.timeline} -s {tail.start}`"
        )


class Kept:
    """The folder of one member. `remove` gets rid of a directory."""

    def __init__(self, member: Member, remove: Callable[[Path], None]) -> None:
        self._member = member
        self.remove = remove
        self._root = member.paths.root / "kept"

    def new_place(self, timeline: int) -> Path:
        """A folder of its own; the oldest of too many goes. `timeline` 0 = not known."""
        at = iso(self._member.setup.clock.wall()).replace(":", "").replace("-", "")[:15]
        self._root.mkdir(mode=0o700, exist_ok=True)
        places = self._places()
        for old in places[: max(0, len(places) - (LOGS_KEPT - 1))]:
            self.remove(old)
        number = next(n for n in range(1000) if not (self._root / f"{at}-tl{timeline}{f'.{n}' if n else ''}").exists())
        place = self._root / f"{at}-tl{timeline}{f'.{number}' if number else ''}"
        place.mkdir(mode=0o700)
        return place

    def _places(self) -> list[Path]:
        """Oldest first."""
        return sorted(path for path in self._root.glob("*-tl*") if path.is_dir()) if self._root.is_dir() else []

    def save_log(self, tail: Tail, control: ControlData) -> Saved:
        """Copy the tail's segments, as many as the budget allows."""
        place = self.new_place(tail.timeline)
        budget = min(LOG_BYTES_MAX, self._member.desired.disk_bytes // LOG_DISK_SHARE)
        names = segments_of(self._member.paths.data, tail, control)
        affordable = names[: max(1, budget // control.segment_bytes)]
        for name in affordable:
            shutil.copyfile(self._member.paths.data / "pg_wal" / name, place / name, follow_symlinks=False)
        saved = Saved(place=place, tail=tail, segments=len(affordable), left_out=len(names) - len(affordable))
        log.warning(
            "diverged_log_saved",
            member=self._member.subject,
            directory=str(place),
            segments=saved.segments,
            left_out=saved.left_out,
            commits=tail.commits,
        )
        return saved

    def room_for_data(self) -> bool:
        """Whether the present data directory is small enough to be kept as a whole."""
        size = tree_bytes(self._member.paths.data)
        if size <= self._member.desired.disk_bytes // DATA_DISK_SHARE:
            return True
        log.warning("old_data_not_kept", member=self._member.subject, size_bytes=size)
        return False

    def prune(self, *, filling: bool) -> None:
        """Whole directories but the newest go, and that one when it is old or the disk is filling."""
        wall = self._member.setup.clock.wall()
        whole = [place / "data" for place in self._places() if (place / "data").is_dir()]
        for number, data in enumerate(reversed(whole)):
            old = wall - data.parent.stat().st_mtime > DATA_KEPT_S
            if number > 0 or old or filling:
                why = "the disk is filling" if filling else "it is old" if old else "there is a newer one"
                log.warning("kept_data_removed", member=self._member.subject, directory=str(data), why=why)
                self.remove(data)


def segments_of(data: Path, tail: Tail, control: ControlData) -> list[str]:
    """Log files of the tail, in order; always the first, even if only the engine's next start would make it."""
    low = segment_name(tail.timeline, tail.start, control.segment_bytes)
    high = segment_name(tail.timeline, Lsn(tail.end.value), control.segment_bytes)
    return sorted(name for name in os.listdir(data / "pg_wal") if len(name) == len(low) and low <= name <= high)
