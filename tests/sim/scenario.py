"""One whole run from one seed: one instance or two are made, written to, troubled, left in peace, and looked at.

Every tenth seed is a long one: some twenty-five simulated seconds, twelve of trouble with a fault in each that overlap
as they like and may begin before anything is made, and the way back to an instance that is whole. The others hold three
or four faults in as many seconds. Time in which nothing happens finds nothing.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from agent.ha.actions import Reason
from core.ids import InstanceRef
from core.records import MemberDesired, Replication, ReplicationMode, SyncRecord
from tests.sim import faults
from tests.sim.checkers import Checkers, Violation
from tests.sim.control_model import Control
from tests.sim.engine_model import ENTRY_BYTES
from tests.sim.etcd_model import Etcd
from tests.sim.group import Group, Machine, Node
from tests.sim.hub_model import REF, Hub, seed_etcd, seed_node
from tests.sim.network import Network
from tests.sim.node_model import NodeAgent
from tests.sim.proxy_model import Client
from tests.sim.world import Host, Process, World

OTHER_REF = InstanceRef("demo", "stock")
CASCADES = 0.3  # of the seeds with members enough for it
READY_WITHIN_S = 25.0
BEGINS_WITHIN_S = (0.2, 2.5)  # the trouble, or when the instance is whole for the first time
LONG_EVERY = 10
TROUBLE_S = (8.0, 16.0)
SHORT_TROUBLE_S = (1.5, 4.5)
FAULT_EVERY_S = 0.9
PEACE_S = 60.0  # within which the instance must be whole again
WHOLE_FOR_S = 0.75
LOOK_EVERY_S = 0.25
WRITE_EVERY_S = 0.4
BURST = 10  # writes around each fault
BURST_EVERY_S = 0.03


@dataclass(frozen=True, slots=True)
class Shape:
    """What kind of instance a seed makes. `spare`: one more node, for a member that may be added. `second`: another
    instance on the same nodes. `cascade`: the last member streams from another replica, else by chance."""

    members: int
    replication: Replication
    ttl_s: float
    spare: bool = False
    second: Replication | None = None
    cascade: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """`violation` is empty when all held."""

    seed: int
    shape: Shape
    violation: str
    acked: int
    terms: int
    failovers: int  # another member leads than before, without a handover
    handovers: int
    is_long: bool
    simulated_s: float
    whole_after_s: float  # the last fault's end
    faults: Counter[str]
    reasons: frozenset[Reason]
    diary: Sequence[tuple[float, str]]


class Scenario:
    """All parts of one world."""

    def __init__(self, seed: int, shape: Shape | None = None) -> None:
        self.seed = seed
        self.is_long = seed % LONG_EVERY == 0
        self.world = world = World(seed)
        self.shape = shape or _shape(world, is_long=self.is_long)
        self.network = Network(world)
        self.etcd = Etcd(world, Host(world, "etcd", self._rate()))
        self.hubs: list[Hub] = []
        count = self.shape.members + self.shape.spare
        for number in range(count):
            seed_node(self.etcd, f"n{number + 1}")
        self.groups = [self._group(REF, self.shape.replication)]
        if self.shape.second is not None:
            self.groups.append(self._group(OTHER_REF, self.shape.second))
        for number in range(2):
            host = Host(world, f"hub{number + 1}", self._rate())
            self.hubs.append(Hub(world, host, self.network, self.etcd, ttl_s=self.shape.ttl_s))
        self.machines = [self._machine(f"n{number + 1}") for number in range(count)]
        for group in self.groups:
            group.settle_on(self.machines)
        self.control = Control(self)
        self.fault_counts: Counter[str] = Counter()
        self.whole_after_s = 0.0
        # What most stories are about.
        self.group = self.groups[0]
        self.nodes = self.group.nodes
        self.checkers = self.group.checkers

    def _rate(self) -> float:
        """So that two hosts differ by 10 % at most; the extremes are what hurts."""
        return self.world.rng.choice([0.953, 1.048, self.world.rng.uniform(0.953, 1.048)])

    def _machine(self, name: str) -> Machine:
        host = Host(self.world, name, self._rate())
        return Machine(host, NodeAgent(self.world, host, self.network, self.hubs, ttl_s=self.shape.ttl_s))

    def _group(self, ref: InstanceRef, replication: Replication) -> Group:
        rng = self.world.rng
        numbers = list(range(1, self.shape.members + 1))
        if ref != REF:
            rng.shuffle(numbers)  # so that another node than the first instance's leads, or the same
        desired = tuple(
            MemberDesired(
                project=ref.project,
                instance=ref.instance,
                member=f"m{number}",
                node=f"n{number}",
                replication=replication,
                priority=rng.choice([0, 0, 1]),
            )
            for number in numbers
        )
        desired = self._cascaded(desired, replication)
        seed_etcd(self.etcd, desired, system=SyncRecord(mode=replication.mode))
        return Group(self.world, self.network, ref, desired, Checkers(self.world, self.etcd, ref))

    def _cascaded(self, desired: tuple[MemberDesired, ...], replication: Replication) -> tuple[MemberDesired, ...]:
        """Now and then the last member streams from another replica. The choice is apart from the seed's other ones."""
        chance = random.Random(f"cascade {self.seed}")
        enough = len(desired) - 2 >= max(1, replication.k)
        if self.shape.cascade or (enough and chance.random() < CASCADES):
            return (*desired[:-1], replace(desired[-1], upstream=desired[-2].member))
        return desired

    # --- choices of the troubles ---

    def any_group(self) -> Group:
        return self.world.rng.choice(self.groups)

    def any_node(self) -> Node:
        """The leader's as often as any other."""
        group = self.any_group()
        leader = group.leader()
        if leader is not None and self.world.rng.random() < 0.5:
            return leader
        return self.world.rng.choice(list(group.nodes.values()))

    def some_nodes(self) -> list[str]:
        count = self.world.rng.randint(1, len(self.nodes) - 1)
        return sorted({self.any_node().host.name} | set(self.world.rng.sample(sorted(self.nodes), count - 1)))

    def leader(self) -> Node | None:
        return self.group.leader()

    # --- the run ---

    def run(self) -> Outcome:
        violation = ""
        try:
            self._start()
            self.until_whole(self.world.rng.uniform(*BEGINS_WITHIN_S), "", may_lack=True)
            self._trouble()
            self._end()
        except (Violation, AssertionError) as found:
            violation = str(found) or "an assertion of the models failed"
        agents = [agent for machine in self.machines for agent in machine.shell.members.values()]
        reasons: frozenset[Reason] = frozenset().union(*(agent.reasons for agent in agents))
        checkers = [group.checkers for group in self.groups]
        return Outcome(
            seed=self.seed,
            shape=self.shape,
            violation=violation,
            acked=sum(len(c.acked) for c in checkers),
            terms=sum(len(c.terms) for c in checkers),
            failovers=sum(c.failovers() for c in checkers),
            handovers=sum(len(c.handed) for c in checkers),
            is_long=self.is_long,
            simulated_s=self.world.now,
            whole_after_s=self.whole_after_s,
            faults=self.fault_counts,
            reasons=reasons,
            diary=self.world.diary,
        )

    def create(self) -> None:
        """Until the instance is whole for the first time."""
        self._start()
        self.until_whole(READY_WITHIN_S, "is not created")

    def _start(self) -> None:
        """Clients write from the beginning."""
        self.control.start()
        for machine in self.machines:
            machine.proxy_process.start()
            machine.shell.start()
        for group in self.groups:
            self._write(group, "w", WRITE_EVERY_S)

    def _write(self, group: Group, name: str, every_s: float) -> Process:
        process = Process(Host(self.world, name), name)
        process.start()
        client = Client(self.world, process, group.proxies, name, every_s)
        process.spawn(client.run())
        return process

    def _trouble(self) -> None:
        rng, world = self.world.rng, self.world
        end = world.now + rng.uniform(*(TROUBLE_S if self.is_long else SHORT_TROUBLE_S))
        number = 0
        while True:
            world.run(min(end, world.now + rng.expovariate(1 / FAULT_EVERY_S)))
            if world.now >= end:
                break
            number += 1
            fault = rng.choice(faults.ALL)
            over = fault(self)
            if over is None:
                continue
            self.fault_counts[fault.__name__] += 1
            burst = self._write(self.any_group(), f"b{number}", BURST_EVERY_S)
            world.at(BURST * BURST_EVERY_S, burst.kill)
            lasts = rng.choice([rng.uniform(0.05, 1.5), rng.uniform(1.0, 6.0), rng.uniform(4.0, 12.0)])
            world.at(min(lasts, end - world.now), over)
        world.run(end + 0.001)
        world.note("* peace")

    def _end(self) -> None:
        begun = self.world.now
        self.until_whole(PEACE_S, "is not whole", for_s=WHOLE_FOR_S)
        self.whole_after_s = self.world.now - begun - WHOLE_FOR_S
        if self.world.now < self.network.late_until:
            self.world.run(self.network.late_until)  # what was held up arrives, and changes nothing
            self.until_whole(PEACE_S, "is not whole", for_s=WHOLE_FOR_S)
        self.look_at_the_end()

    def until_whole(self, within_s: float, what: str, *, for_s: float = 0.0, may_lack: bool = False) -> None:
        """Whole at every look for so long. `may_lack`: or the time is over."""
        since = begun = self.world.now
        while (lacking := self._lacking()) or self.world.now - since < for_s:
            if lacking and self.world.now >= begun + within_s:
                if may_lack:
                    return
                self.checkers.fail(f"the instance {what} within {within_s} s: {lacking}")
            self.world.run(self.world.now + LOOK_EVERY_S)
            since = self.world.now if lacking else since

    def _lacking(self) -> str:
        return self.control.lacking() or next((lack for group in self.groups if (lack := group.lacking())), "")

    def look_at_the_end(self) -> None:
        for group in self.groups:
            group.look_at_the_end()


def replication(rng_choice: World, members: int) -> Replication:
    """Any mode, with a k that the members allow."""
    rng = rng_choice.rng
    modes: list[ReplicationMode] = ["async", "sync", "quorum", "quorum"]
    k = rng.randint(1, min(2, members - 1))
    return Replication(mode=rng.choice(modes), k=k, strict=rng.random() < 0.75, max_failover_lag_bytes=20 * ENTRY_BYTES)


def _shape(world: World, *, is_long: bool) -> Shape:
    rng = world.rng
    members = rng.choice([2, 3, 3, 3, 3, 4, 5] if is_long else [2, 3, 3, 3, 3, 4])
    return Shape(
        members,
        replication(world, members),
        ttl_s=rng.choice([6.0, 3.0]) if is_long else 3.0,
        spare=rng.random() < 0.2,
        second=replication(world, members) if rng.random() < 0.08 else None,
    )
