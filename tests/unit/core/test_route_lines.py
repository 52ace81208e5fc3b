"""Tables as lines: whole again after the way, small where nothing is particular."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from core.routes import Endpoint, Pooling, PoolRule, Route, RouteTable, decode_table, encode

BYTES_PER_ROUTE = 400  # of an instance of three members with default settings


def route(number: int = 0, **fields: Any) -> Route:
    members = [
        Endpoint(member=f"m{one}", host=f"192.168.100.1{one}", port=15_000, tls=True, node=f"node-{one}")
        for one in (1, 2, 3)
    ]
    return Route(
        instance=f"production/orders-{number}",
        rw_port=15_001,
        ro_port=15_002,
        term=4,
        primary=members[0],
        replicas=tuple(members[1:]),
        expires_at_s=123456.789,
        **fields,
    )


def test_ten_thousand_routes_of_default_settings_stay_small() -> None:
    line = encode(RouteTable(seq=1, routes=tuple(map(route, range(10_000)))))
    assert len(line) <= 10_000 * BYTES_PER_ROUTE, f"{len(line) / 10_000:.0f} bytes a route"


poolings = st.builds(
    Pooling,
    mode=st.sampled_from(["session", "transaction"]),
    size=st.integers(0, 50),
    idle_s=st.sampled_from([0.0, 300.0, 7.5]),
    reset=st.sampled_from(["changed", "always"]),
)
rules = st.builds(PoolRule, pooling=poolings, user=st.sampled_from(["", "app"]), database=st.sampled_from(["", "shop"]))


@given(poolings, st.lists(rules, max_size=3), st.booleans(), st.integers(0, 2), st.integers(0, 2))
def test_a_table_comes_through_whole_whatever_is_at_its_default(
    pooling: Pooling, pools: list[PoolRule], paused: bool, slow: int, most: int
) -> None:
    counts = {"clients_max": most, "clients_per_user_max": 2 - most}
    bounds = {**counts, "client_idle_s": float(most), "client_unread_s": most * 300.0}
    names = {"observers": ("app",), "split_functions": ("f",)}
    one = route(pooling=pooling, pools=tuple(pools), paused=paused, slow_query_ms=slow, **bounds, **names)
    table = RouteTable(seq=3, routes=(one, Route(instance="a/b", rw_port=1, ro_port=2)))
    assert decode_table(encode(table)) == table
