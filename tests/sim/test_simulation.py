"""Twenty thousand worlds, each from its seed. `./dev sim --seeds N --first S` runs as many as one likes."""

from __future__ import annotations

import os

import pytest

from agent.ha.actions import Reason
from tests.sim import pool
from tests.sim.__main__ import told
from tests.sim.scenario import Scenario

SEEDS = int(os.environ.get("MOORAGE_SIM_SEEDS", "20000"))
MANY = 20_000
JOBS = 2
TOLD_MAX = 3
# What needs a situation the troubles do not make.
NOT_SHOWN = frozenset(
    {
        Reason.FOREIGN_DATA,
        Reason.GIVES_UP_FOREIGN,
        Reason.GIVES_UP_STOPPED,
        Reason.GIVES_UP_UNFIT,  # no disk is ever full
        Reason.LEADER_UNKNOWN,
        Reason.POSITION_UNKNOWN,  # a log is never empty
        # no instance is a standby instance
        Reason.BOOTSTRAPS_STANDBY,
        Reason.COPIES_AGAIN,
        Reason.COPIES_REMOTE,
        Reason.FOLLOWS_REMOTE,
        Reason.PROBES_REMOTE,
        Reason.PROMOTED_BY_HAND,
        Reason.REJOINS_REMOTE,
        Reason.REMOTE_SILENT,
        Reason.STARTS_STANDBY,
        Reason.STEADY_STANDBY,
    }
)


@pytest.fixture(scope="module")
def totals() -> pool.Totals:
    """Of the whole run, which every test of this module looks at from its side."""
    totals = pool.run(1, SEEDS, jobs=JOBS, keep_going=True)
    print(totals.told())
    return totals


@pytest.mark.timeout(1800)
def test_the_invariants_hold_through_any_trouble(totals: pool.Totals) -> None:
    assert totals.seeds == SEEDS
    assert not totals.failed, "\n\n".join(told(outcome) for outcome in totals.failed[:TOLD_MAX])


@pytest.mark.timeout(1800)
def test_a_run_is_full_of_troubles_failovers_and_writes(totals: pool.Totals) -> None:
    assert totals.faults.total() > 3 * SEEDS, totals.told()
    assert totals.failovers > SEEDS / 6, totals.told()
    assert totals.handovers > SEEDS / 20, totals.told()
    assert totals.acked > 20 * SEEDS, totals.told()


@pytest.mark.timeout(1800)
def test_the_troubles_lead_to_nearly_every_reason(totals: pool.Totals) -> None:
    """The whole run shows fourteen of fifteen, a fifth of it nine of ten; the tables of `decide` show them all."""
    rare = {reason.name for reason in Reason if not totals.reasons[reason]} - {reason.name for reason in NOT_SHOWN}
    assert len(rare) <= (len(Reason) - len(NOT_SHOWN)) // (15 if SEEDS >= MANY else 10), sorted(rare)


def test_a_seed_replays_exactly() -> None:
    one, other = Scenario(5).run(), Scenario(5).run()
    assert one == other
