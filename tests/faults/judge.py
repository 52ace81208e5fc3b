"""What the clients' memories prove: writes lost, doubled, or made up, and two primaries at one time. Pure.

Every accepted write is told with the member that served it (by the engine's own address), the timeline it was written
on, and when it began and when it was acknowledged, all on the driver's one clock. A leadership is a (timeline, member).

Two leaderships overlap when one has accepted a write that *began after* the other had a write *acknowledged*, and the
other way round: then neither can have ended before the other began. Each such pair is a split-brain observation. A
timeline is opened by a promotion, so beside that a write of an older timeline that began after one of a newer timeline
was acknowledged is an observation too, even if it is the only one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """One write that was acknowledged."""

    member: str
    timeline: int
    began: float
    acked: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """`stale` accepted `writes` writes, from `since` for `lasted_s`, although `newer` had been writable before."""

    stale: str
    newer: str
    since: float
    lasted_s: float
    writes: int


def overlaps(writes: Iterable[Accepted]) -> list[Overlap]:
    """Every pair of leaderships that were writable at one time."""
    by_reign: dict[tuple[int, str], list[Accepted]] = {}
    for write in writes:
        by_reign.setdefault((write.timeline, write.member), []).append(write)
    found = []
    for (older, old), (newer, new) in itertools.combinations(sorted(by_reign.items()), 2):
        first_ack = min(write.acked for write in new)
        late = [write for write in old if write.began > first_ack]
        if older[0] == newer[0]:  # one timeline number, two members: only both ways round is evidence
            old_first_ack = min(write.acked for write in old)
            late = late if any(write.began > old_first_ack for write in new) else []
        if late:
            since, until = min(w.began for w in late), max(w.acked for w in late)
            names = f"{older[1]} on timeline {older[0]}", f"{newer[1]} on timeline {newer[0]}"
            found.append(Overlap(stale=names[0], newer=names[1], since=since, lasted_s=until - since, writes=len(late)))
    return found


def longest_gap(acks: Sequence[float], since: float, until: float) -> float:
    """The longest time between two acknowledgements in [since, until]; the bounds count as acknowledgements."""
    times = [since, *sorted(at for at in acks if since <= at <= until), until]
    return max(later - earlier for earlier, later in itertools.pairwise(times))


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What became of the ids that clients tried to write."""

    lost: tuple[int, ...]  # acknowledged, and not there
    doubled: tuple[int, ...]  # there more than once
    phantom: tuple[int, ...]  # certainly refused, and there all the same


def account(*, acknowledged: Iterable[int], refused: Iterable[int], present: Sequence[int]) -> Account:
    there = set(present)
    seen: set[int] = set()
    doubled = {number for number in present if number in seen or seen.add(number)}  # type: ignore[func-returns-value]
    return Account(
        lost=tuple(sorted(set(acknowledged) - there)),
        doubled=tuple(sorted(doubled)),
        phantom=tuple(sorted(set(refused) & there)),
    )
