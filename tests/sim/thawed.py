"""Frozen dataclasses made plain, for the worker processes of long runs only.

A frozen class sets each field by a call, which is a good part of the time of a run. What is simulated stays the same:
the same classes, equal by the same fields; only that nothing would notice a field being set anew. The runs that the
tests make in their own process, with frozen classes, notice that.
"""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any

import agent.ha.actions
import agent.ha.view
import agent.routing
import core.positions
import core.records
import core.routes
import tests.sim.hub_model

MODULES = (
    agent.ha.actions,
    agent.ha.view,
    agent.routing,
    core.positions,
    core.records,
    core.routes,
    tests.sim.hub_model,
)


def thaw() -> None:
    """For the rest of this process."""
    for module in MODULES:
        for kind in _frozen(module):
            kind.__init__ = _plain_init(kind)
            del kind.__setattr__, kind.__delattr__


def _frozen(module: ModuleType) -> list[type[Any]]:
    return [
        thing
        for thing in vars(module).values()
        if isinstance(thing, type)
        and thing.__module__ == module.__name__
        and "__setattr__" in vars(thing)
        and not hasattr(thing, "__post_init__")
    ]


def _plain_init(kind: type[Any]) -> Any:
    """The same parameters and defaults, set field by field."""
    names: dict[str, Any] = {}
    parameters, lines = ["self"], []
    positional = [field for field in dataclasses.fields(kind) if not field.kw_only]
    keyword = [field for field in dataclasses.fields(kind) if field.kw_only]
    for field in (*positional, None, *keyword):
        if field is None:
            parameters += ["*"] if keyword else []
            continue
        name, default, made = field.name, "", field.name
        if field.default is not dataclasses.MISSING:
            names[f"_default_{name}"], default = field.default, f" = _default_{name}"
        elif field.default_factory is not dataclasses.MISSING:
            names[f"_make_{name}"], default = field.default_factory, " = None"
            made = f"_make_{name}() if {name} is None else {name}"
        parameters.append(name + default)
        lines.append(f"    self.{name} = {made}\n")
    exec(f"def __init__({', '.join(parameters)}):\n{''.join(lines) or '    pass'}", names)
    return names["__init__"]
