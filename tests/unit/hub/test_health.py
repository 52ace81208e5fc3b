"""Silence: a drop out of an alive hub's list counts at once, missing evidence is excused for one grace."""

from __future__ import annotations

import pytest

from core.records import HubRecord
from hub.judges.health import Memory, Verdict, evidence, grace_s, judge_silence
from tests.support.contents import Version

WINDOW_S = 12.0
GRACE_S = grace_s(WINDOW_S)


def judge(memory: Memory, now: float, *, nodes="ab", silent="", **heard_by: str) -> Verdict:
    return judge_silence(
        nodes=set(nodes),
        silent=set(silent),
        heard_by={hub: set(of_hub) for hub, of_hub in heard_by.items()},
        memory=memory,
        silent_after_s=WINDOW_S,
        now=now,
    )


def test_a_hub_that_has_just_started_holds_every_verdict_for_one_window_plus_reconnect_spread():
    verdict = judge(Memory(), 1000.0, h1="")
    assert verdict.newly_silent == set()
    assert verdict.look_again_at == 1000.0 + GRACE_S
    verdict = judge(verdict.memory, 1000.0 + GRACE_S - 0.1, h1="a")
    assert verdict.newly_silent == set()
    verdict = judge(verdict.memory, 1000.0 + GRACE_S, h1="a")
    assert verdict.newly_silent == {"b"}
    assert verdict.look_again_at is None


def test_a_node_that_its_alive_hub_no_longer_hears_is_silent_at_once():
    before = judge(Memory(), 0.0, h1="ab")
    assert judge(before.memory, 1.0, h1="a").newly_silent == {"b"}


def test_a_node_that_moves_to_another_hub_is_never_silent():
    before = judge(Memory(), 0.0, h1="ab", h2="")
    both = judge(before.memory, 1.0, h1="ab", h2="b")
    moved = judge(both.memory, 13.0, h1="a", h2="b")
    assert moved.newly_silent == set()


def test_nodes_of_a_hub_that_died_have_one_grace_to_find_another():
    before = judge(Memory(), 0.0, h1="a", h2="b")
    died = judge(before.memory, 50.0, h1="a")
    assert died.newly_silent == set()
    assert died.look_again_at == 50.0 + GRACE_S
    waiting = judge(died.memory, 50.0 + GRACE_S - 1, h1="a")
    assert waiting.newly_silent == set()
    assert judge(waiting.memory, 50.0 + GRACE_S, h1="a").newly_silent == {"b"}
    assert judge(waiting.memory, 50.0 + GRACE_S, h1="ab").newly_silent == set()


def test_when_all_hub_records_vanish_nobody_is_silent_before_the_grace_is_over():
    before = judge(Memory(), 0.0, h1="a", h2="b")
    assert judge(before.memory, 5.0).newly_silent == set()


def test_a_node_that_has_just_enrolled_is_given_time_to_say_something():
    before = judge(Memory(), 0.0, nodes="a", h1="a")
    enrolled = judge(before.memory, 100.0, nodes="ab", h1="a")
    assert enrolled.newly_silent == set()
    assert judge(enrolled.memory, 100.0 + GRACE_S, nodes="ab", h1="a").newly_silent == {"b"}


@pytest.mark.parametrize(("heard", "expected"), [("b", {"b"}), ("", set())])
def test_a_silent_node_is_heard_again_at_the_first_sign(heard, expected):
    assert judge(Memory(), 0.0, silent="b", h1="a" + heard).newly_heard == expected


def test_a_node_that_was_silent_before_this_judge_began_stays_so_and_is_not_marked_twice():
    verdict = judge(Memory(), 0.0, silent="b", h1="a")
    assert verdict.newly_silent == verdict.newly_heard == set()
    assert verdict.look_again_at is None
    later = judge(verdict.memory, GRACE_S, silent="b", h1="a")
    assert later.newly_silent == later.newly_heard == set()


def test_the_mark_of_a_node_that_was_removed_goes_too():
    assert judge(Memory(), 0.0, nodes="a", silent="b", h1="a").newly_heard == {"b"}


def test_memory_keeps_no_nodes_that_are_gone():
    before = judge(Memory(), 0.0, h1="ab")
    assert judge(before.memory, 1.0, nodes="a", h1="a").memory.excused_until.keys() == {"a"}


def test_a_hub_that_restarts_under_its_name_reads_as_one_that_vanished():
    first_life = {"h2": Version(HubRecord(hub="h2", nodes=("b",)), 9, 5)}
    second_life = {"h2": Version(HubRecord(hub="h2"), 21, 20)}
    before = judge_silence(
        nodes={"b"}, silent=set(), heard_by=evidence(first_life, own="h1", heard=set()), memory=Memory(),
        silent_after_s=WINDOW_S, now=0.0,
    )  # fmt: skip
    after = judge_silence(
        nodes={"b"}, silent=set(), heard_by=evidence(second_life, own="h1", heard=set()), memory=before.memory,
        silent_after_s=WINDOW_S, now=1.0,
    )  # fmt: skip
    assert after.newly_silent == set()


def test_what_this_hub_hears_itself_counts_before_its_own_record_in_etcd():
    hubs = {"h1": Version(HubRecord(hub="h1", nodes=("a", "b")), 9, 5)}
    assert evidence(hubs, own="h1", heard={"a"}) == {"h1": {"a"}}
