"""The hub's configuration file, field by field; `core.config` reads it and tells what is wrong where.

    name: hub-1
    etcd_endpoints: [10.0.0.1:2379, 10.0.0.2:2379, 10.0.0.3:2379]
    listen_agents: 0.0.0.0:7400
    listen_operators: 0.0.0.0:7401
    advertise_agents: 10.0.0.1:7400
    advertise_operators: 10.0.0.1:7401
    data_dir: /var/lib/moorage-hub

The relations between the times are checked here once, so that no later code need doubt them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from core.config import Config, FilePath, HostPort, LogConfig, Name, require, split_host_port

HOLD_MAX_S = 60.0  # agents give a poll 65 s: it must end by the hub's answer, never by the client's deadline
_ANY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound


class EtcdTlsConfig(Config):
    """Files for mTLS with etcd: its CA, and this hub's certificate and key (the CN is the etcd user)."""

    ca: FilePath
    cert: FilePath
    key: FilePath


class HubConfig(LogConfig):
    """Everything one hub process is told."""

    name: Name
    etcd_endpoints: tuple[HostPort, ...] = Field(min_length=1)
    etcd_tls: EtcdTlsConfig | None = None
    listen_agents: HostPort
    listen_operators: HostPort
    advertise_agents: HostPort | None = None  # how agents reach it; default: as it listens
    advertise_operators: HostPort | None = None
    data_dir: FilePath
    seal_key_file: FilePath | None = None
    admin_token_file: FilePath | None = None
    lease_ttl_s: int = Field(default=6, ge=3, le=60)  # of node leases; etcd's own floor is near 2 s
    port_range: tuple[int, int] = (15000, 15999)  # for instances: engine, read-write, read-only
    heartbeat_idle_s: float = Field(default=5.0, ge=0.5, le=60)  # nodes without members
    silent_after_s: float = Field(default=12.0, ge=2, le=600)  # no sign of life for so long = silent
    hold_min_s: float = Field(default=35.0, gt=0, le=HOLD_MAX_S)  # a poll is held for a time drawn from this range
    hold_max_s: float = Field(default=55.0, gt=0, le=HOLD_MAX_S)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        low, high = self.port_range
        require(1024 <= low < high < 65536, "port_range", "must be [LOW, HIGH] with 1024 <= LOW < HIGH <= 65535")
        require(self.hold_min_s <= self.hold_max_s, "hold_min_s", "must not be above hold_max_s")
        require(self.silent_after_s >= 2 * self.heartbeat_idle_s, "silent_after_s", "must be twice heartbeat_idle_s")
        require(self.silent_after_s >= self.lease_ttl_s, "silent_after_s", "must be at least lease_ttl_s")
        require(self.listen_agents != self.listen_operators, "listen_operators", "must differ from listen_agents")
        for port in ("agents", "operators"):
            listens_on, _ = split_host_port(getattr(self, f"listen_{port}"))
            advertised = getattr(self, f"advertise_{port}") is not None
            told = f"is required: others cannot reach {listens_on}, which listen_{port} says"
            require(advertised or listens_on not in _ANY_ADDRESS, f"advertise_{port}", told)
        return self

    @property
    def agents_address(self) -> str:
        """host:port of the agent port, as others reach it."""
        return self.advertise_agents or self.listen_agents

    @property
    def operators_address(self) -> str:
        """host:port of the operator port, as others reach it."""
        return self.advertise_operators or self.listen_operators

    @property
    def seal_key_path(self) -> Path:
        return self.seal_key_file or self.data_dir / "seal.key"

    @property
    def admin_token_path(self) -> Path:
        return self.admin_token_file or self.data_dir / "admin.token"

    @property
    def ca_path(self) -> Path:
        """Where `init` puts the CA certificate for people to take along."""
        return self.data_dir / "ca.crt"
