"""The lines of an instance's history, as the hub completes them."""

from __future__ import annotations

from dataclasses import replace

from core.codec import from_json
from core.ids import InstanceRef
from core.records import HISTORY_MAX, ForcedFailover, HaRecord, LeadershipChange, StepTaken
from hub import history
from hub.etcd import txns
from tests.support.builders import ha

REF = InstanceRef("demo", "orders")
TOLD = LeadershipChange(term=0, member="m2", reason="was elected and takes the leadership", timeline=1, lsn="0/3E8")


def acquired(record: HaRecord) -> HaRecord:
    """What the transaction writes."""
    txn = txns.acquire(REF, ha=record, ha_revision=1, member="m2", node="n2", lease_id=7, change=TOLD, node_revision=1)
    put = next(op for op in txn.then if isinstance(op, txns.Put) and op.key.startswith("/moorage/ha/"))
    return from_json(HaRecord, put.value, where="txn")


def test_what_the_last_leader_said_when_it_let_go_is_what_was_seen() -> None:
    gone = LeadershipChange(term=1, member="m1", reason="gives the leadership up after a crash", kind="released")
    line = history.acquired(ha(released_term=1, history=(gone,)), TOLD, last_is_silent=False)
    assert (line.seen, line.seen_by) == ("m1 let go: gives the leadership up after a crash", "m1")


def test_a_lease_that_ran_out_is_seen_by_the_hub() -> None:
    line = history.acquired(ha(), TOLD, last_is_silent=True)
    assert (line.seen, line.seen_by) == ("the lease of m1 ran out, and no hub hears of its node", "hub")


def test_the_first_leader_is_that_of_a_new_instance() -> None:
    assert history.acquired(ha(term=0, leader=""), TOLD, last_is_silent=False).seen == "a new instance"


def test_who_takes_over_is_told_to_have_led_or_to_have_been_forced_to() -> None:
    order = ForcedFailover(id="f1", target="m2", after_term=1)
    assert acquired(ha()).history[-1].kind == "led"
    forced = acquired(ha(forced=order))
    assert (forced.history[-1].kind, forced.forced) == ("forced", None)
    against = acquired(ha(forced=replace(order, target="m3")))
    assert (against.history[-1].kind, against.forced) == ("led", None)


def test_the_oldest_line_goes_when_there_are_too_many() -> None:
    record = ha(history=tuple(replace(TOLD, term=term) for term in range(HISTORY_MAX)))
    kept = history.with_line(record, replace(TOLD, term=99)).history
    assert (len(kept), kept[0].term, kept[-1].term) == (HISTORY_MAX, 1, 99)


def test_an_agents_words_are_cut_to_a_line() -> None:
    told = replace(
        TOLD, ballots=("x" * 1000,) * 50, steps=(StepTaken(name="y" * 100, took_s=1.0),) * 50, loss="z" * 1000
    )
    line = history.bounded(told)
    assert (len(line.ballots), len(line.ballots[0])) == (history.LINES_MAX, history.TEXT_MAX)
    assert (len(line.steps), len(line.steps[0].name), len(line.loss)) == (history.LINES_MAX, 40, history.TEXT_MAX)
