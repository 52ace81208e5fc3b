"""How failures of the one long operation are counted and paced."""

from __future__ import annotations

import pytest

from agent.ha.operations import RETRY_FIRST_S, RETRY_MAX_S, Operations
from agent.ha.view import OperationKind
from core.clock import SystemClock


def failed(*kinds: OperationKind | None) -> Operations:
    operations = Operations(SystemClock(), lambda: None)
    for kind in kinds:
        operations.note_failure("it failed", kind=kind)
    return operations


START, STOP, CLONE = OperationKind.START, OperationKind.STOP, OperationKind.CLONE


@pytest.mark.parametrize(
    ("kinds", "starts"),
    [
        ((), 0),
        ((START, START), 2),
        ((START, OperationKind.PROMOTE), 2),
        ((STOP, STOP), 2),
        ((CLONE, CLONE, CLONE), 0),
        ((CLONE, CLONE, START), 1),
        ((START, START, CLONE, START), 1),
        ((None, None, None, START), 1),
        ((START, STOP), 1),
    ],
)
def test_only_failures_of_the_same_kind_of_work_count_against_the_engine(
    kinds: tuple[OperationKind | None, ...], starts: int
) -> None:
    """A copy or settings that failed before say nothing about whether the engine starts: else it would be copied anew
    without need."""
    assert failed(*kinds).failed_starts == starts


def test_a_success_ends_the_count() -> None:
    operations = failed(START, START)
    operations.note_success()
    assert (operations.failed_starts, operations.failures) == (0, 0)


def test_the_pause_grows_whatever_fails() -> None:
    now = SystemClock().now()
    assert failed(START).retry_at - now == pytest.approx(RETRY_FIRST_S, abs=0.5)
    assert failed(START, CLONE, START, CLONE).retry_at - now == pytest.approx(8 * RETRY_FIRST_S, abs=0.5)
    assert failed(*[START] * 20).retry_at - now == pytest.approx(RETRY_MAX_S, abs=0.5)
