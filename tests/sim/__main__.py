"""`python -m tests.sim --seeds N --first S`: run seeds, stop at the first that fails, and print how it came about."""

from __future__ import annotations

import argparse
import sys
import time

from tests.sim.scenario import Outcome, Scenario


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description="Simulate leadership under faults.")
    parser.add_argument("--seeds", type=int, default=100, help="how many")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first failure")
    parser.add_argument("--diary", action="store_true", help="print the diary of every seed")
    options = parser.parse_args()
    begun, failed = time.perf_counter(), 0
    acked = terms = 0
    for seed in range(options.first, options.first + options.seeds):
        outcome = Scenario(seed).run()
        acked, terms = acked + outcome.acked, terms + outcome.terms
        if outcome.violation or options.diary:
            tell(outcome)
        failed += bool(outcome.violation)
        if outcome.violation and not options.keep_going:
            break
    took = time.perf_counter() - begun
    print(f"{options.seeds} seeds, {failed} failed, {acked} writes acknowledged, {terms} terms, {took:.1f} s")
    return 1 if failed else 0


def tell(outcome: Outcome) -> None:
    """What an engineer needs to see why."""
    for at, line in outcome.diary:
        print(f"{at:9.3f}  {line}")
    print(f"seed {outcome.seed}: {outcome.shape}")
    print(f"seed {outcome.seed}: {outcome.violation or 'all held'}")


if __name__ == "__main__":
    sys.exit(main())
