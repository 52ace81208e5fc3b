"""Side by side: what a proxy costs: PostgreSQL alone, Moorage's proxy, PgBouncer and HAProxy before the same engine.

pgbench -S by each protocol with 1, 16, 64 and 256 clients, with and without TLS, connections a second, memory of idle
clients. The systems take turns in short slices, so that all have the same share of whatever else the machine does; a
slice that others have disturbed is run again, and a figure is the median of the rounds. Each proxy is one process of
one thread; Moorage's has no more yet.

    ./dev bench proxy [--only 'prepared_*' ...] [--seconds 1] [--rounds 7] [--peers direct,moorage,...] [--json FILE]
    ./dev bench proxy --from FILE... [--write-docs]      put together pieces that were run one by one
    ./dev bench proxy --other /elsewhere/bin/moorage-proxy --peers direct,moorage,other      two builds of ours
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg
import uvloop

from tests.bench.peers.figures import between_markers
from tests.bench.relays.cases import SYSTEMS, USUAL, Case, chosen_cases
from tests.bench.relays.contenders import Contender, Missing, Site, bench_cpu_s, machine_cpu_s, site, standing
from tests.bench.relays.figures import BEGIN, END, Slice, rows, tables
from tests.bench.relays.load import measure
from tests.support.bench import parser

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
WARM_UP_S = 1.0
CALM_SHARE = 0.15  # of the machine may go to others during a slice; else it is run again ...
REPEATS_MAX = 2  # ... so often, and the calmest counts
BUDGET_S = 3000.0  # of all; fences of our routes last longer


@dataclass(slots=True)
class Findings:
    """All that is reported; also what the JSON file holds."""

    slices: list[Slice] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(self, one: Slice | None) -> None:
        self.slices += [one] if one is not None else []

    def document(self) -> dict[str, Any]:
        return {
            "machine": {
                "cores": os.cpu_count(),
                "memory_gib": round(psutil.virtual_memory().total / 2**30),
                "system": platform.platform(),
            },
            "left_out": self.left_out,
            "rows": rows(self.slices),
            "slices": [asdict(one) for one in self.slices],
        }

    def read(self, file: Path) -> None:
        known = json.loads(file.read_text())
        self.slices += [Slice(**one) for one in known["slices"]]
        self.left_out += known["left_out"]

    def text(self) -> str:
        return "\n\n".join([tables(self.slices), *(f"Left out: {one}." for one in dict.fromkeys(self.left_out))])


def say(text: str) -> None:
    """Progress; the result alone goes to standard output."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Plan:
    """How each case is run."""

    peers: Sequence[str]
    other: Path
    seconds: float
    rounds: int


async def run_case(place: Site, case: Case, plan: Plan, findings: Findings) -> None:
    """The systems in turn, each round beginning with another one. One that fails at the start is left out."""
    async with AsyncExitStack() as stack:
        contenders: list[Contender] = []
        for name in case.systems(plan.peers):
            contender = await _enter(stack, name, place, case, plan, findings)
            if contender is not None and await _slice(contender, case, WARM_UP_S, 0, findings) is not None:
                contenders.append(contender)
        for number in range(1, plan.rounds + 1):
            for at in range(len(contenders)):
                contender = contenders[(at + number) % len(contenders)]
                findings.add(await _calm_slice(place, contender, case, plan.seconds, number, findings))


async def _calm_slice(
    place: Site, contender: Contender, case: Case, seconds: float, number: int, findings: Findings
) -> Slice | None:
    """The calmest of a few tries."""
    calmest: Slice | None = None
    for _ in range(1 + REPEATS_MAX):
        began, machine_s, bench_s = time.monotonic(), machine_cpu_s(), bench_cpu_s(place, contender)
        one = await _slice(contender, case, seconds, number, findings)
        if one is None:
            break
        others_s = (machine_cpu_s() - machine_s) - (bench_cpu_s(place, contender) - bench_s)
        share = max(0.0, others_s) / (time.monotonic() - began) / (os.cpu_count() or 1)
        one.metrics["others_share"] = share
        if calmest is None or share < calmest.metrics["others_share"]:
            calmest = one
        if share <= CALM_SHARE:
            break
    return calmest


async def run_idle_case(place: Site, case: Case, plan: Plan, findings: Findings) -> None:
    """One system after the other, once: memory does not depend on what the machine does, and the connections that
    PgBouncer keeps to the engine would leave none to others."""
    for name in case.systems(plan.peers):
        async with AsyncExitStack() as stack:
            contender = await _enter(stack, name, place, case, plan, findings)
            if contender is not None:
                findings.add(await _slice(contender, case, 0, 1, findings))


async def _enter(
    stack: AsyncExitStack, name: str, place: Site, case: Case, plan: Plan, findings: Findings
) -> Contender | None:
    try:
        return await stack.enter_async_context(standing(name, place, case, plan.other))
    except (Missing, AssertionError) as error:
        findings.left_out.append(f"{SYSTEMS[name]}: {str(error).splitlines()[0]}")
        say(f"! {case.name} {name}: {error}")
        return None


async def _slice(contender: Contender, case: Case, seconds: float, number: int, findings: Findings) -> Slice | None:
    """None, and a note, when it failed. Round 0 is the warm-up."""
    try:
        metrics = await measure(contender, case, seconds)
    except (ValueError, OSError, TimeoutError, AssertionError, psycopg.Error, psutil.Error) as error:
        what = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        findings.left_out.append(f"{SYSTEMS[contender.name]} in `{case.name}`: {what[0]}")
        say(f"! {case.name} {contender.name}: {error}")
        return None
    if number:
        shown = ", ".join(f"{name} {value:.2f}" for name, value in metrics.items())
        say(f"{case.name} {contender.name} {number}: {shown}")
    return Slice(case=case.name, system=contender.name, number=number, metrics=metrics)


async def run_all(cases: Sequence[Case], plan: Plan, budget_s: float) -> Findings:
    """What was measured is not lost by a signal, and nothing is left running."""
    findings = Findings()
    if (this := asyncio.current_task()) is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    end = time.monotonic() + budget_s
    with site() as place:
        for case in cases:
            if time.monotonic() > end:
                findings.left_out.append(f"`{case.name}`, for want of time")
                continue
            run = run_idle_case if case.kind == "idle" else run_case
            try:
                await run(place, case, plan, findings)
            except asyncio.CancelledError:
                findings.left_out.append(f"`{case.name}` and what was to come after it: the run was stopped")
                break
    return findings


def options() -> argparse.Namespace:
    made = parser(__doc__ or "")
    made.add_argument("--only", nargs="+", default=[], metavar="CASE", help="names or patterns of cases")
    made.add_argument("--seconds", type=float, default=1.0, help="of a slice, whole ones (%(default).0f)")
    made.add_argument("--rounds", type=int, default=7, help="slices of each system in each case (%(default)d)")
    made.add_argument("--peers", default=",".join(USUAL), help=f"some of {','.join(SYSTEMS)} (%(default)s)")
    made.add_argument("--other", type=Path, default=Path(), metavar="PROGRAM", help="another build of moorage-proxy")
    made.add_argument("--budget", type=float, default=BUDGET_S, metavar="SECONDS", help="of all (%(default).0f)")
    made.add_argument("--list", action="store_true", help="print the names of the cases")
    made.add_argument("--from", nargs="+", type=Path, dest="files", metavar="FILE", help="read JSON files, run nothing")
    made.add_argument("--write-docs", action="store_true", help=f"put the tables into docs/{DOCUMENT.name}")
    chosen = made.parse_args()
    chosen.peers = chosen.peers.split(",")
    if unknown := [name for name in chosen.peers if name not in SYSTEMS]:
        made.error(f"nobody is called {unknown[0]!r}; there are {', '.join(SYSTEMS)}")
    if "other" in chosen.peers and not chosen.other.is_file():
        made.error("the peer `other` needs --other PROGRAM")
    try:
        chosen.cases = chosen_cases(chosen.only)
    except ValueError as error:
        made.error(str(error))
    return chosen


def main() -> None:
    chosen = options()
    if chosen.list:
        print("\n".join(case.name for case in chosen.cases))
        return
    if chosen.files:
        findings = Findings()
        for file in chosen.files:
            findings.read(file)
    else:
        _, files_max = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files_max, files_max))
        plan = Plan(chosen.peers, chosen.other, chosen.seconds, chosen.rounds)
        findings = uvloop.run(run_all(chosen.cases, plan, chosen.budget))
    print(findings.text())
    if chosen.json:
        chosen.json.write_text(json.dumps(findings.document(), indent=1) + "\n")
    if chosen.write_docs:
        DOCUMENT.write_text(between_markers(DOCUMENT.read_text(), findings.text(), BEGIN, END))


if __name__ == "__main__":
    os.umask(0o022)
    main()
