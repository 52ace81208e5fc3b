"""Who may lead next: pure, and the same verdict from the same ballots at every member.

A ballot is a final position: its caster has stopped streaming first, so whatever an old primary still does, it gets no
flush from that member any more. The sync record says where acknowledged commits are (see `agent.ha.syncset`): on the
last leader, and on at least `k` of `n` names. Three things prove that a position has everything that was acknowledged:

- *names*: with ballots from n - k + 1 of the names every possible set of k is met. With b ballots, a commit is on at
  least j = k - (n - b) of them, so it lies at or before the j-th furthest position among them.
- *last leader*: it has all its own commits, so its position is a bound. (It casts its ballot as a running replica, so
  the position is exact, and it cannot have been re-cloned since: that takes a later leader.)
- *handover*: the last leader stopped, saw that this member has every byte, and named it when it let go.

While a leader has not recorded a set of its own the record names *eras*, each of another leader, with k and names of
its own: then every era needs its bound, by its names or by the ballot of its leader, and the furthest of them decides.
(Who led an era may have been rewound or copied since, but from a leader that was elected and has that whole era.)

Each is an upper bound of what was acknowledged, so the lowest that is known decides; whoever is at or beyond it may
lead. In async mode nothing bounds what was acknowledged; a member may lead when it is on the last leader's timeline and
at most `max_lag_bytes` behind the furthest position that anybody heard of.

Any of those ranked here may lead safely, however the others see it; the ranking only keeps them from racing. A first
choice that does not act in time is followed by the second, so that an election never hangs on one member.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

from agent.ha.view import View
from core.positions import Lsn, WalPosition
from core.records import Ballot, Era, HaRecord, PeerMember
from core.status import MemberState, Role

WINDOW_S = 1.0  # how long ballots of members that should vote are waited for; a ballot takes some 50 ms
TURN_S = 3.0  # how long a chosen member has to take the leadership before the next one may
BY_FORCE = "accept the loss: moorctl instance failover --force"
_COMING = frozenset({MemberState.RUNNING, MemberState.LAGGING, MemberState.STARTING})


@dataclass(frozen=True, slots=True)
class Elected:
    """Any of `members` may take the leadership now; the first is the best."""

    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pending:
    """Ballots of `missing` may still come, for `for_s` seconds."""

    missing: tuple[str, ...]
    for_s: float


@dataclass(frozen=True, slots=True)
class Stuck:
    """Nobody may lead on these ballots; `why` names what is missing and what to do."""

    why: str


Verdict = Elected | Pending | Stuck


def elect(
    ha: HaRecord,
    ballots: Sequence[Ballot],
    members: Sequence[PeerMember],
    *,
    max_lag_bytes: int,
    leaderless_for: float,
) -> Verdict:
    """The verdict on the election that follows `ha.term`."""
    known = {m.member: m for m in members}
    cast = {b.member: b for b in ballots if b.term == ha.term + 1 and b.member in known}
    missing = tuple(m.member for m in members if _is_coming(m) and m.member != ha.leader and m.member not in cast)
    if missing and leaderless_for < WINDOW_S:
        return Pending(missing, WINDOW_S - leaderless_for)
    fit = _fit(ha, cast, known, max_lag_bytes)
    if isinstance(fit, Stuck):
        return fit
    able = [b for b in fit if not b.no_failover and known[b.member].alive]
    if not able:
        return Stuck(_none_able(fit, cast, known))
    ranked = sorted(able, key=lambda b: _rank(b, ha))
    turns = 1 + int(max(0.0, leaderless_for - WINDOW_S) // TURN_S)
    return Elected(tuple(b.member for b in ranked[:turns]))


def could_succeed(ha: HaRecord, others: Sequence[PeerMember]) -> bool:
    """Whether the others, as far as is known, can elect a leader from among them without this member's data."""
    return not why_not_succeeded(ha, others)


def why_not_succeeded(ha: HaRecord, others: Sequence[PeerMember]) -> str:
    """Why the others cannot; empty when they can. An election takes half a second whatever the size of the data, while
    a crashed engine first replays its log: so whenever they can, they are the quicker way."""
    coming = {m.member: m for m in others if _is_coming(m)}
    if not coming:
        return "no replica is up"
    if all(m.no_failover for m in coming.values()):
        return f"{', '.join(sorted(coming))} must not lead (no_failover)"
    sync = ha.sync
    if sync.mode == "async":
        return ""
    lacking = [era for era in ha.eras if era.leader not in coming and not _enough(era, coming)]
    if not lacking:
        return ""
    era = lacking[0]
    if era.k == 0 or not era.names:
        return "no replica is on record to have every acknowledged commit"
    return f"ballots of {_needed(len(era.names), era.k)} of {', '.join(era.names)} would be needed"


def may_grant(view: View, *, asker: str, term: int, standing: bool, now: float) -> str:
    """Whether this member may promise `asker`, which leads in `term`, not to stand for a while: empty, or why not.

    `standing`: an Acquire of this member may still take effect. A promise given on old knowledge is harmless: a later
    leader is itself among those who are asked, and refuses.
    """
    instance = view.instance
    if instance is None or view.peer(asker) is None:
        return f"{asker} is not a member that {view.me} knows"
    leader, ha = instance.leader, instance.ha
    known_term = max(ha.term, leader.term if leader else 0, view.lease.term)
    if (leader is not None and leader.member == view.me) or (view.lease.term and now < view.lease.fence_at):
        return f"{view.me} leads itself in term {known_term}"
    if known_term > term:
        return f"term {known_term} has begun"
    if ha.term == term and ha.leader != asker:
        return f"{ha.leader} leads in term {term}"
    if ha.released_term == term:
        return f"{asker} has given term {term} up"
    if ha.forced is not None and ha.forced.after_term >= term:
        return f"an operator forced {ha.forced.target} to lead after term {ha.forced.after_term}"
    if standing:
        return f"{view.me} is taking the leadership"
    if view.ballot_term > term or any(b.member == view.me and b.term > term for b in instance.ballots):
        return f"{view.me} has cast its ballot for term {term + 1} and streams from nobody"
    return ""


def position_of(ballot: Ballot) -> WalPosition:
    return WalPosition(ballot.timeline, Lsn(ballot.lsn))


def _is_coming(member: PeerMember) -> bool:
    """Whether a ballot of this member is to be expected soon."""
    return member.alive and member.role is Role.REPLICA and member.state in _COMING


def _rank(ballot: Ballot, ha: HaRecord) -> tuple[int, int, bool, int, str]:
    """Smallest first: furthest position, then the one handed over to, then priority, then name."""
    return (-ballot.timeline, -ballot.lsn, ballot.member != handed_to(ha), -ballot.priority, ballot.member)


def _led_last(ha: HaRecord, ballot: Ballot) -> bool:
    return ballot.was_leader and ballot.member == ha.leader


def handed_to(ha: HaRecord) -> str:
    """Whom the last leader named when it let go of the last term; empty when it named nobody, or did not let go."""
    return ha.handover if ha.released_term == ha.term else ""


def _enough(era: Era, members: Container[str]) -> bool:
    """Whether ballots of these members meet every set that a commit of the era may be on."""
    return era.k > 0 and sum(name in members for name in era.names) >= _needed(len(era.names), era.k)


def _needed(n: int, k: int) -> int:
    """Ballots of names that meet every set of k."""
    return n - k + 1


# --- sync and quorum --------------------------------------------------------------------------------------------------


def _fit_sync(ha: HaRecord, cast: dict[str, Ballot]) -> list[Ballot] | Stuck:
    bounds = _bounds(ha, cast)
    if not bounds:
        return Stuck(_uncovered(ha, cast))
    required = min(bounds)
    return [b for b in cast.values() if position_of(b) >= required]


def _bounds(ha: HaRecord, cast: dict[str, Ballot]) -> list[WalPosition]:
    """Every upper bound of the acknowledged commits that these ballots prove."""
    bounds = [position_of(b) for b in cast.values() if _led_last(ha, b)]
    if handed_to(ha) in cast:
        bounds.append(position_of(cast[handed_to(ha)]))
    each = [_bounds_of(era, ha, cast) for era in ha.eras]
    if all(each):
        bounds.append(max(min(found) for found in each))
    return bounds


def _bounds_of(era: Era, ha: HaRecord, cast: dict[str, Ballot]) -> list[WalPosition]:
    """Upper bounds of what was acknowledged in one era. The last leader's own ballot is a bound of everything."""
    bounds = [position_of(cast[era.leader])] if era.leader in cast and era.leader != ha.leader else []
    named = sorted((position_of(cast[name]) for name in era.names if name in cast), reverse=True)
    met = era.k - (len(era.names) - len(named))
    if era.k > 0 and met >= 1:
        bounds.append(named[met - 1])
    return bounds


def _uncovered(ha: HaRecord, cast: dict[str, Ballot]) -> str:
    last = ha.leader or "the last leader"
    era = next(era for era in ha.eras if not _bounds_of(era, ha, cast))
    if era.k == 0 or not era.names:
        who = last if era.leader == ha.leader else f"{era.leader} or {last}"
        return f"only {who} has every acknowledged commit, no replica is on record; bring its node back, or {BY_FORCE}"
    absent = [name for name in era.names if name not in cast]
    others = " or ".join(dict.fromkeys([era.leader or last, last]))
    return (
        f"ballots of {_needed(len(era.names), era.k)} of {', '.join(era.names)} are needed, or that of {others}; "
        f"missing: {', '.join(absent)}; bring one of these nodes back, or {BY_FORCE}"
    )


def _fit(
    ha: HaRecord, cast: dict[str, Ballot], known: dict[str, PeerMember], max_lag_bytes: int
) -> list[Ballot] | Stuck:
    if ha.standby and cast:
        return list(cast.values())  # nothing is acknowledged here: what one lacks it gets from the remote primary
    return _fit_async(ha, cast, known, max_lag_bytes) if ha.sync.mode == "async" else _fit_sync(ha, cast)


# --- async ------------------------------------------------------------------------------------------------------------


def _fit_async(
    ha: HaRecord, cast: dict[str, Ballot], known: dict[str, PeerMember], max_lag_bytes: int
) -> list[Ballot] | Stuck:
    if not cast:
        return Stuck(f"no member has cast a ballot; bring a node with data back, or {BY_FORCE}")
    heard = _furthest_heard(ha, cast, known)
    # The last leader has all it ever acknowledged. Its timeline may be an older one: forced to lead, it died before it
    # was promoted.
    fit = [
        b
        for b in cast.values()
        if _led_last(ha, b) or (b.timeline >= heard.timeline and heard.lsn.value - b.lsn <= max_lag_bytes)
    ]
    if fit:
        return fit
    best = max(cast.values(), key=position_of)
    last = ha.leader or "the last leader"
    furthest = f"{best.member} is the furthest, at {position_of(best)}"
    way_out = f"bring {last} back, or {BY_FORCE}"
    if best.timeline < heard.timeline:
        return Stuck(f"{furthest}, but has not followed {last} to timeline {heard.timeline}; {way_out}")
    behind = heard.lsn.value - best.lsn
    return Stuck(
        f"{furthest}, but {behind} bytes behind {last}, more than max_failover_lag ({max_lag_bytes}); {way_out}"
    )


def _furthest_heard(ha: HaRecord, cast: dict[str, Ballot], known: dict[str, PeerMember]) -> WalPosition:
    """The furthest position of the last leader that anybody heard of: a lower bound of where it was.

    A leader's timeline is known from what it reported after its promotion, even if no replica had followed yet.
    """
    heard = [WalPosition(b.timeline, Lsn(max(b.lsn, b.leader_lsn))) for b in cast.values()]
    heard += [WalPosition(c.timeline, Lsn.parse(c.lsn)) for c in ha.history if c.timeline and c.lsn]
    furthest = max(heard)
    led_on = known[ha.leader].timeline if ha.leader in known else 0
    return WalPosition(max(furthest.timeline, led_on), furthest.lsn)


def _none_able(fit: Sequence[Ballot], cast: dict[str, Ballot], known: dict[str, PeerMember]) -> str:
    barred = ", ".join(b.member for b in fit if b.no_failover)
    silent = ", ".join(b.member for b in fit if not b.no_failover and not known[b.member].alive)
    behind = ", ".join(m for m in cast if m not in {b.member for b in fit})
    parts = [
        f"{barred} must not lead (no_failover)" if barred else "",
        f"{silent} cannot be reached" if silent else "",
        f"{behind} lacks what they have" if behind else "",
    ]
    return "; ".join(part for part in parts if part) + f"; bring another member back, or {BY_FORCE}"
