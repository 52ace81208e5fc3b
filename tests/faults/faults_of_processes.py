"""Processes that die, hang or are ended: engines, agents, nodes, hubs, etcd."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Sequence

from tests.faults.machines import Machine, kill
from tests.faults.scene import NO_GAP_S, NODE_LOSS_S, Fault, Scene, hold, until_written
from tests.faults.site import ETCD_PORT, INSTANCE, Site
from tests.support.etcd import CONTROL
from tests.support.waiting import eventually

FREEZE_S = 20.0
OUTAGE_S = 60.0
UP_WITHIN_S = 30.0


class EngineKill(Fault):
    name = "engine_kill"
    proves = "kill -9 of the primary's postmaster and all its backends: fail over without waiting for the lease"
    bound_s = 1.0
    pairs = True

    async def play(self, scene: Scene) -> None:
        kill(scene.site.engine_pids(await scene.site.primary()))


class AgentKill(Fault):
    name = "agent_kill"
    proves = "kill -9 of the primary's agent, started again 2 s later: engine and proxy go on, the lease is kept"
    bound_s = NO_GAP_S
    pairs = True

    async def play(self, scene: Scene) -> None:
        node = await scene.site.primary()
        node.crash(node.services["agent"])
        await hold(4)


class AgentAndEngineKill(Fault):
    name = "agent_engine_kill"
    proves = "kill -9 of the primary's agent and engine, the agent started again 2 s later"
    bound_s = NODE_LOSS_S
    pairs = True

    async def play(self, scene: Scene) -> None:
        crash_member(scene.site, await scene.site.primary())


class PowerOff(Fault):
    name = "node_power_off"
    proves = "every process of the primary's node dies at once; the node comes back when others lead"
    bound_s = NODE_LOSS_S
    pairs = True

    async def play(self, scene: Scene) -> None:
        node = await scene.site.primary()
        node.power_off()
        try:
            await until_written(scene)
            await hold(2)
        finally:
            node.power_on()


class ReplicaPowerOff(Fault):
    name = "replica_power_off"
    proves = "the node of the replica that confirms commits dies: the other one takes its part"
    bound_s = 2.0
    pairs = True

    async def play(self, scene: Scene) -> None:
        node = await scene.site.sync_replica()
        node.power_off()
        try:
            await hold(10)
        finally:
            node.power_on()


class AllNodesOff(Fault):
    name = "all_nodes_off"
    proves = "all nodes die at once and the former primary's comes back last: nobody leads who may miss a commit"

    async def play(self, scene: Scene) -> None:
        primary = await scene.site.primary()
        nodes = [node for node in scene.site.nodes.values() if node is not primary]
        for node in (primary, *nodes):
            node.power_off()
        await hold(3)
        for node in nodes:
            node.power_on()
        await hold(6)
        primary.power_on()


class _Freeze(Fault):
    bound_s = NODE_LOSS_S

    def frozen(self, site: Site, node: Machine) -> list[int]:
        raise NotImplementedError

    async def play(self, scene: Scene) -> None:
        node = await scene.site.primary()
        node.freeze(self.frozen(scene.site, node))
        try:
            await hold(FREEZE_S)
        finally:
            node.thaw()


class FreezeEngine(_Freeze):
    name = "freeze_engine"
    proves = f"SIGSTOP of the primary's engine for {FREEZE_S:g} s, late SIGCONT"
    pairs = True

    def frozen(self, site: Site, node: Machine) -> list[int]:
        return site.engine_pids(node)


class FreezeAgent(_Freeze):
    name = "freeze_agent"
    proves = f"SIGSTOP of the primary's agent for {FREEZE_S:g} s: proxies end its route, another leads; late SIGCONT"
    pairs = True

    def frozen(self, site: Site, node: Machine) -> list[int]:
        process = node.services["agent"].process
        return [process.pid] if process is not None else []


class FreezeNode(_Freeze):
    name = "freeze_node"
    proves = f"SIGSTOP of everything on the primary's node for {FREEZE_S:g} s, late SIGCONT"
    pairs = True

    def frozen(self, site: Site, node: Machine) -> list[int]:
        agent = node.services["agent"].process  # first: nothing may look at the others meanwhile
        return [*([agent.pid] if agent is not None else []), *node.pids()]


class HubKill(Fault):
    name = "hub_kill"
    proves = "kill -9 of one hub, started again 2 s later: agents move to the other one"
    bound_s = NO_GAP_S
    no_errors = True
    pairs = True

    async def play(self, scene: Scene) -> None:
        hub = scene.site.hubs[scene.round % 2]
        hub.crash(hub.services["hub"])
        await hold(6)


class HubStop(Fault):
    name = "hub_stop"
    proves = "SIGTERM of one hub, then of the other one: no lease is dropped with a hub"
    bound_s = NO_GAP_S
    no_errors = True

    async def play(self, scene: Scene) -> None:
        for hub in scene.site.hubs:
            await restarted(hub, "hub")
            await hold(3)


class HubsAway(Fault):
    name = "hubs_away"
    proves = f"all hubs dead for {OUTAGE_S:g} s: the primary goes on by the word of all its peers"
    bound_s = NO_GAP_S
    no_errors = True
    pairs = True

    async def play(self, scene: Scene) -> None:
        for hub in scene.site.hubs:
            hub.power_off()
        try:
            await hold(OUTAGE_S)
        finally:
            for hub in scene.site.hubs:
                hub.power_on()


class EtcdKill(Fault):
    name = "etcd_kill"
    proves = "kill -9 of the etcd member that leads, away for 10 s"
    bound_s = NO_GAP_S
    no_errors = True
    pairs = True

    async def play(self, scene: Scene) -> None:
        etcd = await asyncio.to_thread(etcd_leader, scene.site)
        etcd.power_off()
        try:
            await hold(10)
        finally:
            etcd.power_on()


class EtcdMajorityAway(Fault):
    name = "etcd_majority_away"
    proves = f"two of three etcd members dead for {OUTAGE_S:g} s: the primary goes on by the word of all its peers"
    bound_s = NO_GAP_S
    no_errors = True
    pairs = True

    async def play(self, scene: Scene) -> None:
        away = scene.site.etcds[:2]
        for etcd in away:
            etcd.power_off()
        try:
            await hold(OUTAGE_S)
        finally:
            for etcd in away:
                etcd.power_on()


class Switchover(Fault):
    name = "switchover"
    proves = "`moorctl instance switchover`: clients see a pause and no error"
    bound_s = 0.5
    no_errors = True

    async def play(self, scene: Scene) -> None:
        await scene.site.actl("instance", "switchover", INSTANCE, "--wait", "--timeout", "40")


class RollingRestart(Fault):
    name = "rolling_restart"
    proves = "every etcd member, hub and agent is ended by SIGTERM and started anew, then `moorctl instance restart`"
    bound_s = NODE_LOSS_S

    async def play(self, scene: Scene) -> None:
        site = scene.site
        for machines, what in ((site.etcds, "etcd"), (site.hubs, "hub"), (list(site.nodes.values()), "agent")):
            for machine in machines:
                await restarted(machine, what)
                await hold(1)
                await site.await_healthy(UP_WITHIN_S)
        await site.actl("instance", "restart", INSTANCE, "--wait", "--timeout", "60")


def crash_member(site: Site, node: Machine, instance: str = INSTANCE) -> None:
    """The agent first: it must not see its engine die. Its supervisor starts it again."""
    node.crash(node.services["agent"])
    kill(site.engine_pids(node, instance))


async def restarted(machine: Machine, what: str) -> None:
    """As `systemctl restart` does: SIGTERM, wait for the end, start at once."""
    service = machine.services[what]
    machine.stop(service, signal.SIGTERM)

    async def ended() -> bool:
        return not service.running

    await eventually(ended, within=UP_WITHIN_S, what=f"{what} of {machine.name} ends")
    machine.start(service)


def etcd_leader(site: Site) -> Machine:
    """The member that leads, as the members say."""
    endpoints: Sequence[str] = [f"{etcd.address}:{ETCD_PORT}" for etcd in site.etcds]
    command = [CONTROL, "--endpoints", ",".join(endpoints), "endpoint", "status", "-w", "json"]
    told = subprocess.run(
        command, capture_output=True, text=True, timeout=10, env={**os.environ, "ETCDCTL_API": "3"}, check=True
    )
    for answer in json.loads(told.stdout):
        if answer["Status"]["header"]["member_id"] == answer["Status"]["leader"]:
            return site.etcds[endpoints.index(answer["Endpoint"])]
    raise AssertionError(f"etcd has no leader: {told.stdout}")


ALL: tuple[type[Fault], ...] = (
    EngineKill,
    AgentKill,
    AgentAndEngineKill,
    PowerOff,
    FreezeEngine,
    FreezeAgent,
    FreezeNode,
    Switchover,
    ReplicaPowerOff,
    AllNodesOff,
    HubKill,
    HubStop,
    HubsAway,
    EtcdKill,
    EtcdMajorityAway,
    RollingRestart,
)
