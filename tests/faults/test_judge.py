"""What counts as two primaries, as lost, doubled and made up, on hand-made memories."""

from __future__ import annotations

import pytest

from tests.faults import catalogue
from tests.faults.judge import Accepted, account, longest_gap, overlaps


def write(member: str, timeline: int, began: float, acked: float) -> Accepted:
    return Accepted(member=member, timeline=timeline, began=began, acked=acked)


def test_leaderships_one_after_the_other_do_not_overlap() -> None:
    history = [write("a", 1, 0.0, 0.1), write("b", 2, 0.2, 0.3), write("a", 3, 0.4, 0.5)]
    assert overlaps(history) == []


def test_an_old_primary_that_accepts_after_its_successor_is_told_with_how_long() -> None:
    history = [write("a", 1, 0.0, 0.1), write("b", 2, 0.2, 0.3), write("a", 1, 0.4, 0.5), write("a", 1, 0.9, 1.0)]
    (found,) = overlaps(history)
    assert (found.stale, found.newer, found.writes) == ("a on timeline 1", "b on timeline 2", 2)
    assert found.lasted_s == pytest.approx(0.6)


def test_a_write_that_was_under_way_when_the_successor_began_proves_nothing() -> None:
    assert overlaps([write("a", 1, 0.0, 0.9), write("b", 2, 0.2, 0.3)]) == []


def test_a_timeline_used_twice_in_turn_is_not_an_overlap_but_crosswise_is() -> None:
    in_turn = [write("a", 2, 0.0, 0.1), write("b", 2, 0.2, 0.3)]
    assert overlaps(in_turn) == []
    assert len(overlaps([*in_turn, write("a", 2, 0.4, 0.5)])) == 1


def test_an_engine_restarted_in_place_is_the_same_leadership() -> None:
    assert overlaps([write("a", 1, 0.0, 0.1), write("a", 1, 5.0, 5.1)]) == []


def test_lost_doubled_and_phantom_are_told_apart_and_the_unknown_is_none_of_them() -> None:
    found = account(acknowledged=[1, 2, 3], refused=[4, 5], present=[1, 2, 2, 5, 6])
    assert (found.lost, found.doubled, found.phantom) == ((3,), (2,), (5,))


def test_the_gap_counts_from_the_fault_and_to_the_end() -> None:
    assert longest_gap([1.0, 1.1, 4.0], since=1.0, until=5.0) == pytest.approx(2.9)
    assert longest_gap([1.0], since=1.0, until=9.0) == pytest.approx(8.0)


def test_a_seed_chooses_the_same_pair_of_different_faults_each_time() -> None:
    for seed in range(50):
        once, again = catalogue.Pair(seed), catalogue.Pair(seed)
        assert once.story == again.story
        assert once.parts[0].name != once.parts[1].name
