"""Wishes about leadership that time ends: each happens once, or is dropped with the reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.records import ForcedFailover, HaRecord, ScheduledSwitchover, SwitchoverRequest
from core.status import MemberState, Phase
from hub.etcd import keys
from hub.etcd.txns import ModIs
from hub.judges.schedule import LATE_MAX_S, ORDER_S, due, due_at
from hub.judges.situation import Situation
from hub.judges.steps import next_step
from tests.support.contents import World
from tests.support.situations import ORDERS, desired, healthy, leaderless, observed

AT = 1_800_000_000.0
WISH = ScheduledSwitchover(id="s1", at=AT, target="m2", requested_by="ada", requested_at=AT - 600)


def wished(s: Situation | None = None, wish: ScheduledSwitchover = WISH, **ha: object) -> Situation:
    s = s or healthy()
    assert s.ha is not None
    return replace(s, ha=replace(s.ha, scheduled=wish, **ha))


def test_before_its_time_nothing_happens() -> None:
    assert due(wished(), AT - 0.1) is None
    assert due(healthy(), AT) is None


def test_when_its_time_has_come_it_is_asked_for_in_the_name_of_who_wished_it() -> None:
    found = due(wished(), AT + 0.5)
    assert found is not None
    ha, told = found
    assert ha.scheduled is None
    assert ha.switchover == SwitchoverRequest(id="s1", target="m2", requested_by="ada", requested_at=AT - 600)
    assert (told.event, told.severity) == ("switchover_requested", "info")
    assert told.message == "scheduled by ada for 2027-01-15 08:00:00 UTC, to m2"


def dropped(s: Situation, now: float = AT + 1) -> tuple[HaRecord, str]:
    found = due(s, now)
    assert found is not None
    ha, told = found
    assert (ha.scheduled, ha.switchover if s.ha and not s.ha.switchover else None) == (None, None)
    assert (told.event, told.severity) == ("switchover_dropped", "warning")
    assert "moorctl instance switchover demo/orders" in told.message
    line = ha.history[-1]
    assert (line.kind, line.at, line.term) == ("switchover_ended", now, 1)
    return ha, line.reason


@pytest.mark.parametrize(
    ("situation", "why"),
    [
        (leaderless(healthy()), "instance has no primary now"),
        (observed(healthy(), "m2", state=MemberState.LAGGING), "m2 is not a running replica (replica, lagging)"),
        (desired(healthy(), "m2", no_failover=True), "m2 is marked never to become primary"),
        (replace(healthy(), silent=frozenset({"n2"})), "node n2 of m2 is silent"),
        (observed(healthy(), "m3", state=MemberState.CRASHED), "the instance is not healthy (the engine of m3 on n3"),
    ],
)
def test_it_is_dropped_when_it_cannot_be_or_the_instance_is_not_well(situation: Situation, why: str) -> None:
    _, reason = dropped(wished(situation))
    assert reason.startswith("the switchover that ada scheduled for 2027-01-15 08:00:00 UTC was dropped: ")
    assert why in reason


def test_it_is_dropped_when_its_target_leads_already_or_another_change_is_under_way() -> None:
    _, reason = dropped(wished(wish=replace(WISH, target="m1")))
    assert "m1 is the primary already" in reason
    ha, reason = dropped(wished(switchover=SwitchoverRequest(id="s0")))
    assert "switchover s0 is under way" in reason
    assert ha.switchover == SwitchoverRequest(id="s0")
    order = ForcedFailover(id="o1", target="m3", after_term=1, requested_at=AT)
    _, reason = dropped(wished(forced=order))
    assert "a forced failover to m3 is under way" in reason


@pytest.mark.parametrize(("late_s", "asked"), [(0.0, True), (LATE_MAX_S, True), (LATE_MAX_S + 1, False), (1e6, False)])
def test_it_is_dropped_when_no_hub_was_there_for_long_after_its_time(late_s: float, asked: bool) -> None:
    found = due(wished(), AT + late_s)
    assert found is not None
    ha, told = found
    assert (ha.switchover is not None) is asked
    if not asked:
        assert "no hub was at work for" in told.message


def test_a_pause_does_not_stand_in_its_way() -> None:
    found = due(wished(paused=True, paused_by="bob"), AT)
    assert found is not None
    assert found[0].switchover is not None
    assert found[0].paused


def test_a_degraded_phase_alone_is_no_reason_once_all_is_well_again() -> None:
    found = due(wished(healthy(Phase.DEGRADED)), AT)
    assert found is not None
    assert found[0].switchover is not None


ORDER = ForcedFailover(id="o1", target="m3", after_term=1, requested_by="ada", requested_at=AT)


def ordered(s: Situation, order: ForcedFailover = ORDER) -> Situation:
    return replace(s, ha=replace(s.ha or HaRecord(), forced=order))


def test_an_order_that_did_not_come_about_is_dropped_and_says_what_its_target_said() -> None:
    s = ordered(observed(leaderless(healthy()), "m3", message="nobody leads, and this member has no data"))
    assert due(s, AT + ORDER_S - 0.1) is None
    found = due(s, AT + ORDER_S)
    assert found is not None
    ha, told = found
    assert ha.forced is None
    assert (told.event, told.severity) == ("failover_dropped", "error")
    assert "the forced failover to m3 that ada ordered did not come about within 45 s" in told.message
    assert "m3: nobody leads, and this member has no data" in told.message
    assert ha.history[-1].reason in told.message


def test_an_order_goes_before_an_appointment() -> None:
    found = due(ordered(wished()), AT + ORDER_S)
    assert found is not None
    assert (found[0].forced, found[0].scheduled) == (None, WISH)


@given(st.floats(0, 1e4), st.booleans(), st.booleans())
def test_due_at_tells_when_to_look(elapsed_s: float, appointment: bool, order: bool) -> None:
    ha = HaRecord(
        term=1, leader="m1", system_id="7", scheduled=WISH if appointment else None, forced=ORDER if order else None
    )
    s = replace(healthy(), ha=ha)
    assert (due(s, AT + elapsed_s) is not None) == (due_at(ha) <= AT + elapsed_s)


def test_it_is_one_transaction_with_its_event_that_compares_all_it_was_judged_by() -> None:
    s = wished()
    step = next_step(World(), s, port_range=(15000, 15010), now=AT)
    assert step is not None
    assert [event.event for event in step.events] == ["switchover_requested"]
    for compare in (
        ModIs(keys.ha(ORDERS), s.ha_revision),
        ModIs(keys.leader(ORDERS), s.leader_revision),
        ModIs(keys.instance(ORDERS), s.record_revision),
        ModIs(keys.status(ORDERS), s.status_revision),
    ):
        assert compare in step.compares
    assert {getattr(op, "key", "") for op in step.ops} == {keys.ha(ORDERS), keys.status(ORDERS)}


def test_an_instance_that_is_being_deleted_keeps_no_appointment() -> None:
    s = wished()
    step = next_step(World(), replace(s, record=replace(s.record, deleting=True)), port_range=(15000, 15010), now=AT)
    assert step is not None
    assert keys.ha(ORDERS) not in {getattr(op, "key", "") for op in step.ops}
