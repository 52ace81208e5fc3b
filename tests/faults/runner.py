"""Plays faults, round by round, and measures what clients saw.

A round: the instance is healthy, clients and probers start, the fault happens and ends, the instance becomes healthy
again, clients stop, and everything they were told is compared with what is there. The site lives on from round to
round; it is built anew when a fault has left it ill, which is told.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from tests.faults import judge
from tests.faults.machines import Place
from tests.faults.prober import Prober
from tests.faults.scene import Fault, Scene
from tests.faults.site import Site
from tests.faults.workload import Workload

HEALTHY_WITHIN_S = 90.0
BEFORE_S = 45.0
WARM_WRITES = 100
WARM_WITHIN_S = 20.0
TAIL_S = 0.5
FAILURE_CHARACTERS = 400
HOPELESS = 3  # rounds in a row that ended before a client had written anything: the next one will, too
PLAY_WITHIN_S = 150.0
# A round that cannot be played or judged is told as failed; the others go on.
TROUBLE = (
    *(AssertionError, psycopg.Error, OSError, RuntimeError, subprocess.SubprocessError),
    *(LookupError, TypeError, ValueError),
)


@dataclass(slots=True, kw_only=True)
class Round:
    """What was seen. Times in seconds; `health_s` counts from the end of the fault."""

    fault: str
    round: int
    write_gap_s: float = 0.0
    read_gap_s: float = 0.0
    health_s: float = 0.0
    took_s: float = 0.0
    acknowledged: int = 0
    lost: int = 0
    doubled: int = 0
    phantom: int = 0
    wrong_sums: int = 0
    split: int = 0  # pairs of leaderships that both accepted writes through proxies at one time
    stale: int = 0  # writes that an engine took at its own socket although its successor was writable
    stale_s: float = 0.0
    errors: int = 0
    error_kinds: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    failure: str = ""  # the round did not go as planned: no health, the fault could not be played
    within_bound: bool | None = None
    unwanted_errors: bool = False  # clients saw some although they must not
    may_lose: bool = False  # async replication promises a bound of loss, not that there is none
    proofs: list[str] = field(default_factory=list)  # the evidence for lost, split and the like

    @property
    def broken(self) -> bool:
        """Whether something happened that must never happen."""
        lost = 0 if self.may_lose else self.lost
        return bool(lost or self.doubled or self.phantom or self.wrong_sums or self.split)

    @property
    def good(self) -> bool:
        """Whether everything was as promised."""
        return not (self.broken or self.failure or self.within_bound is False or self.unwanted_errors)


class Sites:
    """The one site there is at a time, built when it is needed."""

    def __init__(self, root: Path, yard: Place, mode: str) -> None:
        self._root = root
        self._yard = yard
        self._mode = mode
        self._stack = AsyncExitStack()
        self._site: Site | None = None
        self._built = 0

    async def get(self, *, special: bool) -> Site:
        if self._site is not None and self._site.special != special:
            await self.discard()
        if self._site is None:
            self._built += 1
            begun = time.monotonic()
            root = self._root / f"s{self._built}"
            running = Site.running(root, self._yard, mode=self._mode, special=special)
            self._site = await self._stack.enter_async_context(running)
            say(f"site {self._built} is up after {time.monotonic() - begun:.0f} s: {root}")
        return self._site

    def save_logs(self, folder: Path) -> None:
        if self._site is not None:
            save_logs(self._site, folder)

    async def discard(self) -> None:
        """Take it down."""
        site, self._site = self._site, None
        stack, self._stack = self._stack, AsyncExitStack()
        await stack.aclose()
        if site is not None:
            shutil.rmtree(site.root, ignore_errors=True)


@asynccontextmanager
async def sites(root: Path, yard: Place, mode: str) -> AsyncIterator[Sites]:
    made = Sites(root, yard, mode)
    try:
        yield made
    finally:
        await made.discard()


async def play_all(
    made: Sites, faults: Sequence[Fault], *, rounds: int, seed: int, logs: Path | None = None
) -> list[Round]:
    """Every round of every fault; those that need a special site last, so that it is built once."""
    done: list[Round] = []
    for fault in sorted(faults, key=lambda one: one.special):
        for number in range(rounds):
            if len(done) >= HOPELESS and all(one.failure and not one.acknowledged for one in done[-HOPELESS:]):
                say(f"given up: {HOPELESS} rounds in a row without a single write")
                return done
            dice = random.Random(f"{seed} {len(done)}")
            try:
                site = await made.get(special=fault.special)
            except TROUBLE as error:
                seen = Round(fault=fault.name, round=number + 1, failure=f"no site: {brief(error)}")
            else:
                seen = await _one(site, fault, number, round_id=len(done) + 1, dice=dice)
            done.append(seen)
            say(sentence(seen))
            if logs and not seen.good:
                made.save_logs(logs / f"{fault.name}-{number + 1}")
            if seen.failure or seen.broken:
                await made.discard()
    return done


async def _one(site: Site, fault: Fault, number: int, *, round_id: int, dice: random.Random) -> Round:
    seen = Round(fault=fault.name, round=number + 1, may_lose=site.mode == "async")
    workload = Workload(site.dsn, site.read_dsn, round_id, dice)
    prober = Prober(site)
    scene = Scene(site=site, workload=workload, random=dice, round=number)
    try:
        await site.await_healthy(BEFORE_S)
        site.incidents()
        await workload.prepare()
        await prober.prepare()
        async with asyncio.TaskGroup() as group:
            workload.start(group)
            prober.start(group)
            try:
                await _measured(scene, fault, seen)
            except TROUBLE as error:
                seen.failure = brief(error)
            finally:
                await asyncio.gather(workload.stop(), prober.stop())
        _tell_account(seen, workload, await workload.verdict())
    except TROUBLE as error:
        seen.failure = seen.failure or brief(error)
    _tell_overlaps(seen, workload, prober)
    seen.notes += scene.notes + site.incidents()
    seen.unwanted_errors = fault.no_errors and seen.errors > 0
    if seen.unwanted_errors:
        seen.notes.append("clients saw errors, which they must not")
    return seen


async def _measured(scene: Scene, fault: Fault, seen: Round) -> None:
    """Warm up, play, wait for health; gaps are measured even when that does not come."""
    memory = scene.workload.memory
    async with asyncio.timeout(WARM_WITHIN_S):
        while len(memory.written) < WARM_WRITES or len(memory.read) < WARM_WRITES // 4:
            await asyncio.sleep(0.05)
    memory.errors.clear()
    began = time.monotonic()
    try:
        async with asyncio.timeout(PLAY_WITHIN_S):
            await fault.play(scene)
        over = time.monotonic()
        await scene.site.await_healthy(HEALTHY_WITHIN_S)
        seen.health_s = time.monotonic() - over
        await asyncio.sleep(TAIL_S)
    finally:
        until = time.monotonic()
        seen.took_s = until - began
        seen.write_gap_s = judge.longest_gap(memory.written, began, until)
        seen.read_gap_s = judge.longest_gap(memory.read, began, until)
        seen.errors = memory.errors.total()
        seen.error_kinds = dict(memory.errors.most_common(8))
        seen.within_bound = None if fault.bound_s is None else seen.write_gap_s <= fault.bound_s


def _tell_account(seen: Round, workload: Workload, account: judge.Account) -> None:
    seen.acknowledged = len(workload.memory.appended) + len(workload.memory.moved)
    seen.lost, seen.doubled, seen.phantom = len(account.lost), len(account.doubled), len(account.phantom)
    seen.wrong_sums = len(workload.memory.wrong_sums)
    for what, ids in (("lost", account.lost), ("doubled", account.doubled), ("phantom", account.phantom)):
        if ids:
            seen.proofs.append(f"{what}: {ids[:10]}")
    seen.proofs += workload.memory.wrong_sums[:5]


def _tell_overlaps(seen: Round, workload: Workload, prober: Prober) -> None:
    through_proxies = judge.overlaps(workload.memory.accepted)
    seen.split = len(through_proxies)
    seen.proofs += [f"two primaries: {overlap}" for overlap in through_proxies]
    everywhere = judge.overlaps([*workload.memory.accepted, *prober.accepted])
    seen.stale = sum(overlap.writes for overlap in everywhere)
    seen.stale_s = max((overlap.lasted_s for overlap in everywhere), default=0.0)
    seen.notes += [
        f"{overlap.stale} took {overlap.writes} writes at its own socket for {overlap.lasted_s:.2f} s after "
        f"{overlap.newer} was writable"
        for overlap in everywhere
        if not through_proxies
    ]


def brief(error: BaseException) -> str:
    """On one line; libpq tells a paragraph for each host."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:FAILURE_CHARACTERS]


def sentence(seen: Round) -> str:
    """One line for people who watch."""
    bound = {None: "", True: " ok", False: " OVER BOUND"}[seen.within_bound]
    what = f"{seen.fault:22} {seen.round}: write gap {seen.write_gap_s:.2f} s{bound}, read gap {seen.read_gap_s:.2f} s"
    counted = f"lost {seen.lost}, split {seen.split}, errors {seen.errors}, healthy after {seen.health_s:.1f} s"
    more = [*seen.notes, *seen.proofs, *([f"FAILED: {seen.failure}"] if seen.failure else [])]
    return "\n      ".join([f"{what}, {counted}", *more])


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def save_logs(site: Site, folder: Path) -> None:
    """All logs of the site, for whoever looks for the reason."""
    folder.mkdir(parents=True, exist_ok=True)
    for log in [*site.root.glob("*/*.log"), *site.root.glob("*/data/proxy/*.log")]:
        shutil.copyfile(log, folder / f"{log.relative_to(site.root).parts[0]}-{log.name}")
    for log in site.root.glob("*/data/members/*/log/*"):
        parts = log.relative_to(site.root).parts
        shutil.copyfile(log, folder / f"{parts[0]}-{parts[3]}-{log.name}")
