"""What may be said of a standby instance, and how it is refused."""

from __future__ import annotations

from typing import Any

import pytest

from core.errors import UserError
from core.specs import InstanceSpec, parse_document

CA = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"


def parsed(**fields: Any) -> InstanceSpec:
    found = parse_document({"kind": "Instance", "project": "demo", "name": "copy", **fields})
    assert isinstance(found, InstanceSpec)
    return found


def standby(**fields: Any) -> dict[str, Any]:
    return {"hosts": ["far:5432"], "user": "follower", "password": "secret", **fields}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"hosts": ["far:5432", "10.0.0.1:6432", "[2001:db8::1]:5432"]},
        {"sslmode": "verify-full", "ca": CA},
        {"slot": "copy_1"},
        {"password": None},
    ],
)
def test_what_is_accepted(fields: dict[str, Any]) -> None:
    assert parsed(standby=standby(**fields)).standby is not None


@pytest.mark.parametrize(
    ("fields", "path", "told"),
    [
        ({"hosts": []}, "standby.hosts", "at least 1"),
        ({"hosts": ["far"]}, "standby.hosts", "write host:port"),
        ({"hosts": ["far:0"]}, "standby.hosts", "write host:port"),
        ({"hosts": ["far:70000"]}, "standby.hosts", "write host:port"),
        ({"hosts": ["far,near:1"]}, "standby.hosts", "write host:port"),
        ({"hosts": ["far:1 user=postgres"]}, "standby.hosts", "write host:port"),
        ({"hosts": ["far:1", "far:1"]}, "standby.hosts", "occurs twice"),
        ({"user": "postgres"}, "standby.user", "made for this"),
        ({"user": 'x" all'}, "standby.user", "is not valid"),
        ({"password": "two\nlines"}, "standby.password", "one line"),
        ({"password": ""}, "standby.password", "at least 1"),
        ({"slot": "Copy-1"}, "standby.slot", "not a slot name"),
        ({"sslmode": "allow"}, "standby.sslmode", "verify-full"),
        ({"sslmode": "verify-ca"}, "standby", "needs `ca`"),
        ({"ca": "nothing"}, "standby", "no PEM"),
        ({"port": 1}, "standby.port", ""),
    ],
)
def test_what_is_refused_names_the_field(fields: dict[str, Any], path: str, told: str) -> None:
    with pytest.raises(UserError) as refused:
        parsed(standby=standby(**fields))
    assert path in refused.value.what
    assert told in refused.value.what
    assert "secret" not in refused.value.what


def test_the_password_is_in_nothing_that_is_stored_or_shown() -> None:
    spec = parsed(standby=standby())
    assert "secret" not in repr(spec)
    assert "secret" not in spec.model_dump_json()
    assert spec.standby is not None
    assert spec.standby.password == "secret"


def test_followers_log_in_as_a_declared_user_from_networks() -> None:
    assert parsed(followers={"user": "app", "networks": ["10.0.0.0/8"]}).followers is not None
    with pytest.raises(UserError, match=r"followers\.user: 'west' is not among the users"):
        parsed(followers={"user": "west", "networks": ["10.0.0.0/8"]})
    with pytest.raises(UserError, match=r"followers\.networks"):
        parsed(followers={"user": "app", "networks": ["10.0.0.1/8"]})
