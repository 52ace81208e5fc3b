"""A few hundred worlds, each from its seed. `python -m tests.sim --seeds N --first S` runs as many as one likes."""

from __future__ import annotations

import pytest

from agent.ha.actions import Reason
from tests.sim.scenario import Outcome, Scenario

SEEDS = 200
AT_ONCE = 20
# What needs a situation the troubles do not make.
NOT_SHOWN = frozenset(
    {
        Reason.FOREIGN_DATA,
        Reason.STOPS,
        Reason.STAYS_DOWN,
        Reason.SUPERSEDED,
        Reason.DATA_LOST,
        Reason.GIVES_UP_STOPPED,
        Reason.GIVES_UP_FOREIGN,
        Reason.POSITION_UNKNOWN,  # a log is never empty
        Reason.LEADER_UNKNOWN,
    }
)


def told(outcome: Outcome) -> str:
    lines = [f"{at:9.3f}  {line}" for at, line in outcome.diary[-60:]]
    again = f"python -m tests.sim --seeds 1 --first {outcome.seed}"
    return "\n".join([*lines, f"{outcome.shape}", f"{outcome.violation}", f"again: {again}"])


@pytest.mark.parametrize("first", range(1, SEEDS + 1, AT_ONCE))
def test_the_invariants_hold_through_any_trouble(first: int) -> None:
    for seed in range(first, first + AT_ONCE):
        outcome = Scenario(seed).run()
        assert not outcome.violation, told(outcome)
        assert outcome.acked > 0, told(outcome)


def test_a_seed_replays_exactly() -> None:
    one, other = Scenario(5).run(), Scenario(5).run()
    assert one == other


def test_the_troubles_lead_to_most_reasons() -> None:
    shown = frozenset().union(*(Scenario(seed).run().reasons for seed in range(1, 31)))
    rare = set(Reason) - shown - NOT_SHOWN
    assert len(rare) < 12, sorted(reason.name for reason in rare)
