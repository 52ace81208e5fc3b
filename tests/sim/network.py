"""The simulated network: messages are delayed, reordered, lost, held up for seconds, and cut off between sides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.sim.world import Failure, Process, Waiting, World, once

Reply = Callable[[Any], None]


class Network:
    """Between processes on named hosts."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.loss = 0.0  # share of messages that never arrive
        self.slow = 0.0  # share of messages that are held up for up to SLOW_S
        self._cuts: dict[str, tuple[frozenset[str], frozenset[str]]] = {}

    SLOW_S = 8.0

    def cut(self, name: str, one: frozenset[str], other: frozenset[str]) -> None:
        """Nothing passes between the two sets of hosts until healed."""
        self._cuts[name] = (one, other)

    def heal(self, name: str) -> None:
        self._cuts.pop(name, None)

    def passes(self, source: str, target: str) -> bool:
        return source == target or not any(
            (source in one and target in other) or (source in other and target in one)
            for one, other in self._cuts.values()
        )

    def delay(self) -> float:
        rng = self.world.rng
        if self.slow and rng.random() < self.slow:
            return rng.uniform(0.1, self.SLOW_S)
        if rng.random() < 0.02:
            return rng.uniform(0.01, 0.1)
        return rng.uniform(0.0003, 0.002)

    def send(self, source: str, target: Process, do: Callable[[], None]) -> None:
        """Let `do` happen in the target process, perhaps."""
        if self.loss and self.world.rng.random() < self.loss:
            return
        if not self.passes(source, target.host.name):
            return
        life = target.life

        def arrive() -> None:
            if target.alive and target.life == life and self.passes(source, target.host.name):
                target.soon(do)

        self.world.at(self.delay(), arrive)

    def stream(self, source: str, target: Process, do: Callable[[], None]) -> None:
        """A message on an open connection: late, but never lost unless the network is cut."""
        self.world.at(
            self.world.rng.uniform(0.0003, 0.002),
            lambda: target.soon(do) if self.passes(source, target.host.name) else None,
        )

    def call(self, caller: Process, target: Process, handler: Callable[[Reply], None], *, timeout_s: float) -> Waiting:
        """Ask `target`: its answer, or Failure after `timeout_s` of the caller's clock, at once when nobody listens."""

        def begin(resume: Callable[[Any], None]) -> None:
            finish = once(resume)
            life = caller.life

            def reply(value: Any) -> None:
                if caller.life == life:
                    self.send(target.host.name, caller, lambda: finish(value))

            if not target.alive and self.passes(caller.host.name, target.host.name):
                caller.later(0.002, lambda: finish(Failure("refused")))
                return
            self.send(caller.host.name, target, lambda: handler(once(reply)))
            caller.later(timeout_s, lambda: finish(Failure("timeout")))

        return begin
