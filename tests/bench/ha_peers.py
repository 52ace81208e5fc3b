"""Side by side: how long clients cannot write with Moorage, Patroni and pg_auto_failover, by the same faults.

All in one run on one machine: three members of Debian's PostgreSQL 15 on loopback, synchronous replication without
fallback, one client that writes every 5 ms through the entry that each system recommends. A round hits the primary,
waits until writes go on, undoes the fault, waits until all three members are whole, and looks for lost writes. Faults
alternate. The time left is shared between the systems to come; what does not fit is left out, and said.

    ./dev bench ha_peers [--rounds 3] [--only moorage patroni ...] [--faults switchover ...] [--json FILE]
    ./dev bench ha_peers --from FILE... [--write-docs]      put together pieces that were run one by one
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from subprocess import SubprocessError
from typing import Any

import psutil
import psycopg

from tests.bench.peers.base import SWITCHOVER_WITHIN_S, Missing, System
from tests.bench.peers.client import Client
from tests.bench.peers.figures import (
    CASES,
    SYSTEMS,
    Creation,
    Round,
    between_markers,
    count_between,
    longest_gap,
    most_frequent,
    rows,
    tables,
)
from tests.bench.peers.moorage import MoorageSystem
from tests.bench.peers.patroni import DEFAULTS, FASTEST, SHIPPED_CHECKS, PatroniSystem
from tests.bench.peers.pgaf import PgafSystem
from tests.support.bench import parser
from tests.support.cluster import short_root
from tests.support.waiting import eventually

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
USUAL = ("moorage", "patroni_fast", "pgaf", "patroni")  # the slowest last: it gets the time that the others leave
MAKERS: dict[str, Callable[[Path], System]] = {
    "moorage": MoorageSystem,
    "pgaf": PgafSystem,
    "patroni": lambda root: PatroniSystem(root, DEFAULTS),
    "patroni_fast": lambda root: PatroniSystem(root, FASTEST),
    "patroni_shipped": lambda root: PatroniSystem(root, SHIPPED_CHECKS),
}
BUDGET_S = 1500.0
RECOVER_WITHIN_S = 100.0
STEADY_S = 2.0  # writes went on: acknowledged for so long ...
STEADY_PAUSE_S = 0.5  # ... without a pause as long as this
REBUILDS_MAX = 2


@dataclass(slots=True)
class Findings:
    """All that is reported; also what the JSON file holds."""

    rounds: list[Round] = field(default_factory=list)
    creations: list[Creation] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        return {
            "machine": {
                "cores": os.cpu_count(),
                "memory_gib": round(psutil.virtual_memory().total / 2**30),
                "system": platform.platform(),
            },
            "left_out": self.left_out,
            "rows": rows(self.rounds, self.creations),
            "rounds": [asdict(one) for one in self.rounds],
            "creations": [asdict(one) for one in self.creations],
        }

    def read(self, file: Path) -> None:
        known = json.loads(file.read_text())
        self.rounds += [Round.read(one) for one in known["rounds"]]
        self.creations += [Creation(**one) for one in known["creations"]]
        self.left_out += known["left_out"]

    def text(self) -> str:
        return "\n\n".join([tables(self.rounds, self.creations), *(f"Left out: {one}" for one in self.left_out)])


def say(text: str) -> None:
    """Progress; the result alone goes to standard output."""
    print(text, file=sys.stderr, flush=True)


# --- one round --------------------------------------------------------------------------------------------------------


async def until_steady(client: Client, since: float) -> None:
    """Until writes have been acknowledged for a while after `since`, without a pause."""
    started = 0.0
    last = since

    async def steady() -> bool:
        nonlocal started, last
        when = client.last_acknowledged()
        if when > since and (not started or when - last > STEADY_PAUSE_S):
            started = when
        last = max(last, when)
        return bool(started) and when - started >= STEADY_S and time.monotonic() - when < STEADY_PAUSE_S

    await eventually(steady, within=RECOVER_WITHIN_S, every=0.1, what="writes go on")


async def hit(system: System, case: str) -> None:
    faults: dict[str, Callable[[], Awaitable[None]]] = {
        "switchover": system.switchover,
        "engine_crash": system.crash_engine,
        "node_loss": system.lose_node,
        "node_freeze": system.freeze_node,
    }
    async with asyncio.timeout(SWITCHOVER_WITHIN_S + 5):
        await faults[case]()


async def one_round(system: System, client: Client, case: str, number: int, known_lost: set[int]) -> Round:
    """Hit, wait, heal, count. Nothing that a system does or fails to do raises here."""
    notes: list[str] = []
    known_doubtful = set(client.doubtful)
    at = time.monotonic()
    recovered = await tolerated(notes, hit(system, case))
    recovered = await tolerated(notes, until_steady(client, time.monotonic())) and recovered
    over = time.monotonic()
    healed = await tolerated(notes, system.heal())
    whole = time.monotonic()
    times = list(client.acknowledged.values())
    lost = await lost_writes(client, known_lost, notes)
    return Round(
        system=system.name,
        case=case,
        number=number,
        gap_s=round(longest_gap(times, at, over), 4),
        recovered=recovered,
        healed=healed,
        heal_s=round(whole - over, 3),
        heal_gap_s=round(longest_gap(times, over, whole), 4),
        errors=count_between((when for when, _ in client.errors), at, over),
        failed_writes=count_between(client.failed, at, over),
        lost=lost,
        doubtful=len(client.doubtful - known_doubtful),
        said=most_frequent(text for when, text in client.errors if at <= when <= over),
        note="; ".join(notes),
    )


async def tolerated(notes: list[str], step: Awaitable[None]) -> bool:
    """False and a note when the step did not come to its end; the details go to standard error."""
    try:
        await step
    except (AssertionError, LookupError, OSError, ValueError, psycopg.Error, psutil.Error, SubprocessError) as error:
        notes.append(str(error).splitlines()[0][:200] if str(error) else type(error).__name__)
        say(f"! {error}")
        return False
    return True


async def lost_writes(client: Client, known: set[int], notes: list[str]) -> int:
    """Acknowledged writes that are newly missing; -1 when nobody could be asked."""
    acknowledged = set(client.acknowledged)  # before reading: the client goes on
    found: set[int] = set()

    async def look() -> None:
        found.update(acknowledged - await client.present() - known)

    if not await tolerated(notes, look()):
        return -1
    known |= found
    return len(found)


# --- one system -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Plan:
    """What is still to be done with one system."""

    jobs: list[tuple[int, str]]
    until: float

    def next(self) -> tuple[int, str] | None:
        return self.jobs.pop(0) if self.jobs and time.monotonic() < self.until else None


async def play(name: str, plan: Plan, findings: Findings) -> None:
    """All rounds of a system; it is built anew when it does not heal."""
    for _ in range(1 + REBUILDS_MAX):
        notes: list[str] = []
        await tolerated(notes, one_life(name, plan, findings))
        findings.left_out += [f"{SYSTEMS[name]} was built anew: {note}" for note in notes]
        if not plan.jobs or time.monotonic() >= plan.until:
            break
    if plan.jobs:
        findings.left_out.append(f"{SYSTEMS[name]}: {len(plan.jobs)} rounds, for want of time or after rebuilds")


async def one_life(name: str, plan: Plan, findings: Findings) -> None:
    """From creation until all rounds are done or the system is broken."""
    async with short_root("peers") as root, MAKERS[name](root) as system:
        started = time.monotonic()
        await system.create()
        client = Client(system.dsn)
        await eventually(lambda: prepared(client), within=60, every=0.1, what=f"{name} lets a client in")
        seconds = round(time.monotonic() - started, 3)
        findings.creations.append(Creation(system=name, seconds=seconds, version=system.version))
        say(f"{name}: created in {seconds:.1f} s")
        async with asyncio.TaskGroup() as group:
            group.create_task(client.run())
            try:
                await rounds(system, client, plan, findings)
            finally:
                client.stopping.set()


async def prepared(client: Client) -> bool:
    try:
        await client.prepare()
    except psycopg.Error as error:
        raise LookupError(str(error)) from error
    return True


async def rounds(system: System, client: Client, plan: Plan, findings: Findings) -> None:
    """Until nothing is left, time is up, or the system is broken."""
    lost: set[int] = set()
    while job := plan.next():
        number, case = job
        if not await tolerated([], until_steady(client, time.monotonic())):
            plan.jobs.insert(0, job)
            return
        one = await one_round(system, client, case, number, lost)
        findings.rounds.append(one)
        said = f"gap {one.gap_s:.2f} s, {one.errors} errors, {one.lost} lost, whole {one.heal_s:.1f} s later"
        say(f"{system.name}: {case} {number}: {said}{' (' + one.note + ')' if one.note else ''}")
        if not one.healed or not one.recovered:
            return


# --- the whole --------------------------------------------------------------------------------------------------------


async def play_all(names: Sequence[str], cases: Sequence[str], count: int, budget_s: float) -> Findings:
    """One system after the other, each with its share of the time left.

    What was measured is not lost by a signal or by an error that nobody thought of, and nothing is left running.
    """
    findings = Findings()
    if (this := asyncio.current_task()) is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    end = time.monotonic() + budget_s
    for place, name in enumerate(names):
        now = time.monotonic()
        jobs = [(number, case) for number in range(1, count + 1) for case in cases]
        plan = Plan(jobs, until=now + (end - now) / (len(names) - place))
        try:
            await play(name, plan, findings)
        except Missing as missing:
            findings.left_out.append(f"{SYSTEMS[name]}: {missing}")
        except asyncio.CancelledError:
            findings.left_out.append(f"{SYSTEMS[name]} and what was to come after it: the run was stopped")
            break
        except Exception as error:
            traceback.print_exc()
            findings.left_out.append(f"{SYSTEMS[name]}: {len(plan.jobs)} rounds, after {type(error).__name__}: {error}")
    return findings


def options() -> argparse.Namespace:
    made = parser(__doc__ or "")
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument(
        "--only", nargs="+", choices=SYSTEMS, default=list(USUAL), metavar="SYSTEM", help=", ".join(SYSTEMS)
    )
    made.add_argument("--faults", nargs="+", choices=CASES, default=list(CASES), metavar="FAULT", help=", ".join(CASES))
    made.add_argument("--budget", type=float, default=BUDGET_S, metavar="SECONDS", help="of all (%(default).0f)")
    made.add_argument("--from", nargs="+", type=Path, dest="files", metavar="FILE", help="read JSON files, run nothing")
    made.add_argument("--write-docs", action="store_true", help=f"put the tables into docs/{DOCUMENT.name}")
    return made.parse_args()


def main() -> None:
    chosen = options()
    if chosen.files:
        findings = Findings()
        for file in chosen.files:
            findings.read(file)
    else:
        findings = asyncio.run(play_all(chosen.only, chosen.faults, chosen.rounds, chosen.budget))
    print(findings.text())
    if chosen.json:
        chosen.json.write_text(json.dumps(findings.document(), indent=1) + "\n")
    if chosen.write_docs:
        DOCUMENT.write_text(between_markers(DOCUMENT.read_text(), findings.text()))


if __name__ == "__main__":
    os.umask(0o022)
    main()
