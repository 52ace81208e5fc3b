"""Does anything notice when a guard is missing?"""

from __future__ import annotations

import importlib
import inspect

import pytest

from tests.sim.checkers import Violation
from tests.sim.mutations import MUTATIONS, UNIT, Mutation, mutated
from tests.sim.scenario import LONG_EVERY, Scenario


@pytest.mark.parametrize("mutation", [m for m in MUTATIONS if m.seeds], ids=lambda m: m.name)
def test_the_simulator_misses_the_guard(mutation: Mutation) -> None:
    long = range(LONG_EVERY, LONG_EVERY * (mutation.seeds + 1), LONG_EVERY)
    seeds = (*([mutation.seed] if mutation.seed else []), *long)
    with mutated(mutation):
        assert any(Scenario(seed).run().violation for seed in seeds), mutation.why


@pytest.mark.parametrize("mutation", [m for m in MUTATIONS if m.stories], ids=lambda m: m.name)
def test_a_story_misses_the_guard(mutation: Mutation) -> None:
    for story in mutation.stories:
        module, _, name = story.partition(":")
        tell = getattr(importlib.import_module(module), name)
        tell()
        with mutated(mutation), pytest.raises((Violation, AssertionError)):
            tell()


def test_every_guard_is_missed_by_somebody() -> None:
    assert len(MUTATIONS) >= 25
    assert all(mutation.seeds or mutation.stories or mutation.tables for mutation in MUTATIONS)


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
