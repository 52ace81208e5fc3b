"""Steps shown while they go: a line each, with a tick and the time it took."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.status import Status

from cli import output
from core.clock import Clock


@dataclass(slots=True)
class Step:
    """A step under way; `told` is what is printed when it is done."""

    told: str

    def tell(self, text: str) -> None:
        self.told = text


class Steps:
    """Prints steps; `total_s` is the time since the first one began."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._begun = clock.now()
        plain = (getattr(sys.stdout, "encoding", None) or "ascii").lower() not in {"utf-8", "utf8"}
        self._done, self._failed = ("ok  ", "FAIL") if plain else ("✓", "✗")

    @property
    def total_s(self) -> float:
        return self._clock.now() - self._begun

    @contextmanager
    def step(self, title: str, *, own_display: bool = False) -> Iterator[Step]:
        """A step; `own_display` when what happens in it shows its own progress."""
        step = Step(title)
        started = self._clock.now()
        spinner: Status | None = None
        if output.coloured() and not own_display:
            spinner = Console(highlight=False).status(title, spinner="dots")
            spinner.start()
        try:
            yield step
        except BaseException:
            self._end(spinner, self._failed, "bad", title, started)
            raise
        self._end(spinner, self._done, "good", step.told, started)

    def _end(self, spinner: Status | None, sign: str, how: output.Tone, text: str, started: float) -> None:
        if spinner is not None:
            spinner.stop()
        took = f"{self._clock.now() - started:5.1f} s"
        output.say(f"{output.tone(sign, how)} {output.tone(took, 'dim')}  {output.plain(text)}")
        sys.stdout.flush()
