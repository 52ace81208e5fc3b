"""Does anything notice when a guard is missing?"""

from __future__ import annotations

import importlib
import inspect

import pytest

from tests.sim.mutations import MUTATIONS, UNIT, Mutation, mutated
from tests.sim.scenario import Scenario


@pytest.mark.parametrize("mutation", [m for m in MUTATIONS if m.seeds], ids=lambda m: m.name)
def test_the_simulator_misses_the_guard(mutation: Mutation) -> None:
    with mutated(mutation):
        outcomes = (Scenario(seed).run() for seed in range(1, mutation.seeds + 1))
        assert any(outcome.violation for outcome in outcomes), mutation.why


@pytest.mark.parametrize("mutation", [m for m in MUTATIONS if m.tables], ids=lambda m: m.name)
def test_a_table_misses_the_guard(mutation: Mutation) -> None:
    modules = [importlib.import_module(UNIT + table) for table in mutation.tables]
    assert not any(fails(module) for module in modules)
    with mutated(mutation):
        assert any(fails(module) for module in modules), mutation.why


def fails(module: object) -> bool:
    """Whether one of the module's cases, or of its tests without parameters, fails."""
    checks = [case.check for case in getattr(module, "CASES", ())]
    checks += [test for name, test in vars(module).items() if name.startswith("test_") and is_plain(test)]
    for check in checks:
        try:
            check()
        except AssertionError:
            return True
    return False


def is_plain(test: object) -> bool:
    return inspect.isfunction(test) and not inspect.signature(test).parameters and not hasattr(test, "hypothesis")
