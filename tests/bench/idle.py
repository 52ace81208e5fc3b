"""What the parts take when nothing happens: CPU and memory of hub, agents and proxies of a running instance.

./dev bench idle [--seconds 20] [--json FILE]
"""

from __future__ import annotations

import asyncio

import psutil

from tests.support.bench import Rows, parser
from tests.support.cluster import Cluster, running_cluster, short_root


def processes(cluster: Cluster) -> dict[str, list[psutil.Process]]:
    """By part."""
    pid_files = [file for agent in cluster.agents.values() for file in agent.data_root.glob("proxy/proxy-*.pid")]
    return {
        "hub": [psutil.Process(hub.pid) for hub in cluster.hubs],
        "agent": [psutil.Process(agent.pid) for agent in cluster.agents.values()],
        "proxy": [psutil.Process(int(file.read_text().split()[0])) for file in pid_files],
    }


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--seconds", type=float, default=20.0)
    options = arguments.parse_args()
    rows = Rows(options.json)
    async with short_root("idle") as root, running_cluster(root) as cluster:
        await cluster.create(mode="sync")
        await asyncio.sleep(5)
        parts = processes(cluster)
        before = {process.pid: cpu_seconds(process) for group in parts.values() for process in group}
        await asyncio.sleep(options.seconds)
        for part, group in parts.items():
            used = [(cpu_seconds(process) - before[process.pid]) / options.seconds for process in group]
            rows.add("idle_1_plus_2", f"moorage-{part}", "cpu_of_a_core_max", "%", 100 * max(used))
            rows.add(
                "idle_1_plus_2", f"moorage-{part}", "memory_max", "MB", max(p.memory_info().rss for p in group) / 1e6
            )
    rows.finish()


if __name__ == "__main__":
    asyncio.run(main())
