"""The agent's configuration file."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from core.config import FilePath, HostPort, LogConfig, Name


class AgentConfig(LogConfig):
    """/etc/moorage/agent.yaml. Unknown fields are errors."""

    node: Name = Field(description="Node name; the common name of the node's certificate")
    address: str = Field(description="Address in the data network: engines, proxy and peer port listen here")
    peer_port: int = Field(default=7402, ge=1, le=65535, description="TCP port of the peer service")
    data_root: FilePath = Field(default=Path("/var/lib/moorage"), description="Everything of the node lies below")
    hubs: tuple[HostPort, ...] = Field(default=(), description="The hubs' agent ports; empty = as told at enrolment")
    zone: str = Field(default="", description="Fault domain")
    region: str = Field(default="", description="Region")
    engine_user: str | None = Field(default=None, description="OS user that runs engines when the agent is root")
    engine_dirs: tuple[FilePath, ...] = Field(default=(), description="Folders of engine programs, beside those found")
    metrics_listen: HostPort | None = Field(
        default=None, description="Where GET /metrics is answered, such as 127.0.0.1:9188; null = nowhere"
    )
    proxy_command: str = Field(default="moorage-proxy", description="Program of the proxy")
    proxy_processes: int | None = Field(
        default=None, ge=1, le=64, description="Proxy processes; null = one for two cores, at least 1 and at most 4"
    )
    proxy_drain_s: float = Field(
        default=3600.0,
        ge=0,
        description="How long the clients of a proxy that was restarted may stay at the old process",
    )

    @field_validator("address")
    @classmethod
    def _address(cls, value: str) -> str:
        try:
            return str(ipaddress.ip_address(value))
        except ValueError as error:
            raise PydanticCustomError("address", "{reason}", {"reason": str(error)}) from error

    @property
    def proxy_process_count(self) -> int:
        """The engines beside need the other half of the cores."""
        return self.proxy_processes or max(1, min(4, len(os.sched_getaffinity(0)) // 2))

    @property
    def identity_dir(self) -> Path:
        return self.data_root / "identity"

    @property
    def proxy_dir(self) -> Path:
        return self.data_root / "proxy"
