"""Many seeds on several cores, and what they add up to.

A seed is a world of its own, so they are dealt out in hands of HAND to worker processes; what comes back is a sum, and
the whole outcome only of those that failed.
"""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from agent.ha.actions import Reason
from tests.sim.scenario import Outcome, Scenario
from tests.sim.thawed import thaw

HAND = 40


@dataclass(slots=True)
class Totals:
    """Of all seeds that were run."""

    seeds: int = 0
    long: int = 0
    failed: list[Outcome] = field(default_factory=list)
    acked: int = 0
    terms: int = 0
    failovers: int = 0
    handovers: int = 0
    simulated_s: float = 0.0
    whole_after_s: float = 0.0  # the longest
    faults: Counter[str] = field(default_factory=Counter)
    reasons: Counter[Reason] = field(default_factory=Counter)
    took_s: float = 0.0

    def add(self, outcome: Outcome) -> None:
        self.seeds += 1
        self.long += outcome.is_long
        self.acked += outcome.acked
        self.terms += outcome.terms
        self.failovers += outcome.failovers
        self.handovers += outcome.handovers
        self.simulated_s += outcome.simulated_s
        self.whole_after_s = max(self.whole_after_s, outcome.whole_after_s)
        self.faults += outcome.faults
        self.reasons.update(outcome.reasons)
        if outcome.violation:
            self.failed.append(outcome)

    def merge(self, other: Totals) -> None:
        self.seeds += other.seeds
        self.long += other.long
        self.failed += other.failed
        self.acked += other.acked
        self.terms += other.terms
        self.failovers += other.failovers
        self.handovers += other.handovers
        self.simulated_s += other.simulated_s
        self.whole_after_s = max(self.whole_after_s, other.whole_after_s)
        self.faults += other.faults
        self.reasons.update(other.reasons)

    def told(self) -> str:
        """For the end of a run."""
        kinds = ", ".join(f"{name} {count}" for name, count in self.faults.most_common())
        return (
            f"{self.seeds} seeds, {self.long} of them long, {len(self.failed)} failed, in {self.took_s:.0f} s\n"
            f"  simulated: {self.simulated_s / 3600:.1f} hours, {self.terms} leaderships, {self.failovers} failovers, "
            f"{self.handovers} handovers\n"
            f"  writes acknowledged and looked for at the end: {self.acked}\n"
            f"  longest way back to a whole instance after the last fault: {self.whole_after_s:.1f} s\n"
            f"  faults: {self.faults.total()}: {kinds}"
        )


def run(first: int, seeds: int, *, jobs: int, keep_going: bool = False) -> Totals:
    """Stops at the first hand with a failure in it unless told to keep going."""
    totals, begun = Totals(), time.perf_counter()
    hands = [range(start, min(start + HAND, first + seeds)) for start in range(first, first + seeds, HAND)]
    for part in _parts(hands, jobs):
        totals.merge(part)
        if part.failed and not keep_going:
            break
    totals.took_s = time.perf_counter() - begun
    return totals


def _parts(hands: list[range], jobs: int) -> Iterator[Totals]:
    if jobs == 1:
        yield from map(play, hands)
        return
    # Not forked: the parent may have threads, and its garbage is not the workers'.
    with multiprocessing.get_context("spawn").Pool(jobs, initializer=_calm) as pool:
        yield from islice(pool.imap_unordered(play, hands), len(hands))


def _calm() -> None:
    """Worlds are full of cycles, but small: look for them seldom."""
    gc.set_threshold(100_000, 20, 100)
    thaw()


def play(hand: range) -> Totals:
    totals = Totals()
    for seed in hand:
        totals.add(Scenario(seed).run())
    return totals
