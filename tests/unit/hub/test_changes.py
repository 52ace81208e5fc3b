"""Differences as sentences."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.specs import InstanceSpec
from hub.changes import describe_changes, describe_new, size_text

DEFAULTS = InstanceSpec(project="demo", name="orders").model_dump(mode="json")


def orders(**fields: Any) -> dict[str, Any]:
    return {**copy.deepcopy(DEFAULTS), **fields}


def user(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "superuser": False, "roles": [], **fields}


CASES: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    ({}, {}, []),
    ({"replicas": 1}, {"replicas": 2}, ["replicas: 1 -> 2"]),
    (
        {"members": {"m2": {"no_failover": True, "priority": 0}}},
        {"members": {"m2": {"no_failover": True, "priority": 5}, "m3": {"no_failover": True, "priority": 0}}},
        ["members.m2.priority: 0 -> 5", "members.m3: set to {no_failover: true}"],
    ),
    ({"engine_version": None}, {"engine_version": 15}, ["engine_version: unset -> 15"]),
    ({"deletion_protection": False}, {"deletion_protection": True}, ["deletion_protection: false -> true"]),
    (
        {"resources": {"cpu": 1.0, "memory": 1 << 30}},
        {"resources": {"cpu": 0.5, "memory": 1536 << 20}},
        ["resources.cpu: 1 -> 0.5", "resources.memory: 1Gi -> 1.5Gi"],
    ),
    (
        {"parameters": {"work_mem": "4MB", "jit": False}},
        {"parameters": {"work_mem": "8MB", "max_connections": 50}},
        [
            "parameters.work_mem: 4MB -> 8MB",
            "parameters.max_connections: set to 50",
            "parameters.jit: removed, was false",
        ],
    ),
    (
        {"users": [user("app")]},
        {"users": [user("reporter", roles=["pg_read_all_data"]), user("app", superuser=True)]},
        ["users: added reporter", "users.app.superuser: false -> true"],
    ),
    (
        {"databases": [{"name": "a", "owner": "x"}, {"name": "b", "owner": "x"}]},
        {"databases": [{"name": "b", "owner": "y"}]},
        ["databases: removed a", "databases.b.owner: x -> y"],
    ),
    (
        {"proxy": {"allow": ["10.0.0.0/8"]}},
        {"proxy": {"allow": ["192.168.0.0/16", "10.0.0.0/8"]}},
        ["proxy.allow: added 192.168.0.0/16"],
    ),
    ({"proxy": {"allow": ["a", "b"]}}, {"proxy": {"allow": ["b", "a"]}}, ["proxy.allow: order changed to b, a"]),
    (
        {"proxy": {"pools": [{"user": "app", "database": None, "size": 5}]}},
        {"proxy": {"pools": [{"user": "app", "database": None, "size": 9}, {"user": None, "database": "shop"}]}},
        ["proxy.pools: added database=shop", "proxy.pools.user=app.size: 5 -> 9"],
    ),
    ({"placement": {"region": "eu"}}, {"placement": {"region": None}}, ["placement.region: eu -> unset"]),
    ({"labels": {"team": ""}}, {"labels": {"team": " a"}}, ["labels.team: '' -> ' a'"]),
]


@pytest.mark.parametrize(("old", "new", "sentences"), CASES)
def test_each_difference_is_one_sentence(old: dict[str, Any], new: dict[str, Any], sentences: list[str]) -> None:
    assert list(describe_changes(orders(**old), orders(**new))) == sentences


def test_new_object_is_told_by_what_differs_from_the_defaults() -> None:
    spec = orders(replicas=2, parameters={"work_mem": "8MB"}, users=[user("app"), user("reporter")])
    spec["resources"]["memory"] = 512 << 20
    assert list(describe_new(spec, DEFAULTS)) == [
        "replicas: 2",
        "resources.memory: 512Mi",
        "parameters.work_mem: 8MB",
        "users: app, reporter",
    ]


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0"), (1000, "1000"), (1024, "1Ki"), (1536 << 20, "1.5Gi"), (1 << 40, "1Ti"), ((1 << 30) + 1, "1073741825")],
)
def test_sizes_read_as_operators_write_them(size: int, text: str) -> None:
    assert size_text(size) == text


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
SPECS = st.dictionaries(st.sampled_from(["memory", "users", "a", "b"]), VALUES)


@given(SPECS, SPECS)
def test_there_is_a_sentence_exactly_if_something_differs(old: dict[str, Any], new: dict[str, Any]) -> None:
    kept = copy.deepcopy((old, new))
    assert bool(describe_changes(old, new)) == (old != new)
    assert (old, new) == kept
