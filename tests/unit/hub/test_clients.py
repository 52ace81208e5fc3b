"""From the spec to what the proxy is told of clients, and that it comes through every older and newer record."""

from __future__ import annotations

import json
from typing import Any

from core.codec import from_json
from core.records import ClientsDesired, MemberDesired, to_json
from core.routes import Pooling, PoolRule, Route
from core.specs import InstanceSpec, parse_document
from hub.judges.clients import clients_of

USERS = [
    {"name": "app"},
    {"name": "boss", "superuser": True},
    {"name": "watcher", "roles": ["pg_monitor"]},
    {"name": "named"},
]


def clients(**proxy: Any) -> ClientsDesired:
    document = {"kind": "Instance", "project": "demo", "name": "orders", "users": USERS, "proxy": proxy}
    spec = parse_document(document)
    assert isinstance(spec, InstanceSpec)
    return clients_of(spec)


def member(**fields: Any) -> MemberDesired:
    return MemberDesired(project="demo", instance="orders", member="m1", node="n1", **fields)


def test_every_setting_arrives() -> None:
    pooling = {
        "mode": "transaction", "size": 0, "reserve": 2, "reserve_after_s": 1, "queue_timeout_s": 4, "idle_max": 6,
        "idle_s": 7, "life_s": 8, "statements_max": 11, "reset": "always",
    }  # fmt: skip
    told = clients(pooling=pooling, pools=[{"user": "app", "mode": "session", "size": 3}], slow_query_ms=9)
    assert told.pooling == Pooling(
        mode="transaction", size=20, reserve=2, reserve_after_s=1.0, queue_timeout_s=4.0, idle_max=6, idle_s=7.0,
        life_s=8.0, statements_max=11, reset="always",
    )  # fmt: skip
    (rule,) = told.pools
    assert (rule.user, rule.database, rule.pooling.mode, rule.pooling.size) == ("app", "", "session", 3)
    assert told.slow_query_ms == 9


def test_limits_arrive() -> None:
    limits = {"clients": 500, "clients_per_user": 50, "idle_s": 7, "idle_transaction_s": 8, "unread_s": 9}
    told = clients(limits=limits)
    assert (told.clients_max, told.clients_per_user_max) == (500, 50)
    assert (told.client_idle_s, told.idle_transaction_s, told.client_unread_s) == (7.0, 8.0, 9.0)
    assert clients().client_unread_s == Route(instance="a/b", rw_port=1, ro_port=2).client_unread_s == 600.0
    assert clients() == clients(limits={}) == clients(limits={"clients": 0, "clients_per_user": 0})


def test_which_replicas_take_reads_and_whether_reads_are_split_off_arrives() -> None:
    told = clients()
    assert (told.lag_max_bytes, told.splits, told.split_functions) == (None, False, ())
    told = clients(
        pooling={"mode": "transaction"},
        reads={"lag_max_bytes": "1Mi"},
        splitting="statements",
        splitting_functions=["total"],
    )
    assert (told.lag_max_bytes, told.splits, told.split_functions) == (1 << 20, True, ("total",))


def test_observers_are_those_who_see_as_much_in_the_engine_and_those_who_are_named() -> None:
    assert clients().observers == ("boss", "watcher")
    assert clients(observers=["named"]).observers == ("boss", "named", "watcher")


def test_a_member_is_read_by_the_version_before_and_the_version_after() -> None:
    rule = PoolRule(user="app", pooling=Pooling(mode="transaction", size=3))
    known = member(clients=ClientsDesired(pooling=Pooling(size=5), pools=(rule,)), read_weight=3)
    assert from_json(MemberDesired, to_json(known)) == known
    newer = json.loads(to_json(known))
    newer["clients"]["pooling"]["colour"] = newer["clients"]["more"] = newer["more"] = 1
    assert from_json(MemberDesired, json.dumps(newer)) == known
    older = json.loads(to_json(known))
    del older["clients"], older["read_weight"]
    assert from_json(MemberDesired, json.dumps(older)) == member()
