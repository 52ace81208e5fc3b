"""Goals and what is shown while they are waited for: pure functions of an instance's page."""

from __future__ import annotations

from typing import Any

import pytest

from cli import progress
from cli.progress import Hopeless, NotYet, Reached


def condition(kind: str, status: bool, message: str = "", reason: str = "X") -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def member(name: str, role: str = "replica", state: str = "running", **more: Any) -> dict[str, Any]:
    return {"name": name, "role": role, "state": state, "node": f"n{name[1:]}", "restart_id": 0, **more}


def page(phase: str = "Running", **more: Any) -> dict[str, Any]:
    return {
        "phase": phase, "generation": 1, "observed_generation": 1, "primary": "m1", "conditions": [],
        "members": [member("m1", "primary"), member("m2")], "ha": {"term": 3, "switchover": None, "last_leader": "m1"},
        **more,
    }  # fmt: skip


def test_running_means_converged_to_what_was_applied() -> None:
    judge = progress.running("demo/x", 2).judge
    assert isinstance(judge(page(observed_generation=1), 0), NotYet)
    assert isinstance(judge(page(observed_generation=2), 0), Reached)
    assert isinstance(judge(page("Modifying", observed_generation=2), 0), NotYet)


def test_an_instance_that_no_node_can_take_is_not_waited_for_to_the_end() -> None:
    judge = progress.running("demo/x").judge
    unplaced = page("Pending", conditions=[condition("Placed", False, "no node fits", "Unplaceable")], members=[])
    assert isinstance(judge(unplaced, 1), NotYet)
    verdict = judge(unplaced, progress.PLACE_PATIENCE_S)
    assert isinstance(verdict, Hopeless)
    assert verdict.error.what == "no node fits"
    assert "explain demo/x" in verdict.error.hint


def test_an_instance_that_vanishes_is_not_waited_for() -> None:
    assert isinstance(progress.running("demo/x").judge(None, 0.1), NotYet)  # another hub may be a moment behind
    for goal in (progress.running("demo/x"), progress.restarted("demo/x", 1)):
        assert isinstance(goal.judge(None, 10), Hopeless)
    assert isinstance(progress.running("demo/x").judge(page(deleting=True), 1), Hopeless)
    assert isinstance(progress.gone("demo/x").judge(None, 0), Reached)


def test_switchover_is_over_when_another_leads_and_all_is_well() -> None:
    judge = progress.switched("demo/x", "id1", before_term=3, target="m2").judge
    assert isinstance(judge(page(ha={"term": 3, "switchover": {"id": "id1"}}), 0), NotYet)
    assert isinstance(judge(page(ha={"term": 3, "switchover": None}), 0), Hopeless)  # rolled back
    assert isinstance(judge(page(ha={"term": 4, "last_leader": "m3"}), 0), Hopeless)
    done = {"term": 4, "switchover": None, "last_leader": "m2"}
    assert isinstance(judge(page("Modifying", ha=done), 0), NotYet)
    assert isinstance(judge(page(ha=done), 0), Reached)


def test_forced_failover_is_over_when_the_target_accepts_writes_though_others_are_down() -> None:
    judge = progress.forced("demo/x", "o1", target="m2", after_term=3).judge
    ordered = {"term": 3, "forced": {"id": "o1"}}
    assert isinstance(judge(page("Degraded", ha=ordered), 0), NotYet)
    assert isinstance(judge(page("Degraded", ha={"term": 3, "forced": {"id": "o2"}}), 0), Hopeless)
    taken = {"ha": {"term": 4, "forced": None}, "leader": {"member": "m2", "term": 4}}
    assert isinstance(judge(page("Degraded", **taken), 0), NotYet)  # m2 is a replica still
    opened = [member("m1", "unknown", "stopped"), member("m2", "primary")]
    assert isinstance(judge(page("Degraded", **taken, members=opened), 0), Reached)
    other = {"ha": {"term": 4}, "leader": {"member": "m1", "term": 4}}
    assert isinstance(judge(page(**other), 0), Hopeless)


def test_restart_is_over_when_every_member_has_carried_it_out() -> None:
    judge = progress.restarted("demo/x", 2).judge
    verdict = judge(page(members=[member("m1", restart_id=2), member("m2", restart_id=1)]), 0)
    assert isinstance(verdict, NotYet)
    assert "m2" in verdict.why
    assert isinstance(judge(page(members=[member("m1", restart_id=2), member("m2", restart_id=2)]), 0), Reached)


@pytest.mark.parametrize(
    ("conditions", "told"),
    [
        ([condition("Placed", False, "no node"), condition("Replicating", False, "see", "NoPrimary")], "no node"),
        ([condition("Converged", False, "later"), condition("PrimaryAvailable", False, "no leader")], "no leader"),
        ([condition("PrimaryAvailable", False, "see", "NotPlaced"), condition("Placed", False, "no node")], "no node"),
        ([condition("PendingRestart", False, "nothing"), condition("EngineTls", False, "no TLS")], ""),
        ([condition("PendingRestart", True, "restart it")], "restart it"),
        ([condition("AutomaticFailover", False, "paused by ada")], "paused by ada"),
        ([condition("NodesReachable", True, "n1")], ""),
        ([condition("FromTheFuture", False, "?"), "junk"], ""),
    ],
)  # fmt: skip
def test_worst_condition_explains_the_others(conditions: list[Any], told: str) -> None:
    assert progress.worst_condition(page(conditions=conditions)) == told


def test_summary_tells_phase_and_members() -> None:
    lines = progress.summary(
        "demo/x",
        page("Creating", members=[member("m1", "primary"), member("m2", "unknown", "failed", message="disk full")]),
    )
    assert lines == ["demo/x: Creating", "  m1 primary running on n1", "  m2 failed on n2 (disk full)"]
    assert progress.summary("demo/x", None) == ["demo/x: gone"]


@pytest.mark.parametrize("odd", [{}, {"members": None, "conditions": None, "ha": None}, {"members": "x", "phase": 3}])
def test_pages_of_another_version_are_shown_as_far_as_they_go(odd: dict[str, Any]) -> None:
    assert progress.summary("demo/x", odd)
    for goal in (progress.running("x"), progress.gone("x"), progress.switched("x", "i", before_term=0)):
        assert goal.judge(odd, 0) is not None


def test_line_display_tells_only_what_changed(capsys: pytest.CaptureFixture[str]) -> None:
    display = progress.LineDisplay()
    display.show([("demo/x", page("Creating"))], 0.4, "")
    display.show([("demo/x", page("Creating"))], 0.8, "")
    display.show([("demo/x", page())], 12.0, "hub does not answer")
    display.show([("demo/x", page())], 13.0, "hub does not answer")
    assert capsys.readouterr().err.splitlines() == [
        "[   0.4s] demo/x: Creating | m1 primary running on n1; m2 replica running on n2",
        "[  12.0s] demo/x: Running | m1 primary running on n1; m2 replica running on n2",
        "[  12.0s] hub does not answer",
    ]
