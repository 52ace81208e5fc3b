"""What a forced failover would do and lose, and what the automatic one waits for: pure, for a person who must decide.

A forced failover lifts what guards data, so the person gets all that is known: how commits are acknowledged, who is on
record as having them, where every member was last heard of, and how far the chosen one is behind the furthest. A
position is final when it comes from a ballot; one from a heartbeat may have grown since. What this hub has not heard is
said to be unknown rather than guessed: heartbeats stay with the hub that gets them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from core.clock import moment
from core.positions import Lsn, WalPosition
from core.records import Ballot, Era, HaRecord
from core.status import MemberState, Role
from hub.judges.candidates import unfit_to_be_forced
from hub.judges.situation import Current, Situation

Loss = Literal["none", "possible"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """Where a member was, and who said so. `age_s` is of a heartbeat; a ballot is final and does not age."""

    position: WalPosition
    source: Literal["ballot", "heartbeat"]
    age_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prospect:
    """One member as a candidate. `behind_bytes` is None when its position or any to compare with is unknown."""

    member: str
    node: str
    heard: Heard | None
    behind_bytes: int | None
    obstacle: str  # why it cannot be forced; empty = it can
    loss: Loss
    loss_text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """Everything that is known. `target` is who was asked for, else who would lose least; empty = nobody can."""

    term: int
    last_leader: str
    primary_alive: bool
    target: str
    furthest: str  # member, or whom a ballot tells of
    prospects: tuple[Prospect, ...]
    waits_for: tuple[str, ...]
    advice: str


def outlook(s: Situation, ha: HaRecord, heard: Mapping[str, Heard], ballots: Sequence[Ballot], target: str) -> Outlook:
    """`ballots` are those of the election that follows `ha.term`; `heard` is by member."""
    furthest_by, furthest = _furthest(ha, heard, ballots)
    prospects = tuple(
        _prospect(s, ha, current, heard=heard.get(current.name), ballots=ballots, furthest=furthest)
        for current in s.members
    )
    able = [one for one in prospects if not one.obstacle]
    able.sort(key=lambda one: _least_loss_first(s, one))
    alive = _primary_alive(s)
    chosen = target or (able[0].member if able else "")
    return Outlook(
        term=ha.term,
        last_leader=ha.leader,
        primary_alive=alive,
        target=chosen,
        furthest=furthest_by,
        prospects=prospects,
        waits_for=tuple(_waits_for(s, ha, alive)),
        advice=_advice(s, ha, chosen, alive=alive),
    )


# --- positions ------------------------------------------------------------------------------------------------------


def _furthest(ha: HaRecord, heard: Mapping[str, Heard], ballots: Sequence[Ballot]) -> tuple[str, WalPosition | None]:
    """The furthest position that is known of, and whose: a ballot also tells what its caster heard of the leader."""
    known = [(one.position, member) for member, one in heard.items()]
    known += [(WalPosition(b.timeline, Lsn(b.leader_lsn)), ha.leader) for b in ballots if b.leader_lsn]
    known = [(position, member) for position, member in known if position.lsn.value]
    if not known:
        return "", None
    position, member = max(known, key=lambda pair: pair[0])
    return member, position


def _behind(heard: Heard | None, furthest: WalPosition | None) -> int | None:
    if heard is None or furthest is None or not heard.position.lsn.value:
        return None
    return max(0, furthest.lsn.value - heard.position.lsn.value)


def _least_loss_first(s: Situation, one: Prospect) -> tuple[bool, bool, int, int, bool, int, str]:
    """A ballot of the election under way comes from a member that lives, whatever the hub has yet to notice."""
    desired = next(current.desired for current in s.members if current.name == one.member)
    position = one.heard.position if one.heard is not None else WalPosition()
    return (
        one.heard is None or one.heard.source != "ballot",
        one.loss == "possible",
        -position.timeline,
        -position.lsn.value,
        desired.no_failover,
        -desired.priority,
        one.member,
    )


# --- what would be lost ---------------------------------------------------------------------------------------------


def _prospect(
    s: Situation,
    ha: HaRecord,
    current: Current,
    *,
    heard: Heard | None,
    ballots: Sequence[Ballot],
    furthest: WalPosition | None,
) -> Prospect:
    standing = unfit_to_be_forced(s, current.name)
    loss, text = _loss(ha, current.name, heard, ballots)
    behind = _behind(heard, furthest)
    if loss == "possible":
        text = f"{text}; {_distance(current.name, heard, furthest)}"
    return Prospect(
        member=current.name,
        node=current.node,
        heard=heard,
        behind_bytes=behind,
        obstacle=standing.text if standing is not None else "",
        loss=loss,
        loss_text=text,
    )


def _loss(ha: HaRecord, name: str, heard: Heard | None, ballots: Sequence[Ballot]) -> tuple[Loss, str]:
    sync, last = ha.sync, ha.leader or "the last primary"
    if name == ha.leader:
        return "none", f"{name} was the last primary: it has every commit it acknowledged"
    if sync.mode == "async":
        return "possible", f"async: commits that {last} acknowledged and {name} had not received are lost"
    names = ", ".join(sync.names)
    if name in sync.names and sync.k >= len(sync.names):
        return "none", f"no acknowledged commit is lost: each was confirmed by {names}"
    bound = _proved(ha, ballots)
    if bound is not None and heard is not None and heard.source == "ballot" and heard.position >= bound:
        return "none", f"no acknowledged commit is lost: the ballots prove that {name} has them all"
    if sync.eras:
        who = ", ".join(dict.fromkeys(era.leader for era in sync.eras))
        return "possible", f"{last} took over and recorded no sync set; commits of {who} that {name} lacks are lost"
    if not sync.k or not sync.names:
        text = f"only {last} is on record as having every acknowledged commit; those that {name} lacks are lost"
        return "possible", text
    if name in sync.names:
        return "possible", f"each commit was confirmed by {sync.k} of {names}; those that {name} did not get are lost"
    return "possible", f"{name} is not in the sync set ({names}): commits that it lacks are lost"


def _proved(ha: HaRecord, ballots: Sequence[Ballot]) -> WalPosition | None:
    """The position at or beyond which every acknowledged commit is had, as far as ballots of the sync set prove one."""
    bounds = [_proved_of(era, ha, ballots) for era in ha.eras]
    known = [bound for bound in bounds if bound is not None]
    return max(known) if len(known) == len(bounds) else None


def _proved_of(era: Era, ha: HaRecord, ballots: Sequence[Ballot]) -> WalPosition | None:
    """The lowest that bounds the commits of one era."""
    cast = {b.member: WalPosition(b.timeline, Lsn(b.lsn)) for b in ballots if b.term == ha.term + 1}
    positions = sorted((cast[name] for name in era.names if name in cast), reverse=True)
    met = era.k - (len(era.names) - len(positions))
    bounds = [positions[met - 1]] if era.k and met >= 1 else []
    if era.leader in cast and era.leader != ha.leader:
        bounds.append(cast[era.leader])
    return min(bounds, default=None)


def _distance(name: str, heard: Heard | None, furthest: WalPosition | None) -> str:
    behind = _behind(heard, furthest)
    if heard is None or furthest is None or behind is None:
        return f"how far {name} is behind is not known to this hub"
    age = f", {heard.age_s:.0f} s ago" if heard.source == "heartbeat" else ""
    if heard.position.timeline < furthest.timeline:
        return f"{name} was heard of at {heard.position}{age}, and never followed the furthest to {furthest}"
    if behind == 0:
        return f"{name} is the furthest that is heard of, at {heard.position.lsn}{age}"
    return f"{name} was heard of at {heard.position.lsn}{age}, at least {behind} bytes of log behind the furthest"


# --- what is waited for ---------------------------------------------------------------------------------------------


def _primary_alive(s: Situation) -> bool:
    """The leader holds the leadership, its node is heard, and its engine was last seen as a running primary."""
    current = next((one for one in s.members if one.name == s.leader_name), None)
    if current is None or s.is_lost(current) or current.observed is None:
        return False
    return current.state is MemberState.RUNNING and current.observed.role is Role.PRIMARY


def _waits_for(s: Situation, ha: HaRecord, alive: bool) -> list[str]:
    """Why no automatic failover happens, a sentence each."""
    lines = []
    if ha.paused:
        why = f" ({ha.pause_reason})" if ha.pause_reason else ""
        since = f" since {moment(ha.paused_at)}" if ha.paused_at else ""
        lines.append(f"automatic failover is paused by {ha.paused_by or 'an operator'}{since}{why}")
    if s.leader is not None:
        what = "and is well" if alive else "until its lease ends or it gives up by itself"
        lines.append(f"{s.leader.member} on {s.leader.node} leads in term {s.leader.term} {what}")
    for current in s.staying:
        told = _waiting_member(s, current)
        if told:
            lines.append(told)
    if not lines:
        lines.append("an election is under way: it takes some seconds")
    return lines


def _waiting_member(s: Situation, current: Current) -> str:
    if s.is_lost(current):
        return f"{current.name}: node {current.node} is silent"
    seen = current.observed
    if seen is None or current.name == s.leader_name:
        return ""
    if seen.message:
        return f"{current.name}: {seen.message}"
    return "" if seen.state is MemberState.RUNNING else f"{current.name}: {current.state.value}"


def _advice(s: Situation, ha: HaRecord, target: str, *, alive: bool) -> str:
    name = str(s.ref)
    if alive:
        to = f" --to {target}" if target else ""
        return f"{s.leader_name} is alive: `moorctl instance switchover {name}{to}` moves the primary and loses nothing"
    if ha.paused:
        return f"`moorctl instance resume {name}` lets the members elect by themselves, which loses nothing"
    lost = ", ".join(f"{one.node} ({one.name})" for one in s.staying if s.is_lost(one))
    return f"bringing back {lost} may save what is lost otherwise" if lost else ""
