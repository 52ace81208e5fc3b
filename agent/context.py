"""What all keepers of a node share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from agent.config import AgentConfig
from agent.heartbeat import LeaderLease, NodeLease
from agent.link import HubLink
from agent.local import LocalFiles
from agent.peer import Peers
from agent.reporter import Reporter
from core.clock import Clock
from core.ids import InstanceRef
from core.routes import ProxyReport


@dataclass(slots=True, kw_only=True)
class NodeContext:
    """Wired up in `agent.main`."""

    config: AgentConfig
    clock: Clock
    link: HubLink
    files: LocalFiles
    lease: NodeLease
    peers: Peers
    reporter: Reporter
    routes_changed: Callable[[], None]
    routes_settled: Callable[[float], Awaitable[ProxyReport]]  # within seconds: the proxy's word that they are in force
    kick_heartbeat: Callable[[], None]
    leaders: dict[InstanceRef, LeaderLease] = field(default_factory=dict)  # what the last answered heartbeat told
    store_id: str = ""  # life of etcd's data that the last pulled state is of
    hub_seen_at: float = 0.0  # monotonic; when the last answered heartbeat was sent
    started_at: float = 0.0  # monotonic; of this agent
