"""One whole run from one seed: an instance is made, written to, troubled, left in peace, and looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.ha.actions import Reason
from core.records import MemberDesired, Replication, ReplicationMode, SyncRecord
from hub.etcd import keys, txns
from tests.sim import faults
from tests.sim.agent_model import Agent
from tests.sim.checkers import Checkers, Violation
from tests.sim.engine_model import ENTRY_BYTES, Engine
from tests.sim.etcd_model import Etcd
from tests.sim.hub_model import REF, Hub, seed_etcd
from tests.sim.network import Network
from tests.sim.proxy_model import Client, Proxy
from tests.sim.world import Host, Process, Work, World

READY_WITHIN_S = 25.0
TROUBLE_S = 45.0
PEACE_S = 60.0  # within which the instance must be whole again
SILENT_AFTER_S = 12.0


class Node:
    """A host with agent, engine and proxy."""

    def __init__(self, host: Host, agent: Agent, engine: Engine, proxy: Proxy) -> None:
        self.host = host
        self.agent = agent
        self.engine = engine
        self.proxy = proxy
        self.member = agent.me
        self.up = True

    def start_agent(self) -> None:
        if self.up and not self.agent.process.alive:
            self.agent.start()

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
        return [self.agent.process, self.engine.process, self.proxy.process]

    def crash(self) -> None:
        self.up = False
        self.agent.process.kill()
        self.engine.end(crashed=True)
        self.proxy.process.kill()

    def boot(self) -> None:
        if not self.up:
            self.up = True
            self.host.boot += 1
            self.proxy.start()
            self.agent.start()


@dataclass(frozen=True, slots=True)
class Shape:
    """What kind of instance a seed makes."""

    members: int
    replication: Replication
    ttl_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """`violation` is empty when all held."""

    seed: int
    shape: Shape
    violation: str
    acked: int
    terms: int
    reasons: frozenset[Reason]
    diary: Sequence[tuple[float, str]]


class Scenario:
    """All parts of one world."""

    def __init__(self, seed: int, shape: Shape | None = None) -> None:
        self.seed = seed
        self.world = world = World(seed)
        self.shape = shape or _shape(world)
        self.network = Network(world)
        self.etcd = Etcd(world, Host(world, "etcd", self._rate()))
        self.checkers = Checkers(world, self.etcd)
        desired = tuple(self._desired(f"m{number + 1}") for number in range(self.shape.members))
        seed_etcd(self.etcd, desired, system=SyncRecord(mode=self.shape.replication.mode))
        self.hubs = [
            Hub(world, Host(world, f"hub{number + 1}", self._rate()), self.network, self.etcd, ttl_s=self.shape.ttl_s)
            for number in range(2)
        ]
        self.nodes = {d.node: self._node(d) for d in desired}
        for node in self.nodes.values():
            node.agent.others = {other.member: other.agent for other in self.nodes.values() if other is not node}
            self.checkers.engines[node.member] = node.engine
            self.checkers.held[node.member] = set()
            self.checkers.proxies.append(node.proxy)
        self._operator = Process(Host(world, "operator"), "operator")

    def _rate(self) -> float:
        return self.world.rng.uniform(0.953, 1.048)  # so that two hosts differ by 10 % at most

    def _desired(self, member: str) -> MemberDesired:
        rng = self.world.rng
        return MemberDesired(
            project=REF.project,
            instance=REF.instance,
            member=member,
            node=f"n{member[1:]}",
            replication=self.shape.replication,
            priority=rng.choice([0, 0, 1]),
        )

    def _node(self, desired: MemberDesired) -> Node:
        host = Host(self.world, desired.node, self._rate())
        engine = Engine(self.world, host, desired.member, self.network, self.checkers)
        proxy = Proxy(host, self.network, self.checkers.engines, self.checkers)
        agent = Agent(
            self.world, host, self.network, desired=desired, hubs=self.hubs, engine=engine, proxy=proxy,
            ttl_s=self.shape.ttl_s,
        )  # fmt: skip
        return Node(host, agent, engine, proxy)

    # --- choices of the troubles ---

    def any_node(self) -> Node:
        """The leader's as often as any other."""
        leader = self.leader()
        if leader is not None and self.world.rng.random() < 0.5:
            return leader
        return self.world.rng.choice(list(self.nodes.values()))

    def any_engine(self) -> Engine:
        return self.any_node().engine

    def some_nodes(self) -> list[str]:
        count = self.world.rng.randint(1, len(self.nodes) - 1)
        return sorted({self.any_node().host.name} | set(self.world.rng.sample(sorted(self.nodes), count - 1)))

    def leader(self) -> Node | None:
        entry = self.etcd.store.entries.get(keys.leader(REF))
        member = self.checkers.terms[-1][2] if entry and self.checkers.terms else ""
        return next((node for node in self.nodes.values() if node.member == member), None)

    # --- the run ---

    def run(self) -> Outcome:
        violation = ""
        try:
            self.create()
            self._trouble()
            self.until_whole(PEACE_S, "is not whole", for_s=4.0)
            self.look_at_the_end()
        except (Violation, AssertionError) as found:
            violation = str(found) or "an assertion of the models failed"
        reasons: frozenset[Reason] = frozenset().union(*(node.agent.reasons for node in self.nodes.values()))
        return Outcome(
            seed=self.seed,
            shape=self.shape,
            violation=violation,
            acked=len(self.checkers.acked),
            terms=len(self.checkers.terms),
            reasons=reasons,
            diary=self.world.diary,
        )

    def create(self) -> None:
        """Until the instance is whole for the first time; clients write from the beginning."""
        self._start()
        self.until_whole(READY_WITHIN_S, "is not created")

    def _start(self) -> None:
        self._operator.start()
        self._operator.spawn(self._control())
        for node in self.nodes.values():
            node.proxy.start()
            node.agent.start()
        proxies = [node.proxy for node in self.nodes.values()]
        for number in range(2):
            clients = Process(Host(self.world, f"client{number}"), f"client {number}")
            clients.start()
            client = Client(
                self.world, clients, self.network, proxies, name=f"w{number}", pause_s=0.15,
                until=READY_WITHIN_S + TROUBLE_S + PEACE_S,
            )  # fmt: skip
            clients.spawn(client.run())

    def _trouble(self) -> None:
        rng = self.world.rng
        begin = self.world.now
        for _ in range(rng.randint(2, 7)):
            self.world.run(begin + min(TROUBLE_S, self.world.now - begin + rng.expovariate(1 / 7.0)))
            trouble = rng.choice(faults.ALL)
            end = trouble(self)
            lasts = rng.choice([rng.uniform(0.1, 3.0), rng.uniform(2.0, 9.0), rng.uniform(8.0, 25.0)])
            self.world.at(min(lasts, begin + TROUBLE_S - self.world.now), end)
        self.world.run(begin + TROUBLE_S + 0.001)
        self.world.note("* peace")
        self.world.run(self.world.now + Network.SLOW_S)  # what was held up arrives

    def _control(self) -> Work:
        """What the controllers do here: mark nodes that no hub hears."""
        started = self.world.now
        while True:
            yield self._operator.sleep(1.0)
            for node in self.nodes:
                heard = max(hub.heard.get(node, started) for hub in self.hubs)
                silent = self.world.now - heard > SILENT_AFTER_S
                key = keys.silent(node)
                known = key in self.etcd.store.entries
                if silent != known and self.etcd.process.alive:
                    op: txns.Op = txns.Put(key, b"{}") if silent else txns.Delete(key)
                    self.etcd.commit(txns.all_of([], [op]))

    def until_whole(self, within_s: float, what: str, *, for_s: float = 0.0) -> None:
        """Whole at every look for so long."""
        since = begun = self.world.now
        while (lacking := self._lacking()) or self.world.now - since < for_s:
            if lacking and self.world.now >= begun + within_s:
                self.checkers.fail(f"the instance {what} within {within_s} s: {lacking}")
            self.world.run(self.world.now + 0.5)
            since = self.world.now if lacking else since

    def _lacking(self) -> str:
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
        replication, setting = self.shape.replication, leader.engine.setting
        record = leader.agent.instance.ha.sync if leader.agent.instance else SyncRecord()
        k = {"async": 0, "sync": 1, "quorum": replication.k}[replication.mode]
        names = {"async": 0, "sync": 1, "quorum": self.shape.members - 1}[replication.mode]
        if (setting.k, len(setting.names)) != (k, names):
            return f"the setting is {setting}"
        same = record.mode == replication.mode and (record.k, set(record.names)) == (k, set(setting.names))
        return "" if same else f"the record is {record}, the setting {setting}"

    def look_at_the_end(self) -> None:
        leader = self.leader()
        if leader is None:
            self.checkers.fail("nobody leads at the end")
        assert leader is not None, "fail raises"
        replication = self.shape.replication
        self.checkers.check_nothing_lost(
            leader.engine, mode=replication.mode, max_lag_bytes=replication.max_failover_lag_bytes
        )
        recent = [at for at, _ in self.checkers.acked.values() if at > self.world.now - 2.9]
        if not recent:
            self.checkers.fail("no write is acknowledged at the end")


def _shape(world: World) -> Shape:
    rng = world.rng
    members = rng.choice([2, 3, 3, 3, 4, 5])
    modes: list[ReplicationMode] = ["async", "sync", "quorum", "quorum"]
    mode = rng.choice(modes)
    k = rng.randint(1, min(2, members - 1))
    replication = Replication(mode=mode, k=k, strict=rng.random() < 0.75, max_failover_lag_bytes=20 * ENTRY_BYTES)
    return Shape(members, replication, ttl_s=rng.choice([6.0, 6.0, 3.0]))
