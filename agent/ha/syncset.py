"""Which standbys a commit waits for, and in which order the engine's setting and the record in etcd change.

Two things say where acknowledged commits are: the *setting* in force in the engine (a commit is acknowledged when `k`
of its `names` have flushed it) and the *record* in etcd (every acknowledged commit is on the leader and on at least `k`
of its `names`), by which an election knows whose ballots it needs. The invariant, at every instant and whatever crashes
between two steps:

    the record holds for every commit acknowledged so far, and for every commit the setting may acknowledge.

A set (k1, N1) *implies* (k2, N2) when any k1 of N1 contain k2 of N2, that is k1 - |N1 minus N2| >= k2. So:

- The setting may become any set that implies the record (or one that acknowledges nothing).
- The record may become any set that both the record and the setting imply (it then claims less), at any time.
- The record may claim more once the setting implies the new claim *and* k of the named standbys have flushed a position
  that was written after the setting came into force: everything acknowledged earlier lies before that position.

So to exchange {a} for {b}: record {a, b} (1 of them), set {b}, see b flush, record {b}. To give up the last standby
(strict: false): record nobody, then let the engine acknowledge alone. Patroni's quorum.py keeps the same invariant.

A new leader begins with the record's *eras*: where the commits are that leaders before it acknowledged. While there are
any, every acknowledged commit is of one of them, and the setting acknowledges nothing, or what the leader's own era
says. So its own era is recorded first (while the engine is being promoted: any k of those that might confirm), then the
setting comes into force; and once k standbys have flushed what was written after that, one set holds for everything,
and the eras go. A leader that ends before its own era is on record has acknowledged nothing, and an election covers
only the eras of before; one that ends later, both. To let the engine acknowledge alone the eras go first.

Records travel, and answers get lost. `seq` grows with each record of a term and the store refuses an older one, so that
a request that was held up cannot bring back an old claim after the setting has moved on. For the same reason the
setting is changed only while the record in the view is the very one this agent sent last: an agent that has just
started sends the present record again first, with a new `seq`, which bars whatever its former life left on the way.

In a setting, mode `async` means: acknowledge alone. Any other mode without names means: acknowledge nothing, wait.
Every engine starts, and is promoted, with the latter, strict or not: what the record claims must hold from the first
commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from core.positions import Lsn
from core.records import ERAS_MAX, Era, Replication, SyncRecord

SETTLE_S = 0.2  # a reload reaches every walsender within milliseconds; Patroni allows 0.1 s
ALONE = SyncRecord(mode="async")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A standby that may stand in the sync set: it streams, and could lead."""

    member: str
    flushed: Lsn
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The next step: write `sync` to etcd."""

    sync: SyncRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Apply:
    """The next step: put `sync` in force in the engine."""

    sync: SyncRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class CatchUp:
    """Nothing to do until enough of `names` have flushed what was written before the setting."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TooFew:
    """Commits wait: fewer standbys stream than must confirm, and the instance is strict."""

    wanted: int
    streaming: int


Step = Record | Apply | CatchUp | TooFew


@dataclass(frozen=True, slots=True, kw_only=True)
class Settling:
    """Since when a setting is in force, and a position written after it was. Kept by the shell, made by `settle`."""

    setting: SyncRecord = field(default_factory=SyncRecord)
    since: float = 0.0
    base: Lsn = field(default_factory=Lsn)


def settle(before: Settling | None, setting: SyncRecord, position: Lsn, now: float) -> Settling:
    """To be called with each observation of the running primary; None forgets (the engine was not running)."""
    if before is None or not same(before.setting, setting):
        return Settling(setting=setting, since=now)
    if before.base.value or now - before.since < SETTLE_S:
        return before
    return replace(before, base=position)


def next_step(
    *,
    wanted: Replication,
    record: SyncRecord,
    sent: SyncRecord | None,
    setting: SyncRecord,
    base: Lsn,
    candidates: Sequence[Candidate],
    me: str,
) -> Step | None:
    """The next step from `record` (in etcd) and `setting` (in the engine) to what is wanted; None when all is so."""
    if wanted.mode == record.mode == "async":
        return None if setting.mode == "async" else Apply(sync=ALONE)
    if sent is None or record.seq > sent.seq or (record.seq == sent.seq and not _is(record, sent)):
        return Record(sync=replace(record, seq=record.seq + 1))
    if sent.seq > record.seq:
        return Record(sync=sent)
    if record.mode != wanted.mode:
        return _change_mode(wanted, record)
    if record.eras:
        return _while_eras(wanted, record, setting, base=base, candidates=candidates, me=me)
    if not _implies(setting, record):
        return _recorded(record, k=0, names=())  # somebody has changed the engine's setting: claim only what is true
    target = _target(wanted, record, setting, candidates)
    if isinstance(target, TooFew):
        return target
    if not same(setting, target):
        return _towards(record, setting, target)
    return _claim(record, target, base, candidates)


def first_era(wanted: Replication, sent: SyncRecord | None, others: Sequence[str], me: str) -> Record | None:
    """To be recorded while the engine of a new leader is being promoted, so that no commit waits for it later: any of
    `others` may come to confirm. None when there is nothing to add; `next_step` finds out what is missing."""
    k = 1 if wanted.mode == "sync" else wanted.k
    if sent is None or not sent.eras or sent.mode != wanted.mode or _own(sent, me) is not None or len(others) < k:
        return None
    return _with_era(sent, Era(leader=me, k=k, names=tuple(sorted(others))))


def same(one: SyncRecord, other: SyncRecord) -> bool:
    """Equal but for the seq, the order of names, and whether one standby is called sync or a quorum of one."""
    alone = (one.mode == "async", other.mode == "async")
    return alone[0] == alone[1] and one.k == other.k and set(one.names) == set(other.names)


def implies(one: SyncRecord, other: SyncRecord | Era) -> bool:
    """Any `one.k` of `one.names` contain `other.k` of `other.names`; a record without k claims nothing."""
    return other.k == 0 or one.k - len(set(one.names) - set(other.names)) >= other.k


# --- the inside -------------------------------------------------------------------------------------------------------


def _implies(setting: SyncRecord, record: SyncRecord) -> bool:
    """Whether every commit that the setting acknowledges satisfies the record. Nobody named: there are none."""
    return implies(setting, record) if _acknowledges(setting) else True


def _change_mode(wanted: Replication, record: SyncRecord) -> Step:
    """The mode on record is the rule elections go by. To and from async nothing is claimed; else the claim stays."""
    keeps = "async" not in (wanted.mode, record.mode)
    return Record(
        sync=SyncRecord(
            mode=wanted.mode,
            k=record.k if keeps else 0,
            names=record.names if keeps else (),
            seq=record.seq + 1,
            eras=record.eras if keeps else (),
        )
    )


def _while_eras(
    wanted: Replication,
    record: SyncRecord,
    setting: SyncRecord,
    *,
    base: Lsn,
    candidates: Sequence[Candidate],
    me: str,
) -> Step:
    """Towards the first set of a new leader, which ends the eras."""
    own = _own(record, me)
    if _acknowledges(setting) and (own is None or not implies(setting, own)):
        return _recorded(record, k=0, names=())  # somebody has changed the engine's setting: claim only what is true
    target = _target(wanted, record, setting, candidates)
    if isinstance(target, TooFew):
        return target
    if not target.names:
        return _recorded(record, k=0, names=())
    if own is None or not implies(target, own):
        k = min(target.k, own.k) if own else target.k
        return _with_era(record, Era(leader=me, k=k, names=_union(target, setting, own)))
    if not same(setting, target):
        return Apply(sync=target)
    flushed = _flushed(target, base, candidates)
    if len(flushed) >= target.k:
        return _recorded(record, k=target.k, names=target.names)
    return CatchUp(names=tuple(name for name in target.names if name not in flushed))


def _is(record: SyncRecord, sent: SyncRecord) -> bool:
    return same(record, sent) and record.eras == sent.eras


def _own(record: SyncRecord, me: str) -> Era | None:
    """The last of the eras, if it is this leader's: only the last leader leads on with the eras it had."""
    return record.eras[-1] if record.eras and record.eras[-1].leader == me else None


def _with_era(record: SyncRecord, era: Era) -> Record:
    """In place of the leader's own, if there is one already. Too many of them are given up, which claims less."""
    eras = (*(record.eras[:-1] if _own(record, era.leader) else record.eras), era)
    return Record(sync=replace(record, seq=record.seq + 1, eras=eras if len(eras) <= ERAS_MAX else ()))


def _union(target: SyncRecord, setting: SyncRecord, own: Era | None) -> tuple[str, ...]:
    return tuple(sorted({*target.names, *setting.names, *(own.names if own else ())}))


def _acknowledges(setting: SyncRecord) -> bool:
    return setting.mode == "async" or bool(setting.names)


def _target(
    wanted: Replication, record: SyncRecord, setting: SyncRecord, candidates: Sequence[Candidate]
) -> SyncRecord | TooFew:
    """The set to have in force now. TooFew: stay with what is in force, commits wait."""
    if wanted.mode == "async":
        return ALONE
    k = 1 if wanted.mode == "sync" else wanted.k
    if len(candidates) < k:
        if wanted.strict and setting.mode != "async":
            return TooFew(wanted=k, streaming=len(candidates))
        k = 0 if wanted.strict else len(candidates)
    if k == 0:
        return SyncRecord(mode=wanted.mode) if wanted.strict else ALONE
    names = (_best(setting, record, candidates),) if wanted.mode == "sync" else tuple(c.member for c in candidates)
    return SyncRecord(mode=wanted.mode, k=k, names=tuple(sorted(names)))


def _best(setting: SyncRecord, record: SyncRecord, candidates: Sequence[Candidate]) -> str:
    """The one standby of sync mode: who is it already, else the furthest."""

    def order(c: Candidate) -> tuple[bool, bool, Lsn, int]:
        return (c.member in setting.names, c.member in record.names, c.flushed, c.priority)

    return max(sorted(candidates, key=lambda c: c.member), key=order).member


def _towards(record: SyncRecord, setting: SyncRecord, target: SyncRecord) -> Step:
    """Put the target in force, after making the record claim no more than the target will keep."""
    if _implies(target, record):
        return Apply(sync=target)
    sets = [record, target] + ([setting] if setting.names else [])
    k = min(s.k for s in sets)
    names = {name for s in sets for name in s.names} if k else set()
    return _recorded(record, k=k, names=tuple(sorted(names)))


def _claim(record: SyncRecord, target: SyncRecord, base: Lsn, candidates: Sequence[Candidate]) -> Step | None:
    """The target is in force: record it, as soon as it holds for the commits of before, too."""
    if record.k == target.k and set(record.names) == set(target.names):
        return None
    flushed = _flushed(target, base, candidates)
    if len(flushed) >= target.k or implies(record, target):
        return _recorded(record, k=target.k, names=target.names)
    return CatchUp(names=tuple(name for name in target.names if name not in flushed))


def _flushed(target: SyncRecord, base: Lsn, candidates: Sequence[Candidate]) -> list[str]:
    """Those that have everything of before the setting."""
    return [c.member for c in candidates if c.member in target.names and base.value and c.flushed >= base]


def _recorded(record: SyncRecord, *, k: int, names: tuple[str, ...]) -> Record:
    return Record(sync=SyncRecord(mode=record.mode, k=k, names=names, seq=record.seq + 1))
