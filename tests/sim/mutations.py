"""Guards taken out one at a time: each must be missed by some seed, else nothing shows that it is needed.

A mutation is a piece of a module's text and what stands there instead. The mutated text is compiled, and the code of the
module's own functions is exchanged while the mutation lasts, so that everybody who has imported them gets it.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any


@dataclass(frozen=True, slots=True)
class Mutation:
    """`seeds` are known to miss the guard. `why`: what goes wrong without it."""

    name: str
    module: str
    old: str
    new: str
    why: str
    seeds: tuple[int, ...] = ()


MUTATIONS = (
    Mutation(
        "fence without margin",
        "agent.ha.leaseclock",
        "return ttl_s * MARGIN",
        "return ttl_s * -0.1",
        "clocks that drift let the old primary outlive its lease",
    ),
    Mutation(
        "no fence at the deadline",
        "agent.ha.decide",
        "    if now >= view.lease.fence_at:\n",
        "    if False:\n",
        "the old primary goes on",
    ),
    Mutation(
        "coverage not checked",
        "agent.ha.election",
        "met = ha.sync.k - (len(ha.sync.names) - len(named))",
        "met = min(1, len(named))",
        "a leader is elected without the ballots that an acknowledged commit may be on",
    ),
    Mutation(
        "shrink the setting first",
        "agent.ha.syncset",
        "    if _implies(target, record):\n        return Apply",
        "    if True:\n        return Apply",
        "the record claims what the engine does not keep any more",
    ),
    Mutation(
        "record before the standbys have caught up",
        "agent.ha.syncset",
        "if len(flushed) >= target.k or",
        "if True or",
        "commits of before the setting are not where the record says",
    ),
    Mutation(
        "promise ignored by candidates",
        "agent.ha.leaderless",
        "if not released and now < view.promised_until:",
        "if False:",
        "two primaries while the hub is away for one of them",
    ),
    Mutation(
        "promise forgotten over a restart",
        "agent.ha.leaderless",
        "if not released and now < young_until:",
        "if False:",
        "two primaries after the restart of an agent that had promised",
    ),
    Mutation(
        "promise ignored by a late leader",
        "agent.ha.leading",
        "if now >= view.promised_until or",
        "if True or",
        "an Acquire that takes effect late makes a second primary",
    ),
    Mutation(
        "release before stop",
        "agent.ha.leading",
        "return act(Fence(), Reason.ENGINE_HUNG, now, warning=True)",
        "return act(Release(view.lease.term), Reason.GIVES_UP_CRASHED, now)",
        "the engine thaws and finds another primary",
    ),
    Mutation(
        "vote without leaving the old primary",
        "agent.ha.leaderless",
        "if engine.streaming or engine.upstream:",
        "if False:",
        "the old primary still gets acknowledgements after the ballots are cast",
    ),
    Mutation(
        "a released term is used again",
        "agent.ha.leaseclock",
        "whether or not the hub learns of it",
        "",
        "",
    ),
    Mutation(
        "a late record replaces a later one",
        "hub.etcd.txns",
        "if sync.seq < ha.sync.seq or (sync.seq == ha.sync.seq and sync != ha.sync):",
        "if False:",
        "a request that was held up brings back an old claim",
    ),
    Mutation(
        "setting changed while a record is under way",
        "agent.ha.syncset",
        "    if sent.seq > record.seq:\n        return Record(sync=sent)\n",
        "",
        "the record in etcd is not the one that the setting was checked against",
    ),
    Mutation(
        "timeline numbers trusted",
        "agent.ha.following",
        "return any(0 < c.timeline < own",
        "return any(False and 0 < c.timeline < own",
        "two logs under one timeline number are mixed",
    ),
    Mutation(
        "lag unknown but stands",
        "agent.ha.leaderless",
        'if ha.sync.mode == "async" and ha.leader != view.me and _lost_touch(view):',
        "if False:",
        "a replica that lost the stream long ago takes over with everything since missing",
    ),
    Mutation(
        "one promise taken for all",
        "agent.ha.leaseclock",
        "at = self._granted.get(all_granted)",
        "at = now + ASK_TIMEOUT_S",
        "a proxy sends clients to a primary that nobody else lets go on",
    ),
    Mutation(
        "data started though another leads since",
        "agent.ha.decide",
        "if _superseded(view):",
        "if False:",
        "",
    ),
)


@contextmanager
def mutated(mutation: Mutation) -> Iterator[None]:
    """With the guard taken out."""
    module = importlib.import_module(mutation.module)
    source = inspect.getsource(module)
    assert source.count(mutation.old) == 1, f"{mutation.name}: the text is there {source.count(mutation.old)} times"
    changed = dict(module.__dict__)
    exec(compile(source.replace(mutation.old, mutation.new), module.__file__ or "", "exec"), changed)  # noqa: S102
    before = [(function, function.__code__) for function in functions(module.__dict__, module)]
    after = {function.__qualname__: function.__code__ for function in functions(changed, module)}
    try:
        for function, _ in before:
            function.__code__ = after[function.__qualname__]
        yield
    finally:
        for function, code in before:
            function.__code__ = code


def functions(names: dict[str, Any], module: ModuleType) -> Iterator[FunctionType]:
    """The functions and methods that the module defines itself."""
    for thing in names.values():
        if isinstance(thing, FunctionType) and thing.__module__ == module.__name__:
            yield thing
        elif inspect.isclass(thing) and thing.__module__ == module.__name__:
            for method in vars(thing).values():
                if isinstance(method, FunctionType) and method.__module__ == module.__name__:
                    yield method
