"""Who may log in to a whole cluster, through any node's proxy: declared users, roles made by SQL, and nobody else."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest
import pytest_asyncio
from psycopg.conninfo import conninfo_to_dict

from proxy.verifiers import FRESH_S
from tests.support.cluster import Cluster, running_cluster, short_root
from tests.support.waiting import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]


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
