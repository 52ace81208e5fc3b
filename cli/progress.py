"""Waiting for instances, and showing what is waited for.

A goal names an object and judges its state: reached, hopeless, or not yet. `wait_for` asks the hub again and again
until every goal is reached, one is hopeless, or the time is over. A hub that does not answer meanwhile is waited for as
well, because the work goes on without it being asked. What is shown comes from one pure function, `summary`, so a
terminal (redrawn in place) and a log (one line whenever something changed) tell the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.text import Text

from cli import output
from cli.client import Client, KindName
from core.clock import Clock
from core.errors import ConflictError, MoorageError, NotFoundError, TimedOutError, UnavailableError

Page = dict[str, Any]

ASK_EVERY_S = 0.4  # the hub answers from memory
SEEN_EVERYWHERE_S = 3.0  # another hub than the one that wrote may answer, a moment behind it
PLACE_PATIENCE_S = 15.0  # a node may be about to enrol; after that only a person helps
ADVERSE = ("PendingRestart",)  # conditions that tell of something amiss when they are true; all others when false
# The order in which to tell what is wrong: the first one usually explains the others.
CONDITION_ORDER = (
    "PrimaryAvailable", "NodesReachable", "ReplicasAvailable", "Replicating", "EnginesHealthy", "Placed", "Converged",
    "PendingRestart", "AutomaticFailover",
)  # fmt: skip
POINTING = ("NotPlaced", "NotReady", "NoPrimary", "NoReplica")  # reasons that only point to another condition


class Verdict:
    """What a goal says of a state."""


@dataclass(frozen=True, slots=True)
class Reached(Verdict):
    """It is as wanted."""


@dataclass(frozen=True, slots=True)
class NotYet(Verdict):
    """Ask again; `why` is for the error when time runs out."""

    why: str = ""


@dataclass(frozen=True, slots=True)
class Hopeless(Verdict):
    """Waiting longer would not help."""

    error: MoorageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """An object and what it should become. The judge gets its state (None = it is gone) and the seconds waited."""

    name: str
    judge: Callable[[Page | None, float], Verdict]
    what: str  # such as `Running`, for the error
    kind: KindName = "Instance"


class Display(Protocol):
    """Where progress is shown."""

    def show(self, pages: Sequence[tuple[str, Page | None]], elapsed_s: float, remark: str) -> None: ...
    def close(self) -> None: ...


# --- what is shown: pure --------------------------------------------------------------------------------------------


def members_of(page: Page) -> list[Page]:
    members = page.get("members")
    return [member for member in members if isinstance(member, dict)] if isinstance(members, list) else []


def worst_condition(page: Page) -> str:
    """The message of the condition that most needs a look; empty when all are well."""
    amiss = [
        condition
        for condition in page.get("conditions") or []
        if isinstance(condition, dict)
        and condition.get("type") in CONDITION_ORDER
        and bool(condition.get("status")) is (condition.get("type") in ADVERSE)
    ]
    amiss.sort(key=lambda one: (one.get("reason") in POINTING, CONDITION_ORDER.index(one["type"])))
    return str(amiss[0].get("message") or amiss[0].get("reason") or "") if amiss else ""


def member_line(member: Page) -> str:
    """Such as `m1 primary running on n1`, with the message when it is not well."""
    role = member.get("role")
    parts = [member.get("name"), role if role != "unknown" else None, member.get("state")]
    line = f"{' '.join(str(part) for part in parts if part)} on {member.get('node')}"
    return f"{line} ({member['message']})" if member.get("message") else line


def summary(name: str, page: Page | None) -> list[str]:
    """The state in a few lines: phase and what is amiss, then a line a member."""
    if page is None:
        return [f"{name}: gone"]
    worst = worst_condition(page)
    head = f"{name}: {page.get('phase', 'unknown')}"
    return [
        output.plain(f"{head} - {worst}" if worst else head),
        *(f"  {output.plain(member_line(member))}" for member in members_of(page)),
    ]


# --- where it is shown ----------------------------------------------------------------------------------------------


class LineDisplay:
    """For logs and pipes: a line on standard error whenever something changed."""

    def __init__(self, *, indent: str = "") -> None:
        self._indent = indent
        self._last: dict[str, list[str]] = {}
        self._remark = ""

    def show(self, pages: Sequence[tuple[str, Page | None]], elapsed_s: float, remark: str) -> None:
        for name, page in pages:
            lines = summary(name, page)
            if self._last.get(name) != lines:
                self._last[name] = lines
                rest = "; ".join(line.strip() for line in lines[1:])
                output.note(f"{self._indent}[{elapsed_s:6.1f}s] {lines[0]}{' | ' + rest if rest else ''}")
        if remark and remark != self._remark:
            output.note(f"{self._indent}[{elapsed_s:6.1f}s] {output.plain(remark)}")
        self._remark = remark

    def close(self) -> None:
        pass


class LiveDisplay:
    """For terminals: a few lines drawn over and over, gone at the end."""

    _TONES = (("running", "green"), ("creating", "yellow"), ("failed", "bold red"), ("crashed", "bold red"))

    def __init__(self, *, indent: str = "") -> None:
        self._indent = indent
        self._live = Live(console=Console(stderr=True, highlight=False), transient=True, refresh_per_second=8)
        self._live.start()

    def show(self, pages: Sequence[tuple[str, Page | None]], elapsed_s: float, remark: str) -> None:
        lines = [line for name, page in pages for line in summary(name, page)]
        text = Text()
        for number, line in enumerate(lines):
            text.append(f"{self._indent}{line}", style=self._style(line))
            text.append(f"   {elapsed_s:.0f}s\n" if number == 0 else "\n", style="dim")
        if remark:
            text.append(f"{self._indent}{output.plain(remark)}\n", style="yellow")
        self._live.update(text)

    def _style(self, line: str) -> str:
        return next((style for word, style in self._TONES if f" {word}" in line.lower()), "")

    def close(self) -> None:
        self._live.stop()


def display(*, indent: str = "") -> Display:
    """The one that fits standard error."""
    return LiveDisplay(indent=indent) if output.coloured(err=True) else LineDisplay(indent=indent)


# --- goals ----------------------------------------------------------------------------------------------------------


def running(name: str, generation: int = 0) -> Goal:
    """Running, with every member converged to at least `generation`."""

    def judge(page: Page | None, waited_s: float) -> Verdict:
        if page is None and waited_s < SEEN_EVERYWHERE_S:
            return NotYet("it is not known yet")
        if page is None:
            return _vanished(name)
        if page.get("deleting"):
            return Hopeless(ConflictError("instance is being deleted", object=name))
        if page.get("phase") == "Running" and int(page.get("observed_generation") or 0) >= generation:
            return Reached()
        worst = worst_condition(page)
        if page.get("phase") == "Pending" and worst and waited_s >= PLACE_PATIENCE_S:
            return Hopeless(ConflictError(worst, object=name, hint=f"See: moorctl instance explain {name}"))
        return NotYet(worst or f"it is {page.get('phase')}")

    return Goal(name=name, judge=judge, what="Running")


def gone(name: str) -> Goal:
    """Nothing is left of it."""

    def judge(page: Page | None, _waited_s: float) -> Verdict:
        if page is None:
            return Reached()
        left = ", ".join(f"{member.get('name')} on {member.get('node')}" for member in members_of(page))
        return NotYet(worst_condition(page) or (f"still there: {left}" if left else f"it is {page.get('phase')}"))

    return Goal(name=name, judge=judge, what="gone")


def restarted(name: str, restart_id: int) -> Goal:
    """Every member has carried out the restart, and the instance is Running."""

    def judge(page: Page | None, _waited_s: float) -> Verdict:
        if page is None:
            return _vanished(name)
        left = [str(m.get("name")) for m in members_of(page) if int(m.get("restart_id") or 0) < restart_id]
        if left:
            return NotYet(f"not restarted yet: {', '.join(left)}")
        return Reached() if page.get("phase") == "Running" else NotYet(worst_condition(page))

    return Goal(name=name, judge=judge, what="restarted")


def switched(name: str, request_id: str, *, before_term: int, target: str = "") -> Goal:
    """The request is over, the target (any other member when empty) leads, and the instance is Running."""

    def judge(page: Page | None, _waited_s: float) -> Verdict:
        if page is None:
            return _vanished(name)
        ha = page.get("ha") or {}
        if (ha.get("switchover") or {}).get("id") == request_id:
            return NotYet("the switchover is under way")
        hint = f"See: moorctl event list --object {name}"
        if int(ha.get("term") or 0) <= before_term:
            what = "the switchover did not happen; the primary is as before"
            return Hopeless(ConflictError(what, object=name, hint=hint))
        if target and ha.get("last_leader") != target:
            return Hopeless(ConflictError(f"{ha.get('last_leader')} leads, not {target}", object=name, hint=hint))
        return Reached() if page.get("phase") == "Running" else NotYet(worst_condition(page))

    return Goal(name=name, judge=judge, what="switched over")


def forced(name: str, order: str, *, target: str, after_term: int) -> Goal:
    """The target leads in a later term and accepts writes; the others may still be down."""

    def judge(page: Page | None, _waited_s: float) -> Verdict:
        if page is None:
            return _vanished(name)
        ha, leader = page.get("ha") or {}, page.get("leader") or {}
        term = int(ha.get("term") or 0)
        if term <= after_term and (ha.get("forced") or {}).get("id") not in (order, None):
            return Hopeless(ConflictError("another failover was ordered meanwhile", object=name))
        if term <= after_term or not leader:
            return NotYet(worst_condition(page) or f"{target} has not taken over yet")
        if leader.get("member") != target:
            hint = f"See: moorctl instance history {name}"
            return Hopeless(ConflictError(f"{leader.get('member')} leads, not {target}", object=name, hint=hint))
        here = next((member for member in members_of(page) if member.get("name") == target), {})
        opened = here.get("role") == "primary" and here.get("state") == "running"
        return Reached() if opened else NotYet(f"{target} leads and is about to accept writes")

    return Goal(name=name, judge=judge, what=f"led by {target}")


def _vanished(name: str) -> Hopeless:
    return Hopeless(NotFoundError("instance was deleted meanwhile", object=name))


# --- waiting --------------------------------------------------------------------------------------------------------


GOES_ON = "It goes on in the background; see: moorctl status"


async def wait_for(
    client: Client, goals: Sequence[Goal], *, timeout_s: float, clock: Clock, indent: str = "", hint: str = GOES_ON
) -> dict[str, Page | None]:
    """The last state of each goal's object, once all are reached. TimedOutError says what was still missing."""
    started = clock.now()
    shown = display(indent=indent)
    pages: dict[str, Page | None] = {}
    try:
        while True:
            waited_s = clock.now() - started
            try:
                for goal in goals:
                    pages[goal.name] = await _state(client, goal)
            except (UnavailableError, TimedOutError) as error:
                shown.show(list(pages.items()), waited_s, f"{error.object}: {error.what}; still trying")
                missing = error.what
            else:
                shown.show(list(pages.items()), waited_s, "")
                missing = _missing(goals, pages, waited_s)
                if not missing:
                    return pages
            if waited_s >= timeout_s:
                names = ", ".join(goal.name for goal in goals)
                raise TimedOutError(f"not {goals[0].what} after {timeout_s:g} s: {missing}", object=names, hint=hint)
            await asyncio.sleep(ASK_EVERY_S)
    finally:
        shown.close()


def _missing(goals: Sequence[Goal], pages: dict[str, Page | None], waited_s: float) -> str:
    """What is not as it should be yet; empty when all is. Raises for what is hopeless."""
    missing = []
    for goal in goals:
        verdict = goal.judge(pages[goal.name], waited_s)
        if isinstance(verdict, Hopeless):
            raise verdict.error
        if isinstance(verdict, NotYet):
            why = verdict.why or f"not {goal.what} yet"
            missing.append(f"{goal.name}: {why}" if len(goals) > 1 else why)
    return "; ".join(missing)


async def _state(client: Client, goal: Goal) -> Page | None:
    try:
        return (await client.get(goal.kind, goal.name)).status
    except NotFoundError:
        return None
