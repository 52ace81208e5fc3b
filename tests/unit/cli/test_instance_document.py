"""Flags of `instance create` as a document."""

from __future__ import annotations

from typing import Any

import pytest

from cli.instance_document import Wishes, document_for
from core.errors import UserError
from core.ids import InstanceRef

REF = InstanceRef("demo", "orders")
NOTHING: dict[str, Any] = {
    "replicas": None, "engine_version": None, "cpu": None, "memory": None, "disk": None, "mode": None, "k": None,
    "parameters": (), "databases": (), "users": (), "extensions": (),
}  # fmt: skip


def made(base: dict[str, Any] | None = None, **wishes: Any) -> dict[str, Any]:
    return document_for(REF, Wishes(**{**NOTHING, **wishes}), base or {})


def test_what_is_not_asked_for_is_left_to_the_hub() -> None:
    assert made() == {"kind": "Instance", "project": "demo", "name": "orders"}


def test_flags_become_fields() -> None:
    document = made(replicas=2, mode="sync", memory="2Gi", parameters=("work_mem=64MB", "log_line_prefix=%m a=b"))
    assert document["replicas"] == 2
    assert document["replication"] == {"mode": "sync"}
    assert document["resources"] == {"memory": "2Gi"}
    assert document["parameters"] == {"work_mem": "64MB", "log_line_prefix": "%m a=b"}


def test_how_commits_are_acknowledged_is_said_by_flags() -> None:
    assert made(replicas=2, quorum=2)["replication"] == {"mode": "quorum", "k": 2}
    assert made(replicas=1, mode="sync", strict=False)["replication"] == {"mode": "sync", "strict": False}
    base = {"replication": {"mode": "sync", "strict": False}}
    assert made(base, replicas=1, strict=True)["replication"] == {"mode": "sync", "strict": True}


def test_flags_win_over_the_file_field_by_field() -> None:
    base = {"kind": "Instance", "resources": {"cpu": 4, "disk": "5Gi"}, "replicas": 1, "deletion_protection": True}
    document = made(base, cpu=2.0, replicas=2)
    assert document["resources"] == {"cpu": 2.0, "disk": "5Gi"}
    assert document["replicas"] == 2
    assert document["deletion_protection"] is True


def test_first_user_owns_the_databases() -> None:
    document = made(users=("shop", "report"), databases=("orders", "stock"), extensions=("vector",))
    assert document["users"] == [{"name": "shop"}, {"name": "report"}]
    assert document["databases"] == [
        {"name": "orders", "owner": "shop", "extensions": ["vector"]},
        {"name": "stock", "owner": "shop", "extensions": ["vector"]},
    ]
    assert made(databases=("orders",))["databases"] == [{"name": "orders", "owner": "app"}]
    assert made(users=("shop",))["databases"] == [{"name": "app", "owner": "shop"}]


@pytest.mark.parametrize(
    ("base", "wishes", "told"),
    [
        ({}, {"parameters": ("work_mem",)}, "not NAME=VALUE"),
        ({}, {"parameters": ("port=1",)}, "managed by Moorage"),
        ({}, {"mode": "sync", "quorum": 2, "replicas": 2}, "--quorum 2 does not go with --mode sync"),
        ({}, {"k": 1, "quorum": 2, "replicas": 2}, "--quorum 2 does not go with --k 1"),
        ({}, {"mode": "sync"}, "sync replication needs at least 1"),
        ({}, {"memory": "lots"}, "is not a size"),
        ({}, {"users": ("postgres",)}, "reserved"),
        ({"name": "other"}, {}, "'other' in the file"),
        ({"repliccas": 1}, {}, "repliccas"),
    ],
)
def test_what_does_not_fit_is_told_before_the_hub_is_asked(
    base: dict[str, Any], wishes: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError) as caught:
        made(base, **wishes)
    assert told in str(caught.value)
