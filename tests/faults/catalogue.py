"""All faults by name, and pairs of them by a seeded dice."""

from __future__ import annotations

import asyncio
import random
import shutil
from typing import ClassVar

from tests.faults import faults_of_networks, faults_of_nodes, faults_of_processes, faults_of_steps
from tests.faults.scene import Fault, Scene

CLASSES = (*faults_of_processes.ALL, *faults_of_networks.ALL, *faults_of_steps.ALL, *faults_of_nodes.ALL)
FAULTS: dict[str, type[Fault]] = {fault.name: fault for fault in CLASSES}
PAIRED = tuple(name for name, fault in FAULTS.items() if fault.pairs)
LONG = frozenset({"hubs_away", "etcd_majority_away"})  # a minute each: one of them in a pair is enough


class Pair(Fault):
    """Two faults, the second some seconds after the first, while that one may still last."""

    proves = "two faults at once"
    bound_s: ClassVar[float | None] = None

    def __init__(self, seed: int) -> None:
        dice = random.Random(seed)
        first = dice.choice(PAIRED)
        second = dice.choice([name for name in PAIRED if name != first and not (name in LONG and first in LONG)])
        self.after_s = round(dice.uniform(0, 8), 1)
        self.parts = FAULTS[first](), FAULTS[second]()
        self.name = f"pair_{seed}"  # type: ignore[misc]
        self.story = f"{first}, and {second} {self.after_s} s later"

    async def play(self, scene: Scene) -> None:
        scene.notes.append(self.story)
        outcomes = await asyncio.gather(self.parts[0].play(scene), self._second(scene), return_exceptions=True)
        for part, outcome in zip(self.parts, outcomes, strict=True):
            if isinstance(outcome, AssertionError):  # with the first in force there may be nobody to hit
                scene.notes.append(f"{part.name} did not happen: {str(outcome)[:60]}")
            elif isinstance(outcome, BaseException):
                raise outcome

    async def _second(self, scene: Scene) -> None:
        await asyncio.sleep(self.after_s)
        await self.parts[1].play(scene)


def chosen(only: str, *, pairs: int, seed: int) -> list[Fault]:
    """In the order they are played. KeyError names what is unknown."""
    if pairs:
        return [Pair(seed + number) for number in range(pairs)]
    names = [name.strip() for name in only.split(",")] if only else list(FAULTS)
    unknown = [name for name in names if name not in FAULTS]
    if unknown:
        raise KeyError(", ".join(unknown))
    return [FAULTS[name]() for name in names]


def unplayable(fault: Fault) -> str:
    """What is missing on this machine; empty when nothing is."""
    return fault.needs if fault.needs and shutil.which(fault.needs) is None else ""
