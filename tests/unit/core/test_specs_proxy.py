"""The clients' part of an Instance document: what is refused, in which words, and what a rule takes from the rest."""

from __future__ import annotations

import json
from typing import Any

import pytest

from core.errors import UserError
from core.specs import InstanceSpec, parse_document


def orders(proxy: Any, **fields: Any) -> dict[str, Any]:
    return {"kind": "Instance", "project": "demo", "name": "orders", "proxy": proxy, **fields}


def parsed(proxy: Any, **fields: Any) -> InstanceSpec:
    spec = parse_document(orders(proxy, **fields))
    assert isinstance(spec, InstanceSpec)
    return spec


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        orders({"pooling": {"mode": "statement"}}),
        "d: proxy.pooling.mode: must be 'session' or 'transaction', got 'statement'",
    ),
    (orders({"pooling": {"size": -1}}), "d: proxy.pooling.size: must be at least 0, got -1"),
    (orders({"pooling": {"size": "5"}}), "d: proxy.pooling.size: must be a whole number, got '5'"),
    (orders({"pooling": {"sice": 5}}), "d: proxy.pooling.sice: is not a known field; did you mean 'size'?"),
    (orders({"pooling": {"reserve": 5}}), "d: proxy.pooling: reserve needs a size that it goes beyond"),
    (orders({"pools": [{"size": 10_001}]}), "d: proxy.pools[0].size: must be at most 10000, got 10001"),
    (orders({"pools": [5]}), "d: proxy.pools[0]: must be a mapping, got 5"),
    (orders({"pools": [{"size": 1}] * 101}), "d: proxy.pools: must have at most 100 entries"),
    (
        orders({"pools": [{"user": "reporting"}]}),
        "d: proxy.pools[0].user: 'reporting' is not among the users; declare it there",
    ),
    (
        orders({"pools": [{"user": "app"}, {"database": "shop"}]}),
        "d: proxy.pools[1].database: 'shop' is not among the databases; declare it there",
    ),
    (
        orders({"pools": [{"user": "app"}, {"size": 2}, {"database": "app"}]}),
        "d: proxy.pools: rule [2] is never used: all its clients fit rule [1] before it",
    ),
    (orders({"limits": {"clients": -1}}), "d: proxy.limits.clients: must be at least 0, got -1"),
    (orders({"limits": {"client": 5}}), "d: proxy.limits.client: is not a known field; did you mean 'clients'?"),
    (
        orders({"limits": {"clients": 5, "clients_per_user": 6}}),
        "d: proxy.limits: clients_per_user is more than all clients together: 6 of 5",
    ),
    (orders({"limits": {"idle_s": -0.5}}), "d: proxy.limits.idle_s: must be at least 0, got -0.5"),
    (orders({"observers": ["nobody"]}), "d: proxy.observers[0]: 'nobody' is not among the users; declare it there"),
    (orders({"observers": ["app", "app"]}), "d: proxy.observers: observers: 'app' occurs twice"),
    (
        orders({"reads": {"lag_max_bytes": "much"}}),
        "d: proxy.reads.lag_max_bytes: is not a size: write bytes, or a number with Ki, Mi, Gi or Ti, such as 512Mi",
    ),
    (orders({"splitting": True}), "d: proxy.splitting: must be 'off' or 'statements', got true"),
    (
        orders({"splitting": "statements"}),
        "d: proxy.splitting: 'statements' is for clients in transaction mode, and nobody is in it; set pooling.mode, "
        "or the mode of one of pools, to transaction, or splitting to off",
    ),
    (
        orders({"splitting_functions": ["total()"]}),
        "d: proxy.splitting_functions: 'total()' is not the name of a function: write total or shop.total, without "
        "parentheses",
    ),
    (
        orders({"pooling": {"size": 90, "reserve": 11}}, parameters={"max_connections": 100}),
        "d: proxy.pooling.size: 101 connections, 11 of them reserve, are more than max_connections = 100",
    ),
    (
        orders({"pools": [{"user": "app", "mode": "transaction"}]}, parameters={"max_connections": "19"}),
        "d: proxy.pools[0].size: 20 connections are more than max_connections = 19",
    ),
    (
        orders({}, databases=[{"name": "pgbouncer", "owner": "app"}]),
        "d: databases[0].name: database name 'pgbouncer' is reserved",
    ),
    (
        orders({}, members={"m2": {"read_weight": 0}}),
        "d: members.m2.read_weight: must be at least 1, got 0",
    ),
]


@pytest.mark.parametrize(("document", "message"), REFUSED, ids=[message[:60] for _, message in REFUSED])
def test_bad_settings_are_refused_with_their_path(document: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_document(document, where="d")
    assert str(refused.value) == message


def test_a_rule_takes_from_pooling_what_it_leaves_out() -> None:
    spec = parsed({"pooling": {"mode": "transaction", "size": 7, "idle_s": 60}, "pools": [{"user": "app", "size": 3}]})
    (rule,) = spec.proxy.pools
    assert (rule.mode, rule.size, rule.idle_s, rule.user, rule.database) == ("transaction", 3, 60.0, "app", None)


def test_what_was_stored_is_read_back_the_same() -> None:
    spec = parsed({"pooling": {"size": 7}, "pools": [{"user": "app", "mode": "transaction"}, {"database": "postgres"}]})
    assert InstanceSpec.model_validate(json.loads(json.dumps(spec.model_dump(mode="json")))) == spec


@pytest.mark.parametrize(
    ("pooling", "size"),
    [({}, 0), ({"mode": "transaction"}, 20), ({"mode": "transaction", "size": 3}, 3), ({"size": 5}, 5)],
)
def test_a_size_that_is_left_open_means_something_in_each_mode(pooling: dict[str, Any], size: int) -> None:
    assert parsed({"pooling": pooling}).proxy.pooling.used_size == size


def test_reads_are_bounded_and_split_as_the_document_says() -> None:
    proxy = parsed({}).proxy
    assert (proxy.reads.lag_max_bytes, proxy.splitting, proxy.splitting_functions) == (None, "off", ())
    rule = {"user": "app", "mode": "transaction"}
    wanted = {"reads": {"lag_max_bytes": "16Mi"}, "splitting": "statements", "splitting_functions": ["shop.total"]}
    proxy = parsed({**wanted, "pools": [rule]}, users=[{"name": "app"}]).proxy
    assert (proxy.reads.lag_max_bytes, proxy.splitting) == (16 << 20, "statements")
    assert proxy.splitting_functions == ("shop.total",)


def test_a_bare_off_in_yaml_is_off() -> None:
    assert parsed({"splitting": False}).proxy.splitting == "off"
