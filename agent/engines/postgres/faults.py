"""From what PostgreSQL prints to what is wrong: the one place that knows its words. Pure.

The rules are tried in order over the whole of what the engine has printed since its last start, the specific before the
general: a full disk makes files incomplete, a missing file makes a checkpoint record invalid, and the first cause is
what a person must hear of. Messages are English: the agent sets `lc_messages`, and nothing before the configuration is
read is translated either.
"""

from __future__ import annotations

import re

from agent.engines.troubles import TOLD, Cure, Diagnosis, Trouble

EVIDENCE_CHARS_MAX = 300

# A kernel that cannot give semaphores or shared memory says "No space left on device" too: that is no full disk.
_RULES: tuple[tuple[Trouble, str], ...] = (
    (Trouble.KERNEL_LIMITS, r"could not create semaphores"),
    (Trouble.KERNEL_LIMITS, r"could not create shared memory segment"),
    (Trouble.KERNEL_LIMITS, r"could not resize shared memory segment"),
    (Trouble.KERNEL_LIMITS, r"[Tt]oo many open files|EMFILE|insufficient file descriptors|out of file descriptors"),
    (Trouble.KERNEL_LIMITS, r"could not fork .*(Resource temporarily unavailable)"),
    (Trouble.DISK_FULL, r"No space left on device|Disk quota exceeded"),
    (Trouble.DISK_READ_ONLY, r"Read-only file system"),
    (Trouble.DISK_BROKEN, r"Input/output error"),
    (Trouble.WRONG_VERSION, r"database files are incompatible with server|was initialized by PostgreSQL version"),
    (Trouble.DATA_PERMISSIONS, r"data directory .* has (invalid permissions|wrong ownership)"),
    (Trouble.DATA_PERMISSIONS, r"must be started by the user that owns the data directory"),
    (Trouble.TLS_UNREADABLE, r"could not (load|access) (server certificate|private key|root certificate|SSL)"),
    (Trouble.TLS_UNREADABLE, r"private key file .* (has group or world access|must be owned)"),
    (Trouble.ADDRESS_MISSING, r"could not bind .*: Cannot assign requested address"),
    (Trouble.PORT_TAKEN, r"could not bind .*: Address already in use"),
    (Trouble.PORT_TAKEN, r"could not create any (TCP/IP|Unix-domain) sockets"),
    (Trouble.LEFTOVER_PROCESS, r"pre-existing shared memory block .* is still in use"),
    (Trouble.LEFTOVER_PROCESS, r"lock file .* already exists"),
    (Trouble.OUT_OF_MEMORY, r"could not map anonymous shared memory|Cannot allocate memory"),
    (Trouble.OUT_OF_MEMORY, r"could not fork .*(Cannot allocate memory)"),
    (Trouble.DATA_PERMISSIONS, r"(FATAL|PANIC): .*: Permission denied"),
    (Trouble.DATA_CORRUPTED, r"incorrect checksum in control file|calculated CRC checksum does not match"),
    (Trouble.DATA_CORRUPTED, r"pg_control (is damaged|makes no sense)|invalid data in (history )?file"),
    (Trouble.OTHER_HISTORY, r"requested timeline \d+ (is not a child of|does not contain)"),
    (Trouble.OTHER_HISTORY, r"database system identifier differs between the primary and standby"),
    (Trouble.OTHER_HISTORY, r"WAL file is from different database system"),
    (Trouble.LOG_MISSING, r"requested WAL segment \S+ has already been removed"),
    (Trouble.DATA_INCOMPLETE, r'is not a valid data directory|File "\S*PG_VERSION" (is missing|does not contain)'),
    (Trouble.DATA_INCOMPLETE, r"could not find the database system"),
    (
        Trouble.DATA_INCOMPLETE,
        r'(FATAL|PANIC): .*(could not (open|access|stat|read|fsync) (file|directory)|data directory) "(?!\S*\$libdir)'
        r'[^"]*(base|global|pg_[a-z]+|PG_VERSION)[^"]*".*No such file or directory',
    ),
    (Trouble.DATA_CORRUPTED, r"(invalid|could not locate a valid|could not locate required) .*checkpoint record"),
    (Trouble.DATA_CORRUPTED, r"could not find redo location"),
    (Trouble.DATA_CORRUPTED, r"WAL ends before (end of online backup|consistent recovery point)"),
    (Trouble.DATA_CORRUPTED, r"WAL contains references to invalid pages"),
    (Trouble.DATA_CORRUPTED, r"(FATAL|PANIC): .*(invalid page in block|page verification failed|invalid magic number)"),
    (Trouble.DATA_CORRUPTED, r"(FATAL|PANIC): .*(unexpected|missing) (data|pageaddr|contrecord)"),
    (Trouble.DATA_CORRUPTED, r"(FATAL|PANIC): .*could not read (file|block) .*read \d+ of \d+"),
    (Trouble.DATA_CORRUPTED, r"(FATAL|PANIC): .*cache lookup failed|relation mapping file .* contains invalid data"),
    (Trouble.DATA_CORRUPTED, r"could not access status of transaction"),
    (Trouble.PARAMETERS_REFUSED, r"could not (load|access) (library|file) .*(\$libdir|No such file)"),
    (Trouble.PARAMETERS_REFUSED, r"configuration file .* contains errors|invalid value for parameter"),
    (Trouble.PARAMETERS_REFUSED, r"unrecognized configuration parameter"),
    (Trouble.PARAMETERS_REFUSED, r"recovery aborted because of insufficient parameter settings"),
    (Trouble.OUT_OF_MEMORY, r"(FATAL|PANIC): .*out of memory"),
    (Trouble.PROCESS_KILLED, r"terminated by signal 9"),
    (Trouble.PROCESS_CRASHED, r"(terminated by signal (4|6|7|8|11)\b|terminated by exception)"),
    (Trouble.CLOCK_WRONG, r"certificate (is not yet valid|has expired)"),
)
_COMPILED = tuple((trouble, re.compile(pattern)) for trouble, pattern in _RULES)
_GRAVE = frozenset({"FATAL", "PANIC"})
_LEVEL = re.compile(r"\b(DEBUG\d?|LOG|INFO|NOTICE|WARNING|ERROR|FATAL|PANIC|DETAIL|HINT|CONTEXT|STATEMENT|QUERY):")
_PREFIX = re.compile(r"^\d{4}-\d\d-\d\d \S+ \S+ \[\d+\] (\S+@\S+ \S+ )?")
# Said to clients, or of an end that was asked for: they explain nothing.
_HARMLESS = re.compile(
    r"the database system is (starting up|shutting down|in recovery mode|not yet accepting connections)"
    r"|terminating (connection|walreceiver|logical replication)|role .* does not exist|password authentication failed"
    r"|no pg_hba.conf entry|sorry, too many clients|remaining connection slots|could not receive data from WAL stream"
    r"|could not connect to the primary server"
)
_OF_CLIENT = re.compile(r"^\S+ \S+ \S+ \[\d+\] \S+@\S+ ")
_LACKS_LOG = re.compile(r"FATAL: .*requested WAL segment \S+ has already been removed")
_STREAMS = "started streaming WAL"


def _level(line: str) -> str:
    """Empty for what is printed before the engine's own log works, and by tools."""
    found = _LEVEL.search(line)
    return found[1] if found else ""


def _telling(printed: str) -> list[str]:
    """The lines that the server wrote of itself. A client may have any text logged, as LOG or ERROR, but only the
    server itself ends a process; and a continuation of a message begins with a tab."""
    return [
        line
        for line in printed.splitlines()
        if line.strip() and not line.startswith("\t") and (_level(line) in _GRAVE or not _OF_CLIENT.search(line))
    ]


def classify(printed: str) -> Diagnosis | None:
    """What is wrong, by what the engine printed since its last start; None when it names nothing that ends an engine.

    The evidence is the line that tells, without its time and process. Data is given up only for what ended a process.
    """
    lines = [line for line in _telling(printed) if not _HARMLESS.search(line)]
    # The end of recovery asks another process for a checkpoint, and that one tells its failure as an error only.
    asked = any(_level(line) in _GRAVE and "checkpoint request failed" in line for line in lines)
    weighty = {"", *_GRAVE, *(("ERROR", "DETAIL") if asked else ())}
    for trouble, pattern in _COMPILED:
        for line in reversed(lines):
            if not pattern.search(line):
                continue
            if TOLD[trouble].cure is Cure.COPY and _level(line) not in weighty:
                continue
            return Diagnosis(trouble=trouble, evidence=plain(line))
    return None


def lacks_log(printed: str) -> bool:
    """Whether a replica asked its primary for log that is no longer there, as the last it had to say of it."""
    lacks = False
    for line in _telling(printed):
        if _LACKS_LOG.search(line):
            lacks = True
        elif _STREAMS in line:
            lacks = False
    return lacks


def ended(printed: str) -> Diagnosis:
    """Why an engine ended that nobody asked to end: never nothing."""
    known = classify(printed)
    if known is not None:
        return known
    grave = [line for line in _telling(printed) if _level(line) in _GRAVE and not _HARMLESS.search(line)]
    if grave:
        return Diagnosis(trouble=Trouble.ENGINE_FAILED, evidence=plain(grave[-1]))
    return Diagnosis(trouble=Trouble.ENDED_SILENTLY)


def plain(line: str) -> str:
    """A log line without time and process, cut to a bearable length."""
    text = _PREFIX.sub("", line.strip())
    return text if len(text) <= EVIDENCE_CHARS_MAX else f"{text[: EVIDENCE_CHARS_MAX - 3]}..."


def not_of_parameters(diagnosis: Diagnosis | None) -> bool:
    """Whether what is wrong cannot be the user's parameters: then it is no use to try with the former ones."""
    return diagnosis is not None and diagnosis.trouble not in _MAY_BE_PARAMETERS


_MAY_BE_PARAMETERS = frozenset(
    {
        Trouble.PARAMETERS_REFUSED,
        Trouble.OUT_OF_MEMORY,
        Trouble.KERNEL_LIMITS,
        Trouble.ENGINE_FAILED,
        Trouble.ENDED_SILENTLY,
        Trouble.PROCESS_CRASHED,
        Trouble.PROCESS_KILLED,
    }
)
