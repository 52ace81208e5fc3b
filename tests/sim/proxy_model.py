"""The proxy and its clients: writes go where the route says, while the route lasts; an answer passes under the same
rule.

A proxy is a process of its own: it outlives its agent, and holds to the route's end even when nobody tells it anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.routes import Route
from tests.sim.network import Network, Reply
from tests.sim.world import Failure, Host, Process, Work, World

if TYPE_CHECKING:
    from tests.sim.checkers import Checkers
    from tests.sim.engine_model import Engine

WRITE_TIMEOUT_S = 2.0


class Proxy:
    """One node's proxy, for one instance."""

    def __init__(self, host: Host, network: Network, engines: dict[str, Engine], checkers: Checkers) -> None:
        self.host = host
        self.process = Process(host, f"proxy {host.name}")
        self.network = network
        self.engines = engines
        self.checkers = checkers
        self.route: Route | None = None

    def start(self) -> None:
        self.process.start()
        self.route = None

    def take(self, route: Route) -> None:
        """From the agent beside it, at once."""
        if route != self.route and self.process.alive:
            self.process.later(0.0005, lambda: self._take(route))

    def _take(self, route: Route) -> None:
        self.route = route
        self.checkers.look()

    def target(self) -> tuple[int, str] | None:
        """The term and member that a write goes to at this moment."""
        route = self.route
        if route is None or route.primary is None or self.host.now() >= route.expires_at_s:
            return None
        return route.term, route.primary.member

    def write(self, write_id: str, reply: Reply) -> None:
        target = self.target()
        if target is None or (self.route is not None and self.route.paused):
            reply(Failure("no primary"))
            return
        self.process.spawn(self._write(write_id, target), reply)

    def _write(self, write_id: str, target: tuple[int, str]) -> Work:
        term, member = target
        engine = self.engines[member]
        self.checkers.forwarded(write_id, term, member)

        def ask(reply: Reply) -> None:
            engine.write(write_id, reply)

        answer = yield self.network.call(self.process, engine.process, ask, timeout_s=WRITE_TIMEOUT_S)
        if isinstance(answer, Failure) or self.target() != target:
            return Failure("the session was cut")
        self.checkers.passed(write_id, term, member)
        return True


@dataclass(slots=True)
class Client:
    """Writes something unique, again and again, through any proxy."""

    world: World
    process: Process
    network: Network
    proxies: list[Proxy]
    name: str
    pause_s: float
    until: float

    def run(self) -> Work:
        number = 0
        while self.world.now < self.until:
            yield self.process.sleep(self.world.rng.uniform(0.5, 1.5) * self.pause_s)
            proxy = self.world.rng.choice(self.proxies)
            number += 1
            write_id = f"{self.name}-{number}"

            def ask(reply: Reply, proxy: Proxy = proxy, write_id: str = write_id) -> None:
                proxy.write(write_id, reply)

            try:
                answer: Any = yield self.network.call(self.process, proxy.process, ask, timeout_s=WRITE_TIMEOUT_S)
            except Failure:
                continue
            del answer  # the checkers saw it pass
