"""`./dev sim --seeds N [--first S] [--jobs J]`: run seeds, and print how each that failed came about."""

from __future__ import annotations

import argparse
import os
import sys

from tests.sim import pool
from tests.sim.scenario import Outcome, Scenario


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev sim", description="Simulate leadership under faults.")
    parser.add_argument("--seeds", type=int, default=1000, help="how many (default: %(default)s)")
    parser.add_argument("--first", type=int, default=1, help="the first seed (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first failure")
    parser.add_argument("--diary", action="store_true", help="print the diary of every seed, in this process")
    options = parser.parse_args()
    if options.diary:
        outcomes = [Scenario(seed).run() for seed in range(options.first, options.first + options.seeds)]
        for outcome in outcomes:
            print(told(outcome))
        return 1 if any(outcome.violation for outcome in outcomes) else 0
    totals = pool.run(options.first, options.seeds, jobs=options.jobs, keep_going=options.keep_going)
    for outcome in totals.failed:
        print(told(outcome))
    print(totals.told())
    return 1 if totals.failed else 0


def told(outcome: Outcome) -> str:
    """What an engineer needs to see why."""
    lines = [f"{at:9.3f}  {line}" for at, line in outcome.diary]
    lines.append(f"seed {outcome.seed}: {outcome.shape}")
    lines.append(f"seed {outcome.seed}: {outcome.violation or 'all held'}")
    lines.append(f"again: ./dev sim --first {outcome.seed} --seeds 1 --diary")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
