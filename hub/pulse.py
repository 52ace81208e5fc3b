"""The hub feels its own pulse: how late does a timer of one second come?

Late by a quarter second means overload: heartbeats of idle nodes are asked for less often until it is over, polls and
renewals of leases are not touched. Late by more than a second means that the process stood still (paused, swapped,
blocked): the silence of others during that time is forgiven, for nobody listened.
"""

from __future__ import annotations

import asyncio

from core.clock import Clock
from core.log import EventLog
from hub.leases import LeaseBook
from hub.liveness import Liveness

EVERY_S = 1.0
OVERLOADED_LATE_S = 0.25
ABSENT_LATE_S = 1.0
# Idle heartbeats are stretched by this, and never beyond three quarters of the silence window.
STRETCH = 2.0
WINDOW_SHARE = 0.75

log = EventLog("hub.pulse")


class Pulse:
    """`overloaded` is how it was at the last beat."""

    def __init__(self, clock: Clock, liveness: Liveness, leases: LeaseBook) -> None:
        self._clock = clock
        self._liveness = liveness
        self._leases = leases
        self.late_s = 0.0

    @property
    def overloaded(self) -> bool:
        return self.late_s > OVERLOADED_LATE_S

    def idle_beat_s(self, normal_s: float, silent_after_s: float) -> float:
        """When a node without members should give its next sign of life."""
        if not self.overloaded:
            return normal_s
        return max(normal_s, min(normal_s * STRETCH, silent_after_s * WINDOW_SHARE))

    async def run(self) -> None:
        """Beat for ever."""
        due = self._clock.now() + EVERY_S
        while True:
            await asyncio.sleep(max(0.0, due - self._clock.now()))
            now = self._clock.now()
            self._beat(now - due)
            due = now + EVERY_S

    def _beat(self, late_s: float) -> None:
        was_overloaded = self.overloaded
        self.late_s = late_s
        if late_s > ABSENT_LATE_S:
            self._liveness.forgive(late_s)
            log.warning("hub_stood_still", seconds=round(late_s, 2))
        elif self.overloaded and not was_overloaded:
            log.warning("event_loop_late", seconds=round(late_s, 2))
        self._leases.forget_old()
