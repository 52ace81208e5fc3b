"""A line of the control socket is a table that can be put in force, or nothing."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.routes import Endpoint, Route, RouteTable, encode
from proxy.control import read_table

PRIMARY = {"member": "m1", "host": "10.0.0.1", "port": 5432, "tls": False}
ROUTE = {"instance": "demo/orders", "rw_port": 15000, "ro_port": 15001, "primary": PRIMARY, "expires_at_s": 5.0}


def line(**changes: object) -> bytes:
    return json.dumps({"seq": 1, "routes": [{**ROUTE, **changes}]}).encode()


def test_a_table_comes_through_whole():
    primary = Endpoint(member="m1", host="10.0.0.1", port=5432)
    route = Route(instance="demo/orders", rw_port=1, ro_port=2, primary=primary, replicas=(primary,), allow=("::/0",))
    table = RouteTable(seq=7, routes=(route,))
    assert read_table(encode(table)) == table


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"nonsense",
        b"[]",
        b"7",
        b"{}",
        b'{"seq":1}',
        b'{"seq":1,"routes":7}',
        b'{"seq":1,"routes":[7]}',
        b'{"seq":Infinity,"routes":[]}',
        b'{"seq":"x","routes":[]}',
        b"[" * 200_000,
        line(unknown=1),
        line(rw_port=0),
        line(rw_port=65536),
        line(rw_port="15000"),
        line(ro_port=True),
        line(expires_at_s=float("nan")),
        line(expires_at_s=float("inf")),
        line(expires_at_s="soon"),
        line(hold_s=None),
        line(instance=7),
        line(client_tls="maybe"),
        line(client_tls=[]),
        line(allow=[7]),
        line(allow=7),
        line(observers=[7]),
        line(split_functions=[7]),
        line(slow_query_ms="7"),
        line(client_idle_s="7"),
        line(idle_transaction_s=-1),
        line(client_unread_s=float("inf")),
        line(clients_max="7"),
        line(clients_max=-1),
        line(clients_per_user_max=None),
        line(clients_per_user_max=float("nan")),
        line(pooling={"mode": "statement"}),
        line(pooling={"size": "5"}),
        line(pooling={"life_s": -1}),
        line(pooling={"colour": 1}),
        line(pools=[{"user": "app"}]),
        line(pools=[{"user": 7, "pooling": {}}]),
        line(pools=[{"user": "app", "pooling": {"reset": "never"}}]),
        line(primary="m1"),
        line(primary={**PRIMARY, "host": 7}),
        line(primary={**PRIMARY, "port": "5432"}),
        line(primary={"member": "m1"}),
        line(replicas=[PRIMARY, {**PRIMARY, "port": 0}]),
        json.dumps({"seq": 1, "routes": [ROUTE, ROUTE]}).encode(),
    ],
)
def test_garbage_is_a_value_error_and_nothing_else(data):
    with pytest.raises(ValueError, match=r".*"):
        read_table(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.sampled_from([*ROUTE, "replicas", "allow", "hold_s", "paused", "term", "client_tls", "pooling", "pools"]),
    json_values,
)
def test_any_value_in_any_field_gives_a_table_or_a_value_error(field, value):
    try:
        table = read_table(line(**{field: value}))
    except ValueError:
        return
    assert table.routes[0].rw_port in range(1, 65536)
