"""The classifier on lines that real engines have printed (`tests/integration/test_engine_faults.py` provokes them)."""

from __future__ import annotations

import pytest

from agent.engines.postgres import faults
from agent.engines.troubles import TOLD, Cure, Trouble

AT = "2026-03-04 05:06:07.890 UTC [1234] "
SEEN: dict[str, tuple[str, Trouble]] = {
    "WAL on a full disk": (
        AT + 'PANIC:  could not write to file "pg_wal/xlogtemp.99": No space left on device',
        Trouble.DISK_FULL,
    ),
    "data on a full disk while starting": (
        AT + 'FATAL:  could not write lock file "postmaster.pid": No space left on device',
        Trouble.DISK_FULL,
    ),
    "quota": (AT + 'PANIC:  could not write to file "pg_wal/xlogtemp.9": Disk quota exceeded', Trouble.DISK_FULL),
    "semaphores are no disk": (
        AT + "FATAL:  could not create semaphores: No space left on device",
        Trouble.KERNEL_LIMITS,
    ),
    "shared memory is no disk": (
        AT + "FATAL:  could not create shared memory segment: No space left on device",
        Trouble.KERNEL_LIMITS,
    ),
    "descriptors": (AT + 'FATAL:  could not open file "base/1": Too many open files', Trouble.KERNEL_LIMITS),
    "read-only": (
        AT + 'FATAL:  could not create lock file "postmaster.pid": Read-only file system',
        Trouble.DISK_READ_ONLY,
    ),
    "I/O error": (
        AT + 'PANIC:  could not fdatasync file "000000010000000000000003": Input/output error',
        Trouble.DISK_BROKEN,
    ),
    "checkpoint": (AT + "PANIC:  could not locate a valid checkpoint record", Trouble.DATA_CORRUPTED),
    "checkpoint 17": (AT + "FATAL:  could not locate a valid checkpoint record at 0/1528A30", Trouble.DATA_CORRUPTED),
    "backup label": (AT + "FATAL:  could not locate required checkpoint record", Trouble.DATA_CORRUPTED),
    "redo location": (
        AT + "FATAL:  could not find redo location 0/2000028 referenced by checkpoint record at 0/2000060",
        Trouble.DATA_CORRUPTED,
    ),
    "control file": (AT + "FATAL:  incorrect checksum in control file", Trouble.DATA_CORRUPTED),
    "invalid pages": (AT + "PANIC:  WAL contains references to invalid pages", Trouble.DATA_CORRUPTED),
    "inconsistent": (AT + "FATAL:  WAL ends before consistent recovery point", Trouble.DATA_CORRUPTED),
    "catalog page": (AT + "FATAL:  invalid page in block 0 of relation base/5/1259", Trouble.DATA_CORRUPTED),
    "relation map": (
        AT + 'FATAL:  relation mapping file "global/pg_filenode.map" contains invalid data',
        Trouble.DATA_CORRUPTED,
    ),
    "missing control file": (
        "postgres: could not find the database system\n"
        'Expected to find it in the directory "/d", but could not open file "/d/global/pg_control": No such file',
        Trouble.DATA_INCOMPLETE,
    ),
    "missing version": (AT + 'FATAL:  "/d" is not a valid data directory', Trouble.DATA_INCOMPLETE),
    "missing directory": (
        AT + 'FATAL:  could not open directory "pg_notify": No such file or directory',
        Trouble.DATA_INCOMPLETE,
    ),
    "missing clog": (
        AT + 'FATAL:  could not access status of transaction 726\n\tDETAIL:  Could not open file "pg_xact/0000"',
        Trouble.DATA_CORRUPTED,
    ),
    "checkpoint at the end of recovery": (
        AT + "ERROR:  could not access status of transaction 0\n"
        + AT + 'DETAIL:  Could not open file "pg_xact/0000": No such file or directory.\n'
        + AT + "FATAL:  checkpoint request failed",
        Trouble.DATA_CORRUPTED,
    ),
    "other major": (AT + "FATAL:  database files are incompatible with server", Trouble.WRONG_VERSION),
    "mode": (AT + 'FATAL:  data directory "/d" has invalid permissions', Trouble.DATA_PERMISSIONS),
    "owner": (AT + 'FATAL:  data directory "/d" has wrong ownership', Trouble.DATA_PERMISSIONS),
    "a file of root's": (
        AT + 'FATAL:  could not open file "global/pg_filenode.map": Permission denied',
        Trouble.DATA_PERMISSIONS,
    ),
    "port": (
        AT + 'LOG:  could not bind IPv4 address "127.0.0.21": Address already in use\n'
        + AT + "FATAL:  could not create any TCP/IP sockets",
        Trouble.PORT_TAKEN,
    ),
    "address": (
        AT + 'LOG:  could not bind IPv4 address "10.9.8.7": Cannot assign requested address\n'
        + AT + "FATAL:  could not create any TCP/IP sockets",
        Trouble.ADDRESS_MISSING,
    ),
    "certificate": (
        AT + 'FATAL:  could not load server certificate file "/t/node.crt": PEM lib',
        Trouble.TLS_UNREADABLE,
    ),
    "key": (AT + 'FATAL:  could not load private key file "/t/node.key": no start line', Trouble.TLS_UNREADABLE),
    "key mode": (
        AT + 'FATAL:  private key file "/t/node.key" has group or world access',
        Trouble.TLS_UNREADABLE,
    ),
    "leftover": (
        AT + 'FATAL:  pre-existing shared memory block (key 12, ID 3) is still in use',
        Trouble.LEFTOVER_PROCESS,
    ),
    "memory": (
        AT + "FATAL:  could not map anonymous shared memory: Cannot allocate memory",
        Trouble.OUT_OF_MEMORY,
    ),
    "library": (
        AT + 'FATAL:  could not access file "no_such_library": No such file or directory',
        Trouble.PARAMETERS_REFUSED,
    ),
    "configuration": (
        AT + 'FATAL:  configuration file "/d/postgresql.conf" contains errors',
        Trouble.PARAMETERS_REFUSED,
    ),
    "killed": (
        AT + "LOG:  server process (PID 99) was terminated by signal 9: Killed",
        Trouble.PROCESS_KILLED,
    ),
    "crashed": (
        AT + "LOG:  server process (PID 99) was terminated by signal 11: Segmentation fault",
        Trouble.PROCESS_CRASHED,
    ),
    "other history": (
        AT + "FATAL:  requested timeline 3 is not a child of this server's history",
        Trouble.OTHER_HISTORY,
    ),
    "something new": (AT + "FATAL:  the flux capacitor is empty", Trouble.ENGINE_FAILED),
    "nothing": (AT + "LOG:  database system is ready to accept connections", Trouble.ENDED_SILENTLY),
    "said to clients only": (AT + "app@shop 127.0.0.1 FATAL:  sorry, too many clients already", Trouble.ENDED_SILENTLY),
}  # fmt: skip


@pytest.mark.parametrize("case", SEEN)
def test_log_lines_have_their_reason(case: str) -> None:
    printed, trouble = SEEN[case]
    diagnosis = faults.ended(printed)
    assert diagnosis.trouble is trouble
    assert "2026-03-04" not in diagnosis.evidence


def test_first_cause_is_told_not_what_followed_from_it() -> None:
    printed = "\n".join(
        (
            AT + "LOG:  starting PostgreSQL 15.12",
            AT + 'PANIC:  could not write to file "pg_wal/xlogtemp.9": No space left on device',
            AT + "LOG:  startup process (PID 9) was terminated by signal 6: Aborted",
            AT + "LOG:  aborting startup due to startup process failure",
        )
    )
    assert faults.ended(printed).trouble is Trouble.DISK_FULL


@pytest.mark.parametrize(
    "lie",
    [
        AT + "app@shop 127.0.0.1 LOG:  PANIC:  could not locate a valid checkpoint record",
        AT + "app@shop 127.0.0.1 ERROR:  FATAL: incorrect checksum in control file",
        AT + "app@shop 127.0.0.1 STATEMENT:  SELECT 'No space left on device'",
        AT + "LOG:  harmless\n\tPANIC:  could not locate a valid checkpoint record",
        AT + "LOG:  could not locate a valid checkpoint record",  # of a worker that runs a client's function
    ],
)
def test_what_clients_have_logged_is_no_evidence(lie: str) -> None:
    assert faults.classify(lie) is None
    assert not faults.lacks_log(lie)


def test_replica_lacks_log_until_it_streams_again() -> None:
    asked = (
        AT + "FATAL:  could not receive data from WAL stream: ERROR:  requested WAL segment 00 has already been removed"
    )
    streams = AT + "LOG:  started streaming WAL from primary at 0/3000000 on timeline 1"
    assert faults.lacks_log(f"{streams}\n{asked}")
    assert not faults.lacks_log(f"{asked}\n{streams}")
    assert not faults.lacks_log(AT + "app@shop 1.2.3.4 LOG:  requested WAL segment 00 has already been removed")


def test_every_trouble_says_what_to_do() -> None:
    for trouble, told in TOLD.items():
        assert trouble.value.isalnum()
        assert told.sentence[0].islower()
        assert told.next_step
        assert not told.next_step.endswith(".")


def test_no_rule_gives_data_up_that_a_person_could_use_again() -> None:
    for trouble in (Trouble.DISK_FULL, Trouble.DATA_PERMISSIONS, Trouble.PROGRAMS_MISSING, Trouble.PORT_TAKEN):
        assert TOLD[trouble].cure is Cure.LOOK
