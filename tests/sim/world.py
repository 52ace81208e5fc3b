"""The simulated world: one queue of events in true time, hosts with clocks of their own, processes that hang or die.

Everything random comes from one seeded generator and every event has a place in one order, so a seed replays exactly.
Code in the world is written as generators: `answer = yield something.wait()`; what they wait for calls them back
through their process, so a dead process never goes on and a paused one (SIGSTOP) goes on when it is resumed.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Generator
from typing import Any

Waiting = Callable[[Callable[[Any], None]], None]  # given a callback, calls it once, with a value or a Failure
Work = Generator[Waiting, Any, Any]


class Failure(Exception):
    """What was waited for did not come: no answer in time, refused, or nobody there."""


class World:
    """True time and the queue."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.diary: list[tuple[float, str]] = []
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0

    def at(self, delay: float, do: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._queue, (self.now + max(0.0, delay), self._order, do))

    def run(self, until: float) -> None:
        queue = self._queue
        while queue and queue[0][0] <= until:
            self.now, _, do = heapq.heappop(queue)
            do()
        self.now = until

    def note(self, text: str) -> None:
        """One line of the diary that a failing seed prints."""
        self.diary.append((self.now, text))


class Host:
    """A machine: its clock runs at its own rate from its own beginning."""

    def __init__(self, world: World, name: str, rate: float = 1.0) -> None:
        self.world = world
        self.name = name
        self.rate = rate
        self._offset = world.rng.uniform(10.0, 1000.0)
        self.boot = 0  # grows with each reboot

    def now(self) -> float:
        """This host's monotonic clock; the simulated hosts keep one count over reboots, `boot` tells them apart."""
        return self._offset + self.world.now * self.rate


class Process:
    """Something that runs on a host, may be stopped and killed; `life` tells its lives apart."""

    def __init__(self, host: Host, name: str) -> None:
        self.host = host
        self.world = host.world
        self.name = name
        self.alive = False
        self.paused = False
        self.paused_at = 0.0
        self.life = 0
        self._held: list[Callable[[], None]] = []

    def start(self) -> None:
        self.alive, self.paused = True, False
        self.life += 1
        self._held = []

    def kill(self) -> None:
        self.alive, self.paused = False, False
        self.life += 1
        self._held = []

    def pause(self) -> None:
        if self.alive and not self.paused:
            self.paused, self.paused_at = True, self.world.now

    def resume(self) -> None:
        if not self.paused:
            return
        self.paused = False
        held, self._held = self._held, []
        for do in held:
            self.world.at(0.0, self._guarded(do, self.life))

    def later(self, delay_s: float, do: Callable[[], None]) -> None:
        """After so many seconds of the host's own clock, if the process still lives then."""
        self.world.at(delay_s / self.host.rate, self._guarded(do, self.life))

    def soon(self, do: Callable[[], None]) -> None:
        self._guarded(do, self.life)()

    def _guarded(self, do: Callable[[], None], life: int) -> Callable[[], None]:
        def run() -> None:
            if not self.alive or self.life != life:
                return
            if self.paused:
                self._held.append(do)
            else:
                do()

        return run

    def sleep(self, delay_s: float) -> Waiting:
        return lambda resume: self.later(delay_s, lambda: resume(None))

    def spawn(self, work: Work, done: Callable[[Any], None] | None = None) -> Running:
        """Run the generator as part of this process."""
        running = Running(self, work, done)
        running.step(None)
        return running


class Running:
    """A generator under way; `cancel()` ends it where it waits."""

    def __init__(self, process: Process, work: Work, done: Callable[[Any], None] | None) -> None:
        self._process = process
        self._life = process.life
        self._work = work
        self._done = done
        self.over = False

    def cancel(self) -> None:
        if not self.over:
            self.over = True
            self._work.close()

    def step(self, value: Any) -> None:
        if self.over or self._process.life != self._life:
            return
        if self._process.paused:
            self._process.soon(lambda: self.step(value))
            return
        try:
            waiting = self._work.throw(value) if isinstance(value, Failure) else self._work.send(value)
        except StopIteration as stop:
            self._end(stop.value)
        except Failure as failure:
            self._end(failure)
        else:
            waiting(once(self.step))

    def _end(self, value: Any) -> None:
        self.over = True
        if self._done is not None:
            self._done(value)


def once(do: Callable[[Any], None]) -> Callable[[Any], None]:
    """A callback that counts only the first call: an answer and its timeout race."""
    called = False

    def call(value: Any) -> None:
        nonlocal called
        if not called:
            called = True
            do(value)

    return call


class Signal:
    """Something to wait for with a limit, such as news."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._set = False
        self._waiters: list[Callable[[Any], None]] = []

    def set(self) -> None:
        self._set = True
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            self._process.later(0.0, lambda w=waiter: w(True))  # type: ignore[misc]

    def clear(self) -> None:
        self._set = False

    def wait(self, limit_s: float) -> Waiting:
        def begin(resume: Callable[[Any], None]) -> None:
            if self._set:
                self._process.later(0.0, lambda: resume(True))
                return
            self._waiters.append(resume)
            self._process.later(limit_s, lambda: resume(False))

        return begin
