"""Controllers on a real etcd, driven by hand, with agents that are played: they write what real ones would report.

`Stage` is one etcd with a mirror of its own. `Stage.hub()` makes controllers that hold the claim and look when told to,
so that a test decides what happens between two looks. Agents do as they are told at once, a whole round at each
`agents()`; `settle` lets hub and agents take turns until nobody has anything to do.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from core.ids import InstanceRef
from core.records import (
    HaRecord,
    InstanceRecord,
    InstanceStatus,
    LeaderRecord,
    MemberDesired,
    ObservedMember,
    ProjectRecord,
    SyncRecord,
    to_json,
)
from core.sealing import Sealer
from core.specs.instance import InstanceSpec
from core.status import Condition, ConditionType, MemberState, Role
from hub.claims import Claim, Holding
from hub.config import HubConfig
from hub.context import Hub
from hub.controllers import WORK, Controllers
from hub.etcd import keys, txns
from hub.etcd.client import EtcdClient
from hub.etcd.mirror import Mirror
from hub.etcd.store import Store
from hub.events import EventWriter
from hub.liveness import Liveness
from hub.main import assemble_hub
from hub.secrets import Secrets
from hub.setup import prepare
from tests.support.clocks import ManualClock
from tests.support.situations import node as node_record

ORDERS = InstanceRef("demo", "orders")
ROUNDS_MAX = 60


class Killed(Exception):
    """The hub died here."""


class MortalStore(Store):
    """A store whose process dies at the commit after `left` ones (never, if negative): before that one is sent, or
    before its answer is heard."""

    def __init__(self, client: EtcdClient, mirror: Mirror, *, left: int = -1, unheard: bool = False) -> None:
        super().__init__(client, mirror)
        self.left = left
        self.unheard = unheard

    async def commit(self, txn: txns.Txn) -> bool:
        if self.left == 0:
            if self.unheard:
                await super().commit(txn)
            raise Killed
        self.left -= 1
        return await super().commit(txn)


@dataclass
class ControlledHub:
    """One hub's controllers. `clock` stands still until it is moved."""

    stage: Stage
    hub: Hub
    clock: ManualClock
    controllers: Controllers
    holding: Holding

    async def look(self) -> None:
        """One look at what is due by now; every node that is not dead was heard of just before."""
        for name in self.stage.mirror.nodes.keys() - self.stage.dead_nodes:
            self.hub.liveness.heard(name, self.clock.now())
        await self.controllers.look(self.holding)

    async def recheck(self, seconds: float = 31.0) -> None:
        """Let time pass, then look at everything."""
        self.clock.advance(seconds)
        await self.look()

    async def settle(self) -> None:
        """Hub and agents in turns until both are idle."""
        for _ in range(ROUNDS_MAX):
            before = self.stage.mirror.revision
            await self.look()
            await self.stage.agents()
            if self.stage.mirror.revision == before:
                return
        raise AssertionError(f"no rest after {ROUNDS_MAX} rounds: {self.stage.mirror.events}")


@dataclass
class Stage:
    """What lies in etcd, and the agents."""

    client: EtcdClient
    mirror: Mirror
    store: Store
    full: Hub
    down: dict[str, MemberState] = field(default_factory=dict)  # members whose engine does not run, by name
    dead_nodes: set[str] = field(default_factory=set)  # nothing is heard of them, their leases have expired

    @staticmethod
    @asynccontextmanager
    async def on(endpoint: str, root: Path) -> AsyncIterator[Stage]:
        client = EtcdClient([endpoint])
        config = HubConfig.model_validate(
            {
                "name": "hub1",
                "etcd_endpoints": [endpoint],
                "listen_agents": "127.0.0.1:7400",
                "listen_operators": "127.0.0.1:7401",
                "data_dir": str(root),
            }
        )
        await prepare(config, client)
        mirror = Mirror(client)
        try:
            async with asyncio.TaskGroup() as group:
                following = group.create_task(mirror.run())
                async with asyncio.timeout(10):
                    await mirror.synced.wait()
                full = await assemble_hub(config, client, mirror)
                yield Stage(client=client, mirror=mirror, store=Store(client, mirror), full=full)
                following.cancel()
        finally:
            await client.aclose()

    async def hub(self, *, name: str = "hub1", left: int = -1, unheard: bool = False, **config: Any) -> ControlledHub:
        """A hub that has just come up and holds the claim, whoever held it before."""
        clock = ManualClock()
        store = MortalStore(self.client, self.mirror, left=left, unheard=unheard)
        hub = replace(
            self.full,
            config=self.full.config.model_copy(update={"name": name, **config}),
            clock=clock,
            liveness=Liveness(clock),
            store=store,
            secrets=Secrets(Sealer.load(self.full.config.seal_key_path), store, self.mirror),
            events=EventWriter(store, name, clock=clock),
        )
        await self.client.delete_prefix(keys.CLAIMS)
        holding = await Claim(self.client, clock, work=WORK, hub=name).take_if_free()
        assert holding is not None
        await self.mirror.reached(holding.created)
        controllers = Controllers(hub)
        controllers.begin()
        return ControlledHub(stage=self, hub=hub, clock=clock, controllers=controllers, holding=holding)

    # --- operators ----------------------------------------------------------------------------------------------------

    async def write(self, *ops: txns.Op) -> None:
        assert await self.store.commit(txns.all_of([], list(ops)))

    async def add_nodes(self, *names: str, **facts: Any) -> None:
        await self.write(*(txns.Put(keys.node(name), to_json(node_record(name, **facts))) for name in names))

    async def add_project(self, name: str = "demo", **spec: Any) -> None:
        await self.write(txns.Put(keys.project(name), to_json(ProjectRecord(name=name, spec={"name": name, **spec}))))

    async def apply(self, ref: InstanceRef = ORDERS, **spec: Any) -> None:
        """Create the instance, or change it to this spec."""
        checked = InstanceSpec.model_validate({"project": ref.project, "name": ref.instance, "replicas": 2, **spec})
        known = self.mirror.instances.get(ref)
        record = InstanceRecord(project=ref.project, name=ref.instance, spec=checked.model_dump(mode="json"))
        if known is not None:
            record = replace(known.record, spec=record.spec, generation=known.record.generation + 1)
        await self.write(txns.Put(keys.instance(ref), to_json(record)))

    async def ask(self, ref: InstanceRef = ORDERS, **wishes: Any) -> None:
        """Change the record beside the spec: `deleting`, `restart_id`."""
        await self.write(txns.Put(keys.instance(ref), to_json(replace(self.mirror.instances[ref].record, **wishes))))

    # --- what is there ------------------------------------------------------------------------------------------------

    def status(self, ref: InstanceRef = ORDERS) -> InstanceStatus:
        return self.mirror.status[ref].record

    def condition(self, type_: ConditionType, ref: InstanceRef = ORDERS) -> Condition:
        return next(condition for condition in self.status(ref).conditions if condition.type is type_)

    def members(self, ref: InstanceRef = ORDERS) -> dict[str, MemberDesired]:
        """By name; two members of one name are an error."""
        found = [known.record for (_, member), known in self.mirror.members.items() if member.instance == ref]
        by_name = {member.member: member for member in sorted(found, key=lambda member: member.member)}
        assert len(by_name) == len(found), f"a member exists twice: {found}"
        return by_name

    def events(self, of: str = "demo/orders") -> list[str]:
        """Names of the events about an object or its members, in the order they were written."""
        told = [event for event in self.mirror.events if event.object == of or event.object.startswith(f"{of}/")]
        return [event.event for event in told]

    async def keys_of(self, ref: InstanceRef = ORDERS) -> list[str]:
        """Everything in etcd that belongs to the instance, but its events."""
        found, _ = await self.client.list(keys.ROOT)
        names = (ref.key, f"{ref.project}/{ref.instance}")
        mine = [kv.key for kv in found if any(name in kv.key for name in names) or kv.value == ref.key.encode()]
        return [key for key in mine if not key.startswith(keys.EVENTS)]

    # --- agents -------------------------------------------------------------------------------------------------------

    async def agents(self) -> None:
        """One round: every agent that is alive does as it is told, and reports what changed."""
        for ref in sorted(self.mirror.ha):
            await self._lead(ref)
            await self._keep_sync_set(ref)
        for (name, member), known in sorted(self.mirror.members.items()):
            if name not in self.dead_nodes:
                await self._report(name, known.record, self.mirror.observed.get((name, member)))

    async def _lead(self, ref: InstanceRef) -> None:
        """Somebody leads who can: the bootstrap member at first, then whoever is well."""
        ha, leader = self.mirror.ha[ref].record, self.mirror.leaders.get(ref)
        members = self.members(ref)
        if leader is not None and not self._can_lead(members.get(leader.record.member)):
            await self.write(txns.Delete(keys.leader(ref)))
            leader = None
        if leader is not None:
            return
        able = [name for name, member in members.items() if self._can_lead(member) and self._has_data(member)]
        first = ha.bootstrap if not ha.system_id else next(iter(able), "")
        if not self._can_lead(members.get(first)):
            return
        record = LeaderRecord(member=first, node=members[first].node, term=ha.term + 1)
        after = replace(ha, term=record.term, leader=first, system_id=ha.system_id or "7")
        await self.write(txns.Put(keys.leader(ref), to_json(record)), txns.Put(keys.ha(ref), to_json(after)))

    def _can_lead(self, member: MemberDesired | None) -> bool:
        return (
            member is not None
            and member.desired == "running"
            and not member.no_failover
            and member.node not in self.dead_nodes
            and member.member not in self.down
        )

    def _has_data(self, member: MemberDesired) -> bool:
        return any(
            seen.record.generation > 0
            for (node, ref), seen in self.mirror.observed.items()
            if (node, ref.member, ref.instance.instance) == (member.node, member.member, member.instance)
        )

    async def _keep_sync_set(self, ref: InstanceRef) -> None:
        """The leader records one standby that could lead, as the agents' sync set does."""
        ha, leader = self.mirror.ha[ref].record, self.mirror.leaders.get(ref)
        members = self.members(ref)
        if leader is None or not members or next(iter(members.values())).replication.mode == "async":
            return
        able = [n for n, m in members.items() if n != leader.record.member and self._can_lead(m) and self._has_data(m)]
        keeps = [name for name in ha.sync.names if name in able] or able[-1:]
        wanted = SyncRecord(mode="sync", k=len(keeps), names=tuple(keeps))
        if wanted != ha.sync:
            await self.write(txns.Put(keys.ha(ref), to_json(replace(ha, sync=wanted))))

    async def _report(self, node: str, member: MemberDesired, known: Any) -> None:
        ref = InstanceRef(member.project, member.instance)
        before = known.record if known is not None else None
        seen = self._observe(node, member, ref, before)
        if seen != before:
            key = keys.observed(
                node, next(r for n, r in self.mirror.members if n == node and str(r) == f"{ref}/{member.member}")
            )
            await self.write(txns.Put(key, to_json(seen)))

    def _observe(
        self, node: str, member: MemberDesired, ref: InstanceRef, before: ObservedMember | None
    ) -> ObservedMember:
        leader = self.mirror.leaders.get(ref)
        blank = ObservedMember(project=ref.project, instance=ref.instance, member=member.member, node=node)
        if member.desired == "absent":
            return replace(blank, state=MemberState.DELETED)
        if member.member in self.down:
            return replace(before or blank, state=self.down[member.member])
        if leader is None:
            return before or replace(blank, state=MemberState.CREATING)
        leads = leader.record.member == member.member
        return replace(
            blank,
            state=MemberState.RUNNING,
            role=Role.PRIMARY if leads else Role.REPLICA,
            timeline=leader.record.term,
            generation=member.generation,
            restart_id=member.restart_id,
            streaming_from="" if leads else leader.record.member,
            engine_version="18.6",
            engine_tls=True,
        )


def ha_of(stage: Stage, ref: InstanceRef = ORDERS) -> HaRecord:
    return stage.mirror.ha[ref].record
