"""A process that takes no new clients and serves those it has, until they have gone or their time is over.

So a restart cuts nobody: the next generation listens already, and this one ends by itself. Tables are taken as before,
so its sessions are fenced, held and moved like any other.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from core.log import EventLog
from proxy.family import Place
from proxy.gate import Gate

log = EventLog("proxy.leaving")
LOOK_S = 0.2


class Leaving:
    """`begin` may come from the successor, which knows no time, and from the agent, which tells one. The first time
    that is told counts: an agent that is restarted tells it again."""

    def __init__(self, gate: Gate, on_begin: Callable[[], None] = lambda: None) -> None:
        self._gate = gate
        self._on_begin = on_begin
        self._began = asyncio.Event()
        self._until_s = math.inf

    @property
    def begun(self) -> bool:
        return self._began.is_set()

    def begin(self, within_s: float = math.inf) -> None:
        if self._until_s == math.inf and within_s < math.inf:
            self._until_s = self._gate.clock.now() + within_s
            log.info("drain_time_set", within_s=within_s)
        if not self.begun:
            log.info("clients_left_to_successor", clients=len(self._gate.guests))
            self._began.set()
            self._on_begin()

    async def over(self) -> None:
        """Until it has begun, and everybody has gone or the time is over."""
        await self._began.wait()
        await asyncio.sleep(LOOK_S)  # who was accepted last shows up here
        while self._gate.guests and self._gate.clock.now() < self._until_s:  # noqa: ASYNC110 - a look costs nothing
            await asyncio.sleep(LOOK_S)
        log.info("left", clients=len(self._gate.guests))


@dataclass(slots=True, kw_only=True)
class Standing:
    """What a process tells of itself."""

    leaving: Leaving
    place: Place = field(default_factory=Place)
    release: str = ""
    unopened: Callable[[], int] = lambda: 0
