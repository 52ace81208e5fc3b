"""Who may log in to a whole cluster, through any node's proxy: declared users, roles made by SQL, and nobody else."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest
import pytest_asyncio
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from core.ids import InstanceRef
from hub.etcd import keys
from proxy.verifiers import FRESH_S
from tests.support.cluster import INSTANCE, Cluster, running_cluster, short_root
from tests.support.waiting import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]
PACE_S = 1.2  # between two tries that may fail: ten failures within ten seconds are too many
V3 = {**os.environ, "ETCDCTL_API": "3"}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def cluster() -> AsyncIterator[Cluster]:
    async with short_root("logins") as root, running_cluster(root) as running:
        await running.create(mode="sync")
        yield running


@asynccontextmanager
async def superuser(cluster: Cluster) -> AsyncIterator[psycopg.AsyncConnection]:
    """At the primary, past the proxy, over the engine's own socket."""
    node = await cluster.primary_node()
    (sockets,) = (cluster.agents[node].data_root / "run").iterdir()
    port = (await dsns(cluster))[node]["engine_port"]
    async with await psycopg.AsyncConnection.connect(
        host=str(sockets), port=port, user="postgres", dbname="postgres", autocommit=True
    ) as connection:
        yield connection


async def dsns(cluster: Cluster) -> dict[str, dict[str, str]]:
    """By node: how to connect through its proxy; and the port of its engine."""
    parts = conninfo_to_dict(await cluster.dsn())
    found = {}
    for node, agent in cluster.agents.items():
        pid_file = cluster.member_dir(node) / "data" / "postmaster.pid"
        found[node] = {
            **{key: str(value) for key, value in parts.items() if key != "target_session_attrs"},
            "host": agent.address,
            "port": str(parts["port"]).split(",")[0],
            "engine_port": pid_file.read_text().split("\n")[3],
        }
    return found


async def log_in(cluster: Cluster, node: str, **changes: str) -> str:
    """Who one is then."""
    parameters = {**(await dsns(cluster))[node], "connect_timeout": "10", **changes}
    del parameters["engine_port"]
    async with await psycopg.AsyncConnection.connect(**parameters) as connection:
        row = await (await connection.execute("SELECT current_user")).fetchone()
        assert row is not None
        return str(row[0])


async def refusal(cluster: Cluster, node: str, **changes: str) -> str:
    with pytest.raises(psycopg.OperationalError) as refused:
        await log_in(cluster, node, **changes)
    return str(refused.value)


async def test_a_role_made_by_sql_logs_in_at_once_through_every_node(cluster: Cluster) -> None:
    async with superuser(cluster) as connection:
        await connection.execute("CREATE ROLE made LOGIN PASSWORD 'first'")
        await connection.execute("GRANT CONNECT ON DATABASE app TO made")
    for node in cluster.agents:
        assert await log_in(cluster, node, user="made", password="first") == "made"


async def test_a_password_changed_by_sql_is_in_force_within_a_moment(cluster: Cluster) -> None:
    async with superuser(cluster) as connection:
        await connection.execute("CREATE ROLE changing LOGIN PASSWORD 'first'")
        for node in cluster.agents:
            assert await log_in(cluster, node, user="changing", password="first") == "changing"
        await connection.execute("ALTER ROLE changing PASSWORD 'second'")
        changed_at = time.monotonic()

        async def second_works_everywhere() -> bool:
            try:
                return {await log_in(cluster, node, user="changing", password="second") for node in cluster.agents} == {
                    "changing"
                }
            except psycopg.OperationalError as error:
                raise OSError(str(error)) from error

        await eventually(second_works_everywhere, within=FRESH_S + 3)
        assert time.monotonic() - changed_at < FRESH_S + 4
        for node in cluster.agents:
            assert "password authentication failed" in await refusal(cluster, node, user="changing", password="first")


async def apply_users(cluster: Cluster, users: list[dict[str, object]], **proxy: object) -> None:
    spec = (await cluster.show())["spec"]
    file = cluster.root / "users.yaml"
    file.write_text(json.dumps({**spec, "users": users, "proxy": {**spec["proxy"], **proxy}}))
    await cluster.actl("apply", "-f", str(file))


async def password_of(cluster: Cluster, user: str) -> str:
    """As the hub tells it; empty while there is none."""
    shown = await cluster.actl("instance", "connect", INSTANCE, "--user", user, "--print", check=False)
    return str(conninfo_to_dict(shown.strip()).get("password", "")) if shown.strip() else ""


async def everywhere(places: list[dict[str, str]], **changes: str) -> set[str]:
    """What one is told through each node's proxy; only the user's name where one is let in."""

    async def told(place: dict[str, str]) -> str:
        try:
            async with await psycopg.AsyncConnection.connect(**{**place, "connect_timeout": "10", **changes}) as one:
                return one.info.user
        except psycopg.OperationalError as error:
            return str(error).rpartition("FATAL:")[2].strip()

    return set(await asyncio.gather(*map(told, places)))


async def test_users_of_the_document_come_change_and_go_with_every_proxy_running_on(cluster: Cluster) -> None:
    users = (await cluster.show())["spec"]["users"]
    proxies = {
        path: path.read_text() for one in cluster.agents.values() for path in one.data_root.glob("proxy/proxy-*.pid")
    }
    assert len(proxies) >= len(cluster.agents)
    places = list((await dsns(cluster)).values())
    for place in places:
        del place["engine_port"]
    observe = {"user": "clerk", "dbname": "moorage"}

    await apply_users(cluster, [*users, {"name": "clerk"}], observers=["clerk"])
    await eventually(lambda: password_of(cluster, "clerk"), bool, within=20)
    first = await password_of(cluster, "clerk")
    here = {"user": "clerk", "password": first, "dbname": "postgres"}
    await eventually(lambda: everywhere(places, **here), lambda told: told == {"clerk"}, within=20, every=PACE_S)
    async with await psycopg.AsyncConnection.connect(**{**places[0], **here}, autocommit=True) as old:
        # The hub makes the password anew, as it does for whoever has none.
        secret = keys.secret(InstanceRef.parse(INSTANCE), "clerk")
        command = ["etcdctl", "--endpoints", cluster.etcd.endpoint, "del", secret]
        deleted = await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True, text=True, env=V3)
        assert deleted.stdout.strip() == "1"
        second = await eventually(
            lambda: password_of(cluster, "clerk"), lambda password: password not in ("", first), within=20
        )
        changed = {**here, "password": second}
        await apply_users(cluster, [*users, {"name": "clerk"}], observers=[])
        await eventually(lambda: everywhere(places, **changed), lambda told: told == {"clerk"}, within=30, every=PACE_S)
        wrong = {'password authentication failed for user "clerk"'}
        await eventually(lambda: everywhere(places, **here), lambda told: told == wrong, within=10, every=PACE_S)
        assert (await (await old.execute("SELECT current_user")).fetchone()) == ("clerk",), "who is in stays in"

    await apply_users(cluster, users)
    told = {"user clerk may not ask the proxy's own database"}
    await eventually(
        lambda: everywhere(places, **observe, password=second),
        lambda found: {one.partition("\n")[0] for one in found} == told,
        within=20,
    )
    # A role that is declared no more is left alone in the engine, as everything that is not declared ...
    assert await everywhere(places, **changed) == {"clerk"}
    async with superuser(cluster) as connection:
        await connection.execute("DROP ROLE clerk")
    # ... and one that is not there is nobody, at once and everywhere.
    await eventually(lambda: everywhere(places, **changed), lambda told: told == wrong, within=10, every=PACE_S)
    assert {path: path.read_text() for path in proxies} == proxies


def reached(parts: dict[str, str], **changes: str) -> str:
    """By libpq itself: what kind of server one has come to; empty when none would do."""
    connection = psycopg.pq.PGconn.connect(make_conninfo(**{**parts, "connect_timeout": "10", **changes}).encode())
    try:
        if connection.status != psycopg.pq.ConnStatus.OK:
            return ""
        answer = connection.exec_(b"SELECT CASE WHEN pg_is_in_recovery() THEN 'standby' ELSE 'primary' END")
        return (answer.get_value(0, 0) or b"").decode()
    finally:
        connection.finish()


async def test_target_session_attrs_finds_its_server_among_the_proxies_of_all_members(cluster: Cluster) -> None:
    parts = {name: str(value) for name, value in conninfo_to_dict(await cluster.dsn()).items()}
    rw = parts["port"].split(",")[0]
    ro = str(conninfo_to_dict(await cluster.dsn(read_only=True))["port"]).split(",")[0]
    hosts = ",".join(agent.address for agent in cluster.agents.values())
    expected = {
        # read-write ports lead to the primary from every node, read-only ones to a standby ...
        **{(f"{rw},{rw},{rw}", attrs): "primary" for attrs in ("any", "read-write", "primary", "prefer-standby")},
        **{(f"{rw},{rw},{rw}", attrs): "" for attrs in ("read-only", "standby")},
        **{(f"{ro},{ro},{ro}", attrs): "standby" for attrs in ("any", "read-only", "standby", "prefer-standby")},
        **{(f"{ro},{ro},{ro}", attrs): "" for attrs in ("read-write", "primary")},
        # ... and where both are named, the client finds the one that it wants, in whatever order.
        **{(f"{ro},{rw},{ro}", attrs): "primary" for attrs in ("read-write", "primary")},
        **{(f"{rw},{rw},{ro}", attrs): "standby" for attrs in ("read-only", "standby", "prefer-standby")},
    }

    async def found() -> dict[tuple[str, str], str]:
        return {
            (ports, attrs): await asyncio.to_thread(reached, parts, host=hosts, port=ports, target_session_attrs=attrs)
            for ports, attrs in expected
        }

    await eventually(found, lambda one: one == expected, within=30)


async def test_strangers_and_the_systems_own_roles_are_refused_alike(cluster: Cluster) -> None:
    for node in cluster.agents:
        for user in ("nobody", "postgres", "moorage_replication"):
            assert f'password authentication failed for user "{user}"' in await refusal(
                cluster, node, user=user, password="guessed"
            )


async def test_a_role_that_may_not_log_in_is_told_so_by_the_engine(cluster: Cluster) -> None:
    async with superuser(cluster) as connection:
        await connection.execute("CREATE ROLE grouped NOLOGIN PASSWORD 'secret'")
    node = await cluster.primary_node()
    assert "is not permitted to log in" in await refusal(cluster, node, user="grouped", password="secret")


async def test_a_password_kept_as_md5_is_refused_with_the_way_out(cluster: Cluster) -> None:
    async with superuser(cluster) as connection:
        await connection.execute("SET password_encryption = 'md5'")
        await connection.execute("CREATE ROLE old LOGIN PASSWORD 'secret'")
    node = await cluster.primary_node()
    assert "not kept as SCRAM-SHA-256" in await refusal(cluster, node, user="old", password="secret")


async def test_while_an_agent_is_away_known_users_log_in_and_others_are_told_why_not(cluster: Cluster) -> None:
    primary = await cluster.primary_node()
    node = next(name for name in cluster.agents if name != primary)
    assert await log_in(cluster, node, user="app") == "app"
    agent = cluster.agents[node]
    agent.kill()
    try:
        # At once, while the route that the agent has renewed last is still in force.
        assert await log_in(cluster, node, user="app") == "app"
        assert "cannot check passwords of roles made by SQL" in await refusal(
            cluster, node, user="unheard-of", password="x"
        )
    finally:
        agent.start()
    await cluster.await_running(within=60)
    for log in (agent.data_root / "proxy" / "proxy.log", agent.log):
        assert "SCRAM-SHA-256$" not in log.read_text()
