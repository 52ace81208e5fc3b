"""The history and the plan of a forced failover as people read them: whole paragraphs, on 80 columns."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.history_page import held_s, history_lines, steps_text
from cli.plan_page import plan_lines

AT = "2026-11-25T01:02:03.456Z"
FAILOVER: dict[str, Any] = {
    "term": 4,
    "member": "m2",
    "kind": "led",
    "reason": "was elected and takes the leadership after term 3",
    "timeline": 3,
    "lsn": "0/5000060",
    "at": AT,
    "seen": "the lease of m1 on n1 ended",
    "seen_by": "m2",
    "leaderless_s": 1.25,
    "ballots": ["m2 at 0/5000060 on timeline 3 (chosen: the furthest)", "m3 at 0/5000000 on timeline 3"],
    "steps": [{"name": "ballots", "took_s": 0.12}, {"name": "promote", "took_s": 0.311}],
    "loss": "none",
}


def test_a_failover_is_told_in_one_paragraph() -> None:
    assert history_lines([FAILOVER]) == [
        "2026-11-25 01:02:03 UTC  term 4  m2 took the leadership",
        "  why     was elected and takes the leadership after term 3",
        "  seen    the lease of m1 on n1 ended (by m2)",
        "  leader  nobody led for 1.2 s, as m2 saw it",
        "  ballots m2 at 0/5000060 on timeline 3 (chosen: the furthest)",
        "          m3 at 0/5000000 on timeline 3",
        "  took    ballots 0.12 s, promote 0.31 s; 0.43 s in all",
        "  log     at 0/5000060 on timeline 3",
        "  lost    nothing that was acknowledged",
    ]


EMPTY = {"ballots": [], "steps": [], "seen": "", "seen_by": "", "leaderless_s": 0.0, "loss": "", "kind": ""}


@pytest.mark.parametrize(
    ("entry", "lines"),
    [
        # What an older version wrote: no kind, and nothing of what came later.
        (
            {"term": 2, "member": "m3", "reason": "failover", "timeline": 2, "lsn": "0/3000000", "at": AT, **EMPTY},
            [
                "2026-11-25 01:02:03 UTC  term 2  m3",
                "  why     failover",
                "  log     at 0/3000000 on timeline 2",
            ],
        ),
        (
            {"term": 2, "member": "m3", "reason": "failover", "timeline": 0, "lsn": "", "at": AT},
            ["2026-11-25 01:02:03 UTC  term 2  m3", "  why     failover"],
        ),
        (
            {**EMPTY, "term": 4, "member": "m2", "reason": "automatic failover paused by ada: new disk", "at": AT,
             "kind": "paused", "seen_by": "ada"},
            [
                "2026-11-25 01:02:03 UTC  term 4  automatic failover was paused",
                "  why     automatic failover paused by ada: new disk",
            ],
        ),
        (
            {**EMPTY, "term": 4, "member": "m3", "reason": "forced failover to m3, ordered by ada", "at": AT,
             "kind": "ordered", "seen_by": "ada", "loss": "commits that m3 lacks are lost"},
            [
                "2026-11-25 01:02:03 UTC  term 4  a forced failover to m3 was ordered",
                "  why     forced failover to m3, ordered by ada",
                "  lost    commits that m3 lacks are lost",
            ],
        ),
        ({"term": 1, "member": "m1", "kind": "opened", "at": AT, "seen_by": "m1"},
         ["2026-11-25 01:02:03 UTC  term 1  m1 accepts writes", "  by      m1"]),
        ({"kind": "from the future", "member": "m1", "term": 9}, ["term 9  m1"]),
        ({}, ["change of leadership"]),
    ],
)  # fmt: skip
def test_what_is_not_known_is_left_out(entry: dict[str, Any], lines: list[str]) -> None:
    assert history_lines([entry]) == lines


def test_newest_is_last_and_paragraphs_are_apart() -> None:
    lines = history_lines([{**FAILOVER, "term": 3}, {"term": 4, "member": "m1", "reason": "x", "at": AT}])
    assert lines[-3:] == ["", "2026-11-25 01:02:03 UTC  term 4  m1", "  why     x"]


def test_long_texts_are_wrapped_under_themselves() -> None:
    lines = history_lines([{**FAILOVER, "loss": "word " * 60, "reason": "y" * 300}], 80)
    assert max(len(line) for line in lines) <= 80
    assert sum(line.startswith("          word") for line in lines) >= 3


_junk = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*FAILOVER]), _junk), st.integers(0, 200))
def test_whatever_a_hub_sends_is_shown_without_control_characters(entry: dict[str, Any], width: int) -> None:
    for line in history_lines([entry], width):
        assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in line)


def test_steps_are_summed_up() -> None:
    assert steps_text(FAILOVER) == "ballots 0.12 s, promote 0.31 s; 0.43 s in all"
    assert steps_text({"steps": [{"name": "held", "took_s": 0.2}]}) == "held 0.20 s"
    assert steps_text({"steps": [{"name": "held"}, "x", None]}) == ""
    assert steps_text({}) == ""


def took(**steps: float) -> list[dict[str, Any]]:
    return [{"name": name, "took_s": took_s} for name, took_s in steps.items()]


def test_clients_were_held_from_the_first_hold_to_the_first_commit() -> None:
    released = {"term": 3, "kind": "released", "steps": took(checkpointed=2.0, held=0.1, stopped=0.2)}
    opened = {"term": 4, "kind": "opened", "steps": took(elected=0.05, promoted=0.1)}
    assert held_s([released, {"term": 4, "kind": "led"}, opened], 3) == pytest.approx(0.45)
    assert held_s([released], 3) is None
    assert held_s([opened], 3) is None
    assert held_s([{**released, "steps": []}, opened], 3) is None
    assert held_s([], 3) is None


# --- the plan of a forced failover -----------------------------------------------------------------------------------

PLAN: dict[str, Any] = {
    "name": "demo/orders",
    "term": 3,
    "mode": "sync",
    "strict": True,
    "sync": {"k": 1, "names": ["m2"]},
    "last_leader": "m1",
    "leader": None,
    "primary_alive": False,
    "target": "m3",
    "obstacle": None,
    "loss": "possible",
    "loss_text": "m3 is not in the sync set (m2): commits that it lacks are lost; m3 was heard of at 0/4000000, at "
    "least 4096 bytes of log behind the furthest",
    "waits_for": ["m1: node n1 is silent", "m2: node n2 is silent", "m3: nobody may lead: missing: m2"],
    "advice": "bringing back n1 (m1), n2 (m2) may save what is lost otherwise",
    "members": [
        {"name": "m1", "node": "n1", "lsn": "0/4001000", "timeline": 1, "position_from": "heartbeat",
         "position_age_s": 62.4, "behind_bytes": 0, "loss": "none", "obstacle": "node n1 of m1 is silent"},
        {"name": "m2", "node": "n2", "lsn": None, "behind_bytes": None, "loss": "none",
         "obstacle": "node n2 of m2 is silent"},
        {"name": "m3", "node": "n3", "lsn": "0/4000000", "timeline": 1, "position_from": "ballot",
         "position_age_s": 0.0, "behind_bytes": 4096, "loss": "possible", "obstacle": None},
    ],
}  # fmt: skip


def test_a_plan_tells_all_that_is_known() -> None:
    assert plan_lines(PLAN) == [
        "demo/orders: nobody leads since term 3 of m1",
        "replication sync, strict: every acknowledged commit is on the primary and on 1 of m2",
        "",
        "No automatic failover happens because:",
        "  - m1: node n1 is silent",
        "  - m2: node n2 is silent",
        "  - m3: nobody may lead: missing: m2",
        "",
        "MEMBER  NODE  LAST HEARD OF AT            BEHIND  LOSS      CANNOT LEAD BECAUSE",
        "m1      n1    0/4001000 tl 1, 62 s ago    0       none      node n1 of m1 is silent",
        "m2      n2    not known here              -       none      node n2 of m2 is silent",
        "m3      n3    0/4000000 tl 1, its ballot  4Ki     possible",
        "",
        "A failover to m3: m3 is not in the sync set (m2): commits that it lacks are",
        "lost; m3 was heard of at 0/4000000, at least 4096 bytes of log behind the",
        "furthest.",
        "Better: bringing back n1 (m1), n2 (m2) may save what is lost otherwise.",
    ]


def test_a_plan_while_the_primary_lives_advises_a_switchover() -> None:
    alive = {
        **PLAN, "leader": "m1", "primary_alive": True, "waits_for": ["m1 on n1 leads in term 3 and is well"],
        "advice": "m1 is alive: `moorctl instance switchover demo/orders --to m3` moves the primary and loses nothing",
    }  # fmt: skip
    lines = plan_lines(alive, 100)
    assert lines[0] == "demo/orders: m1 leads in term 3 and is alive"
    assert lines[-2].startswith("Better: m1 is alive: `moorctl instance switchover demo/orders --to m3`")


def test_a_target_that_cannot_be_is_told() -> None:
    text = "node n2 of m2 is silent, so it would not hear of the order"
    assert plan_lines({**PLAN, "target": "m2", "obstacle": text})[-2:] == [
        "A failover to m2 cannot be forced: node n2 of m2 is silent, so it would not hear",
        "of the order",
    ]
    nobody = plan_lines({**PLAN, "target": None, "obstacle": "no member can be forced to lead"})
    assert nobody[-1] == "A failover cannot be forced: no member can be forced to lead"


@given(st.dictionaries(st.sampled_from([*PLAN]), _junk))
def test_a_plan_of_another_version_is_shown_as_far_as_it_goes(plan: dict[str, Any]) -> None:
    assert plan_lines(plan)
