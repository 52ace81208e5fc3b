"""How long clients cannot write: engine crash, node loss, planned switchover; and whether a write is lost.

A writer inserts through the proxies of all three nodes every 5 ms. The gap is the time from the last acknowledged write
before the fault to the first one after it. Synchronous mode, Debian's PostgreSQL 15, etcd and all parts on one machine.

    ./dev bench failover [--rounds 3] [--json FILE]
"""

from __future__ import annotations

import asyncio
import os
import signal
import time

from tests.support.bench import Rows, parser
from tests.support.cluster import Cluster, running_cluster, short_root
from tests.support.waiting import eventually
from tests.support.writer import Writer

CASES = ("engine_crash", "switchover", "node_loss")


async def fault(cluster: Cluster, case: str) -> None:
    """Make it happen; the node of a lost primary is started again by the caller."""
    node = await cluster.primary_node()
    if case == "engine_crash":
        os.kill(cluster.postmaster(node), signal.SIGKILL)
    elif case == "node_loss":
        cluster.agents[node].kill_everything()
    else:
        await cluster.actl("instance", "switchover", "demo/orders", "--no-wait")


async def one_round(cluster: Cluster, writer: Writer, case: str) -> float:
    """Seconds of the gap; waits until the instance is whole again."""
    await cluster.await_running(within=60)
    old = await cluster.primary_node()
    at = time.monotonic()
    await fault(cluster, case)

    async def moved() -> bool:
        return await cluster.primary_node() != old and max(writer.acknowledged.values()) > at + 0.5

    await eventually(moved, within=60, every=0.3, what=f"a new primary after {case}")
    for agent in cluster.agents.values():
        if not agent.running():
            agent.start()
    await cluster.await_running(within=90)
    return writer.longest_gap(at - 0.2)


async def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--only", choices=CASES)
    options = arguments.parse_args()
    rows = Rows(options.json)
    async with short_root("failover") as root, running_cluster(root) as cluster:
        await cluster.create(mode="sync")
        writer = Writer(await cluster.dsn())
        await writer.prepare()
        async with asyncio.TaskGroup() as group:
            group.create_task(writer.run())
            await eventually(lambda: asyncio.sleep(0, len(writer.acknowledged)), lambda n: n > 50, within=20)
            for case in (options.only,) if options.only else CASES:
                gaps = [await one_round(cluster, writer, case) for _ in range(options.rounds)]
                rows.add_spread(case, "moorage", "write_gap", "s", gaps)
            writer.stopping.set()
        rows.add("all", "moorage", "acknowledged_writes", "count", len(writer.acknowledged))
        rows.add("all", "moorage", "lost_writes", "count", len(await writer.lost()))
    rows.finish()


if __name__ == "__main__":
    asyncio.run(main())
