"""What the configuration of a member is: derived from its size, overridden by its user, and last what Moorage manages.

Pure. The derivation, from `memory_bytes`, `disk_bytes` and `cpu` of the member:

- shared_buffers: a quarter of memory, at most 8 GiB (beyond that PostgreSQL gains little and checkpoints grow). It is
  touched lazily, so three idle members of 1 GiB on one laptop take a few dozen MiB each.
- effective_cache_size: three quarters of memory, what the planner may count on.
- max_connections: one per 8 MiB of memory, from 50 to 500; clients come through the proxy in session mode.
- work_mem: half of what is left beside shared_buffers, shared by all connections, from 4 to 64 MiB.
- maintenance_work_mem: a sixteenth of memory, from 16 MiB to 1 GiB.
- max_wal_size: an eighth of disk, from 64 MiB to 8 GiB. max_slot_wal_keep_size: a quarter of disk, at least 64 MiB: a
  replica that is away for longer is cloned anew rather than the primary's disk filled. wal_keep_size: 1/32 of disk, at
  most 1 GiB: what pg_rewind and a replica whose slot is not there yet live on.

`restart_after_crash` is off. With it on, the postmaster itself would restart all backends after the crash of one, and
recovery could take minutes during which the instance has a leader that answers nobody. Off, any crash ends the
postmaster, the agent notices within milliseconds, and one decision maker chooses between a replica and a restart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from core.codec import from_json
from core.errors import UserError
from core.records import MemberDesired, SyncRecord, to_json
from core.specs.instance import MANAGED_PARAMETERS

MIB = 1 << 20
GIB = 1 << 30
SYNC_FILE = "moorage.sync.conf"
NOBODY = "moorage_nobody"  # no member can be called so: names hold no underscore
_SYNC_HEADER = "# sync record: "

# Beside the specification's list: what would take the way in, the way back or our view of the engine away.
FORBIDDEN = MANAGED_PARAMETERS | {
    "allow_alter_system", "archive_cleanup_command", "hot_standby_feedback", "log_destination", "log_directory",
    "log_filename", "logging_collector", "password_encryption", "promote_trigger_file", "recovery_end_command",
    "recovery_target", "recovery_target_action", "recovery_target_inclusive", "recovery_target_lsn",
    "recovery_target_name", "recovery_target_time", "recovery_target_xid", "restore_command", "unix_socket_group",
    "lc_messages", "log_rotation_age", "log_rotation_size", "log_truncate_on_rotation", "update_process_title",
    "sync_replication_slots", "synchronized_standby_slots",
}  # fmt: skip
# What a user may set to these values only.
CHOICES = {"wal_level": ("replica", "logical")}
# A user may raise these, not lower them below what the members need of each other.
FLOORS = {"max_connections": 20, "max_wal_senders": 12, "max_replication_slots": 12}
# A replica must not have less of these than its primary had; pg_control remembers what the primary had.
REPLICA_FLOORS = (
    "max_connections", "max_worker_processes", "max_wal_senders", "max_prepared_transactions",
    "max_locks_per_transaction",
)  # fmt: skip
_DEFAULTS = {
    "max_connections": 100, "max_worker_processes": 8, "max_wal_senders": 12, "max_prepared_transactions": 0,
    "max_locks_per_transaction": 64,
}  # fmt: skip


def _clamp(value: float, low: int, high: int) -> int:
    return max(low, min(high, int(value)))


def derive(desired: MemberDesired) -> dict[str, str]:
    """Values a user may override."""
    memory, disk = desired.memory_bytes, desired.disk_bytes
    shared = _clamp(memory / 4, 16 * MIB, 8 * GIB)
    connections = _clamp(memory / (8 * MIB), 50, 500)
    max_wal = _clamp(disk / 8, 64 * MIB, 8 * GIB)
    cores = max(1, round(desired.cpu))
    return {
        "max_connections": str(connections),
        "shared_buffers": _mib(shared),
        "effective_cache_size": _mib(memory * 3 // 4),
        "work_mem": _mib(_clamp((memory - shared) / 2 / connections, 4 * MIB, 64 * MIB)),
        "maintenance_work_mem": _mib(_clamp(memory / 16, 16 * MIB, GIB)),
        "max_worker_processes": str(max(8, cores)),
        "max_parallel_workers": str(max(2, cores)),
        "max_parallel_workers_per_gather": str(min(4, max(1, cores // 2))),
        "max_wal_size": _mib(max_wal),
        "min_wal_size": _mib(_clamp(max_wal / 4, 32 * MIB, GIB)),
        "max_slot_wal_keep_size": _mib(max(disk // 4, 64 * MIB)),
        "wal_keep_size": _mib(min(disk // 32, GIB)),
        "max_wal_senders": "12",
        "max_replication_slots": "12",
        "checkpoint_completion_target": "0.9",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_line_prefix": "%m [%p] %q%u@%d %h ",
        "log_checkpoints": "on",
        "log_lock_waits": "on",
        # A peer that vanished without a word is noticed in seconds, not in the kernel's two hours.
        "tcp_keepalives_idle": "10",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "3",
        "wal_sender_timeout": "15s",
        "wal_receiver_timeout": "15s",
        "wal_receiver_status_interval": "1s",
        "wal_retrieve_retry_interval": "100ms",  # the default of 5 s would be the longest part of a failover
    }


def _mib(size: int) -> str:
    return f"{max(1, size // MIB)}MB"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What the managed part depends on, beside the desired state."""

    address: str
    sockets: str
    logs: str
    tls_dir: str  # empty = no TLS
    major: int
    primary_conninfo: str  # empty = streams from nobody
    primary_slot_name: str
    logical: bool  # the user wants logical decoding
    waits_for_slots: tuple[str, ...]  # primary: slots that must have what logical subscribers get
    durable: bool
    floors: Mapping[str, int]  # REPLICA_FLOORS as the primary had them; empty on a primary


def managed(desired: MemberDesired, standing: Standing) -> dict[str, str]:
    """Values nobody overrides."""
    values = {
        "listen_addresses": standing.address,
        "port": str(desired.engine_port),
        "unix_socket_directories": standing.sockets,
        "unix_socket_permissions": "0700",
        "cluster_name": desired.member,
        "hot_standby": "on",
        "hot_standby_feedback": "off",  # a replica's long query must not bloat the primary
        "wal_level": "logical" if standing.logical else "replica",
        "wal_log_hints": "on",
        "restart_after_crash": "off",
        "password_encryption": "scram-sha-256",
        "recovery_target_timeline": "latest",
        "primary_conninfo": standing.primary_conninfo,
        "primary_slot_name": standing.primary_slot_name,
        "lc_messages": "C",  # the agent reads some of them
        "logging_collector": "on",
        "log_destination": "stderr",
        "log_directory": standing.logs,
        "log_filename": "engine-%a-%H.log",  # an hour a file, overwritten after a week
        "log_rotation_age": "1h",
        "log_rotation_size": "0",
        "log_truncate_on_rotation": "on",
    }
    if not standing.durable:
        values["fsync"] = "off"
    if standing.major >= 17:
        values["allow_alter_system"] = "off"  # parameters are declared in the specification, the same on all members
        if standing.logical:
            values |= {
                "hot_standby_feedback": "on",  # what subscribers may still ask for must not be cleaned away
                "sync_replication_slots": "on",
                "synchronized_standby_slots": ",".join(standing.waits_for_slots),
            }
    if standing.tls_dir:
        values |= {
            "ssl": "on",
            "ssl_cert_file": f"{standing.tls_dir}/node.crt",
            "ssl_key_file": f"{standing.tls_dir}/node.key",
            "ssl_ca_file": f"{standing.tls_dir}/ca.crt",
        }
    return values


def admit(parameters: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The user's parameters that may be tried at all, and a sentence for each that may not."""
    good: dict[str, str] = {}
    problems = []
    for name, value in sorted(parameters.items()):
        floor = FLOORS.get(name)
        if name in FORBIDDEN or not re.fullmatch(r"[a-z_][a-z0-9_.]*", name) or "\n" in value or "\0" in value:
            problems.append(f"parameter {name} is managed by Moorage and was left out")
        elif name in CHOICES and value not in CHOICES[name]:
            problems.append(f"parameter {name} = {value} was left out: it may be {' or '.join(CHOICES[name])}")
        elif floor is not None and value.strip().isdecimal() and int(value) < floor:
            problems.append(f"parameter {name} = {value} was left out: at least {floor} is needed")
        else:
            good[name] = value
    return good, problems


def combine(desired: MemberDesired, user: Mapping[str, str], standing: Standing) -> dict[str, str]:
    """All settings. Later ones win: derived, the user's, what a replica needs, managed."""
    values = {**derive(desired), **user}
    for name, floor in standing.floors.items():
        present = values.get(name, str(_DEFAULTS[name]))
        if present.strip().isdecimal() and int(present) < floor:
            values[name] = str(floor)
    return values | managed(desired, standing)


def render(values: Mapping[str, str], *, include_sync: bool = True) -> str:
    """postgresql.conf."""
    lines = ["# Written by Moorage, which overwrites changes: declare parameters in the instance's specification."]
    lines += [f"{name} = {quote(value)}" for name, value in values.items()]
    if include_sync:
        lines.append(f"include {quote(SYNC_FILE)}")
    return "\n".join(lines) + "\n"


def quote(value: str) -> str:
    """As a string in postgresql.conf, where a backslash begins an escape."""
    escaped = value.replace("\\", "\\\\").replace("'", "''")
    return f"'{escaped}'"


# --- the sync set ---------------------------------------------------------------------------------------------------
# What a setting means is told in `agent.ha.syncset`: mode async acknowledges alone, any other without names waits.


def sync_setting(sync: SyncRecord) -> str:
    """`synchronous_standby_names` for a sync set. Nobody named: a name that never connects, so that commits wait."""
    if sync.mode == "async":
        return ""
    if sync.names and sync.k > 0:
        names = ",".join(f'"{name}"' for name in sync.names)
        return f"ANY {sync.k} ({names})"
    return f'ANY 1 ("{NOBODY}")'


def closed_sync(desired: MemberDesired) -> SyncRecord:
    """What an engine starts with and is promoted with: but for async mode, commits wait until standbys are named."""
    return SyncRecord(mode=desired.replication.mode)


def render_sync(sync: SyncRecord) -> str:
    """The file of its own, with the record for `read_sync`."""
    return f"{_SYNC_HEADER}{to_json(sync).decode()}\nsynchronous_standby_names = {quote(sync_setting(sync))}\n"


def read_sync(file_text: str, in_force: str) -> SyncRecord:
    """What the engine has in force, from its own answer. The file adds the mode, which the setting does not tell."""
    for line in file_text.splitlines():
        if line.startswith(_SYNC_HEADER):
            try:
                sync = from_json(SyncRecord, line.removeprefix(_SYNC_HEADER).encode(), where=SYNC_FILE)
            except UserError:
                break
            if in_force == sync_setting(sync):
                return sync
    return parse_sync(in_force)


def parse_sync(in_force: str) -> SyncRecord:
    """From the setting alone: `ANY k (names)`, `FIRST k (names)` or a bare list."""
    if not in_force.strip():
        return SyncRecord()
    match = re.fullmatch(r"\s*(?:(?:ANY|FIRST)\s+)?(\d+)\s*\((.*)\)\s*", in_force, re.IGNORECASE)
    k, listed = (int(match[1]), match[2]) if match else (1, in_force)
    names = tuple(name.strip().strip('"') for name in listed.split(",") if name.strip())
    members = tuple(name for name in names if name != NOBODY)
    return SyncRecord(mode="quorum" if k > 1 else "sync", k=k if members else 0, names=members)
