"""Waiting longer after each failure, with full jitter, so that a thousand clients do not come back in step.

Full jitter (uniform between 0 and the cap) spreads a herd best; see AWS's "Exponential Backoff And Jitter". The random
generator is passed in: no hidden dice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class Backoff:
    """Delays in seconds: uniform(0, min(cap_s, base_s * 2^n)). `reset()` after a success."""

    base_s: float
    cap_s: float
    uniform: Callable[[float, float], float]
    failures: int = 0

    def next_delay(self) -> float:
        limit = min(self.cap_s, self.base_s * 2.0 ** min(self.failures, 32))
        self.failures += 1
        return self.uniform(0.0, limit)

    def reset(self) -> None:
        self.failures = 0
