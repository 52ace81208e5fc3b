"""Guards taken out one at a time: each must be missed, by a seed or a table, else nothing shows that it is needed.

A mutation is a piece of a module's text and what stands there instead. The mutated text is compiled, and the code of
the module's own functions is exchanged while the mutation lasts, so that everybody who has imported them gets it.
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
    """Who misses the guard: one of the first `seeds` of the simulator, or a case of a test module in `tables`.

    `why`: what goes wrong without it.
    """

    name: str
    module: str
    old: str
    new: str
    why: str
    seeds: int = 0
    tables: tuple[str, ...] = ()


UNIT = "tests.unit.agent."
MUTATIONS = (
    Mutation(
        name="fence without margin",
        module="agent.ha.leaseclock",
        old="return ttl_s * MARGIN",
        new="return ttl_s * -0.1",
        why="clocks that drift let the old primary outlive its lease",
        tables=("test_leaseclock",),
    ),
    Mutation(
        name="coverage not checked",
        module="agent.ha.election",
        old="met = ha.sync.k - (len(ha.sync.names) - len(named))",
        new="met = min(1, len(named))",
        why="a leader is elected without the ballots that an acknowledged commit may be on",
        tables=("test_election",),
    ),
    Mutation(
        name="setting shrunk before the record",
        module="agent.ha.syncset",
        old="    if _implies(target, record):\n        return Apply",
        new="    if True:\n        return Apply",
        why="the record claims what the engine does not keep any more",
        seeds=150,
        tables=("test_syncset",),
    ),
    Mutation(
        name="recorded before the standbys have caught up",
        module="agent.ha.syncset",
        old="if len(flushed) >= target.k or",
        new="if True or",
        why="commits of before the setting are not where the record says",
        seeds=150,
        tables=("test_syncset",),
    ),
    Mutation(
        name="setting changed while a record is under way",
        module="agent.ha.syncset",
        old="    if sent.seq > record.seq:\n        return Record(sync=sent)\n",
        new="",
        why="the record in etcd is not the one that the setting was checked against",
        tables=("test_syncset",),
    ),
    Mutation(
        name="promise ignored by a candidate",
        module="agent.ha.leaderless",
        old="if now < view.promised_until and not promise_is_void(view):",
        new="if False:",
        why="two primaries while the hub is away for one of them",
        tables=("test_decide_leaderless",),
    ),
    Mutation(
        name="promise forgotten over a restart",
        module="agent.ha.leaderless",
        old="if not released and now < young_until:",
        new="if False:",
        why="two primaries after the restart of an agent that had promised",
        tables=("test_decide_leaderless",),
    ),
    Mutation(
        name="promise ignored by a late leader",
        module="agent.ha.leading",
        old="if now >= view.promised_until or promise_is_void(view):",
        new="if True:",
        why="an Acquire that takes effect late makes a second primary",
        tables=("test_decide_leading",),
    ),
    Mutation(
        name="promise given after voting",
        module="agent.ha.election",
        old="if view.ballot_term > term or any(b.member == view.me and b.term > term for b in instance.ballots):",
        new="if False:",
        why="the old primary goes on while its successor is being elected",
        tables=("test_election",),
    ),
    Mutation(
        name="one promise taken for all",
        module="agent.ha.leaseclock",
        old="at = self._granted.get(all_granted)",
        new="at = now + ASK_TIMEOUT_S",
        why="a proxy sends clients to a primary that nobody else lets go on",
        tables=("test_leaseclock",),
    ),
    Mutation(
        name="no fence at the deadline",
        module="agent.ha.decide",
        old="    if now >= view.lease.fence_at:\n",
        new="    if False:\n",
        why="the old primary goes on",
        tables=("test_decide",),
    ),
    Mutation(
        name="no fence when another has led since",
        module="agent.ha.decide",
        old="if _superseded(view):",
        new="if False:",
        why="a primary goes on by promises that somebody overrode",
        tables=("test_decide",),
    ),
    Mutation(
        name="released before it is stopped",
        module="agent.ha.leading",
        old="return act(Fence(), Reason.ENGINE_HUNG, now, warning=True)",
        new="return act(Release(view.lease.term), Reason.GIVES_UP_CRASHED, now)",
        why="the engine thaws and finds another primary",
        tables=("test_decide_leading",),
    ),
    Mutation(
        name="released term used again",
        module="agent.ha.leaseclock",
        old="if term <= self.spent or term < self._term:",
        new="if term < self._term:",
        why="a Release that arrives late takes the leadership from under a running primary",
        tables=("test_leaseclock",),
    ),
    Mutation(
        name="lease that is gone renewed by the next one",
        module="agent.ha.leaseclock",
        old="if self._term and self._held_until:",
        new="if self._term:",
        why="a primary on promises takes the node's other leaderships for its own",
        tables=("test_leaseclock",),
    ),
    Mutation(
        name="vote without leaving the old primary",
        module="agent.ha.leaderless",
        old="if engine.streaming or engine.upstream:",
        new="if False:",
        why="the old primary still gets acknowledgements after the ballots are cast",
        tables=("test_decide_leaderless",),
    ),
    Mutation(
        name="old leader followed after voting",
        module="agent.ha.decide",
        old="if view.ballot_term > leader.term:",
        new="if False:",
        why="an old view leads a voter back to the old primary, and its ballot is not final",
        tables=("test_decide",),
    ),
    Mutation(
        name="handed over in an earlier term",
        module="agent.ha.leaderless",
        old="if ha.released_term != ha.term or not ha.handover:",
        new="if not ha.handover:",
        why="a member takes over by the word of somebody who was not the last leader",
        tables=("test_decide_leaderless",),
    ),
    Mutation(
        name="promise ignored by whom an operator forces",
        module="agent.ha.leaderless",
        old="barred = _not_yet(view, now, stands_back=False) or _to_replica(view, now)",
        new="barred = _to_replica(view, now)",
        why="two primaries, because an operator was in a hurry",
        tables=("test_decide_leaderless",),
    ),
    Mutation(
        name="no fence when another is forced to lead",
        module="agent.ha.decide",
        old="if forced_away(view):",
        new="if False:",
        why="the leader that is to go stays",
        tables=("test_decide",),
    ),
    Mutation(
        name="number of a timeline used again",
        module="agent.ha.leading",
        old="above = used if used > engine.position.timeline else 0",
        new="above = 0",
        why="two logs by one number, which no tool can tell apart",
        tables=("test_decide_leading",),
    ),
    Mutation(
        name="election while paused",
        module="agent.ha.leaderless",
        old="if not ha.paused or (ha.released_term == ha.term and ha.handover == view.me):",
        new="if True:",
        why="a failover that an operator has ruled out",
        tables=("test_decide_leaderless",),
    ),
    Mutation(
        name="late record replaces a later one",
        module="hub.etcd.txns",
        old="if sync.seq < ha.sync.seq or (sync.seq == ha.sync.seq and sync != ha.sync):",
        new="if False:",
        why="a request that was held up brings back an old claim",
        tables=("test_syncset",),
    ),
    Mutation(
        name="timeline numbers trusted",
        module="agent.ha.following",
        old="return any(0 < c.timeline < own",
        new="return any(False and 0 < c.timeline < own",
        why="two logs under one timeline number are mixed",
        tables=("test_decide_following",),
    ),
    Mutation(
        name="stands though its lag is unknown",
        module="agent.ha.leaderless",
        old='if ha.sync.mode == "async" and ha.leader != view.me and _lost_touch(view):',
        new="if False:",
        why="a replica that lost the stream long ago takes over with everything since missing",
        tables=("test_decide_leaderless",),
    ),
)


@contextmanager
def mutated(mutation: Mutation) -> Iterator[None]:
    """With the guard taken out."""
    module = importlib.import_module(mutation.module)
    source = inspect.getsource(module)
    assert source.count(mutation.old) == 1, f"{mutation.name}: the text is there {source.count(mutation.old)} times"
    changed = dict(module.__dict__)
    exec(compile(source.replace(mutation.old, mutation.new), module.__file__ or "", "exec"), changed)
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
