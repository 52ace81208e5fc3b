"""Standby instances, from both sides: the remote primary that one follows, and whom an instance lets follow it."""

from __future__ import annotations

import ipaddress
import re
from typing import Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from core.specs.common import Spec, check_unique

HOSTS_MAX = 8
NETWORKS_MAX = 32
CA_MAX = 32_768  # characters; travels to each member's node
_ADDRESS = re.compile(r"(?P<host>[A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):(?P<port>[0-9]{1,5})")
_ROLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_SLOT = re.compile(r"[a-z0-9_]{1,63}")
_PORT_MAX = 65535


class StandbySpec(Spec):
    """The remote primary, and how the instance logs in to it."""

    hosts: tuple[str, ...] = Field(
        min_length=1,
        max_length=HOSTS_MAX,
        description="host:port of the remote primary; of several, whichever of them accepts writes is followed",
    )
    user: str = Field(description="Role with REPLICATION and a password there")
    password: str | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        description="Its password; sealed at once and never shown. Left out later on: the one that is known",
        repr=False,
        exclude=True,  # of everything that is stored or shown
    )
    sslmode: Literal["disable", "prefer", "require", "verify-ca", "verify-full"] = Field(
        default="prefer", description="TLS to the remote primary, as libpq has it"
    )
    ca: str | None = Field(
        default=None, max_length=CA_MAX, description="PEM certificates that verify-ca and verify-full trust"
    )
    slot: str | None = Field(
        default=None, description="Physical replication slot that exists there; null = none is used"
    )

    @field_validator("hosts")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for address in value:
            found = _ADDRESS.fullmatch(address)
            if found is None or not 0 < int(found["port"]) <= _PORT_MAX:
                text = (
                    "{address} is not an address: write host:port, such as db1.example.net:5432 or [2001:db8::1]:5432"
                )
                raise PydanticCustomError("address", text, {"address": repr(address)})
        check_unique(value, "hosts")
        return value

    @field_validator("user")
    @classmethod
    def _user(cls, value: str) -> str:
        if not _ROLE.fullmatch(value) or value == "postgres":
            text = "{user} is not valid: a role of letters, digits and _, made for this; not postgres"
            raise PydanticCustomError("role", text, {"user": repr(value)})
        return value

    @field_validator("password")
    @classmethod
    def _password(cls, value: str | None) -> str | None:
        if value is not None and not value.isprintable():
            raise PydanticCustomError("password", "must be one line of printable characters")
        return value

    @field_validator("slot")
    @classmethod
    def _slot(cls, value: str | None) -> str | None:
        if value is not None and not _SLOT.fullmatch(value):
            text = "{slot} is not a slot name: use 1 to 63 of a-z, 0-9 and _"
            raise PydanticCustomError("slot", text, {"slot": repr(value)})
        return value

    @model_validator(mode="after")
    def _certificates(self) -> StandbySpec:
        verifies = self.sslmode in ("verify-ca", "verify-full")
        if verifies and not self.ca:
            raise PydanticCustomError("ca", "sslmode {mode} needs `ca`: PEM certificates", {"mode": self.sslmode})
        if self.ca and "-----BEGIN CERTIFICATE-----" not in self.ca:
            raise PydanticCustomError("ca", "ca: no PEM certificate is in it", {})
        return self


class FollowersSpec(Spec):
    """Standby instances elsewhere, or other servers, that may replicate from the members."""

    user: str = Field(description="One of the declared users: the role that they log in as; it may replicate")
    networks: tuple[str, ...] = Field(
        min_length=1, max_length=NETWORKS_MAX, description="Where they come from, in CIDR form"
    )

    @field_validator("networks")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            try:
                ipaddress.ip_network(text)
            except ValueError as error:
                raise PydanticCustomError("network", "{reason}", {"reason": str(error)}) from error
        return value
