"""Who fails to log in too often is not even asked for a while: guessing passwords is slow then, whatever the password.

Counted for each pair of address and user, so that one program with an old password locks out neither its neighbours
behind the same address nor the other users on it. Bounded: the pairs that failed least lately are forgotten first.
"""

from __future__ import annotations

from collections import OrderedDict

from core.clock import Clock

FAILURES_MAX = 10  # within WINDOW_S
WINDOW_S = 10.0
PAIRS_MAX = 10_000
Pair = tuple[str, str, str]  # address, instance, user


class Failures:
    """One a process."""

    def __init__(self, clock: Clock) -> None:
        self._now = clock.now
        self._failed: OrderedDict[Pair, list[float]] = OrderedDict()  # when, the last FAILURES_MAX times

    def note(self, address: str, instance: str, user: str) -> None:
        """A password was wrong."""
        times = self._failed.setdefault((address, instance, user), [])
        times.append(self._now())
        del times[:-FAILURES_MAX]
        self._failed.move_to_end((address, instance, user))
        if len(self._failed) > PAIRS_MAX:
            self._failed.popitem(last=False)

    def wait_s(self, address: str, instance: str, user: str) -> float:
        """How long this user is not asked from there; 0 when it may try."""
        times = self._failed.get((address, instance, user), [])
        if len(times) < FAILURES_MAX:
            return 0.0
        return max(0.0, times[0] + WINDOW_S - self._now())
