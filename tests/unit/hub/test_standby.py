"""Standby instances as the hub judges them: made, shown, promoted once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from core.errors import ConflictError, UserError
from core.ids import InstanceRef
from core.records import REMOTE, HaRecord, RemotePrimary
from core.specs import InstanceSpec, parse_document
from core.status import ConditionType, MemberState, Phase, Role
from hub.admission import World, plan
from hub.judges.candidates import obstacle, unfit_to_be_forced
from hub.judges.conditions import judge
from hub.judges.members import adjust, first_ha, first_members, unbound
from hub.judges.placement import Placement
from hub.judges.situation import Situation
from tests.support.situations import PORTS, healthy, observed, record, spec

FOLLOWS = {"hosts": ["far:5432"], "user": "follower", "password": "secret"}
NOW = 1000.0


def document(**fields: Any) -> InstanceSpec:
    found = parse_document({"kind": "Instance", "project": "demo", "name": "orders", **fields})
    assert isinstance(found, InstanceSpec)
    return found


def world(*documents: Any) -> World:
    project = parse_document({"kind": "Project", "name": "demo"})
    empty = World(nodes={}, projects={}, instances={})
    records = [step.record for step in plan([project, *documents], empty, wall=NOW)]
    projects = {"demo": records[0]}
    return replace(
        empty,
        projects=projects,  # type: ignore[arg-type]
        instances={InstanceRef("demo", "orders"): one for one in records[1:]},  # type: ignore[misc]
    )


def standby(s: Situation | None = None, **fields: Any) -> Situation:
    """Three members, m1 follows far:5432 for the others."""
    of = spec(standby=FOLLOWS, **fields)
    found = s or healthy(of=of)
    assert found.ha is not None
    found = replace(found, spec=of, record=record(of), ha=replace(found.ha, standby=True))
    found = observed(found, "m1", role=Role.REPLICA, streaming_from=REMOTE)
    return replace(found, members=tuple(replace(one, desired=_desired(found, one.name)) for one in found.members))


def _desired(s: Situation, name: str) -> Any:
    changed = {one.member: one for one in adjust(s).changed}
    return changed.get(name) or next(one.desired for one in s.members if one.name == name)


# --- documents --------------------------------------------------------------------------------------------------------


def test_a_new_instance_may_follow_and_its_password_is_not_stored() -> None:
    (step,) = plan([document(standby=FOLLOWS)], world(), wall=NOW)
    assert step.outcome == "created"
    assert "secret" not in repr(step)


def test_it_needs_a_password_to_begin_with_and_not_again() -> None:
    without = {key: value for key, value in FOLLOWS.items() if key != "password"}
    with pytest.raises(UserError, match=r"standby\.password: that of follower"):
        plan([document(standby=without)], world(), wall=NOW)
    (step,) = plan([document(standby=without)], world(document(standby=FOLLOWS)), wall=NOW)
    assert step.outcome == "unchanged"


def test_an_instance_that_is_there_cannot_begin_to_follow() -> None:
    with pytest.raises(ConflictError, match="cannot be added"):
        plan([document(standby=FOLLOWS)], world(document()), wall=NOW)


def test_a_document_without_it_is_the_promotion_and_shown_as_a_change() -> None:
    (step,) = plan([document()], world(document(standby=FOLLOWS)), wall=NOW)
    assert any("standby" in change for change in step.changes)


# --- members ----------------------------------------------------------------------------------------------------------


def test_members_are_told_whom_to_follow_and_acknowledge_by_themselves() -> None:
    s = standby(replication={"mode": "sync"})
    assert {one.desired.standby for one in s.members} == {RemotePrimary(hosts=("far:5432",), user="follower")}
    assert {one.desired.replication.mode for one in s.members} == {"async"}
    first = first_members(s, Placement(("n1", "n2", "n3"), 15), PORTS)
    ha = first_ha(s, first)
    assert (ha.standby, ha.sync.mode, ha.bootstrap) == (True, "async", "m1")
    assert not first_ha(healthy(), first).standby


def test_the_promotion_reaches_members_and_memory_in_one_step() -> None:
    before = standby(replication={"mode": "sync"})
    of = spec(replication={"mode": "sync"})
    s = replace(before, spec=of, record=record(of, generation=2))
    adjustment = adjust(s)
    assert adjustment.unbound
    assert {one.member for one in adjustment.changed} == {"m1", "m2", "m3"}
    assert {one.standby for one in adjustment.changed} == {None}
    assert {one.replication.mode for one in adjustment.changed} == {"sync"}
    assert [note.event for note in adjustment.notes] == ["standby_promoted"]


def test_the_memory_tells_of_it_and_is_never_bound_again() -> None:
    ha = unbound(HaRecord(term=3, leader="m2", standby=True), NOW)
    assert not ha.standby
    assert (ha.history[-1].kind, ha.history[-1].term, ha.history[-1].member) == ("unbound", 3, "m2")
    assert "remote primary acknowledged" in ha.history[-1].loss
    s = standby()
    assert s.ha is not None
    assert not adjust(replace(s, ha=replace(s.ha, standby=False))).unbound


# --- what is told -----------------------------------------------------------------------------------------------------


def test_an_instance_whose_leader_follows_is_well() -> None:
    found = judge(standby(), now=NOW)
    assert found.findings == ()
    assert found.facts.ready
    condition = found.of(ConditionType.PRIMARY_AVAILABLE)
    assert condition is not None
    assert (condition.status, condition.reason) == (True, "Standby")
    assert "follows far:5432; no member accepts writes" in condition.message


@pytest.mark.parametrize(
    ("facts", "reason", "told"),
    [
        ({"streaming_from": ""}, "NotStreaming", "does not stream from the remote primary"),
        ({"state": MemberState.LAGGING, "reason": "RemoteSilent"}, "RemoteSilent", "keep up with the remote primary"),
        ({"role": Role.PRIMARY}, "WrongRole", "is primary, though the instance follows"),
    ],
)
def test_what_is_wrong_with_it_is_told(facts: dict[str, Any], reason: str, told: str) -> None:
    found = judge(observed(standby(), "m1", **facts), now=NOW)
    assert found.facts.broken
    (finding,) = found.findings
    assert finding.reason == reason
    assert told in finding.message


def test_there_is_no_primary_to_move() -> None:
    for found in (obstacle(standby(), ""), unfit_to_be_forced(standby(), "m2")):
        assert found is not None
        assert found.lasting
        assert "moorctl instance promote" in found.hint
    assert obstacle(healthy(Phase.RUNNING), "m2") is None
