"""pg_control and the end of the log, read without a running server."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from agent.engines.postgres import faults
from agent.engines.tools import Toolbox, tail
from agent.engines.troubles import Diagnosis, Trouble, TroubleError
from core.errors import EngineError
from core.positions import Lsn, WalPosition

READ_WITHIN_S = 10.0
WALDUMP_WITHIN_S = 60.0
_CLEAN_STATES = ("shut down", "shut down in recovery")
_RECOVERY_STATES = ("shut down in recovery", "in archive recovery")
# pg_controldata's words for the parameters a replica must not have less of than its primary had
_FLOOR_WORDS = {
    "max_connections setting": "max_connections",
    "max_worker_processes setting": "max_worker_processes",
    "max_wal_senders setting": "max_wal_senders",
    "max_prepared_xacts setting": "max_prepared_transactions",
    "max_locks_per_xact setting": "max_locks_per_transaction",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlData:
    """pg_control as pg_controldata prints it."""

    state: str
    system_id: str
    checkpoint: WalPosition  # where the latest checkpoint record begins
    minimum_recovery: WalPosition  # a standby's data pages may hold changes up to here; 0 = not a standby's
    segment_bytes: int
    floors: dict[str, int] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """The engine ended in an orderly way."""
        return self.state in _CLEAN_STATES

    @property
    def standby(self) -> bool:
        """It was replaying somebody's log when it ended."""
        return self.state in _RECOVERY_STATES

    @property
    def position(self) -> WalPosition:
        """The furthest position certain without reading the log."""
        return max(self.checkpoint, self.minimum_recovery)


def parse_control(text: str) -> ControlData:
    """KeyError or ValueError when something is missing."""
    fields = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields[name.strip()] = value.strip()
    return ControlData(
        state=fields["Database cluster state"],
        system_id=fields["Database system identifier"],
        checkpoint=WalPosition(
            int(fields["Latest checkpoint's TimeLineID"]), Lsn.parse(fields["Latest checkpoint location"])
        ),
        minimum_recovery=WalPosition(
            int(fields["Min recovery ending loc's timeline"]), Lsn.parse(fields["Minimum recovery ending location"])
        ),
        segment_bytes=int(fields["Bytes per WAL segment"]),
        floors={ours: int(fields[theirs]) for theirs, ours in _FLOOR_WORDS.items()},
    )


class ControlFile:
    """Reads pg_control, again only when the file has changed."""

    def __init__(self, tools: Toolbox, data: Path) -> None:
        self._tools = tools
        self._data = data
        self._seen: tuple[int, int] = (0, 0)
        self._read: ControlData | None = None

    async def read(self) -> ControlData:
        """TroubleError when it is missing or makes no sense, EngineError when it cannot be read."""
        try:
            stat = (self._data / "global" / "pg_control").stat()
        except FileNotFoundError as error:
            raise self._trouble(Trouble.DATA_INCOMPLETE, f"{error.filename} is missing") from error
        except PermissionError as error:
            raise self._trouble(Trouble.DATA_PERMISSIONS, str(error)) from error
        except OSError as error:
            raise self._trouble(Trouble.DISK_BROKEN, str(error)) from error
        stamp = (stat.st_ino, stat.st_mtime_ns)
        if self._read is None or stamp != self._seen:
            output = await self._tools.attempt("pg_controldata", str(self._data), within_s=READ_WITHIN_S)
            said = output.stdout + output.stderr
            if "Calculated CRC checksum does not match" in said or "invalid WAL segment size" in said:
                raise self._trouble(Trouble.DATA_CORRUPTED, "pg_control is damaged")
            if output.status != 0:
                known = faults.classify(output.stderr)
                short = "could not read file" in said and known is None  # it ends too early
                if short:
                    known = Diagnosis(trouble=Trouble.DATA_CORRUPTED, evidence=tail(output.stderr))
                known = known or Diagnosis(trouble=Trouble.ENGINE_FAILED, evidence=tail(output.stderr))
                raise TroubleError(known, object=self._tools.subject)
            try:
                self._read = parse_control(output.stdout)
            except (KeyError, ValueError) as error:
                raise self._trouble(Trouble.DATA_CORRUPTED, f"pg_control makes no sense: {error!r}") from error
            self._seen = stamp
        return self._read

    @property
    def last(self) -> ControlData | None:
        """What was read last, for times when it cannot be read."""
        return self._read

    def _trouble(self, trouble: Trouble, evidence: str) -> TroubleError:
        return TroubleError(Diagnosis(trouble=trouble, evidence=evidence), object=self._tools.subject)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """The log a data directory holds past a point."""

    timeline: int
    start: Lsn
    end: Lsn  # the last record begins here
    commits: int


_RECORD = re.compile(r"lsn: ([0-9A-F]+/[0-9A-F]+)")
_LAST = re.compile(r"error in WAL record at ([0-9A-F]+/[0-9A-F]+)")
_COMMITS = re.compile(r"^Transaction/COMMIT\S*\s+(\d+)", re.MULTILINE)
_NOTHING = (
    "could not find a valid record after",
    "could not find file",
    "could not open file",
    "invalid record length",
)


async def tail_after(tools: Toolbox, data: Path, timeline: int, start: Lsn) -> Tail | None:
    """The log of `timeline` from `start` on; None when there is not one record. EngineError when that is unclear."""
    where = ("-p", str(data / "pg_wal"), "-t", str(timeline), "-s", str(start))
    first = await tools.attempt("pg_waldump", *where, "-n", "1", within_s=WALDUMP_WITHIN_S)
    found = _RECORD.search(first.stdout)
    if found is None:
        if any(words in first.stderr for words in _NOTHING):
            return None
        raise EngineError(f"cannot tell where the log ends: {first.stderr.strip()}", object=tools.subject)
    # It always ends with an error: that is how the end of the log looks.
    counted = await tools.attempt("pg_waldump", *where, "--stats=record", within_s=WALDUMP_WITHIN_S)
    last = _LAST.search(counted.stderr)
    return Tail(
        timeline=timeline,
        start=start,
        end=Lsn.parse(last[1]) if last else Lsn.parse(found[1]),
        commits=sum(int(number) for number in _COMMITS.findall(counted.stdout)),
    )


def segment_name(timeline: int, lsn: Lsn, segment_bytes: int) -> str:
    """File name of the log segment that holds the byte at `lsn`."""
    number = lsn.value // segment_bytes
    per_id = (1 << 32) // segment_bytes
    return f"{timeline:08X}{number // per_id:08X}{number % per_id:08X}"
