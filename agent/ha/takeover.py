"""Pure: what the history tells of a change of leadership, put together by the member that takes over.

Everything here is for people. It is gathered beside the decisions and never changes one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.ha.election import handed_to, position_of
from core.positions import WalPosition
from core.records import Ballot, Era, HaRecord, LeadershipChange, StepTaken, SyncRecord


@dataclass(slots=True)
class Takeover:
    """The way from the end of the last leadership to the first acknowledged commit, as times of this agent."""

    term: int
    leaderless_since: float
    acquired_at: float
    promoted_at: float = 0.0
    opened_at: float = 0.0
    told: bool = False

    def seen_primary(self, now: float, *, acknowledges: bool) -> None:
        """The engine was just seen to run as primary."""
        self.promoted_at = self.promoted_at or now
        if acknowledges:
            self.opened_at = self.opened_at or now

    def still_standby(self, now: float) -> None:
        """The way to the first commit begins when a standby instance is promoted."""
        self.leaderless_since = self.acquired_at = now

    def steps(self) -> tuple[StepTaken, ...]:
        """What took how long."""
        since = self.leaderless_since or self.acquired_at
        times = (("elected", self.acquired_at), ("promoted", self.promoted_at), ("opened", self.opened_at))
        steps = []
        for name, at in times:
            steps.append(StepTaken(name=name, took_s=round(max(0.0, at - since), 3)))
            since = at
        return tuple(steps)


def acknowledges(setting: SyncRecord) -> bool:
    """Whether an engine with this sync set in force acknowledges commits at all."""
    return setting.mode == "async" or bool(setting.names)


def told_at_acquire(
    ha: HaRecord, ballots: Sequence[Ballot], *, me: str, position: WalPosition, leaderless_s: float
) -> LeadershipChange:
    """What the member that takes the leadership after `ha.term` has to tell of how it came to it."""
    cast = [b for b in ballots if b.term == ha.term + 1]
    cast.sort(key=lambda b: (b.member != me, -b.timeline, -b.lsn, b.member))
    lines, loss = _how(ha, cast, me, position)
    return LeadershipChange(
        term=ha.term + 1,
        member=me,
        reason="",
        leaderless_s=round(leaderless_s, 3),
        ballots=lines,
        loss=loss,
    )


def _how(ha: HaRecord, cast: list[Ballot], me: str, position: WalPosition) -> tuple[tuple[str, ...], str]:
    """One line a ballot, the chosen one first and why; and what may be lost."""
    if ha.standby:
        return _how_standby(ha, cast, me, position), "none: it is the remote primary that accepts writes"
    if not ha.system_id:
        return (f"{me} makes the instance's first data",), "none"
    if ha.forced is not None and ha.forced.target == me and ha.forced.after_term == ha.term and handed_to(ha) != me:
        why = f"{me} at {position}: forced by {ha.forced.requested_by or 'an operator'}"
        return (why, *(_line(b) for b in cast if b.member != me)), _behind(cast, me, position, by_force=True)
    if handed_to(ha) == me:
        return (f"{me} at {position}: {ha.leader} had seen that it has every byte when it handed over",), "none"
    mine = next((b for b in cast if b.member == me), None)
    if mine is None:
        return (f"{me} at {position}: led last and has its own log",), "none"
    lines = (f"{_line(mine)}: {_why(ha, cast, mine)}", *(_line(b) for b in cast if b is not mine))
    return lines, _behind(cast, me, position) if ha.sync.mode == "async" else "none"


def _how_standby(ha: HaRecord, cast: list[Ballot], me: str, position: WalPosition) -> tuple[str, ...]:
    if not ha.system_id:
        return (f"{me} copies the remote primary's data",)
    if not any(b.member == me for b in cast):
        return (f"{me} at {position}: follows the remote primary for the others",)
    return tuple(f"{_line(b)}{': follows the remote primary for the others' if b.member == me else ''}" for b in cast)


def _line(ballot: Ballot) -> str:
    marks = ["led last"] if ballot.was_leader else []
    marks += ["must not lead"] if ballot.no_failover else []
    marks += [f"priority {ballot.priority}"] if ballot.priority else []
    return f"{ballot.member} at {position_of(ballot)}" + (f" ({', '.join(marks)})" if marks else "")


def _why(ha: HaRecord, cast: list[Ballot], mine: Ballot) -> str:
    able = [b for b in cast if not b.no_failover]
    rest = [b for b in able if b is not mine]
    if not rest:
        how = "the only candidate"
    elif all(position_of(mine) > position_of(b) for b in rest):
        how = "furthest"
    elif all(position_of(mine) >= position_of(b) for b in rest):
        how = "none is further, and it comes first by priority or name"
    else:
        how = "far enough, and whoever was to come first did not act"
    return how if ha.sync.mode == "async" else f"has every acknowledged commit ({_proof(ha, cast)}); {how}"


def _proof(ha: HaRecord, cast: list[Ballot]) -> str:
    if any(b.was_leader and b.member == ha.leader for b in cast):
        return f"{ha.leader}, who led last, has cast a ballot itself"
    return "; ".join(_covered(era, [b.member for b in cast]) for era in ha.eras)


def _covered(era: Era, voters: Sequence[str]) -> str:
    if era.leader in voters:
        return f"{era.leader}, who led before, has cast a ballot itself"
    voted = [name for name in era.names if name in voters]
    return f"{', '.join(voted)} of the sync set {era.k} of {', '.join(era.names)} voted"


def _behind(cast: list[Ballot], me: str, position: WalPosition, *, by_force: bool = False) -> str:
    """What is known of the last leader's log beyond the own position."""
    heard = [max(position_of(b).lsn.value, b.leader_lsn) for b in cast]
    furthest = max(heard, default=0)
    behind = max(0, furthest - position.lsn.value)
    known = f"at least {behind} bytes of log that others have or heard of" if behind else "nothing that is known of"
    tail = "whatever only others have" if by_force else "commits that the last leader acknowledged and nobody received"
    return f"{known}; possibly {tail}"
