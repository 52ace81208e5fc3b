"""What SHOW tells, from facts: PgBouncer's columns in PgBouncer's order, and sums that are right."""

from __future__ import annotations

from typing import Any

import pytest

from core.figures import Figures
from core.routes import Endpoint, Pooling, PoolRule, Route
from proxy.admin.answers import Kind
from proxy.admin.facts import ClientFacts, Ends, Facts, Metered, ServerFacts, Standing
from proxy.admin.pages import TOPICS, show
from proxy.meters import Stretch

ROUTE = Route(
    instance="demo/orders",
    rw_port=6001,
    ro_port=6002,
    term=4,
    primary=Endpoint(member="m1", host="10.0.0.1", port=5432),
    expires_at_s=105.5,
    replicas=(Endpoint(member="m2", host="10.0.0.2", port=5432),),
    pooling=Pooling(mode="transaction", size=10, reserve=3),
    pools=(PoolRule(user="report", pooling=Pooling(mode="session", size=2)),),
    clients_max=500,
    clients_per_user_max=50,
    observers=("watcher",),
)
# As PgBouncer 1.24 has them.
COLUMNS = {
    "pools": "database user cl_active cl_waiting cl_active_cancel_req cl_waiting_cancel_req sv_active sv_active_cancel"
    " sv_being_canceled sv_idle sv_used sv_tested sv_login maxwait maxwait_us pool_mode load_balance_hosts",
    "clients": "type user database replication state addr port local_addr local_port connect_time request_time wait"
    " wait_us close_needed ptr link remote_pid tls application_name prepared_statements id",
    "databases": "name host port database force_user pool_size min_pool_size reserve_pool_size server_lifetime"
    " pool_mode load_balance_hosts max_connections current_connections max_client_connections"
    " current_client_connections paused disabled",
    "users": "name pool_size reserve_pool_size pool_mode max_user_connections current_connections"
    " max_user_client_connections current_client_connections",
    "stats": "database total_server_assignment_count total_xact_count total_query_count total_received total_sent"
    " total_xact_time total_query_time total_wait_time total_client_parse_count total_server_parse_count"
    " total_bind_count avg_server_assignment_count avg_xact_count avg_query_count avg_recv avg_sent avg_xact_time"
    " avg_query_time avg_wait_time avg_client_parse_count avg_server_parse_count avg_bind_count",
    "stats_totals": "database server_assignment_count xact_count query_count bytes_received bytes_sent xact_time"
    " query_time wait_time client_parse_count server_parse_count bind_count",
    "lists": "list items",
    "config": "key value default changeable",
    "version": "version",
    "totals": "name value",
    "state": "key value",
}


def client(number: int, **changes: Any) -> ClientFacts:
    facts: dict[str, Any] = {
        "user": "app",
        "database": "shop",
        "state": "active",
        "connected_at": 0.0,
        "asked_at": 60.0,
    }
    return ClientFacts(number=number, ends=Ends(address="10.1.1.1", port=4000 + number), **{**facts, **changes})


def server(number: int, **changes: Any) -> ServerFacts:
    facts: dict[str, Any] = {"user": "app", "database": "shop", "member": "m1", "state": "active"}
    return ServerFacts(number=number, ends=Ends(), connected_at=0.0, used_at=0.0, **{**facts, **changes})


def metered(user: str, database: str, before: Figures, after: Figures) -> Metered:
    return Metered(user=user, database=database, figures=after, stretch=Stretch(before, after, 60.0))


CLIENTS = [
    client(1, server=11),
    client(2, state="idle"),
    client(3, state="waiting", waits_s=2.25),
    client(4, state="waiting", waits_s=1.5),
    client(5, user="report", server=12),
    client(6, user="watcher", database="moorage"),
]
SERVERS = [
    server(11, client=1),
    server(12, user="report", client=5),
    server(13, state="idle"),
    server(14, state="login"),
]
FACTS = Facts(
    route=ROUTE,
    now=100.0,
    process=77,
    address="10.0.0.9",
    clients_max=20_000,
    logins=3,
    clients=CLIENTS,
    servers=SERVERS,
    standings=[
        *(Standing(one.database, one.user, one.state, "", one.waits_s) for one in CLIENTS),
        *(Standing(one.database, one.user, "", one.state) for one in SERVERS),
    ],
    metered=(
        metered(
            "app",
            "shop",
            Figures(queries=100, query_us=1_000_000),
            Figures(queries=700, query_us=4_000_000, held_us=1_000_000, transactions=60, waits=2, bytes_in=6000),
        ),
        metered("report", "shop", Figures(), Figures(queries=300, query_us=1_000_000, errors={"42": 1})),
        metered("app", "old", Figures(), Figures()),
    ),
    total=Figures(refused={"28P01": 4}, ended={"57P01": 1}, errors={"42": 9}, query_counts=(0, 5), wait_counts=(2,)),
)


def rows(what: str) -> list[dict[str, Any]]:
    page = show(what, FACTS)
    assert page is not None
    return [dict(zip([column.name for column in page.columns], row, strict=True)) for row in page.rows]


@pytest.mark.parametrize("what", COLUMNS)
def test_columns_are_those_of_pgbouncer(what: str) -> None:
    page = show(what, FACTS)
    assert page is not None
    assert [column.name for column in page.columns] == COLUMNS[what].split()


def test_servers_are_shown_as_clients_are() -> None:
    pages = [show(what, FACTS) for what in ("clients", "servers")]
    assert pages[0] is not None
    assert pages[1] is not None
    assert pages[0].columns == pages[1].columns


@pytest.mark.parametrize("what", TOPICS)
def test_every_row_is_of_its_columns_types(what: str) -> None:
    page = show(what, FACTS)
    assert page is not None
    assert bool(page.columns) is not bool(page.notice)
    for row in page.rows:
        for column, value in zip(page.columns, row, strict=True):
            expected = str if column.kind is Kind.TEXT else int
            assert value is None or type(value) is expected, (column.name, value)
            assert column.kind is not Kind.INT4 or -(1 << 31) <= int(value or 0) < 1 << 31


def test_pools_count_the_clients_and_servers_of_a_user_and_database() -> None:
    pools = {(row["database"], row["user"]): row for row in rows("pools")}
    app = pools["shop", "app"]
    assert (app["cl_active"], app["cl_waiting"], app["sv_active"], app["sv_idle"], app["sv_login"]) == (2, 2, 1, 1, 1)
    assert (app["maxwait"], app["maxwait_us"], app["pool_mode"]) == (2, 250_000, "transaction")
    assert pools["shop", "report"]["pool_mode"] == "session"
    assert pools["old", "app"]["cl_active"] == 0
    assert pools["moorage", "watcher"]["sv_active"] == 0


def test_databases_users_and_lists_agree_with_the_pools() -> None:
    databases = {row["name"]: row for row in rows("databases")}
    assert set(databases) == {"shop", "old", "moorage"}
    shop = databases["shop"]
    assert (shop["current_connections"], shop["current_client_connections"], shop["host"]) == (4, 5, "10.0.0.1")
    assert (shop["pool_size"], shop["reserve_pool_size"], shop["max_connections"]) == (10, 3, 13)
    assert shop["max_client_connections"] == 500
    users = {row["name"]: row for row in rows("users")}
    assert (users["app"]["current_connections"], users["app"]["pool_mode"]) == (3, None)
    assert (users["report"]["pool_size"], users["report"]["pool_mode"]) == ("2", "session")
    lists = {row["list"]: row["items"] for row in rows("lists")}
    assert (lists["used_clients"], lists["used_servers"], lists["login_clients"]) == (6, 4, 3)
    assert (lists["databases"], lists["users"], lists["pools"]) == (3, 3, 4)


def test_statistics_sum_up_the_users_of_a_database_and_leave_out_waiting() -> None:
    (shop,) = [row for row in rows("stats") if row["database"] == "shop"]
    assert (shop["total_query_count"], shop["total_query_time"], shop["total_xact_count"]) == (1000, 4_000_000, 60)
    assert (shop["avg_query_count"], shop["avg_recv"]) == ((600 + 300) // 60, 100)
    assert shop["avg_query_time"] == (3_000_000 - 1_000_000 + 1_000_000) // 900
    assert {row["database"] for row in rows("stats")} == {"shop", "old", "moorage"}
    values = {row["name"]: row["value"] for row in rows("totals")}
    assert (values["total_query_count"], values["total_client_bytes"]) == (1000, 6000)


def test_our_own_tables() -> None:
    (route,) = rows("routes")
    assert (route["primary"], route["expires_in_ms"], route["replicas"]) == ("m1", 5500, "m2=10.0.0.2:5432")
    assert [(row["kind"], row["sqlstate"], row["count"]) for row in rows("errors")] == [
        ("refused", "28P01", 4),
        ("ended", "57P01", 1),
        ("server", "42...", 9),
    ]
    assert [(row["seconds_at_most"], row["queries"], row["waits"]) for row in rows("times")][:2] == [
        *(("0.0001", 0, 2), ("0.00025", 5, 0))
    ]
    assert show("nonsense", FACTS) is None
