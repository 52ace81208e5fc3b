"""Which nodes are silent: from which alive hub hears which node, over time, to verdicts.

Every hub publishes the set of nodes it hears (`hubs/<hub>`, leased). A node is taken out of that set by its own hub
once it has said nothing for the silence window, so a set that *drops* a node is a verdict, and it counts at once.
Missing evidence is not: a node is excused for one window plus the reconnect spread

- when its hub's whole record vanishes (the hub died, was restarted, or lost its etcd lease): its agents are on their
  way to another;
- when the judge has never seen the node before: it has just enrolled, or the judge itself has just begun (the hub was
  started, or the controllers' claim has moved to it).

So the restart of a hub, of all hubs or of etcd degrades nothing. A node that is heard by any hub is never silent.

The judge remembers only `Memory`, a value handed in and out; a new one (`Memory()`) holds every verdict for one grace.
Times are monotonic seconds of the judging hub.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from core.records import HubRecord
from hub.judges.assemble import Versioned

RECONNECT_SPREAD_S = 15.0  # the agents' longest pause between attempts to reach a hub (their back-off's cap)


@dataclass(frozen=True, slots=True)
class Memory:
    """What the judge knew after its last look: who was heard by which hub, and until when a node is excused."""

    heard_by: Mapping[str, frozenset[str]] = field(default_factory=dict)  # hub -> nodes
    excused_until: Mapping[str, float] = field(default_factory=dict)  # node -> monotonic time; every known node


@dataclass(frozen=True, slots=True)
class Verdict:
    """`newly_silent` nodes get a silent/<node> key, `newly_heard` ones lose it. `memory` goes into the next look.

    `look_again_at`: when the next excuse of an unheard node ends; None while every node is heard or judged.
    """

    newly_silent: frozenset[str]
    newly_heard: frozenset[str]
    memory: Memory
    look_again_at: float | None = None


def grace_s(silent_after_s: float) -> float:
    """How long missing evidence is excused."""
    return silent_after_s + RECONNECT_SPREAD_S


def evidence(hubs: Mapping[str, Versioned[HubRecord]], *, own: str, heard: Set[str]) -> dict[str, Set[str]]:
    """`heard_by` for `judge_silence`: the other hubs' records from etcd, and what this hub itself (`own`) hears now.

    A hub is told from its former life by its key's create_revision (a starting hub deletes what it left behind), so a
    hub that restarts under its old name with an empty set reads as one that vanished, not as one that drops its nodes.
    """
    others = {f"{name}@{hub.create_revision}": frozenset(hub.record.nodes) for name, hub in hubs.items() if name != own}
    return {**others, own: heard}


def judge_silence(
    *,
    nodes: Set[str],
    silent: Set[str],
    heard_by: Mapping[str, Set[str]],
    memory: Memory,
    silent_after_s: float,
    now: float,
) -> Verdict:
    """`nodes` are all nodes that are enrolled, `silent` those marked so in etcd, `heard_by` the nodes each alive hub
    hears, as `evidence` gives it. A silent mark of a node that is not enrolled
    any more counts as newly heard: there is nothing left to be silent."""
    heard: frozenset[str] = frozenset().union(*heard_by.values())
    until = now + grace_s(silent_after_s)
    orphans = _orphans(memory.heard_by, heard_by)
    excused: dict[str, float] = {}
    for node in nodes:
        if node in heard:
            excused[node] = 0.0
        elif node in orphans or node not in memory.excused_until:
            excused[node] = until
        else:
            excused[node] = memory.excused_until[node]
    pending = [at for node, at in excused.items() if at > now and node not in silent]
    return Verdict(
        newly_silent=frozenset(node for node, at in excused.items() if node not in heard and at <= now) - silent,
        newly_heard=frozenset(node for node in silent if node in heard or node not in nodes),
        memory=Memory({hub: frozenset(of_hub) for hub, of_hub in heard_by.items()}, excused),
        look_again_at=min(pending, default=None),
    )


def _orphans(before: Mapping[str, Set[str]], after: Mapping[str, Set[str]]) -> frozenset[str]:
    """Nodes whose hub is gone since the last look."""
    return frozenset().union(*(of_hub for hub, of_hub in before.items() if hub not in after))
