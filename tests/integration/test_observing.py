"""What an installation tells of itself: /metrics of every agent, read by Prometheus' own parser."""

from __future__ import annotations

import asyncio
import urllib.request

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.cluster import INSTANCE, Cluster, running_cluster, short_root
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(200)
QUERIES = 50
Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scraped(address: str) -> Figures:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    families = text_string_to_metric_families(text)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


async def summed(cluster: Cluster, name: str, **labels: str) -> float:
    """Over all nodes; of the instance, and with these labels among others."""
    project, _, instance = INSTANCE.partition("/")
    wanted = {("project", project), ("instance", instance), *labels.items()}
    pages = [await asyncio.to_thread(scraped, agent.metrics) for agent in cluster.agents.values()]
    return sum(
        value
        for page in pages
        for (known, found), value in page.items()
        if known == f"moorage_{name}" and wanted <= found
    )


async def test_prometheus_reads_proxies_members_and_agents() -> None:
    async with short_root("observing") as root, running_cluster(root) as cluster:
        await cluster.create(replicas=1, mode="async")
        async with await psycopg.AsyncConnection.connect(await cluster.dsn(), autocommit=True) as client:
            for _ in range(QUERIES):
                await client.execute("SELECT 1")

            async def queries() -> float:
                return await summed(cluster, "proxy_queries_total")

            await eventually(queries, lambda count: count >= QUERIES, within=20)
            assert await summed(cluster, "proxy_clients", kind="read_write") == 1
            assert await summed(cluster, "proxy_query_seconds_count") == await queries()
            assert await summed(cluster, "proxy_query_seconds_bucket", le="+Inf") == await queries()
            assert 0 < await summed(cluster, "proxy_query_seconds_sum") < 60
            assert await summed(cluster, "member_role", role="primary") == 1
            assert await summed(cluster, "member_role", role="replica") == 1
            assert await summed(cluster, "member_state", state="running") == 2
            assert await summed(cluster, "member_term", member="m1") == 1
        for node, agent in cluster.agents.items():
            page = await asyncio.to_thread(scraped, agent.metrics)
            assert page["moorage_agent_hub_reachable", frozenset()] == 1
            assert page["moorage_agent_proxy_processes", frozenset()] >= 1
            assert any(
                name == "moorage_agent_info" and ("node", node) in labels and value == 1
                for (name, labels), value in page.items()
            )
