"""Agent and engine die while a long step is under way: at its begin, or later, another moment each round.

Agents tell in their logs what they begin and what they have done; the blow falls on the node that told it (or on the
target of a switchover). Its supervisor starts the agent again after 2 s, and it must find its way from whatever lies on
its disk.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from agent.ha.view import OperationKind
from tests.faults.faults_of_processes import crash_member
from tests.faults.machines import kill
from tests.faults.scene import Fault, Scene, hold
from tests.faults.site import INSTANCE, SMALL, LogWatch
from tests.support.waiting import eventually

STEP_WITHIN_S = 40.0
SECOND = "demo/second"


@dataclass(frozen=True, slots=True)
class Moment:
    """So long after an agent told this."""

    event: str  # a kind of operation that began, or an event's name
    after_s: float = 0.0

    async def come(self, watch: LogWatch) -> str:
        """Name of the node that told it."""
        if self.event in set(OperationKind):
            node = await watch.event("operation_started", within=STEP_WITHIN_S, kind=self.event)
        else:
            node = await watch.event(self.event, within=STEP_WITHIN_S)
        await hold(self.after_s)
        return node


async def crash_at(scene: Scene, watch: LogWatch, *moments: Moment, instance: str = INSTANCE) -> None:
    """The node that tells of this round's moment crashes."""
    node = await this_round(scene, moments).come(watch)
    crash_member(scene.site, scene.site.nodes[node], instance)


def this_round(scene: Scene, moments: Sequence[Moment]) -> Moment:
    moment = moments[scene.round % len(moments)]
    scene.notes.append(f"{moment.after_s:g} s after {moment.event}")
    return moment


class InitdbKill(Fault):
    name = "initdb_kill"
    proves = "killed during initdb of another instance: it is created all the same, and the first one does not notice"
    bound_s = 1.0

    async def play(self, scene: Scene) -> None:
        site = scene.site
        watch = LogWatch(site)
        await site.actl("instance", "create", SECOND, "--replicas", "0", "--mode", "async", *SMALL, "--no-wait")
        try:
            await crash_at(
                scene,
                watch,
                Moment("initialise", 0.1),
                Moment("initialise", 0.5),
                Moment("initialise", 1.0),
                instance=SECOND,
            )
            await eventually(
                lambda: site.page(SECOND), lambda page: page["phase"] == "Running", within=60, every=0.3, what=SECOND
            )
        finally:
            await site.actl("instance", "delete", SECOND, "--yes", "--wait", "--timeout", "40")


class BasebackupKill(Fault):
    name = "basebackup_kill"
    proves = "a replica's data is gone, and its agent is killed while it copies the primary's"

    async def play(self, scene: Scene) -> None:
        site = scene.site
        node = (await site.replicas())[-1]
        agent, paths = node.services["agent"], site.member_paths(node)
        assert paths is not None, f"no member on {node.name}"
        watch = LogWatch(site, [node])
        node.stop(agent)
        kill(site.engine_pids(node))
        shutil.rmtree(paths.data)
        node.start(agent)
        await crash_at(scene, watch, Moment("clone"), Moment("clone", 0.3), Moment("clone", 0.8))


class RewindKill(Fault):
    name = "rewind_kill"
    proves = "the primary's engine dies, another leads, and the former primary is killed while it rejoins"

    async def play(self, scene: Scene) -> None:
        site = scene.site
        watch = LogWatch(site)
        kill(site.engine_pids(await site.primary()))
        await crash_at(scene, watch, Moment("rejoin"), Moment("rejoin", 0.2), Moment("rejoin", 0.5))


class PromoteKill(Fault):
    name = "promote_kill"
    proves = "the primary's engine dies, and the one that takes its place is killed while it is promoted"

    async def play(self, scene: Scene) -> None:
        site = scene.site
        watch = LogWatch(site)
        kill(site.engine_pids(await site.primary()))
        await crash_at(scene, watch, Moment("promote"), Moment("leadership_acquired"), Moment("engine_promoted"))


class SwitchoverKillOld(Fault):
    name = "switchover_kill_old"
    proves = "the old primary is killed in the middle of a switchover"

    async def play(self, scene: Scene) -> None:
        site = scene.site
        watch = LogWatch(site)
        await site.actl("instance", "switchover", INSTANCE, "--no-wait")
        await crash_at(scene, watch, Moment("handover"), Moment("handover", 0.2), Moment("leadership_released"))


class SwitchoverKillTarget(Fault):
    name = "switchover_kill_target"
    proves = "the target of a switchover is killed in its middle: rolled back, or carried on"

    async def play(self, scene: Scene) -> None:
        site = scene.site
        node = await site.sync_replica()
        member = next(m["name"] for m in (await site.page())["members"] if m["node"] == node.name)
        watch = LogWatch(site)
        await site.actl("instance", "switchover", INSTANCE, "--to", member, "--no-wait")
        moments = Moment("handover"), Moment("leadership_released"), Moment("promote", 0.05)
        await this_round(scene, moments).come(watch)
        crash_member(site, node)


ALL: tuple[type[Fault], ...] = (
    InitdbKill,
    BasebackupKill,
    RewindKill,
    PromoteKill,
    SwitchoverKillOld,
    SwitchoverKillTarget,
)
