"""How often an engine has ended unexpectedly lately, and how long to wait before it is started again. Pure.

One death is answered at once: a start takes a second, and clients wait. An engine that dies again and again is not
helped by being started faster: from the third death in ten minutes on, the pause doubles up to a minute.
"""

from __future__ import annotations

from collections import deque

from agent.engines.troubles import Diagnosis, Trouble

WINDOW_S = 600.0
LOOP_FROM = 3  # deaths in the window
PAUSE_FIRST_S = 2.0
PAUSE_MAX_S = 60.0
KEPT_MAX = 50


class Deaths:
    """Of one engine, as long as this agent lives. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._at: deque[float] = deque(maxlen=KEPT_MAX)
        self._last: Diagnosis | None = None

    def note(self, now: float, why: Diagnosis) -> None:
        """An engine that had let clients in ended, and nobody had asked for it."""
        self._at.append(now)
        self._last = why

    def recent(self, now: float) -> int:
        while self._at and now - self._at[0] > WINDOW_S:
            self._at.popleft()
        return len(self._at)

    def retry_at(self, now: float) -> float:
        """Not to be started before; 0 = at once."""
        count = self.recent(now)
        if count < LOOP_FROM:
            return 0.0
        return self._at[-1] + min(PAUSE_MAX_S, PAUSE_FIRST_S * 2.0 ** (count - LOOP_FROM))

    def loop(self, now: float) -> Diagnosis | None:
        """The loop, named, once it is one. The number is told coarsely, lest the text changes with each death."""
        count = self.recent(now)
        if count < LOOP_FROM or self._last is None:
            return None
        often = f"{LOOP_FROM} times or more within {WINDOW_S / 60:.0f} minutes"
        why = f"{often}, last: {self._last.trouble.value}"
        if self._last.evidence:
            why = f"{why}: {self._last.evidence}"
        return Diagnosis(trouble=Trouble.CRASH_LOOP, evidence=why)
