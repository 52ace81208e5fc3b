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
    """Who misses the guard: one of the first `seeds` long seeds of the simulator (`seed` was the one when it was last
    looked for), a test of `tests.sim` in `stories`, or a case of a unit test module in `tables`.

    `why`: what goes wrong without it.
    """

    name: str
    module: str
    old: str
    new: str
    why: str
    seeds: int = 0
    seed: int = 0
    stories: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()


UNIT = "tests.unit.agent."
SIM = "tests.sim."
WOUNDS = SIM + "test_wounds:"
HANGS = SIM + "test_stories:test_an_etcd_leader_that_hangs_does_not_keep_an_old_primary"
MUTATIONS = (
    Mutation(
        name="sync set changed while a handover stops the engine",
        module="agent.ha.decide",
        old="view.operation.kind is not OperationKind.HANDOVER or view.closing or not leads(view, now):",
        new="view.operation.kind is not OperationKind.HANDOVER or not leads(view, now):",
        why="the setting of an engine that is being stopped is nobody's business",
        tables=("test_decide",),
    ),
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
        old="met = era.k - (len(era.names) - len(named))",
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
        seeds=300,
        tables=("test_syncset",),
    ),
    Mutation(
        name="recorded before the standbys have caught up",
        module="agent.ha.syncset",
        old="if len(flushed) >= target.k or",
        new="if True or",
        why="commits of before the setting are not where the record says",
        seeds=300,
        tables=("test_syncset",),
    ),
    Mutation(
        name="acknowledges before its era is on record",
        module="agent.ha.syncset",
        old="    if own is None or not implies(target, own):\n        k = ",
        new="    if False:\n        k = ",
        why="an election covers what the former leaders acknowledged, and not what this one did",
        seeds=600,
        tables=("test_eras", "test_syncset"),
    ),
    Mutation(
        name="eras ended before the standbys have caught up",
        module="agent.ha.syncset",
        old="    if len(flushed) >= target.k:\n",
        new="    if True:\n",
        why="commits of former leaders are not where the record says",
        tables=("test_eras",),
    ),
    Mutation(
        name="one era covered for all",
        module="agent.ha.election",
        old="bounds.append(max(min(found) for found in each))",
        new="bounds.append(min(min(found) for found in each))",
        why="who has the commits of a former leader may lack those of the last one",
        tables=("test_eras",),
    ),
    Mutation(
        name="eras kept when somebody is forced to lead",
        module="hub.etcd.txns",
        old=" or not knows_eras or _by_force(ha, member):",
        new=" or not knows_eras:",
        why="the record speaks of commits that the new leader may not have",
        tables=("test_eras",),
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
        old="if forced_away(view) and not goes_in_order(view, now):",
        new="if False:",
        why="the leader that is to go stays",
        tables=("test_decide",),
    ),
    Mutation(
        name="forced leader hands over for as long as it likes",
        module="agent.ha.leading",
        old="in_time = 0.0 < view.forced_since <= now < view.forced_since + IN_ORDER_S",
        new="in_time = 0.0 < view.forced_since <= now",
        why="an order that is to work when nothing else does waits for what does not end",
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
    Mutation(
        name="a standby instance is opened by an election",
        module="agent.ha.leading",
        old="if is_standby(view):",
        new="if False:",
        why="a member is promoted while the remote primary goes on: two logs, and both with writes",
        tables=("test_decide_standby",),
    ),
    Mutation(
        name="what was promoted by hand goes on",
        module="agent.ha.standby",
        old="if engine.state in UP:",
        new="if False:",
        why="an engine of a standby instance accepts writes that nobody else gets",
        tables=("test_decide_standby",),
    ),
    Mutation(
        name="a remote primary that lacks log is followed for ever",
        module="agent.ha.standby",
        old="return any(engine.position.lsn > lsn for lsn in left_at)",
        new="return False",
        why="after a failover over there nothing arrives any more",
        tables=("test_decide_standby",),
    ),
    Mutation(
        name="renewed without a read after it",
        module="tests.sim.hub_model",
        old="self.trusts_answer = False",
        new="self.trusts_answer = True",
        why="an etcd leader that hangs confirms a lease that its successor has ended",
        stories=(HANGS,),
    ),
    Mutation(
        name="renewal read in a later raft term",
        module="tests.sim.hub_model",
        old="self.trusts_keepalive = False",
        new="self.trusts_keepalive = True",
        why="the keepalive was answered by another etcd leader than the read",
        stories=(HANGS,),
    ),
    Mutation(
        name="route without an end",
        module="agent.routing",
        old="expires_at_s=trust.until,",
        new="expires_at_s=trust.until + 60.0,",
        why="clients reach the engine of a frozen node that thaws",
        seeds=600,
        seed=1020,
        tables=("test_routing",),
    ),
    Mutation(
        name="handed over before the target has everything",
        module="tests.sim.agent_model",
        old="if seen.position >= position and seen.role is Role.REPLICA:",
        new="if True:",
        why="the successor needs no ballots, for it is said to have every byte",
        stories=(WOUNDS + "test_who_lacks_the_last_commits_is_not_handed_the_leadership",),
    ),
    Mutation(
        name="record kept by a new leader",
        module="hub.etcd.txns",
        old="    if member == ha.leader:\n        return sync\n",
        new="    if True:\n        return sync\n",
        why="the record speaks of the former leader's standbys, and of the new leader as one",
        seeds=300,
        seed=10,
    ),
    Mutation(
        name="opened as its mode allows before the record does",
        module="tests.sim.agent_model",
        old='mode if mode == recorded else "sync"',
        new='"async"',
        why="commits are acknowledged that nobody but the leader has",
        seeds=300,
        seed=30,
    ),
    Mutation(
        name="term not compared",
        module="hub.etcd.txns",
        old="            ModIs(keys.ha(ref), ha_revision),\n            ModIs(keys.node",
        new="            ModIs(keys.node",
        why="an election of long ago makes a leader in a term that was led already",
        stories=(WOUNDS + "test_who_saw_an_earlier_term_does_not_lead",),
    ),
    Mutation(
        name="leader key not compared",
        module="hub.etcd.txns",
        old="        compares=(\n            ModIs(keys.leader(ref), 0),\n",
        new="        compares=(\n",
        why="who did not hear of a leader replaces it while it leads",
        stories=(WOUNDS + "test_who_did_not_see_that_another_leads_does_not_lead",),
    ),
    Mutation(
        name="spent term forgotten over a restart",
        module="tests.sim.agent_model",
        old="self.restores_spent = True",
        new="self.restores_spent = False",
        why="a Release that arrives late takes the leadership from under a running primary",
        stories=(WOUNDS + "test_a_term_that_is_given_up_is_not_led_again_by_a_restarted_agent",),
    ),
    Mutation(
        name="renewed by a lease that another instance hangs on",
        module="tests.sim.agent_model",
        old=" and self.memory.lease_id == self.shell.lease_id",
        new="",
        why="the leader key's own lease ends while the old primary goes on",
        stories=(WOUNDS + "test_a_lease_that_only_another_instance_hangs_on_keeps_no_leadership",),
    ),
    Mutation(
        name="promise to a leader that was forced away",
        module="agent.ha.election",
        old="if ha.forced is not None and ha.forced.after_term >= term:",
        new="if False:",
        why="a primary that lives by promises never gives way to whom an operator forced to lead",
        stories=(WOUNDS + "test_an_order_to_force_somebody_ends_a_leadership_that_lives_by_promises",),
    ),
    Mutation(
        name="forced failover good for any term",
        module="agent.ha.leaderless",
        old="ha.forced.after_term == ha.term and now",
        new="True and now",
        why="an order that was meant for one election decides another",
        tables=("test_decide_leaderless",),
    ),
    Mutation(
        name="ballot of an older timeline",
        module="agent.ha.election",
        old="b.timeline >= heard.timeline and",
        new="True and",
        why="a member that never followed the last leader takes over",
        tables=("test_election",),
    ),
    Mutation(
        name="ballots not waited for",
        module="agent.ha.election",
        old="if missing and leaderless_for < WINDOW_S:",
        new="if False:",
        why="the first to vote leads, not the furthest",
        tables=("test_election",),
    ),
    Mutation(
        name="lag not bounded",
        module="agent.ha.election",
        old="heard.lsn.value - b.lsn <= max_lag_bytes",
        new="True",
        why="a member takes over that lacks more than max_failover_lag",
        tables=("test_election",),
    ),
    Mutation(
        name="ballots of members that must not lead",
        module="agent.ha.election",
        old="able = [b for b in fit if not b.no_failover and",
        new="able = [b for b in fit if",
        why="a member that operators barred takes over",
        tables=("test_election",),
    ),
    Mutation(
        name="old leader's word taken from anybody",
        module="agent.ha.election",
        old="return ballot.was_leader and ballot.member == ha.leader",
        new="return True",
        why="any ballot bounds what was acknowledged",
        tables=("test_election",),
    ),
    Mutation(
        name="deadline counted from the answer",
        module="agent.ha.leaseclock",
        old="self._held_until = max(self._held_until, sent_at + ttl_s - margin_s(ttl_s))",
        new="self._held_until = max(self._held_until, sent_at + ttl_s * 1.2)",
        why="the way of the request is not time that the lease lasts",
        tables=("test_leaseclock",),
    ),
    Mutation(
        name="promise relied on for too long",
        module="agent.ha.leaseclock",
        old="self._granted_until = max(self._granted_until, asked_at + promise_s - margin_s(promise_s))",
        new="self._granted_until = max(self._granted_until, asked_at + promise_s * 1.5)",
        why="the peers stand again while the old primary goes on",
        tables=("test_leaseclock",),
    ),
    Mutation(
        name="streams from where its log has parted",
        module="agent.ha.following",
        old="        return engine.position.lsn.value > left_at",
        new="        return False",
        why="a member that has diverged is never rewound",
        tables=("test_decide_following",),
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
