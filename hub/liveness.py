"""Who has been heard of, and what they said last. Memory only: heartbeats never touch etcd.

What it does not know, it does not guess: after a hub's start it has heard of nobody, and `hub.judges.health` makes of
that "no verdict yet". A hub that was itself stopped for a while (a paused virtual machine, a blocked event loop) has no
right to call others silent for that time: `forgive` moves everything heard forward by the hub's own absence.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.clock import Clock
from core.ids import MemberRef
from core.status import MemberState, Role


@dataclass(frozen=True, slots=True)
class MemberSample:
    """How one member was at its node's last heartbeat."""

    ref: MemberRef
    state: MemberState
    role: Role
    timeline: int
    lsn: int  # written (primary) or received (replica)
    lag_bytes: int  # replicas only
    connections: int
    data_bytes: int  # 0 = not measured


@dataclass(frozen=True, slots=True)
class NodeSample:
    """What a node said in its last heartbeat. `at` is the hub's monotonic time of its arrival."""

    at: float
    boot_id: str
    seq: int
    cpu_used: float  # 0.0 to 1.0 of all cores
    memory_used_bytes: int
    disk_used_bytes: int
    applied_revision: int  # mark of the desired state it has applied
    members: tuple[MemberSample, ...]


class Liveness:
    """Last signs of life by node. Bounded by the number of enrolled nodes: whoever leaves is forgotten."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last: dict[str, float] = {}
        self.samples: dict[str, NodeSample] = {}

    def heard(self, node: str, now: float) -> None:
        """The node gave a sign of life at `now` (monotonic)."""
        self._last[node] = now

    def sampled(self, node: str, sample: NodeSample) -> None:
        """The node gave a sign of life with facts."""
        self._last[node] = sample.at
        self.samples[node] = sample

    def last_heard(self, node: str) -> float | None:
        """Monotonic time; None = never by this hub."""
        return self._last.get(node)

    def heard_within(self, window_s: float) -> set[str]:
        """Nodes heard at most `window_s` seconds ago."""
        since = self._clock.now() - window_s
        return {node for node, at in self._last.items() if at >= since}

    def forget(self, node: str) -> None:
        """The node has left."""
        self._last.pop(node, None)
        self.samples.pop(node, None)

    def forget_all_but(self, nodes: frozenset[str]) -> None:
        for node in self._last.keys() - nodes:
            self.forget(node)

    def forgive(self, absence_s: float) -> None:
        """This hub itself was away for so long: nobody's silence during that time counts."""
        for node in self._last:
            self._last[node] += absence_s
