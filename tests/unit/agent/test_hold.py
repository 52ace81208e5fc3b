"""Clients wait for a switchover: when a hold is in force, and who may ask for one."""

from __future__ import annotations

import pytest

from agent.ha.hold import HOLD_MAX_S, Hold, begun, in_force, may_hold
from core.records import InstanceView
from tests.support.builders import NOW, instance

HOLD = Hold(term=1, request_id="s1", until=NOW + 5)


@pytest.mark.parametrize(
    ("view", "now", "holds"),
    [
        (instance(), NOW, True),
        (instance(leader=""), NOW, True),
        (None, NOW, True),
        (instance(), NOW + 5, False),
        (instance(leader="m2", term=2), NOW, False),
    ],
    ids=["the old primary leads still", "nobody leads", "nothing is known", "its time is over", "another one leads"],
)
def test_clients_wait_until_the_time_is_over_or_another_leads(
    view: InstanceView | None, now: float, *, holds: bool
) -> None:
    assert in_force(HOLD, view, now) is holds


@pytest.mark.parametrize(("for_s", "lasts_s"), [(3.0, 3.0), (4_294_967.0, HOLD_MAX_S)])
def test_clients_are_held_for_a_bounded_time_whatever_is_asked_for(for_s: float, lasts_s: float) -> None:
    assert begun(term=1, request_id="s1", for_s=for_s, now=NOW) == Hold(term=1, request_id="s1", until=NOW + lasts_s)


def test_without_a_hold_nobody_waits() -> None:
    assert not in_force(None, instance(), NOW)


def test_the_leader_of_the_present_term_may_hold_clients() -> None:
    assert may_hold(instance(), leader="m1", term=1) == ""


def test_a_leader_that_is_not_heard_of_yet_may_hold_clients() -> None:
    assert may_hold(instance(), leader="m2", term=2) == ""


def test_a_leader_of_the_past_may_not() -> None:
    assert "term 2" in may_hold(instance(leader="m2", term=2), leader="m1", term=1)


def test_somebody_else_may_not() -> None:
    assert "m1 leads" in may_hold(instance(), leader="m2", term=1)
