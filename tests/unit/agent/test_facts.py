"""Since when things are as they are: standbys that have stalled, streams that have ended, orders that are new."""

from __future__ import annotations

import pytest

from agent.ha.facts import STALLED_S, UPSTREAM_WITHIN_S, Facts, Flushes, flushes, stalled
from agent.ha.view import Engine, EngineState, Standby
from core.positions import Lsn
from core.records import ForcedFailover, SwitchoverRequest
from tests.support.builders import NOW, at, instance, primary, replica

LATER = NOW + STALLED_S


def feeding(written: int, **flushed: int) -> Engine:
    """A primary and how far each of its standbys has flushed."""
    standbys = tuple(Standby(member=m, flushed=Lsn(lsn), streaming=True) for m, lsn in flushed.items())
    return primary(position=at(written), standbys=standbys)


@pytest.mark.parametrize(
    ("looks", "expected"),
    [
        ([feeding(100, m2=50), feeding(100, m2=50)], {"m2"}),
        ([feeding(100, m2=50), feeding(100, m2=51)], set()),
        ([feeding(100, m2=100), feeding(100, m2=100)], set()),
        ([feeding(100, m2=100), feeding(200, m2=100)], {"m2"}),
        ([feeding(100, m2=50), feeding(100), feeding(100, m2=50)], set()),
        ([feeding(100, m2=50, m3=50), feeding(100, m2=50, m3=100)], {"m2"}),
    ],
    ids=["gets nothing", "gets on", "has everything", "had everything", "has connected anew", "one of two"],
)
def test_who_is_behind_and_flushes_nothing_for_a_while_has_stalled(looks: list[Engine], expected: set[str]) -> None:
    known: Flushes = {}
    times = [NOW] * (len(looks) - 1) + [LATER]
    for engine, now in zip(looks, times, strict=True):
        known = flushes(known, engine, now)
    assert stalled(known, LATER) == expected


def test_nobody_has_stalled_before_the_time_is_over() -> None:
    known = flushes(flushes({}, feeding(100, m2=50), NOW), feeding(100, m2=50), LATER - 0.01)
    assert stalled(known, LATER - 0.01) == set()


def test_a_replica_is_apart_since_it_was_first_seen_so() -> None:
    facts = Facts()
    for now in (NOW, NOW + 1):
        facts.note(replica("m1", streaming=False), instance(), now, upstream="")
    assert (facts.not_streaming_since, facts.streamed_at) == (NOW, None)
    facts.note(replica("m1"), instance(), NOW + 2, upstream="")
    assert (facts.not_streaming_since, facts.streamed_at) == (0.0, NOW + 2)


def test_another_replica_that_gives_no_stream_is_noted_after_a_while() -> None:
    facts = Facts()
    for now in (NOW, NOW + UPSTREAM_WITHIN_S):
        assert facts.upstream_failed_at == 0.0
        facts.note(replica("m2", streaming=False), instance(), now, upstream="m2")
    assert facts.upstream_failed_at == NOW + UPSTREAM_WITHIN_S


def test_what_an_engine_that_ended_had_told_is_forgotten() -> None:
    facts = Facts()
    facts.note(feeding(100, m2=50), instance(), NOW, upstream="")
    assert facts.flushes
    assert facts.settling is not None
    facts.note(primary(state=EngineState.STOPPED), instance(), NOW, upstream="")
    assert (facts.flushes, facts.settling) == ({}, None)


def test_nobody_leads_and_wishes_are_open_since_they_were_first_seen() -> None:
    facts = Facts()
    order = ForcedFailover(id="f1", target="m2", after_term=1)
    wished = instance(leader="", switchover=SwitchoverRequest(id="s1"), forced=order)
    for now in (NOW, NOW + 1):
        facts.note(primary(), wished, now, upstream="")
    assert (facts.leaderless_since, facts.switchover_since, facts.forced_since) == (NOW, NOW, NOW)
    again = instance(forced=ForcedFailover(id="f2", target="m2", after_term=1))
    facts.note(primary(), again, NOW + 2, upstream="")
    assert (facts.leaderless_since, facts.switchover_since, facts.forced_since) == (0.0, 0.0, NOW + 2)
