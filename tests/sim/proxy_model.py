"""The proxy and its clients: writes go where the route says, while the route lasts; an answer passes under the same
rule.

A proxy is a process of its own: it outlives its agent, and holds to the route's end even when nobody tells it anything.
The client has its proxies beside it, and does not wait for an answer before it writes again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.routes import Route
from tests.sim.network import Network, Reply
from tests.sim.world import Failure, Process, Work, World

if TYPE_CHECKING:
    from tests.sim.checkers import Checkers
    from tests.sim.engine_model import Engine

WRITE_TIMEOUT_S = 2.0


class Proxy:
    """One instance's door in one node's proxy process."""

    def __init__(self, process: Process, network: Network, engines: dict[str, Engine], checkers: Checkers) -> None:
        self.host = process.host
        self.process = process
        self.network = network
        self.engines = engines
        self.checkers = checkers
        self.route: Route | None = None
        self._life = 0
        self.ignores_expiry = False  # a mutation

    def take(self, route: Route) -> None:
        """From the agent beside it, at once; a frozen proxy finds it when it thaws."""
        if self.process.paused:
            self.process.soon(lambda: self._take(route))
        elif self.process.alive:
            self._take(route)

    def drop(self) -> None:
        """The instance is in the table no more."""
        self.process.soon(lambda: self._take(None))

    def _take(self, route: Route | None) -> None:
        before = self.target()
        self.route, self._life = route, self.process.life
        if self.target() != before:
            self.checkers.look()

    def target(self) -> tuple[int, str] | None:
        """The term and member that a write goes to at this moment."""
        route = self.route
        if route is None or route.primary is None or self._life != self.process.life:
            return None
        if self.host.now() >= route.expires_at_s and not self.ignores_expiry:
            return None
        return route.term, route.primary.member

    def write(self, write_id: str) -> None:
        """A client's commit, on its way to the primary."""
        target = self.target()
        if target is None or (self.route is not None and self.route.paused):
            return
        term, member = target
        engine = self.engines[member]
        self.checkers.forwarded(write_id, term, member)

        def ask(reply: Reply) -> None:
            engine.write(write_id, reply)

        def answered(answer: Any) -> None:
            if not isinstance(answer, Failure) and self.target() == target:
                self.checkers.passed(write_id, term, member)

        call = self.network.call(self.process, engine.process, ask, timeout_s=WRITE_TIMEOUT_S, repeatable=False)
        assert not isinstance(call, float), "a call is something to begin"
        call(answered)


@dataclass(slots=True)
class Client:
    """Writes something unique, again and again, through any proxy."""

    world: World
    process: Process
    proxies: list[Proxy]
    name: str
    pause_s: float

    def run(self) -> Work:
        number, rng = 0, self.world.rng
        while True:
            yield (0.5 + rng.random()) * self.pause_s
            proxy = self.proxies[int(rng.random() * len(self.proxies))]
            number += 1
            write_id = f"{self.name}-{number}"
            proxy.process.soon(lambda proxy=proxy, write_id=write_id: proxy.write(write_id))  # type: ignore[misc]
