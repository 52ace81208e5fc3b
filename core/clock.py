"""The one place that reads clocks, so that everything else can be given time as an argument.

`now()` is monotonic seconds and system-wide on one host: an agent and the proxy beside it may compare them. It goes on
while the host is suspended, for leases are counted by others who do not sleep: a primary that was suspended for an hour
finds its lease over. `wall()` is for people only; no decision rests on it.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Monotonic seconds for decisions, wall-clock seconds for display."""

    def now(self) -> float: ...
    def wall(self) -> float: ...


class SystemClock:
    """The real clocks of this host."""

    def now(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall(self) -> float:
        return time.time()


def iso(wall_s: float) -> str:
    """Wall seconds as UTC text, such as 2026-11-24T22:04:43.120Z."""
    whole = int(wall_s)
    millis = int((wall_s - whole) * 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{millis:03d}Z"


def moment(wall_s: float) -> str:
    """Wall seconds for sentences, such as 2026-11-24 22:04:43 UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(wall_s))
