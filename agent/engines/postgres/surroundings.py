"""What an engine needs of its machine: programs, a data directory that is its own, room, a disk that answers, a port.

Looked at before each start, so that an engine which cannot start is not started: no loop of failing processes, no log
full of the same lines, and the reason is a fact of the system rather than a guess. The same facts are warned of while
the engine runs.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

import psutil

from agent.engines.deaths import Deaths
from agent.engines.disk import DiskProbe, judge_room, room
from agent.engines.postgres.member import Member
from agent.engines.troubles import Diagnosis, Trouble, TroubleError

ROOM_EVERY_S = 1.0
PROBES_A_BOUND = 4  # the disk is asked so often within the time that it may stay silent
SILENT_LOOKS_S = 1.0  # a disk that has owed an answer for so long is not asked anything else
CLOCK_BEHIND_S = 120.0  # pg_control was written later than now, by more than clocks of one machine differ
NEEDED = ("postgres", "pg_controldata")
_FOREIGN_MODE = stat.S_IWGRP | stat.S_IRWXO  # PostgreSQL accepts 0700 and 0750


class Surroundings:
    """Of one member."""

    def __init__(self, member: Member) -> None:
        setup = member.setup
        self._member = member
        every_s = setup.disk_answers_within_s / PROBES_A_BOUND
        self._probe = DiskProbe(member.paths.data, run_as=setup.run_as, now=setup.clock.now, every_s=every_s)
        # The disk may have begun to hang right after its last answer.
        self._silent_after_s = setup.disk_answers_within_s - every_s
        self._looked_at: float | None = None
        self._rooms: tuple[Diagnosis, ...] = ()
        self._clock: Diagnosis | None = None
        self.deaths = Deaths()

    # --- while it runs ------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Again, when it is time; never waits for the disk."""
        if not self._member.label.begun:
            self._probe.ask()
        now = self._member.setup.clock.now()
        if self.owes:
            return
        if self._looked_at is None or now - self._looked_at >= ROOM_EVERY_S:
            self._looked_at = now
            self._rooms = tuple(_distinct(self._judge_rooms()))
            self._clock = self._judge_clock()

    def _judge_rooms(self) -> list[Diagnosis]:
        warned = {diagnosis.trouble for diagnosis in self._rooms}
        found = []
        for place in self._places():
            try:
                judged = judge_room(room(place), warned=Trouble.DISK_FILLING in warned)
            except OSError:
                continue
            if judged is not None:
                found.append(judged)
        return found

    def _places(self) -> list[Path]:
        """Where the engine writes: its data, and its log where that lies elsewhere."""
        data = self._member.paths.data
        wal = data / "pg_wal"
        place = data if data.is_dir() else self._member.paths.root
        return [place, wal.resolve()] if wal.is_symlink() else [place]

    def _judge_clock(self) -> Diagnosis | None:
        try:
            written = (self._member.paths.data / "global" / "pg_control").stat().st_mtime
        except OSError:
            return None
        behind = written - self._member.setup.clock.wall()
        if behind <= CLOCK_BEHIND_S:
            return None
        return Diagnosis(trouble=Trouble.CLOCK_WRONG, evidence="its data was written later than now")

    @property
    def owes(self) -> bool:
        """The disk has owed an answer for a while: what need not be written now is not."""
        return self._probe.silent_s > SILENT_LOOKS_S

    @property
    def silent(self) -> Diagnosis | None:
        """The disk has not answered for longer than it may."""
        if self._probe.silent_s < self._silent_after_s:
            return None
        return Diagnosis(
            trouble=Trouble.DISK_SILENT, evidence=f"it has not answered for {self._silent_after_s:g} s or longer"
        )

    @property
    def full(self) -> Diagnosis | None:
        """No room: what is to be written first when it is promoted or started would fail."""
        return next((d for d in self._rooms if d.trouble in (Trouble.DISK_FULL, Trouble.DISK_READ_ONLY)), None)

    @property
    def filling(self) -> bool:
        return bool(self._rooms)

    def notices(self) -> tuple[Diagnosis, ...]:
        """What is to be told although the engine may run."""
        loop = self.deaths.loop(self._member.setup.clock.now())
        return (*self._rooms, *([self._clock] if self._clock else []), *([loop] if loop else []))

    def close(self) -> None:
        self._probe.close()

    # --- before a start -----------------------------------------------------------------------------------------------

    def check_answers(self) -> None:
        """TroubleError when the disk owes an answer: whoever wrote to it now would hang, and the agent with it."""
        if self._probe.silent_s > self._member.setup.disk_answers_within_s / 2:
            self._refuse(Diagnosis(trouble=Trouble.DISK_SILENT, evidence="it owes an answer"))

    def check_room(self) -> None:
        """TroubleError when the disk is full or does not answer."""
        self.check_answers()
        self._looked_at = None
        self.look()
        if self.full is not None:
            self._refuse(self.full)

    def check_start(self) -> None:
        """TroubleError with the first thing that would keep the engine from starting."""
        self._check_programs()
        self.check_room()
        self._check_data()
        self._check_port()

    def _refuse(self, diagnosis: Diagnosis) -> None:
        raise TroubleError(diagnosis, object=self._member.subject)

    def _check_programs(self) -> None:
        missing = [name for name in NEEDED if not os.access(self._member.tools.bin_dir / name, os.X_OK)]
        if missing:
            where = f"{', '.join(missing)} in {self._member.tools.bin_dir}"
            self._refuse(Diagnosis(trouble=Trouble.PROGRAMS_MISSING, evidence=where))

    def _check_data(self) -> None:
        member, data = self._member, self._member.paths.data
        told, wanted = data.stat(), member.setup.run_as.uid if member.setup.run_as else os.geteuid()
        if told.st_uid != wanted or told.st_mode & _FOREIGN_MODE:
            mode = stat.S_IMODE(told.st_mode)
            evidence = f"{data} is of uid {told.st_uid} with mode {mode:04o}, the engine runs as uid {wanted}"
            self._refuse(Diagnosis(trouble=Trouble.DATA_PERMISSIONS, evidence=evidence))
        missing = [name for name in ("global/pg_control", "base", "pg_wal") if not (data / name).exists()]
        if missing:
            evidence = f"{', '.join(missing)} in {data}"
            self._refuse(Diagnosis(trouble=Trouble.DATA_INCOMPLETE, evidence=evidence))
        version = (data / "PG_VERSION").read_text(errors="replace").strip()
        if version != str(member.setup.offer.version):
            trouble = Trouble.WRONG_VERSION if version.isdecimal() else Trouble.DATA_CORRUPTED
            evidence = f"PG_VERSION says {version[:20]!r}, the engine is {member.setup.offer.version}"
            self._refuse(Diagnosis(trouble=trouble, evidence=evidence))

    def _check_port(self) -> None:
        address, port = self._member.setup.address, self._member.desired.engine_port
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((address, port))
                trial.listen(1)
            except OSError as error:
                taken = error.errno == _ADDRESS_IN_USE
                who = f" by {_listener(address, port)}" if taken else ""
                trouble = Trouble.PORT_TAKEN if taken else Trouble.ADDRESS_MISSING
                evidence = f"could not bind {address}:{port}: {error.strerror}{who}"
                self._refuse(Diagnosis(trouble=trouble, evidence=evidence))


_ADDRESS_IN_USE = errno.EADDRINUSE


def _listener(address: str, port: int) -> str:
    """Who listens there, for a person; the agent may not be allowed to see."""
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status != psutil.CONN_LISTEN or tuple(connection.laddr) not in _forms(address, port):
                continue
            if connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except (psutil.Error, OSError):
        pass
    return "somebody"


def _forms(address: str, port: int) -> tuple[tuple[str, int], ...]:
    """Addresses whose listener stands in the way."""
    return (address, port), ("0.0.0.0", port), ("::", port)  # noqa: S104 - compared, never bound


def _distinct(found: list[Diagnosis]) -> list[Diagnosis]:
    """The worst of the places: two file systems that are full are told once."""
    by_trouble: dict[Trouble, Diagnosis] = {}
    for diagnosis in found:
        by_trouble.setdefault(diagnosis.trouble, diagnosis)
    return list(by_trouble.values())
