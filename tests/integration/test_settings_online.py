"""Settings of the proxy that are changed while clients are there: in force within seconds, and nobody is cut."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from tests.support.cluster import Cluster, running_cluster, short_root
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(200)
WITHIN_S = 20
Client = psycopg.AsyncConnection[Any]


async def apply(cluster: Cluster, **fields: Any) -> str:
    """Apply a changed document; what `moorctl diff` said of it before."""
    document = {**(await cluster.show())["spec"], **fields}
    file = cluster.root / "orders.yaml"
    file.write_text(json.dumps(document))
    said = await cluster.actl("diff", "-f", str(file), check=False)
    await cluster.actl("apply", "-f", str(file))
    return said


async def backend(client: Client) -> int:
    row = await (await client.execute("SELECT pg_backend_pid()")).fetchone()
    assert row is not None
    return int(row[0])


async def refusal(dsn: str) -> str:
    """What a new client is told; empty when it is let in."""
    try:
        async with await psycopg.AsyncConnection.connect(dsn, connect_timeout=5):
            return ""
    except psycopg.OperationalError as error:
        return str(error)


async def shared(cluster: Cluster, dsn: str, count: int) -> int:
    """How many server connections so many new clients have, one after the other."""
    clients = [await cluster.connect(dsn) for _ in range(count)]
    try:
        return len({await backend(client) for client in clients})
    finally:
        for client in clients:
            await client.close()


async def test_changed_settings_reach_the_proxy_and_old_sessions_stay() -> None:
    users = [{"name": "app"}, {"name": "second"}]
    async with short_root("settings") as root, running_cluster(root, nodes=1) as cluster:
        await cluster.create(replicas=0, mode="async")
        dsn = await cluster.dsn()
        node = await cluster.primary_node()
        postmaster = cluster.postmaster(node)
        old = await cluster.connect(dsn)
        await old.execute("CREATE TEMPORARY TABLE mine AS SELECT 7 AS number")
        its_backend = await backend(old)
        assert await shared(cluster, dsn, 3) == 3

        # The old client's connection counts: the second one is what the new clients share.
        said = await apply(cluster, users=users, proxy={"pooling": {"mode": "transaction", "size": 2}})
        assert "proxy.pooling.mode: session -> transaction" in said
        await eventually(lambda: shared(cluster, dsn, 3), lambda many: many == 1, within=WITHIN_S)
        assert await backend(old) == its_backend

        said = await apply(cluster, users=users[:1], proxy={"allow": ["192.0.2.0/24"]})
        assert "users: removed second" in said
        await eventually(lambda: refusal(dsn), lambda why: "allow list" in why, within=WITHIN_S)
        row = await (await old.execute("SELECT number FROM mine")).fetchone()
        assert row == (7,)
        assert await backend(old) == its_backend

        await apply(cluster, users=users[:1], proxy={"limits": {"clients": 1}})
        await eventually(lambda: refusal(dsn), lambda why: "too many clients" in why, within=WITHIN_S)
        assert await backend(old) == its_backend

        await apply(cluster, users=users[:1], proxy={})
        await eventually(lambda: refusal(dsn), lambda why: not why, within=WITHIN_S)
        await old.close()
        assert cluster.postmaster(node) == postmaster
