"""The simulated world: one queue of events in true time, hosts with clocks of their own, processes that hang or die.

Everything random comes from one seeded generator and every event has a place in one order, so a seed replays exactly.
Code in the world is written as generators: `answer = yield something.wait()`; what they wait for calls them back
through their process, so a dead process never goes on and a paused one (SIGSTOP) goes on when it is resumed.

This is the inner loop of tens of thousands of runs: an event is one tuple in the heap, and a limit that is hardly ever
reached (the timeout of a call) costs no event of its own.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, Protocol

# Seconds of the own clock to sleep; or, given a callback, calls it once, with a value or a Failure.
Waiting = float | Callable[[Callable[[Any], None]], None]
Work = Generator[Waiting, Any, Any]
Event = tuple[float, int, "Process | None", int, Callable[[], None]]


class Failure(Exception):
    """What was waited for did not come: no answer in time, refused, or nobody there."""


class Pending(Protocol):
    """Something with a time limit."""

    done: bool

    def expire(self) -> None: ...


class World:
    """True time and the queue."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.diary: list[tuple[float, str]] = []
        self.events = 0
        self._queue: list[Event] = []
        self._order = 0

    def at(self, delay: float, do: Callable[[], None]) -> None:
        """In the world itself: happens whatever process lives then."""
        self._order += 1
        heapq.heappush(self._queue, (self.now + max(0.0, delay), self._order, None, 0, do))

    def push(self, delay: float, process: Process, do: Callable[[], None]) -> None:
        """In the process, if this very life of it goes on until then; when it is resumed, if it is paused then."""
        self._order += 1
        heapq.heappush(self._queue, (self.now + delay, self._order, process, process.life, do))

    def run(self, until: float) -> None:
        queue, pop, before = self._queue, heapq.heappop, self._order
        while queue and queue[0][0] <= until:
            self.now, _, process, life, do = pop(queue)
            if process is None:
                do()
            elif process.life == life:
                if process.paused:
                    process.held.append(do)
                else:
                    do()
        self.events += self._order - before
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
        self.held: list[Callable[[], None]] = []
        self._limits: dict[float, deque[tuple[float, Pending]]] = {}

    def start(self) -> None:
        self.alive, self.paused = True, False
        self.life += 1
        self.held = []
        self._limits = {}

    def kill(self) -> None:
        self.alive, self.paused = False, False
        self.life += 1
        self.held = []
        self._limits = {}

    def pause(self) -> None:
        if self.alive and not self.paused:
            self.paused, self.paused_at = True, self.world.now

    def resume(self) -> None:
        if not self.paused:
            return
        self.paused = False
        held, self.held = self.held, []
        for do in held:
            self.world.push(0.0, self, do)

    def later(self, delay_s: float, do: Callable[[], None]) -> None:
        """After so many seconds of the host's own clock, if the process still lives then."""
        if self.alive:
            self.world.push(delay_s / self.host.rate, self, do)

    def soon(self, do: Callable[[], None]) -> None:
        """Now, or as soon as it is resumed."""
        if not self.alive:
            return
        if self.paused:
            self.held.append(do)
        else:
            do()

    def limit(self, delay_s: float, what: Pending) -> None:
        """`what` expires after so many seconds of the host's clock unless it is done before. All limits of one length
        stand in one line, so that only the first of them needs an event."""
        if not self.alive:
            return
        line = self._limits.get(delay_s)
        if line is None:
            line = self._limits[delay_s] = deque()
        line.append((self.world.now + delay_s / self.host.rate, what))
        if len(line) == 1:
            self.later(delay_s, lambda: self._expire(line))

    def _expire(self, line: deque[tuple[float, Pending]]) -> None:
        now, life = self.world.now + 1e-9, self.life
        while line and (line[0][1].done or line[0][0] <= now):
            _, what = line[0]
            if not what.done:
                what.expire()
            line.popleft()
        if line and self.life == life:
            self.world.push(line[0][0] - self.world.now, self, lambda: self._expire(line))

    def sleep(self, delay_s: float) -> Waiting:
        return delay_s

    def spawn(self, work: Work, done: Callable[[Any], None] | None = None) -> Running:
        """Run the generator as part of this process."""
        running = Running(self, work, done)
        running.step(None)
        return running


class Running:
    """A generator under way; `cancel()` ends it where it waits."""

    __slots__ = ("_done", "_life", "_process", "_work", "over")

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

    def slept(self) -> None:
        self.step(None)

    def step(self, value: Any) -> None:
        if self.over or self._process.life != self._life:
            return
        if self._process.paused:
            self._process.held.append(lambda: self.step(value))
            return
        try:
            waiting = self._work.throw(value) if isinstance(value, Failure) else self._work.send(value)
        except StopIteration as stop:
            self._end(stop.value)
        except Failure as failure:
            self._end(failure)
        else:
            if isinstance(waiting, float):
                self._process.later(waiting, self.slept)
            else:
                waiting(self.step)

    def _end(self, value: Any) -> None:
        self.over = True
        if self._done is not None:
            self._done(value)


class Wait:
    """One who waits for a signal: called once, by the signal or by the limit."""

    __slots__ = ("_resume", "done")

    def __init__(self, resume: Callable[[Any], None]) -> None:
        self._resume = resume
        self.done = False

    def signalled(self) -> None:
        self._finish(True)

    def expire(self) -> None:
        self._finish(False)

    def _finish(self, value: bool) -> None:
        if not self.done:
            self.done = True
            self._resume(value)


class Signal:
    """Something to wait for with a limit, such as news."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._set = False
        self._waiters: list[Wait] = []

    def set(self) -> None:
        self._set = True
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done:
                self._process.later(0.0, waiter.signalled)

    def clear(self) -> None:
        self._set = False

    def wait(self, limit_s: float) -> Waiting:
        def begin(resume: Callable[[Any], None]) -> None:
            waiter = Wait(resume)
            if self._set:
                self._process.later(0.0, waiter.signalled)
                return
            self._waiters = [w for w in self._waiters if not w.done]
            self._waiters.append(waiter)
            self._process.later(limit_s, waiter.expire)

        return begin
