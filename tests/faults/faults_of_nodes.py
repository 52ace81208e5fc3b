"""What goes wrong with a machine that runs on: its disk is full, its clock jumps."""

from __future__ import annotations

from typing import ClassVar

from tests.faults import volumes
from tests.faults.scene import NO_GAP_S, NODE_LOSS_S, Fault, Scene, hold

FULL_S = 15.0
HOUR_S = 3600.0


class DiskFull(Fault):
    name = "disk_full"
    proves = f"no room at all on the primary's data volume for {FULL_S:g} s"
    bound_s = NODE_LOSS_S
    special = True

    async def play(self, scene: Scene) -> None:
        node = await scene.site.primary()
        data = node.root / "data"
        volumes.fill(data)
        try:
            await hold(FULL_S)
        finally:
            volumes.make_room(data)


class _ClockStep(Fault):
    bound_s = NO_GAP_S
    no_errors = True
    special = True
    needs = "cc"
    seconds: ClassVar[float]

    async def play(self, scene: Scene) -> None:
        node = await scene.site.primary()
        volumes.set_clock(node.root, self.seconds)
        try:
            await hold(10)
        finally:
            volumes.set_clock(node.root, 0.0)


class ClockForward(_ClockStep):
    name = "clock_forward"
    proves = "the wall clock of the primary's node jumps an hour ahead, and back 10 s later: no decision rests on it"
    seconds = HOUR_S


class ClockBack(_ClockStep):
    name = "clock_back"
    proves = "the wall clock of the primary's node jumps an hour back, and ahead again 10 s later"
    seconds = -HOUR_S


ALL: tuple[type[Fault], ...] = (DiskFull, ClockForward, ClockBack)
