"""What is desired and what is, to the next step: the whole table."""

from __future__ import annotations

from typing import Any

import pytest

from agent.ha.view import EngineState
from agent.reconcile import CONVERGE_EVERY_S, Observed, Step, reconcile
from core.records import MemberDesired
from core.status import Role

RUNNING_PRIMARY: dict[str, Any] = {
    "state": EngineState.RUNNING,
    "role": Role.PRIMARY,
    "leads": True,
    "writable": True,
    "restart_id": 0,
    "settled": True,
    "settled_at": 100.0,
}


def desired(**fields: Any) -> MemberDesired:
    return MemberDesired(project="demo", instance="orders", member="m1", node="n1", **fields)


@pytest.mark.parametrize(
    ("wanted", "differing", "now", "step"),
    [
        pytest.param({}, {}, 101.0, Step.NOTHING, id="all is well"),
        pytest.param({}, {}, 100.0 + CONVERGE_EVERY_S, Step.CONVERGE, id="drift is looked for now and then"),
        pytest.param({}, {"settled": False}, 101.0, Step.CONVERGE, id="something changed"),
        pytest.param(
            {}, {"settled": False, "writable": False}, 101.0, Step.NOTHING, id="a doubtful primary is left alone"
        ),
        pytest.param({"restart_id": 1}, {"settled": False}, 101.0, Step.RESTART, id="restart before settings"),
        pytest.param({"restart_id": 1}, {"restart_id": 1}, 101.0, Step.NOTHING, id="a restart is carried out once"),
        pytest.param({"restart_id": 1}, {"writable": False}, 101.0, Step.NOTHING, id="no restart without the lease"),
        pytest.param({}, {"state": EngineState.STARTING, "settled": False}, 101.0, Step.NOTHING, id="not up yet"),
        pytest.param({"desired": "stopped"}, {"settled": False}, 101.0, Step.NOTHING, id="stopping is decide's work"),
        pytest.param({"desired": "absent"}, {}, 101.0, Step.NOTHING, id="a running engine is stopped first"),
        pytest.param(
            {"desired": "absent"}, {"state": EngineState.STOPPED}, 101.0, Step.NOTHING, id="a leader lets go first"
        ),
        pytest.param(
            {"desired": "absent"},
            {"state": EngineState.CRASHED, "leads": False},
            101.0,
            Step.DESTROY,
            id="then it goes",
        ),
        pytest.param(
            {"desired": "absent"},
            {"state": EngineState.ABSENT, "leads": False},
            101.0,
            Step.DESTROY,
            id="leftovers go too",
        ),
    ],
)
def test_next_step(wanted: dict[str, Any], differing: dict[str, Any], now: float, step: Step) -> None:
    assert reconcile(desired(**wanted), Observed(**{**RUNNING_PRIMARY, **differing}), now) is step
