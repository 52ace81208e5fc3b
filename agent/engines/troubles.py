"""What can be wrong with an engine, by name: for conditions, events and `moorctl instance show`. Pure.

Every trouble has a CamelCase name for programs, a sentence for people, the next step, and a cure: what the agent itself
makes of it. Nothing is ever retried blindly:

- `RETRY` may pass by itself and is tried again, with pauses that grow to a minute;
- `LOOK` will not pass before something outside the engine changes: the engine is not started, the agent only looks,
  and starts it as soon as what hindered it is gone;
- `COPY` means that the data cannot be used: a member copies it anew from another one; a member that has nobody to copy
  from tries `TRIES_WITHOUT_COPY` times and then stops until it is told to try again.

A `WARNING` belongs to an engine that runs and hinders nothing yet.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import Enum, StrEnum, auto

from core.errors import EngineError

TRIES_WITHOUT_COPY = 3


class Cure(Enum):
    """What the agent does about a trouble."""

    RETRY = auto()
    LOOK = auto()
    COPY = auto()
    WARNING = auto()


class Trouble(StrEnum):
    """The value is the reason in conditions."""

    # the data
    DATA_CORRUPTED = "DataCorrupted"
    DATA_INCOMPLETE = "DataIncomplete"
    LOG_MISSING = "LogMissing"
    OTHER_HISTORY = "OtherHistory"
    # the disk
    DISK_FULL = "DiskFull"
    DISK_FILLING = "DiskFilling"
    DISK_SILENT = "DiskSilent"
    DISK_BROKEN = "DiskBroken"
    DISK_READ_ONLY = "DiskReadOnly"
    # the host
    PROGRAMS_MISSING = "ProgramsMissing"
    WRONG_VERSION = "WrongVersion"
    DATA_PERMISSIONS = "DataPermissions"
    PORT_TAKEN = "PortTaken"
    ADDRESS_MISSING = "AddressMissing"
    TLS_UNREADABLE = "TlsUnreadable"
    OUT_OF_MEMORY = "OutOfMemory"
    KERNEL_LIMITS = "KernelLimits"
    LEFTOVER_PROCESS = "LeftoverProcess"
    CLOCK_WRONG = "ClockWrong"
    # the engine
    PARAMETERS_REFUSED = "ParametersRefused"
    PROCESS_KILLED = "ProcessKilled"
    PROCESS_CRASHED = "ProcessCrashed"
    ENDED_SILENTLY = "EndedSilently"
    CRASH_LOOP = "CrashLoop"
    ENGINE_FAILED = "EngineFailed"
    # replication slots
    SLOT_LOST = "SlotLost"
    SLOT_FALLS_BEHIND = "SlotFallsBehind"
    SLOTS_NOT_CARRIED_OVER = "LogicalSlotsNotCarriedOver"


@dataclass(frozen=True, slots=True)
class Told:
    """What is told of a trouble. `next_step` begins with a verb."""

    sentence: str
    next_step: str
    cure: Cure


TOLD: dict[Trouble, Told] = {
    Trouble.DATA_CORRUPTED: Told(
        "its data directory is damaged",
        "check the disk (`dmesg`, smartctl); a member with others copies the data by itself, a sole one must be "
        "restored",
        Cure.COPY,
    ),
    Trouble.DATA_INCOMPLETE: Told(
        "files of its data directory are missing",
        "find out who removed them; a member with others copies the data by itself, a sole one must be restored",
        Cure.COPY,
    ),
    Trouble.LOG_MISSING: Told(
        "write-ahead log that it needs is not there any more",
        "nothing while there are others to copy from; raise max_slot_wal_keep_size or the disk if it happens often",
        Cure.COPY,
    ),
    Trouble.OTHER_HISTORY: Told(
        "its data belongs to another history than the primary's",
        "nothing: it is brought back from the primary, what only it had is kept aside",
        Cure.COPY,
    ),
    Trouble.DISK_FULL: Told(
        "the disk of its data is full",
        "free or add disk space: the engine is started by itself as soon as there is room",
        Cure.LOOK,
    ),
    Trouble.DISK_FILLING: Told(
        "the disk of its data is nearly full",
        "free or add disk space, and look for replication slots and temporary files that hold it",
        Cure.WARNING,
    ),
    Trouble.DISK_SILENT: Told(
        "the disk of its data does not answer",
        "look at the disk and what it hangs on (`dmesg`, multipath, the storage network); a primary has left the "
        "leadership to others",
        Cure.LOOK,
    ),
    Trouble.DISK_BROKEN: Told(
        "the disk of its data reports errors",
        "replace the disk, then have the member made anew",
        Cure.RETRY,
    ),
    Trouble.DISK_READ_ONLY: Told(
        "the file system of its data is read-only",
        "check the disk, then `mount -o remount,rw` the file system: the engine is started by itself",
        Cure.LOOK,
    ),
    Trouble.PROGRAMS_MISSING: Told(
        "the engine's programs are not where they were",
        "install the engine again: it is started by itself as soon as its programs are back",
        Cure.LOOK,
    ),
    Trouble.WRONG_VERSION: Told(
        "its data was made by another major version of the engine",
        "move the data directory away to have it copied anew, or bring the former version back",
        Cure.LOOK,
    ),
    Trouble.DATA_PERMISSIONS: Told(
        "owner or mode of its data directory are not the engine's",
        "give it back to the engine's user with mode 0700 (`chown -R`, `chmod 700`): the engine is started by itself",
        Cure.LOOK,
    ),
    Trouble.PORT_TAKEN: Told(
        "another program listens on its port",
        "find it with `ss -ltnp` and stop it: the engine is started by itself as soon as the port is free",
        Cure.LOOK,
    ),
    Trouble.ADDRESS_MISSING: Told(
        "the address it is to listen on is not this machine's",
        "bring the network interface up, or correct `address` in the agent's configuration",
        Cure.LOOK,
    ),
    Trouble.TLS_UNREADABLE: Told(
        "its certificate, key or CA cannot be used",
        "check the files in the agent's identity directory, or enrol the node anew",
        Cure.RETRY,
    ),
    Trouble.OUT_OF_MEMORY: Told(
        "it got no memory from the system",
        "lower shared_buffers or max_connections, or give the node more memory",
        Cure.RETRY,
    ),
    Trouble.KERNEL_LIMITS: Told(
        "a limit of the kernel (semaphores, shared memory, open files, processes) stops it",
        "raise the limit that the message names (`sysctl kernel.sem kernel.shmmax`, `ulimit`)",
        Cure.RETRY,
    ),
    Trouble.LEFTOVER_PROCESS: Told(
        "a process of an earlier engine still uses its data",
        "look for it with `ps` and end it; one in uninterruptible sleep ends when its disk answers",
        Cure.RETRY,
    ),
    Trouble.CLOCK_WRONG: Told(
        "the clock of its machine is wrong",
        "set the clock and see that chrony or another time service runs: certificates and time stamps depend on it",
        Cure.RETRY,
    ),
    Trouble.PARAMETERS_REFUSED: Told(
        "it does not start with its parameters",
        "correct `parameters` in the instance's document",
        Cure.RETRY,
    ),
    Trouble.PROCESS_KILLED: Told(
        "one of its processes was killed",
        "see `dmesg` for the kernel's out-of-memory killer; else somebody sent the signal",
        Cure.RETRY,
    ),
    Trouble.PROCESS_CRASHED: Told(
        "one of its processes crashed",
        "see the engine's log for the statement, and look for a newer minor version or a faulty extension",
        Cure.RETRY,
    ),
    Trouble.ENDED_SILENTLY: Told(
        "it ended without a word in its log",
        "it was killed from outside: see `dmesg` for the out-of-memory killer, and who sends signals on the machine",
        Cure.RETRY,
    ),
    Trouble.CRASH_LOOP: Told(
        "it ends unexpectedly again and again",
        "see the reason below and the engine's log; it is started again after growing pauses",
        Cure.RETRY,
    ),
    Trouble.ENGINE_FAILED: Told(
        "the engine failed",
        "see the engine's log in the member's directory",
        Cure.RETRY,
    ),
    Trouble.SLOT_LOST: Told(
        "its replication slot gave up log that was still needed",
        "nothing: the member is copied anew; raise max_slot_wal_keep_size or the disk if it happens often",
        Cure.WARNING,
    ),
    Trouble.SLOT_FALLS_BEHIND: Told(
        "a replication slot holds more log than is to be kept for it",
        "see why its reader does not keep up, or drop the slot: it is cut off when a checkpoint needs the room",
        Cure.WARNING,
    ),
    Trouble.SLOTS_NOT_CARRIED_OVER: Told(
        "logical slots live on this member only",
        "have subscribers make them again after a change of primary, or go to PostgreSQL 17, where slots made with "
        "failover = true are carried over",
        Cure.WARNING,
    ),
}
assert set(TOLD) == set(Trouble), "each trouble is told"


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """A trouble and what it was concluded from."""

    trouble: Trouble
    evidence: str = ""  # a line of the engine's log, or a fact of the system

    @property
    def cure(self) -> Cure:
        return TOLD[self.trouble].cure

    @property
    def message(self) -> str:
        """One sentence: what, the evidence, and what to do."""
        told = TOLD[self.trouble]
        evidence = f" ({self.evidence})" if self.evidence else ""
        return f"{told.sentence}{evidence}; {told.next_step}"


class TroubleError(EngineError):
    """A failure whose reason is known."""

    def __init__(self, diagnosis: Diagnosis, *, object: str = "") -> None:
        told = TOLD[diagnosis.trouble]
        evidence = f": {diagnosis.evidence}" if diagnosis.evidence else ""
        hint = f"{told.next_step[0].upper()}{told.next_step[1:]}."
        super().__init__(f"{told.sentence}{evidence}", object=object, hint=hint)
        self.diagnosis = diagnosis


_OF_SYSTEM = {
    errno.ENOSPC: Trouble.DISK_FULL,
    errno.EDQUOT: Trouble.DISK_FULL,
    errno.EROFS: Trouble.DISK_READ_ONLY,
    errno.EIO: Trouble.DISK_BROKEN,
    errno.EMFILE: Trouble.KERNEL_LIMITS,
    errno.ENFILE: Trouble.KERNEL_LIMITS,
    errno.ENOMEM: Trouble.OUT_OF_MEMORY,
}


def diagnosis_of(error: BaseException) -> Diagnosis | None:
    """What a failure was, if it says so."""
    if isinstance(error, TroubleError):
        return error.diagnosis
    if isinstance(error, OSError) and error.errno in _OF_SYSTEM:
        return Diagnosis(trouble=_OF_SYSTEM[error.errno], evidence=str(error))
    return None
