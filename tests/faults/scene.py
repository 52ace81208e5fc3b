"""What a fault is, and the scene it is played in."""

from __future__ import annotations

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import ClassVar

from tests.faults.machines import Rule, lift
from tests.faults.site import Site
from tests.faults.workload import Workload

TTL_S = 6.0  # of leases, by default
NODE_LOSS_S = TTL_S + 1.5  # what a loss that only the lease can tell may take
NO_GAP_S = 0.5  # "nothing happens": a hiccup of the machine that runs all of it is not called an outage
REWRITTEN_WITHIN_S = 25.0


@dataclass(slots=True, kw_only=True)
class Scene:
    """One round of one fault. What a fault wants to be told later goes into `notes`."""

    site: Site
    workload: Workload
    random: random.Random
    round: int  # 0, 1, ..: faults with several moments to strike take another one each round
    notes: list[str] = field(default_factory=list)


class Fault(ABC):
    """`play` makes it happen and ends it: when it returns (or fails), nothing of the fault is in force any more."""

    name: ClassVar[str]
    proves: ClassVar[str]
    bound_s: ClassVar[float | None] = None  # of the write gap; None = nothing is promised but that it ends
    no_errors: ClassVar[bool] = False  # clients must not see any
    special: ClassVar[bool] = False  # needs a site with volumes and clocks
    pairs: ClassVar[bool] = False  # may be one of two at a time
    needs: ClassVar[str] = ""  # a program without which it cannot be played

    @abstractmethod
    async def play(self, scene: Scene) -> None: ...


@asynccontextmanager
async def cut(how: Callable[..., list[Rule]], *arguments: object) -> AsyncIterator[None]:
    """Cables are cut inside. Done in a thread: the clients' loop must not stand still meanwhile."""
    rules = await asyncio.to_thread(how, *arguments)
    try:
        yield
    finally:
        await asyncio.to_thread(lift, rules)


async def hold(seconds: float) -> None:
    """The fault lasts."""
    await asyncio.sleep(seconds)


async def until_written(scene: Scene, within: float = REWRITTEN_WITHIN_S) -> None:
    """Until clients write again after a pause, or long enough: the fault may end then."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    written = scene.workload.memory.written
    await asyncio.sleep(1.0)  # what was under way when it began is acknowledged or broken by now
    seen = len(written)
    while len(written) < seen + 20 and loop.time() < deadline:
        await asyncio.sleep(0.1)
