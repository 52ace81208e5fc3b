"""The Instance document: a database of one primary and its replicas."""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from core.specs.common import Labels, Name, Size, Spec, check_unique
from core.specs.proxy import ProxySpec
from core.specs.standby import FollowersSpec, StandbySpec

_IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_RESERVED_USERS = frozenset({"postgres", "moorage", "moorage_replication"})
# The last two are the proxy's own, by which its state is asked for.
_RESERVED_DATABASES = frozenset({"postgres", "template0", "template1", "moorage", "pgbouncer"})
_CLIENTS_DATABASES = ("postgres",)  # there without being declared
_PARAMETER = re.compile(r"[a-z_][a-z0-9_.]{0,62}")
_EXTENSION = re.compile(r"[a-z_][a-z0-9_-]{0,62}")
_SETTING_CHARS_MAX = 1000
_MEMBER = re.compile(r"m[1-9][0-9]{0,3}")
PRIORITY_MAX = 100
READ_WEIGHT_MAX = 100
_FLOORS = {"memory": 128 << 20, "disk": 256 << 20}  # below them initdb or the first checkpoint fails
# Set by Moorage itself, or not to be had: a value of the user's would break replication, fencing, durability or the way
# in, or run commands on the node.
WAL_LEVELS = ("replica", "logical")
MANAGED_PARAMETERS = frozenset(
    {
        "listen_addresses", "port", "unix_socket_directories", "unix_socket_permissions", "data_directory", "hba_file",
        "ident_file", "config_file", "external_pid_file", "primary_conninfo", "primary_slot_name", "hot_standby",
        "synchronous_standby_names", "ssl", "ssl_cert_file", "ssl_key_file", "ssl_ca_file",
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
        default="async",
        description="async: at once, a failover may lose the last moments; sync: when one standby has it; quorum: when "
        "any k standbys have it. In sync and quorum no failover made by the system loses an acknowledged commit",
    )
    k: int = Field(default=1, ge=1, le=8, description="quorum: how many standbys must confirm")
    strict: bool = Field(
        default=True,
        description="sync, quorum: true: while too few standbys are there commits wait, and nothing is lost whatever "
        "fails next; false: the primary goes on with fewer, at last alone; a loss then waits for its return",
    )
    max_failover_lag: Size = Field(
        default=1 << 20,
        description="async: a replica further behind the last primary does not become primary by itself",
    )


class MemberSpec(Spec):
    """What is particular to one member."""

    no_failover: bool = Field(default=False, description="True: it never becomes primary and confirms no commit")
    priority: int = Field(
        default=0, ge=0, le=PRIORITY_MAX, description="The higher is preferred among equally good candidates"
    )
    no_load_balance: bool = Field(
        default=False, description="True: no reads are routed to it while another replica can serve them"
    )
    clone_source: bool = Field(default=False, description="True: new members copy its data rather than the primary's")
    read_weight: int = Field(
        default=1, ge=1, le=READ_WEIGHT_MAX, description="Its share of the reads, beside those of the other replicas"
    )
    upstream: Name | None = Field(
        default=None, description="Member it streams from while that one can serve; null = the primary"
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
    members: dict[str, MemberSpec] = Field(
        default_factory=dict, description="What is particular to single members, by name such as m2"
    )
    placement: PlacementSpec = Field(default_factory=PlacementSpec, description="Where members may live")
    parameters: dict[str, Setting] = Field(default_factory=dict, description="Engine parameters")
    users: tuple[UserSpec, ...] = Field(default=(UserSpec(name="app"),), description="Users")
    databases: tuple[DatabaseSpec, ...] = Field(
        default=(DatabaseSpec(name="app", owner="app"),), description="Databases"
    )
    proxy: ProxySpec = Field(default_factory=ProxySpec, description="How clients come in")
    standby: StandbySpec | None = Field(
        default=None,
        description="The remote primary it follows, only for a new instance. Taken away = promoted, for good",
    )
    followers: FollowersSpec | None = Field(
        default=None, description="Whom it lets replicate, such as standby instances elsewhere; null = nobody"
    )
    deletion_protection: bool = Field(default=False, description="True: delete is refused until this is false")

    @field_validator("parameters")
    @classmethod
    def _parameters(cls, value: dict[str, Setting]) -> dict[str, Setting]:
        for name in value:
            if not _PARAMETER.fullmatch(name):
                raise PydanticCustomError("parameter", "{name} is not a parameter name", {"name": repr(name)})
            if name in MANAGED_PARAMETERS:
                raise PydanticCustomError("parameter", "{name} is managed by Moorage; leave it out", {"name": name})
        if value.get("wal_level", "replica") not in WAL_LEVELS:
            raise PydanticCustomError("parameter", "wal_level may be replica (the default) or logical", {})
        return value

    @field_validator("members")
    @classmethod
    def _members(cls, value: dict[str, MemberSpec]) -> dict[str, MemberSpec]:
        for name in value:
            if not _MEMBER.fullmatch(name):
                text = "{name} is not a member name: they are m1, m2, ..., see `moorctl instance show`"
                raise PydanticCustomError("member", text, {"name": repr(name)})
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
        if self.followers is not None and self.followers.user not in users:
            text = "followers.user: {user} is not among the users; declare it there"
            raise PydanticCustomError("followers", text, {"user": repr(self.followers.user)})
        self._replicas_suffice()
        self._upstreams_lead_to_the_primary()
        self._enough_members_are_able()
        self._proxy_knows_whom_it_names()
        return self

    def _proxy_knows_whom_it_names(self) -> None:
        connections = self.parameters.get("max_connections")
        unfit = self.proxy.unfit(
            users=tuple(user.name for user in self.users),
            databases=(*(database.name for database in self.databases), *_CLIENTS_DATABASES),
            connections=int(str(connections)) if str(connections).isdecimal() else None,
        )
        if unfit:
            raise PydanticCustomError("proxy", "proxy.{unfit}", {"unfit": unfit})

    def _replicas_suffice(self) -> None:
        mode = self.replication.mode
        needed = {"async": 0, "sync": 1, "quorum": self.replication.k}[mode]
        if self.replicas < needed:
            raise PydanticCustomError(
                "replicas",
                "replicas: {mode} replication needs at least {needed}, got {replicas}",
                {"mode": mode, "needed": needed, "replicas": self.replicas},
            )

    def _upstreams_lead_to_the_primary(self) -> None:
        """Whoever streams from another member streams from the primary in the end, never from itself."""
        for name in self.members:
            chain = [name]
            while (above := self._upstream_of(chain[-1])) is not None:
                chain.append(above)
                if above == name:
                    raise PydanticCustomError("upstream", _circle(chain), {"name": name})
                if above in chain[:-1]:
                    break  # a circle further up, told when it is that member's turn

    def _upstream_of(self, name: str) -> str | None:
        return self.members[name].upstream if name in self.members else None

    def _enough_members_are_able(self) -> None:
        """One must be able to lead, and beside it as many must be able to confirm as the mode needs: those that may
        lead themselves, and stream from the primary."""
        barred = sorted(name for name, member in self.members.items() if member.no_failover)
        if len(barred) > self.replicas:
            text = "members: no member is left to be primary: {barred} have no_failover, of {count} in all"
            raise PydanticCustomError("members", text, {"barred": ", ".join(barred), "count": 1 + self.replicas})
        mode = self.replication.mode
        needed = {"async": 0, "sync": 1, "quorum": self.replication.k}[mode]
        unfit = sorted(name for name, member in self.members.items() if member.no_failover or member.upstream)
        if needed and 1 + self.replicas - len(unfit) < 1 + needed:
            text = (
                "members: {mode} replication needs {needed} members beside the primary that can confirm a commit; "
                "{unfit} cannot (no_failover or upstream), of {count} members in all"
            )
            facts = {"mode": mode, "needed": needed, "unfit": ", ".join(unfit), "count": 1 + self.replicas}
            raise PydanticCustomError("members", text, facts)


def _circle(chain: list[str]) -> str:
    """`chain` begins and ends with the same member. Braces are not in member names, so this is a template as it is."""
    if len(chain) == 2:
        return f"members.{chain[0]}.upstream: a member cannot stream from itself"
    return f"members.{chain[0]}.upstream: goes in a circle: {' from '.join(chain)}"
