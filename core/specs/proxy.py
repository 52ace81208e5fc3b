"""The part of an Instance document about its clients: how they come in, and how they share server connections."""

from __future__ import annotations

import ipaddress
import re
from typing import Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from core.routes import CLIENT_UNREAD_S
from core.specs.common import Size, Spec, check_unique

CONNECTIONS_MAX = 10_000
CLIENTS_MAX = 1_000_000
DAY_S = 86_400
RULES_MAX = 100  # each client is compared with all of them
FUNCTIONS_MAX = 200
_FUNCTION = re.compile(r"(?:[a-z_][a-z0-9_$]{0,62}\.)?[a-z_][a-z0-9_$]{0,62}")  # as the parser shows them
TRANSACTION_SIZE = 20  # of a pool in transaction mode whose size is left open
SESSION_IDLE_S = 2.0  # shorter than the 5 s that DROP DATABASE and CREATE DATABASE wait for other connections to go
TRANSACTION_IDLE_S = 300.0


class PoolingSpec(Spec):
    """How the clients of one user and database share server connections, at the proxies of one node together."""

    mode: Literal["session", "transaction"] = Field(
        default="session",
        description="session: a client has its server connection until it leaves; transaction: for each transaction "
        "anew, so that many clients share few connections",
    )
    size: int = Field(
        default=0,
        ge=0,
        le=CONNECTIONS_MAX,
        description="Connections in use at most, to each server; 0 = session: as many as the server takes, "
        f"transaction: {TRANSACTION_SIZE}",
    )
    reserve: int = Field(
        default=0,
        ge=0,
        le=CONNECTIONS_MAX,
        description="Connections beyond size, once a client has waited reserve_after_s",
    )
    reserve_after_s: float = Field(default=3.0, ge=0, le=3600, description="Seconds until the reserve is used")
    queue_timeout_s: float = Field(
        default=30.0,
        ge=0,
        le=3600,
        description="Seconds a client waits for a connection that others have; then it is told 53300",
    )
    idle_max: int = Field(
        default=20,
        ge=0,
        le=CONNECTIONS_MAX,
        description="Connections kept for the next client, to each server; 0 = none is used again",
    )
    idle_s: float | None = Field(
        default=None,
        ge=1,
        le=DAY_S,
        description="Seconds after which a connection that nobody wanted is closed; null = session: "
        f"{SESSION_IDLE_S:g}, transaction: {TRANSACTION_IDLE_S:g}",
    )
    life_s: float = Field(
        default=3600.0, ge=1, le=30 * DAY_S, description="Seconds after which a connection is closed once it is free"
    )
    statements_max: int = Field(
        default=500,
        ge=10,
        le=10_000,
        description="transaction: prepared statements kept on each connection; the least used one makes room",
    )
    reset: Literal["changed", "always"] = Field(
        default="changed",
        description="When a connection is made like new before another client gets it: changed: if a client may have "
        "changed something; always: each time",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.reserve and not self.used_size:
            raise PydanticCustomError("pooling", "reserve needs a size that it goes beyond", {})
        return self

    @property
    def used_size(self) -> int:
        """The size that counts; 0 = no bound."""
        return self.size or (TRANSACTION_SIZE if self.mode == "transaction" else 0)

    @property
    def used_idle_s(self) -> float:
        """The time that counts."""
        return self.idle_s or (TRANSACTION_IDLE_S if self.mode == "transaction" else SESSION_IDLE_S)


class PoolRuleSpec(PoolingSpec):
    """Another pooling for the clients of one user, one database, or one user in one database. What it leaves out is as
    in pooling."""

    user: str | None = Field(default=None, description="One of the declared users; null = any")
    database: str | None = Field(default=None, description="One of the declared databases; null = any")

    def covers(self, other: PoolRuleSpec) -> bool:
        """Whoever the other rule is for, this one is for as well."""
        return self.user in (None, other.user) and self.database in (None, other.database)


class LimitsSpec(Spec):
    """What bounds clients at the proxy: how many there may be, and for how long they may do nothing."""

    clients: int = Field(
        default=0,
        ge=0,
        le=CLIENTS_MAX,
        description="Clients at one node at most; the next one is told 53300; 0 = as many as the proxy takes",
    )
    clients_per_user: int = Field(
        default=0, ge=0, le=CLIENTS_MAX, description="The same, of each user, observers excepted; 0 = no bound"
    )
    idle_s: float = Field(
        default=0.0,
        ge=0,
        le=30 * DAY_S,
        description="Seconds after which a client that asks nothing, outside of a transaction, is ended by 57P05; "
        "0 = never",
    )
    idle_transaction_s: float = Field(
        default=0.0, ge=0, le=30 * DAY_S, description="The same inside of a transaction, by 25P03; 0 = never"
    )
    unread_s: float = Field(
        default=CLIENT_UNREAD_S,
        ge=0,
        le=30 * DAY_S,
        description="Seconds after which a client is ended that takes nothing of what it was sent, while its server "
        "waits for it; 0 = never",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.clients and self.clients_per_user > self.clients:
            text = "clients_per_user is more than all clients together: {many} of {all}"
            raise PydanticCustomError("limits", text, {"many": self.clients_per_user, "all": self.clients})
        return self


class ReadsSpec(Spec):
    """Which replicas take reads."""

    lag_max_bytes: Size | None = Field(
        default=None,
        description="A replica that has more than this of the primary's log still to replay takes no reads until it is "
        "within half of it, bytes or 16Mi; null = no bound",
    )


class ProxySpec(Spec):
    """How clients come in, and how they share server connections."""

    hold_timeout_s: float = Field(default=30.0, ge=0, le=600, description="Seconds a client may wait for a primary")
    tls: Literal["off", "prefer", "require"] = Field(default="prefer", description="TLS towards clients")
    allow: tuple[str, ...] = Field(default=(), description="Client networks in CIDR form; empty = any")
    pooling: PoolingSpec = Field(default_factory=PoolingSpec, description="How clients share server connections")
    pools: tuple[PoolRuleSpec, ...] = Field(
        default=(), max_length=RULES_MAX, description="Another pooling for some clients; the first one that fits counts"
    )
    limits: LimitsSpec = Field(default_factory=LimitsSpec, description="What bounds clients")
    reads: ReadsSpec = Field(default_factory=ReadsSpec, description="Which replicas take reads")
    splitting: Literal["off", "statements"] = Field(
        default="off",
        description="statements: on the read-write port, for clients in transaction mode, statements that only read "
        "and transactions begun READ ONLY go to replicas, where they may see data that is a moment old",
    )
    splitting_functions: tuple[str, ...] = Field(
        default=(),
        max_length=FUNCTIONS_MAX,
        description="Functions of your own that only read, as statements name them (total, or shop.total): calls of "
        "these may go to replicas too",
    )
    slow_query_ms: int = Field(
        default=0,
        ge=0,
        le=DAY_S * 1000,
        description="What takes longer is logged by the proxy with its text, in which literals are seen and parameters "
        "are not; 0 = nothing is",
    )
    observers: tuple[str, ...] = Field(
        default=(),
        description="Declared users that may ask the proxy's own database `moorage`, beside superusers and members of "
        "pg_monitor",
    )

    @field_validator("allow")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            try:
                ipaddress.ip_network(text)
            except ValueError as error:
                raise PydanticCustomError("network", "{reason}", {"reason": str(error)}) from error
        return value

    @field_validator("pools", mode="before")
    @classmethod
    def _as_pooling_says(cls, value: object, info: ValidationInfo) -> object:
        """What a rule leaves out it takes from `pooling`, here and for good: what is stored says it all."""
        pooling = info.data.get("pooling")
        if not isinstance(value, list | tuple) or pooling is None:
            return value
        return tuple({**pooling.model_dump(), **rule} if isinstance(rule, dict) else rule for rule in value)

    @field_validator("pools")
    @classmethod
    def _each_is_reached(cls, value: tuple[PoolRuleSpec, ...]) -> tuple[PoolRuleSpec, ...]:
        for number, rule in enumerate(value):
            earlier = next((at for at, one in enumerate(value[:number]) if one.covers(rule)), None)
            if earlier is not None:
                text = "rule [{number}] is never used: all its clients fit rule [{earlier}] before it"
                raise PydanticCustomError("pools", text, {"number": number, "earlier": earlier})
        return value

    @field_validator("splitting", mode="before")
    @classmethod
    def _as_yaml_reads_off(cls, value: object) -> object:
        return "off" if value is False else value

    @field_validator("splitting_functions")
    @classmethod
    def _functions(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not _FUNCTION.fullmatch(name):
                text = "{name} is not the name of a function: write total or shop.total, without parentheses"
                raise PydanticCustomError("function", text, {"name": repr(name)})
        check_unique(value, "splitting_functions")
        return value

    @field_validator("observers")
    @classmethod
    def _observers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        check_unique(value, "observers")
        return value

    def unfit(self, *, users: tuple[str, ...], databases: tuple[str, ...], connections: int | None) -> str:
        """What does not go with the rest of the document, with its path below `proxy`; empty when all does.
        `connections`: the engine's max_connections, if declared."""
        for number, rule in enumerate(self.pools):
            if rule.user is not None and rule.user not in users:
                return f"pools[{number}].user: {rule.user!r} is not among the users; declare it there"
            if rule.database is not None and rule.database not in databases:
                return f"pools[{number}].database: {rule.database!r} is not among the databases; declare it there"
        for number, name in enumerate(self.observers):
            if name not in users:
                return f"observers[{number}]: {name!r} is not among the users; declare it there"
        if self.splitting != "off" and all(one.mode != "transaction" for one in (self.pooling, *self.pools)):
            way_out = "set pooling.mode, or the mode of one of pools, to transaction, or splitting to off"
            return f"splitting: {self.splitting!r} is for clients in transaction mode, and nobody is in it; {way_out}"
        poolings = {"pooling": self.pooling} | {f"pools[{number}]": rule for number, rule in enumerate(self.pools)}
        for path, one in poolings.items():
            most = one.used_size + one.reserve
            if connections is not None and most > connections:
                with_reserve = f", {one.reserve} of them reserve," if one.reserve else ""
                return f"{path}.size: {most} connections{with_reserve} are more than max_connections = {connections}"
        return ""
