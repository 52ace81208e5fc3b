"""The Instance document: a database of one primary and its replicas."""

from __future__ import annotations

import ipaddress
import math
import re
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from core.specs.common import Labels, Name, Size, Spec, check_unique

_IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_RESERVED_USERS = frozenset({"postgres", "moorage", "moorage_replication"})
_RESERVED_DATABASES = frozenset({"postgres", "template0", "template1"})
_PARAMETER = re.compile(r"[a-z_][a-z0-9_.]{0,62}")
_EXTENSION = re.compile(r"[a-z_][a-z0-9_-]{0,62}")
_SETTING_CHARS_MAX = 1000
_FLOORS = {"memory": 128 << 20, "disk": 256 << 20}  # below them initdb or the first checkpoint fails
# Set by Moorage itself, or not to be had: a value of the user's would break replication, fencing, durability or the way
# in, or run commands on the node.
MANAGED_PARAMETERS = frozenset(
    {
        "listen_addresses", "port", "unix_socket_directories", "unix_socket_permissions", "data_directory", "hba_file",
        "ident_file", "config_file", "external_pid_file", "primary_conninfo", "primary_slot_name", "hot_standby",
        "synchronous_standby_names", "wal_level", "ssl", "ssl_cert_file", "ssl_key_file", "ssl_ca_file",
        "wal_log_hints",
        "recovery_target_timeline", "restart_after_crash", "cluster_name", "fsync", "full_page_writes", "include",
        "include_if_exists", "include_dir", "archive_command", "archive_library", "archive_cleanup_command",
        "restore_command", "recovery_end_command", "ssl_passphrase_command", "password_encryption",
    }
)  # fmt: skip


def _check_identifier(value: str, what: str, reserved: frozenset[str]) -> str:
    if not _IDENTIFIER.fullmatch(value) or value.startswith("pg_"):
        raise PydanticCustomError(
            "identifier",
            "{what} {value} is not valid: use 1 to 63 of a-z, 0-9 and _, not starting with a digit or pg_",
            {"what": what, "value": repr(value)},
        )
    if value in reserved:
        raise PydanticCustomError("identifier", "{what} {value} is reserved", {"what": what, "value": repr(value)})
    return value


class Resources(Spec):
    """What each member gets."""

    cpu: float = Field(default=1.0, gt=0, le=1024, description="Cores")
    memory: Size = Field(default=1 << 30, description="Memory, bytes or 512Mi, 4Gi; at least 128Mi")
    disk: Size = Field(default=10 << 30, description="Disk, bytes or 10Gi; at least 256Mi")

    @field_validator("memory", "disk")
    @classmethod
    def _floor(cls, value: int, info: ValidationInfo) -> int:
        floor = _FLOORS[str(info.field_name)]
        if value < floor:
            raise PydanticCustomError("floor", "must be at least {floor}Mi", {"floor": floor >> 20})
        return value


class ReplicationSpec(Spec):
    """How a commit is acknowledged."""

    mode: Literal["async", "sync", "quorum"] = Field(
        default="async", description="async: at once; sync: when one standby has it; quorum: when k standbys have it"
    )
    k: int = Field(default=1, ge=1, le=8, description="quorum: how many standbys must confirm")
    strict: bool = Field(
        default=True,
        description="sync, quorum: true waits while too few standbys are there, false goes on without them",
    )
    max_failover_lag: Size = Field(
        default=1 << 20, description="async: a replica further behind does not become primary by itself"
    )


class DatabaseSpec(Spec):
    """A database to exist."""

    name: str = Field(description="Database name")
    owner: str = Field(description="One of the declared users")
    extensions: tuple[str, ...] = Field(default=(), description="Extensions to create in it")

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        return _check_identifier(value, "database name", _RESERVED_DATABASES)

    @field_validator("extensions")
    @classmethod
    def _extensions(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not _EXTENSION.fullmatch(name):
                raise PydanticCustomError("extension", "{name} is not an extension name", {"name": repr(name)})
        check_unique(value, "extensions")
        return value


class UserSpec(Spec):
    """A user with login; its password is made by the hub."""

    name: str = Field(description="User name")
    superuser: bool = Field(default=False, description="Superuser rights inside the engine")
    roles: tuple[str, ...] = Field(default=(), description="Roles it is a member of, such as pg_monitor")

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        return _check_identifier(value, "user name", _RESERVED_USERS)

    @field_validator("roles")
    @classmethod
    def _roles(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for role in value:
            if not _IDENTIFIER.fullmatch(role) or role in _RESERVED_USERS:
                raise PydanticCustomError("role", "{role} is not a role one can be a member of", {"role": repr(role)})
        check_unique(value, "roles")
        return value


class PlacementSpec(Spec):
    """Where members may live."""

    region: str | None = Field(default=None, description="Only nodes of this region")
    zones: tuple[str, ...] = Field(default=(), description="Only nodes of these zones; empty = any")
    node_labels: dict[str, str] = Field(default_factory=dict, description="Only nodes with all these labels")
    spread: Literal["node", "zone"] = Field(
        default="node", description="node: no two members on one node; zone: no two in one zone"
    )


class ProxySpec(Spec):
    """How clients come in."""

    hold_timeout_s: float = Field(default=30.0, ge=0, le=600, description="Seconds a client may wait for a primary")
    tls: Literal["off", "prefer", "require"] = Field(default="prefer", description="TLS towards clients")
    allow: tuple[str, ...] = Field(default=(), description="Client networks in CIDR form; empty = any")

    @field_validator("allow")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            try:
                ipaddress.ip_network(text)
            except ValueError as error:
                raise PydanticCustomError("network", "{reason}", {"reason": str(error)}) from error
        return value


def _setting(value: object) -> object:
    """A parameter's value. Checked before the union below, which would tell of each of its types in turn."""
    if not isinstance(value, str | bool | int | float):
        raise PydanticCustomError("setting", "must be text, a number, true or false")
    if isinstance(value, float) and not math.isfinite(value):
        raise PydanticCustomError("setting", "must be a finite number")
    if isinstance(value, str) and (len(value) > _SETTING_CHARS_MAX or not (value.isprintable() or not value)):
        raise PydanticCustomError(
            "setting", "must be one line of at most {most} printable characters", {"most": _SETTING_CHARS_MAX}
        )
    return value


Setting = Annotated[str | bool | int | float, BeforeValidator(_setting)]


class InstanceSpec(Spec):
    """A database instance."""

    kind: Literal["Instance"] = "Instance"
    version: Literal[1] = 1
    project: Name = Field(description="Project it belongs to")
    name: Name = Field(description="Instance name, unique in the project")
    labels: Labels = Field(default_factory=dict, description="Free labels")
    engine: Literal["postgresql"] = Field(default="postgresql", description="Database engine")
    engine_version: int | None = Field(
        default=None, ge=13, le=30, description="Major version; null = the newest offered"
    )
    replicas: int = Field(default=0, ge=0, le=8, description="Members beside the primary")
    resources: Resources = Field(default_factory=Resources, description="What each member gets")
    replication: ReplicationSpec = Field(default_factory=ReplicationSpec, description="How commits are acknowledged")
    placement: PlacementSpec = Field(default_factory=PlacementSpec, description="Where members may live")
    parameters: dict[str, Setting] = Field(default_factory=dict, description="Engine parameters")
    users: tuple[UserSpec, ...] = Field(default=(UserSpec(name="app"),), description="Users")
    databases: tuple[DatabaseSpec, ...] = Field(
        default=(DatabaseSpec(name="app", owner="app"),), description="Databases"
    )
    proxy: ProxySpec = Field(default_factory=ProxySpec, description="How clients come in")
    deletion_protection: bool = Field(default=False, description="True: delete is refused until this is false")

    @field_validator("parameters")
    @classmethod
    def _parameters(cls, value: dict[str, Setting]) -> dict[str, Setting]:
        for name in value:
            if not _PARAMETER.fullmatch(name):
                raise PydanticCustomError("parameter", "{name} is not a parameter name", {"name": repr(name)})
            if name in MANAGED_PARAMETERS:
                raise PydanticCustomError("parameter", "{name} is managed by Moorage; leave it out", {"name": name})
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        users = [user.name for user in self.users]
        check_unique(users, "users")
        check_unique([database.name for database in self.databases], "databases")
        for database in self.databases:
            if database.owner not in users:
                raise PydanticCustomError(
                    "owner",
                    "databases: owner {owner} of {database} is not among the users; declare it there",
                    {"owner": repr(database.owner), "database": repr(database.name)},
                )
        self._replicas_suffice()
        return self

    def _replicas_suffice(self) -> None:
        mode = self.replication.mode
        needed = {"async": 0, "sync": 1, "quorum": self.replication.k}[mode]
        if self.replicas < needed:
            raise PydanticCustomError(
                "replicas",
                "replicas: {mode} replication needs at least {needed}, got {replicas}",
                {"mode": mode, "needed": needed, "replicas": self.replicas},
            )
