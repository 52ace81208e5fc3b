"""What `decide` can ask for, and why. Every action is performed by exactly one branch of the keeper.

Long actions (`Initialise` ... `Handover`, `Fence`) become the member's one running operation; the others are calls of
milliseconds to the hub, a peer or the engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from core.positions import WalPosition
from core.records import SyncRecord


@dataclass(frozen=True, slots=True)
class Initialise:
    """Make a new, empty database cluster (initdb) and start it as primary."""


@dataclass(frozen=True, slots=True)
class Clone:
    """Copy the data directory from `source` and start as its replica."""

    source: str


@dataclass(frozen=True, slots=True)
class Rejoin:
    """Make a diverged or former primary data directory follow `leader`: rewind, else clone; then start as replica."""

    leader: str


@dataclass(frozen=True, slots=True)
class StartPrimary:
    """Start the stopped engine as primary; only ever asked for by the holder of the leadership."""

    term: int


@dataclass(frozen=True, slots=True)
class StartReplica:
    """Start the stopped engine as replica of `upstream`; empty = of nobody, only to learn its position."""

    upstream: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop the engine in an orderly way (desired state is stopped or absent)."""


@dataclass(frozen=True, slots=True)
class Promote:
    """Make the running replica the primary."""

    term: int


@dataclass(frozen=True, slots=True)
class Handover:
    """Switchover: hold clients, checkpoint, stop, see that `target` has every byte, release; roll back on any doubt."""

    request_id: str
    target: str
    term: int


@dataclass(frozen=True, slots=True)
class Fence:
    """No write may be accepted from now on: withdraw the route, stop the engine at once, kill it if need be."""


@dataclass(frozen=True, slots=True)
class Follow:
    """Let the running replica stream from `leader`."""

    leader: str


@dataclass(frozen=True, slots=True)
class Detach:
    """Let the running replica stream from nobody, so that its position is final: no old primary gets a flush from it."""


@dataclass(frozen=True, slots=True)
class CastBallot:
    """Publish the own position for the election of `term`."""

    term: int
    position: WalPosition
    was_leader: bool


@dataclass(frozen=True, slots=True)
class Acquire:
    """Take the leadership after `after_term`."""

    after_term: int


@dataclass(frozen=True, slots=True)
class Release:
    """Give the leadership of `term` up; the engine accepts no writes."""

    term: int
    handover: str = ""


@dataclass(frozen=True, slots=True)
class RecordSync:
    """Write the sync record to etcd, as leader of `term`."""

    term: int
    sync: SyncRecord


@dataclass(frozen=True, slots=True)
class ApplySync:
    """Put the sync set in force in the engine."""

    sync: SyncRecord


@dataclass(frozen=True, slots=True)
class RecordSystemId:
    """Write the freshly initialised engine's system identifier to etcd."""

    term: int
    system_id: str


@dataclass(frozen=True, slots=True)
class EndSwitchover:
    """Clear a switchover request that is over or cannot be met."""

    term: int
    request_id: str
    note: str


@dataclass(frozen=True, slots=True)
class AskPeers:
    """Failsafe: ask every other member whether this primary may go on without the hub."""

    term: int


@dataclass(frozen=True, slots=True)
class ProbeTimeline:
    """Ask the leader for the history of its timeline, to see whether the own data has diverged."""

    leader: str


Long = Initialise | Clone | Rejoin | StartPrimary | StartReplica | Stop | Promote | Handover | Fence
Short = (
    Follow | Detach | CastBallot | Acquire | Release | RecordSync | ApplySync | RecordSystemId | EndSwitchover
    | AskPeers | ProbeTimeline
)  # fmt: skip
Action = Long | Short


class Reason(Enum):
    """Why; the value is the sentence for log, event and `explain`. The HA author extends this list."""

    STEADY_PRIMARY = "leads and accepts writes"
    STEADY_REPLICA = "follows the leader"
    BUSY = "waits for the running operation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """`wake_at`: monotonic time at which to decide again at the latest. `detail` fills names into the reason."""

    actions: tuple[Action, ...]
    reason: Reason
    wake_at: float
    detail: str = ""
    severity: Literal["info", "warning"] = "info"
