"""The simulated network: messages are delayed, reordered, lost, doubled, held up for seconds, and cut off between
sides, in both directions or in one.

A message that is on its way when a cut begins still arrives: that is the worse case.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.sim.world import Failure, Process, Waiting, World

Reply = Callable[[Any], None]


class Network:
    """Between processes on named hosts."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.loss = 0.0  # share of messages that never arrive
        self.slow = 0.0  # share of messages that are held up for up to SLOW_S
        self.twice = 0.0  # share of requests that are carried out twice, as a client that tries again makes them
        self.late_until = 0.0  # true time by which everything that is on its way has arrived
        self._cuts: dict[str, frozenset[tuple[str, str]]] = {}
        self._blocked: frozenset[tuple[str, str]] = frozenset()
        self._random = world.rng.random

    SLOW_S = 8.0

    def cut(self, name: str, one: frozenset[str], other: frozenset[str], *, one_way: bool = False) -> None:
        """Nothing passes between the two sets of hosts until healed; `one_way`: only from `one` to `other`."""
        pairs = {(source, target) for source in one for target in other}
        back = set() if one_way else {(target, source) for source, target in pairs}
        self._cuts[name] = frozenset(pairs | back)
        self._blocked = frozenset().union(*self._cuts.values())

    def heal(self, name: str) -> None:
        self._cuts.pop(name, None)
        self._blocked = frozenset().union(*self._cuts.values())

    def passes(self, source: str, target: str) -> bool:
        return not self._blocked or source == target or (source, target) not in self._blocked

    def delay(self) -> float:
        dice = self._random()
        if self.slow and self._random() < self.slow:
            late = 0.1 + dice * (self.SLOW_S - 0.1)
            self.late_until = max(self.late_until, self.world.now + late)
            return late
        if dice < 0.02:
            return 0.01 + 4.5 * dice
        return 0.0003 + 0.0017 * dice

    def send(self, source: str, target: Process, do: Callable[[], None]) -> None:
        """Let `do` happen in the target process, perhaps."""
        if self.loss and self._random() < self.loss:
            return
        if self._blocked and not self.passes(source, target.host.name):
            return
        if target.alive:
            self.world.push(self.delay(), target, do)

    def stream(self, source: str, target: Process, do: Callable[[], None]) -> bool:
        """A message on an open connection: late, but never lost unless the network is cut; False then."""
        if not target.alive or not self.passes(source, target.host.name):
            return False
        self.world.push(0.0003 + 0.0017 * self._random(), target, do)
        return True

    def call(
        self, caller: Process, target: Process, handler: Callable[[Reply], None], *, timeout_s: float,
        repeatable: bool = True,
    ) -> Waiting:  # fmt: skip
        """Ask `target`: its answer, or Failure after `timeout_s` of the caller's clock, at once when nobody listens.
        `repeatable`: it may be carried out twice."""

        def begin(resume: Callable[[Any], None]) -> None:
            Call(self, caller, target, handler, resume).begin(timeout_s, repeatable=repeatable)

        return begin


class Call:
    """A question on its way, being answered, or over. Late answers are dropped, the question's effects are not."""

    __slots__ = ("_caller", "_handler", "_life", "_network", "_replied", "_resume", "_target", "_value", "done")

    def __init__(
        self, network: Network, caller: Process, target: Process, handler: Callable[[Reply], None], resume: Reply
    ) -> None:
        self._network = network
        self._caller = caller
        self._target = target
        self._handler = handler
        self._resume = resume
        self._life = caller.life
        self._replied = False
        self._value: Any = None
        self.done = False

    def begin(self, timeout_s: float, *, repeatable: bool) -> None:
        network, caller, target = self._network, self._caller, self._target
        source = caller.host.name
        if not target.alive and network.passes(source, target.host.name):
            caller.later(0.002, self.refused)
            return
        network.send(source, target, self.arrive)
        if repeatable and network.twice and network.world.rng.random() < network.twice:
            network.send(source, target, self.arrive)
        caller.limit(timeout_s, self)

    def arrive(self) -> None:
        self._handler(self.reply)

    def reply(self, value: Any) -> None:
        if self._replied:
            return
        self._replied, self._value = True, value
        if self._caller.life == self._life:
            self._network.send(self._target.host.name, self._caller, self.answer)

    def answer(self) -> None:
        self._finish(self._value)

    def refused(self) -> None:
        self._finish(Failure("refused"))

    def expire(self) -> None:
        self._finish(Failure("timeout"))

    def _finish(self, value: Any) -> None:
        if not self.done:
            self.done = True
            self._resume(value)
