"""What a node's agent does once for all its members: the node's lease and heartbeats, the poll, one keeper a member.

It follows `agent.heartbeat`, `agent.pull` and `agent.members`. The members share the process, the lease and the hub
they talk to: what happens to one instance's leader key on a shared lease must not keep another's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from agent.ha.leaseclock import RENEW
from agent.routing import CLIENT_MARGIN_S, LeaderTrust
from core.records import NodeState
from tests.sim.hub_model import Told
from tests.sim.network import Network, Reply
from tests.sim.world import Failure, Host, Process, Signal, Work, World

if TYPE_CHECKING:
    from tests.sim.agent_model import Agent
    from tests.sim.hub_model import Hub

HEARTBEAT_TIMEOUT_S = 1.8
RETRY_S = 0.4
POLL_TIMEOUT_S = 14.0


@dataclass(frozen=True, slots=True)
class NodeMemory:
    """lease.json and desired.json"""

    lease_id: int = 0
    state: NodeState | None = None


class NodeAgent:
    """The process `moorage-agent` of one node."""

    def __init__(self, world: World, host: Host, network: Network, hubs: list[Hub], *, ttl_s: float) -> None:
        self.world = world
        self.host = host
        self.network = network
        self.hubs = hubs
        self.ttl_s = ttl_s
        self.process = Process(host, f"agent {host.name}")
        self.memory = NodeMemory()
        self.members: dict[tuple[str, str], Agent] = {}  # by instance and name: all that may ever live here
        self.lease_id = 0
        self.told: dict[str, LeaderTrust] = {}  # by instance

    def start(self) -> None:
        """As after a crash: with what is on disk."""
        self.process.start()
        self.lease_id = self.memory.lease_id
        self.told = {}
        self.acquiring = False  # by one of its members
        self.started_at = self.host.now()
        self._hub = self.world.rng.randrange(len(self.hubs))
        self.beat_now = Signal(self.process)
        for member in self.members.values():
            member.running = False
        if self.memory.state is not None:
            self._apply(self.memory.state)
        self.process.spawn(self._beats())
        self.process.spawn(self._pulls())

    @property
    def hub(self) -> Hub:
        return self.hubs[self._hub]

    def ask_hub(self, handler: Callable[[Reply], None], timeout_s: float) -> Work:
        hub = self._hub
        try:
            return (yield self.network.call(self.process, self.hub.process, handler, timeout_s=timeout_s))
        except Failure:
            if self._hub == hub:
                self._hub = (hub + 1) % len(self.hubs)
            raise

    # --- lease ---

    def take(self, lease_id: int) -> None:
        if lease_id != self.lease_id:
            self.lease_id = lease_id
            self.memory = replace(self.memory, lease_id=lease_id)

    def _beats(self) -> Work:
        while True:
            sent_at, lease_id = self.host.now(), self.lease_id
            ask = functools.partial(self.hub.heartbeat, self.host.name, lease_id)
            self.beat_now.clear()
            try:
                answer: Any = yield from self.ask_hub(ask, HEARTBEAT_TIMEOUT_S)
            except Failure:
                yield self.beat_now.wait(RETRY_S)
                continue
            yield self.beat_now.wait(self._take_beat(answer, lease_id, sent_at))

    def _take_beat(self, answer: Told, lease_id: int, sent_at: float) -> float:
        """Seconds until the next."""
        running = [(instance, agent) for (instance, _), agent in self.members.items() if agent.running]
        if answer.renewal == "gone" and lease_id == self.lease_id:
            self.take(0)
            for _, agent in running:
                agent.lease_gone()
        elif answer.renewal == "confirmed" and lease_id == self.lease_id:
            for instance, agent in running:
                term, member, _ = answer.leaders.get(instance, (0, "", 0.0))
                agent.lease_renewed(sent_at, term, member)
        self.told = {
            instance: LeaderTrust(term=term, member=member, until=sent_at + left_s - CLIENT_MARGIN_S)
            for instance, (term, member, left_s) in answer.leaders.items()
        }
        for _, agent in running:
            agent.routes_changed()
        if answer.renewal == "unconfirmed":
            return RETRY_S
        return max(0.1, self.ttl_s * RENEW - (self.host.now() - sent_at))

    # --- desired state ---

    def _pulls(self) -> Work:
        while True:
            ask = functools.partial(self.hub.poll, self.host.name, self.memory.state)
            try:
                state: NodeState = yield from self.ask_hub(ask, POLL_TIMEOUT_S)
            except Failure:
                yield self.process.sleep(self.world.rng.uniform(0.1, 1.0))
                continue
            if state is not self.memory.state and state != self.memory.state:
                self.memory = replace(self.memory, state=state)
                self._apply(state)

    def _apply(self, state: NodeState) -> None:
        views = {view.instance: view for view in state.views}
        wanted = {(desired.instance, desired.member): desired for desired in state.members}
        for key, agent in self.members.items():
            desired = wanted.get(key)
            if desired is None:
                agent.end()
            elif agent.running:
                agent.update(desired, views.get(key[0]))
            else:
                agent.begin(desired, views.get(key[0]))
