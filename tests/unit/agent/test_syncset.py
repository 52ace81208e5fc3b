"""Setting and record of the sync set: single steps, and long random plays against the definition."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from agent.ha.syncset import (
    ALONE,
    SETTLE_S,
    Apply,
    Candidate,
    CatchUp,
    Record,
    Settling,
    Step,
    TooFew,
    implies,
    next_step,
    settle,
)
from core.positions import Lsn
from core.records import Era, Replication, SyncRecord
from hub.etcd.txns import with_sync
from tests.support.builders import ha, sync

SYNC = Replication(mode="sync")
RELAXED = Replication(mode="sync", strict=False)
NOBODY = sync(0)


def cand(member: str, flushed: int = 100, priority: int = 0) -> Candidate:
    return Candidate(member=member, flushed=Lsn(flushed), priority=priority)


def step(
    *candidates: Candidate,
    wanted: Replication = SYNC,
    record: SyncRecord = NOBODY,
    setting: SyncRecord = NOBODY,
    base: int = 0,
    sent: SyncRecord | None = None,
) -> Step | None:
    """With the record in the view being the one sent last, unless `sent` says otherwise."""
    return next_step(
        wanted=wanted,
        record=record,
        sent=sent or record,
        setting=setting,
        base=Lsn(base),
        candidates=candidates,
        me="m1",
    )


def quorum(k: int, *names: str, seq: int = 0) -> SyncRecord:
    return sync(k, *names, mode="quorum", seq=seq)


# --- one step at a time -----------------------------------------------------------------------------------------------


def test_async_lets_the_engine_acknowledge_alone() -> None:
    wanted = Replication(mode="async")
    assert step(wanted=wanted, record=ALONE, setting=NOBODY) == Apply(sync=ALONE)
    assert step(cand("m2"), wanted=wanted, record=ALONE, setting=ALONE) is None


def test_the_furthest_standby_becomes_the_sync_standby() -> None:
    assert step(cand("m2", 90), cand("m3", 100)) == Apply(sync=sync(1, "m3"))


def test_equals_are_taken_by_priority_then_name() -> None:
    assert step(cand("m3"), cand("m2")) == Apply(sync=sync(1, "m2"))
    assert step(cand("m2"), cand("m3", priority=1)) == Apply(sync=sync(1, "m3"))


def test_the_sync_standby_stays_while_it_streams() -> None:
    chosen = sync(1, "m2", seq=3)
    assert step(cand("m2", 1), cand("m3", 100, 9), record=chosen, setting=sync(1, "m2")) is None


def test_the_record_follows_once_the_standby_has_what_was_written_before() -> None:
    setting = sync(1, "m2")
    assert step(cand("m2", 99), setting=setting, base=100) == CatchUp(names=("m2",))
    assert step(cand("m2", 100), setting=setting, base=0) == CatchUp(names=("m2",))
    assert step(cand("m2", 100), setting=setting, base=100) == Record(sync=sync(1, "m2", seq=1))


def test_one_standby_is_exchanged_for_another_over_a_record_that_holds_for_both() -> None:
    old = sync(1, "m2", seq=3)
    both = sync(1, "m2", "m3", seq=4)
    assert step(cand("m3"), record=old, setting=sync(1, "m2")) == Record(sync=both)
    assert step(cand("m3"), record=both, setting=sync(1, "m2")) == Apply(sync=sync(1, "m3"))
    assert step(cand("m3", 100), record=both, setting=sync(1, "m3"), base=100) == Record(sync=sync(1, "m3", seq=5))


def test_strict_keeps_waiting_for_the_last_standby() -> None:
    assert step(record=sync(1, "m2"), setting=sync(1, "m2")) == TooFew(wanted=1, streaming=0)


def test_a_relaxed_instance_gives_up_the_record_before_it_acknowledges_alone() -> None:
    old = sync(1, "m2", seq=3)
    nobody = sync(0, seq=4)
    assert step(wanted=RELAXED, record=old, setting=sync(1, "m2")) == Record(sync=nobody)
    assert step(wanted=RELAXED, record=nobody, setting=sync(1, "m2")) == Apply(sync=ALONE)
    assert step(wanted=RELAXED, record=nobody, setting=ALONE) is None


def test_an_instance_that_becomes_strict_stops_acknowledging_alone() -> None:
    assert step(setting=ALONE) == Apply(sync=SyncRecord(mode="sync"))


def test_a_quorum_grows_by_recording_first() -> None:
    wanted = Replication(mode="quorum", k=1)
    one = quorum(1, "m2", seq=1)
    two = quorum(1, "m2", "m3", seq=2)
    assert step(cand("m2"), cand("m3"), wanted=wanted, record=one, setting=quorum(1, "m2")) == Record(sync=two)
    assert step(cand("m2"), cand("m3"), wanted=wanted, record=two, setting=quorum(1, "m2")) == Apply(
        sync=quorum(1, "m2", "m3")
    )


def test_a_quorum_asks_for_more_by_applying_first() -> None:
    wanted = Replication(mode="quorum", k=2)
    one = quorum(1, "m2", "m3", seq=1)
    both = (cand("m2"), cand("m3"))
    assert step(*both, wanted=wanted, record=one, setting=quorum(1, "m2", "m3")) == Apply(sync=quorum(2, "m2", "m3"))
    caught_up = step(*both, wanted=wanted, record=one, setting=quorum(2, "m2", "m3"), base=100)
    assert caught_up == Record(sync=quorum(2, "m2", "m3", seq=2))


def test_a_change_of_mode_is_recorded_before_anything_else() -> None:
    wanted = Replication(mode="quorum", k=1)
    assert step(cand("m2"), record=ALONE, setting=ALONE) == Record(sync=sync(0, seq=1))
    assert step(cand("m2"), wanted=wanted, record=sync(1, "m2", seq=3), setting=sync(1, "m2")) == Record(
        sync=quorum(1, "m2", seq=4)
    )
    back = Replication(mode="async")
    assert step(wanted=back, record=sync(1, "m2", seq=3), setting=sync(1, "m2")) == Record(
        sync=SyncRecord(mode="async", seq=4)
    )


def test_a_setting_that_somebody_changed_makes_the_record_claim_nothing() -> None:
    assert step(cand("m2"), record=sync(1, "m2", seq=3), setting=ALONE) == Record(sync=sync(0, seq=4))


def test_an_agent_that_has_just_started_sends_the_record_again_first() -> None:
    found = next_step(
        wanted=SYNC,
        record=sync(1, "m2", seq=3),
        sent=None,
        setting=sync(1, "m2"),
        base=Lsn(1),
        candidates=[cand("m3")],
        me="m1",
    )
    assert found == Record(sync=sync(1, "m2", seq=4))


def test_nothing_is_applied_while_a_record_is_on_its_way() -> None:
    sent = sync(1, "m3", seq=4)
    assert step(cand("m2"), record=sync(1, "m3", "m2", seq=3), setting=sync(1, "m3"), sent=sent) == Record(sync=sent)


def test_a_record_that_came_late_from_a_former_life_is_replaced() -> None:
    late, sent = sync(1, "m2", seq=4), sync(1, "m3", seq=4)
    assert step(cand("m3"), record=late, setting=sync(1, "m3"), sent=sent) == Record(sync=replace(late, seq=5))


def test_the_store_refuses_what_comes_late() -> None:
    record = ha(sync=sync(1, "m2", seq=4))
    assert with_sync(record, sync(1, "m3", seq=3)) is None
    assert with_sync(record, sync(1, "m3", seq=4)) is None
    assert with_sync(record, sync(1, "m2", seq=4)) == record
    assert with_sync(record, sync(1, "m3", seq=5)) == replace(record, sync=sync(1, "m3", seq=5))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (quorum(1, "a"), quorum(1, "a"), True),
        (quorum(1, "a"), quorum(1, "a", "b"), True),
        (quorum(1, "a", "b"), quorum(1, "a"), False),
        (quorum(2, "a", "b"), quorum(1, "a"), True),
        (quorum(2, "a", "b", "c"), quorum(1, "a"), False),
        (quorum(2, "a", "b", "c"), quorum(1, "a", "b"), True),
        (quorum(1, "a"), quorum(0), True),
        (quorum(0), quorum(1, "a"), False),
    ],
)
def test_what_implies_what(one: SyncRecord, other: SyncRecord, expected: bool) -> None:
    assert implies(one, other) is expected


def test_a_setting_settles_before_its_base_is_known() -> None:
    first = settle(None, sync(1, "m2"), Lsn(10), 1.0)
    assert first == Settling(setting=sync(1, "m2"), since=1.0)
    assert settle(first, sync(1, "m2"), Lsn(20), 1.1).base == Lsn(0)
    settled = settle(first, sync(1, "m2"), Lsn(30), 1.1 + SETTLE_S)
    assert settled.base == Lsn(30)
    assert settle(settled, sync(1, "m2"), Lsn(40), 9.0).base == Lsn(30)
    assert settle(settled, sync(1, "m3"), Lsn(40), 9.0).base == Lsn(0)


# --- long plays -------------------------------------------------------------------------------------------------------


class Play:
    """A primary, its standbys and etcd, with requests that are lost, repeated and late, against the definition."""

    def __init__(self, seed: int, *, led_before: bool) -> None:
        self.dice = random.Random(seed)
        self.wanted = self._wish()
        self.standbys = [f"m{n}" for n in range(2, 3 + self.dice.randrange(4))]
        self.flushed = dict.fromkeys(self.standbys, 0)
        self.streaming: set[str] = set()
        self.written = self.acknowledged = 0
        self.record = self.seen = SyncRecord(mode=self.wanted.mode)
        self.setting = SyncRecord(mode=self.wanted.mode)
        self.sent: SyncRecord | None = self.record
        self.base = 0
        self.on_the_way: list[SyncRecord] = []
        self.before = 0  # acknowledged by former leaders; this one has it
        if led_before and self.wanted.mode != "async":
            self.before = self.written = self.flushed["m2"] = 10
            self.record = self.seen = self.sent = replace(self.record, eras=(Era(leader="m0", k=1, names=("m2",)),))

    def _wish(self) -> Replication:
        mode = self.dice.choice(["sync", "quorum", "quorum", "async"])
        return Replication(mode=mode, k=self.dice.randint(1, 2), strict=self.dice.random() < 0.6)  # type: ignore[arg-type]

    def turn(self) -> None:
        self.dice.choice(
            [self.write, self.flush, self.flush, self.acknowledge, self.connect, self.look, self.decide, self.decide,
             self.deliver, self.settle, self.restart, self.wish]
        )()  # fmt: skip
        self.check()

    def write(self) -> None:
        self.written += self.dice.randint(1, 5)

    def flush(self) -> None:
        if self.streaming:
            member = self.dice.choice(sorted(self.streaming))
            self.flushed[member] = self.dice.randint(self.flushed[member], self.written)

    def acknowledge(self) -> None:
        """As much as the setting in force allows."""
        have = sorted((self.flushed[m] for m in self.setting.names if m in self.streaming), reverse=True)
        if self.setting.mode == "async":
            self.acknowledged = self.written
        elif self.setting.names and len(have) >= self.setting.k:
            self.acknowledged = max(self.acknowledged, have[self.setting.k - 1])

    def connect(self) -> None:
        self.streaming ^= {self.dice.choice(self.standbys)}

    def look(self) -> None:
        self.seen = self.record

    def settle(self) -> None:
        self.base = self.base or self.written

    def restart(self) -> None:
        if self.dice.random() < 0.2:
            self.sent = None

    def wish(self) -> None:
        if self.dice.random() < 0.1:
            self.wanted = self._wish()

    def next(self) -> Step | None:
        return next_step(
            wanted=self.wanted,
            record=self.seen,
            sent=self.sent,
            setting=self.setting,
            base=Lsn(self.base),
            candidates=[cand(m, self.flushed[m]) for m in sorted(self.streaming)],
            me="m1",
        )

    def decide(self) -> None:
        match self.next():
            case Record(sync=wanted):
                self.sent = wanted
                self.on_the_way.append(wanted)
                if self.dice.random() < 0.6:
                    self.arrive(wanted)
            case Apply(sync=wanted):
                self.setting, self.base = wanted, 0

    def deliver(self) -> None:
        """One request of any age arrives, perhaps once more."""
        if self.on_the_way:
            self.arrive(self.dice.choice(self.on_the_way))

    def arrive(self, wanted: SyncRecord) -> None:
        written = with_sync(ha(sync=self.record), wanted)
        if written is not None:
            self.record = written.sync

    def check(self) -> None:
        everything = max(self.before, self.acknowledged)
        told = (self.record, self.setting, self.flushed, self.acknowledged)
        if not self.record.eras:
            assert sum(self.flushed[m] >= everything for m in self.record.names) >= self.record.k, told
            return
        own = self.record.eras[-1] if self.record.eras[-1].leader == "m1" else None
        if own is None:
            assert not self.acknowledged, told
        else:
            assert sum(self.flushed[m] >= self.acknowledged for m in own.names) >= own.k or not self.acknowledged, told

    def calm_down(self) -> None:
        """Everything streams and arrives."""
        self.streaming = set(self.standbys)
        for _ in range(20):
            self.decide()
            if self.sent is not None:
                self.arrive(self.sent)
            self.look()
            self.settle()
            self.flushed = dict.fromkeys(self.standbys, self.written)
            self.acknowledge()
            self.check()


@pytest.mark.parametrize("led_before", [False, True])
@pytest.mark.parametrize("first", range(0, 400, 50))
def test_the_record_is_true_at_every_instant_of_any_play(first: int, led_before: bool) -> None:
    for seed in range(first, first + 50):
        play = Play(seed, led_before=led_before)
        for _ in range(250):
            play.turn()
        play.calm_down()
        left = play.next()
        assert left is None or isinstance(left, TooFew), (seed, left)
        enough = len(play.standbys) >= (play.wanted.k if play.wanted.mode == "quorum" else 1)
        assert not play.record.eras or not enough
        if play.wanted.mode != "async" and enough:
            assert play.record.k >= 1
            assert set(play.record.names) == set(play.setting.names)
