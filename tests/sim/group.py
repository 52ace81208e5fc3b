"""One instance in the simulated world, and the machines its members live on."""

from __future__ import annotations

from collections.abc import Sequence

from core.ids import InstanceRef
from core.records import MemberDesired, Replication, SyncRecord
from hub.etcd import keys
from tests.sim.agent_model import Agent
from tests.sim.checkers import Checkers
from tests.sim.engine_model import Engine
from tests.sim.network import Network
from tests.sim.node_model import NodeAgent
from tests.sim.proxy_model import Proxy
from tests.sim.world import Host, Process, World

ANSWERS_WITHIN_S = 1.9  # at the end a write has been acknowledged so lately


class Machine:
    """A host with its agent, its proxy and an engine of each instance."""

    def __init__(self, host: Host, shell: NodeAgent) -> None:
        self.host = host
        self.shell = shell
        self.proxy_process = Process(host, f"proxy {host.name}")
        self.nodes: list[Node] = []
        self.up = True

    def start_agent(self) -> None:
        if self.up and not self.shell.process.alive:
            self.shell.start()

    def start_proxy(self) -> None:
        if self.up and not self.proxy_process.alive:
            self.proxy_process.start()

    def freeze(self) -> None:
        for process in self._processes():
            process.pause()

    def thaw(self) -> None:
        """Who runs first is anybody's guess."""
        processes = self._processes()
        self.host.world.rng.shuffle(processes)
        for process in processes:
            process.resume()

    def _processes(self) -> list[Process]:
        return [self.shell.process, self.proxy_process, *(node.engine.process for node in self.nodes)]

    def crash(self) -> None:
        self.up = False
        self.shell.process.kill()
        for node in self.nodes:
            node.engine.end(crashed=True)
        self.proxy_process.kill()

    def boot(self) -> None:
        if not self.up:
            self.up = True
            self.host.boot += 1
            self.proxy_process.start()
            self.shell.start()


class Node:
    """One member of one instance on its machine."""

    def __init__(self, machine: Machine, agent: Agent, engine: Engine, proxy: Proxy) -> None:
        self.machine = machine
        self.host = machine.host
        self.agent = agent
        self.engine = engine
        self.proxy = proxy
        self.member = agent.me
        machine.nodes.append(self)

    @property
    def up(self) -> bool:
        return self.machine.up

    def start_agent(self) -> None:
        self.machine.start_agent()

    def freeze(self) -> None:
        self.machine.freeze()

    def thaw(self) -> None:
        self.machine.thaw()

    def crash(self) -> None:
        self.machine.crash()

    def boot(self) -> None:
        self.machine.boot()


class Group:
    """One instance: its members, what is wanted of it, and what watches over it."""

    def __init__(
        self, world: World, network: Network, ref: InstanceRef, desired: Sequence[MemberDesired], checkers: Checkers
    ) -> None:
        self.world = world
        self.network = network
        self.ref = ref
        self.desired = {member.member: member for member in desired}
        self.replication: Replication = desired[0].replication
        self.checkers = checkers
        self.nodes: dict[str, Node] = {}  # by the node's name; only of members there are
        self.proxies: list[Proxy] = []

    def settle_on(self, machines: Sequence[Machine]) -> None:
        by_name = {machine.host.name: machine for machine in machines}
        for member in sorted(self.desired.values(), key=lambda member: member.member):
            self.place(by_name[member.node], member)

    def place(self, machine: Machine, desired: MemberDesired) -> Node:
        """A member with nothing on its disk yet."""
        checkers, member = self.checkers, desired.member
        engine = Engine(self.world, machine.host, member, self.network, checkers)
        proxy = Proxy(machine.proxy_process, self.network, checkers.engines, checkers)
        agent = Agent(machine.shell, desired=desired, engine=engine, proxy=proxy)
        node = Node(machine, agent, engine, proxy)
        for other in self.nodes.values():
            other.agent.others[member] = agent
            agent.others[other.member] = other.agent
        checkers.engines[member] = engine
        checkers.held[member] = set()
        checkers.proxies.append(proxy)
        self.proxies.append(proxy)
        self.desired[member] = desired
        self.nodes[machine.host.name] = node
        return node

    def forget(self, node: Node) -> None:
        """The member has left; what is still on its way to it finds nobody."""
        del self.nodes[node.host.name], self.desired[node.member]
        self.proxies.remove(node.proxy)

    def node(self, member: str) -> Node | None:
        return next((node for node in self.nodes.values() if node.member == member), None)

    def leader(self) -> Node | None:
        entry = self.checkers.etcd.store.entries.get(keys.leader(self.ref))
        member = self.checkers.terms[-1][2] if entry and self.checkers.terms else ""
        return self.node(member)

    # --- what the instance lacks to be whole ---

    def lacking(self) -> str:
        leader = self.leader()
        if leader is None:
            return "nobody leads; " + "; ".join(
                f"{n.member}: {n.agent.decision.reason.value} {n.agent.decision.detail}"
                for n in self.nodes.values()
                if n.agent.decision is not None
            )
        if not leader.engine.is_primary or not leader.agent.writable():
            return f"{leader.member} is not a primary that accepts writes"
        for node in self.nodes.values():
            if node.proxy.target() is None:
                return f"the proxy of {node.member} has no route"
            if node is not leader and not node.engine.observe().streaming:
                decision = node.agent.decision
                return f"{node.member} does not stream: {decision.reason.value if decision else ''}"
        return self._lacking_of_sync(leader)

    def _lacking_of_sync(self, leader: Node) -> str:
        wanted, setting = self.replication, leader.engine.setting
        record = leader.agent.instance.ha.sync if leader.agent.instance else SyncRecord()
        others = [d for d in self.desired.values() if d.member != leader.member]
        able = [d for d in others if not d.no_failover and not d.upstream]
        k = {"async": 0, "sync": 1, "quorum": wanted.k}[wanted.mode]
        if not wanted.strict:
            k = min(k, len(able))
        names = {"async": 0, "sync": 1, "quorum": len(able)}[wanted.mode]
        here = {member.member for member in able}
        if (setting.k, len(setting.names)) != (k, names) or not here.issuperset(setting.names):
            return f"the setting is {setting}"
        if not k and setting.mode != "async":
            return "nothing is acknowledged"
        same = record.mode == wanted.mode and (record.k, set(record.names)) == (k, set(setting.names))
        return "" if same else f"the record is {record}, the setting {setting}"

    def look_at_the_end(self) -> None:
        leader = self.leader()
        if leader is None:
            self.checkers.fail("nobody leads at the end")
        assert leader is not None, "fail raises"
        self.checkers.check_nothing_lost(leader.engine, max_lag_bytes=self.replication.max_failover_lag_bytes)
        if not any(at > self.world.now - ANSWERS_WITHIN_S for at, _ in self.checkers.acked.values()):
            self.checkers.fail("no write is acknowledged at the end")
