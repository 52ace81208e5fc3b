"""A token bucket: so many at once, so many a second after that."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class TokenBucket:
    """Starts full with `burst` tokens and gains `per_s` a second. Time is passed in, monotonic seconds."""

    burst: float
    per_s: float
    tokens: float = -1.0
    filled_at: float = 0.0

    def take(self, now: float) -> bool:
        """Take one token; False when there is none."""
        if self.tokens < 0:
            self.tokens, self.filled_at = self.burst, now
        self.tokens = min(self.burst, self.tokens + (now - self.filled_at) * self.per_s)
        self.filled_at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True
