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
    """Copy the data directory from `source` and start as replica. The leader is asked for its leave in any case."""

    source: str


@dataclass(frozen=True, slots=True)
class Rejoin:
    """Make a diverged or former primary data directory follow `leader`: rewind, else clone; then start as replica.

    `anew`: clone in any case, for the numbers of the timelines mean different logs on both sides."""

    leader: str
    anew: bool = False


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
    """Make the running replica the primary, on a new timeline whose number is higher than `above`."""

    term: int
    above: int = 0


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
    """Let the running replica stream from `upstream`."""

    upstream: str


@dataclass(frozen=True, slots=True)
class Detach:
    """Let the running replica stream from nobody, so that its position is final: no old primary gets its flush."""


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
class TellOpened:
    """Add to the history that commits are acknowledged in `term`, and how long it took."""

    term: int


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
    | TellOpened | AskPeers | ProbeTimeline
)  # fmt: skip
Action = Long | Short


class Reason(Enum):
    """Why; the value is the sentence for log, event and `explain`, `Decision.detail` names whom or what it is about."""

    # in any role
    BUSY = "waits for the running operation"
    WAITS_FOR_HUB = "waits for the hub's first word about the instance"
    VIEW_OLDER = "waits for news: what the hub told is older than what this member knows"
    FOREIGN_DATA = (
        "the data directory belongs to another database and is left alone; move it away to have it cloned anew"
    )
    STOPS = "stops, as desired"
    STAYS_DOWN = "is down, as desired"
    RETRIES_LATER = "waits before it tries again what failed"
    STARTS = "waits for the engine to accept connections"
    ENGINE_HUNG = "stops an engine that does not answer"

    # fence
    LEASE_OVER = "must not accept writes: the lease has run out"
    SUPERSEDED = "must not accept writes: another member has led since"

    # leads
    STEADY_PRIMARY = "leads and accepts writes"
    INITIALISES = "leads a new instance and initialises it"
    DATA_LOST = "leads but has lost its data, gives the leadership up"
    GIVES_UP_STOPPED = "gives the leadership up: it is to be down"
    GIVES_UP_FOREIGN = "gives the leadership up: its data belongs to another database"
    GIVES_UP_CRASHED = "gives the leadership up after a crash: others can take over at once"
    FORCED_AWAY = "gives the leadership up: an operator forced another member to lead"
    GIVES_UP_UNFIT = "gives the leadership up: its disk takes no more, and another member has room"
    GIVES_UP_SPENT = "gives a leadership up that it may not use any more"
    RESTARTS_IN_PLACE = "leads and starts its engine"
    LEARNS_POSITION = "leads with a replica's data, starts it to promote it"
    ENGINE_SILENT = "leads with an engine that does not answer; nobody could take over"
    PROMOTES = "leads and promotes its engine"
    PROMISED_TO_OTHER = "leads but has promised an older primary to wait"
    LEASE_UNCONFIRMED = "waits for the hub to confirm the lease it led by"
    RECORDS_IDENTITY = "leads and records which database it is"
    ASKS_PEERS = "leads, does not hear from the hub, asks the other members whether it may go on"
    HANDS_OVER = "leads and hands over"
    SWITCHOVER_WAITS = "leads, a switchover waits for its target"
    SWITCHOVER_ENDED = "leads and ends a switchover that cannot be met"
    RECORDS_SYNC = "leads and records its sync set"
    APPLIES_SYNC = "leads and puts its sync set in force"
    SYNC_CATCHES_UP = "leads, the sync set waits for its standbys to catch up"
    TELLS_OPENED = "leads, acknowledges commits, and tells how long that took"
    TOO_FEW_STANDBYS = "leads, but commits wait: too few standbys stream"

    # leads a standby instance
    STEADY_STANDBY = "leads a standby instance and follows its remote primary"
    COPIES_REMOTE = "leads a standby instance and copies the remote primary's data"
    STARTS_STANDBY = "leads a standby instance and starts its engine, as replica of the remote primary"
    FOLLOWS_REMOTE = "leads a standby instance and turns to its remote primary"
    REMOTE_SILENT = "leads a standby instance, waits for the stream from its remote primary"
    PROBES_REMOTE = "leads a standby instance, does not stream, compares its history with the remote primary's"
    REJOINS_REMOTE = "leads a standby instance, has log that the remote primary went on without, and copies it anew"
    PROMOTED_BY_HAND = (
        "leads a standby instance whose engine was promoted by hand, and keeps it down; "
        "promote the instance to go on with this data"
    )

    # another member leads
    STEADY_REPLICA = "follows the leader"
    LEADER_UNKNOWN = "waits: the leader is not among the members"
    WAITS_FOR_LEADER = "waits for the leader to run as primary"
    CLONES = "copies the leader's data"
    REJOINS_AS_FORMER = "was primary in an earlier term and rejoins as replica"
    REJOINS_DIVERGED = "has written-ahead log that the leader never had, and rejoins"
    REJOINS_OTHER_LOG = "has followed a leader that the present one never knew, and copies the data anew"
    REJOINS_BROKEN = "cannot start or stream from what it has, and rejoins"
    STARTS_REPLICA = "starts as replica of the leader"
    FOLLOWS = "turns to another member to stream from"
    CONNECTS = "waits for the stream from the leader"
    CASCADES = "follows the leader through another replica"
    CONNECTS_TO_REPLICA = "waits for the stream from another replica"
    PROBES = "does not stream, compares its history with the leader's"

    # nobody leads
    BOOTSTRAPS = "takes the leadership of a new instance to initialise it"
    BOOTSTRAPS_STANDBY = "takes the leadership of a new standby instance to copy the remote primary's data"
    WAITS_FOR_BOOTSTRAP = "waits for the first member to initialise the instance"
    RESUMES = "is the primary still and takes the leadership again"
    SUCCEEDS = "was handed the leadership and takes it"
    AWAITS_SUCCESSOR = "nobody leads, waits for the member that was handed the leadership"
    FORCED = "takes the leadership because an operator forced it to"
    AWAITS_FORCED = "nobody leads, waits for the member that an operator forced to lead"
    COPIES_AGAIN = "takes the leadership of a standby instance whose data is lost, to copy it anew"
    PAUSED = "nobody leads, and automatic failover is paused"
    LEADS_AGAIN = "led last and takes the leadership again, for automatic failover is paused"
    NO_DATA = "nobody leads, and this member has no data to stand with"
    OUTDATED = "nobody leads, and this member's data is of an earlier leader than the last"
    PROMISED = "nobody leads, but this member has promised the last primary to wait"
    MAY_HAVE_PROMISED = "nobody leads, but this agent is too young to know what it has promised"
    LOST_TOUCH = "nobody leads, and this member lost the last leader's stream while that still led: its lag is unknown"
    STANDS_BACK = "gave the leadership up and lets others stand first"
    STARTS_TO_STAND = "nobody leads, starts as replica of nobody to learn its position"
    POSITION_UNKNOWN = "nobody leads, waits to learn its own position"
    DETACHES = "nobody leads, leaves the old primary before it votes"
    CASTS_BALLOT = "nobody leads, publishes its position"
    AWAITS_BALLOTS = "nobody leads, waits for ballots"
    AWAITS_WINNER = "nobody leads, waits for the elected member"
    TAKES_OVER = "was elected and takes the leadership"
    ELECTION_STUCK = "nobody may lead"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """`wake_at`: monotonic time at which to decide again at the latest. `detail` fills names into the reason."""

    actions: tuple[Action, ...]
    reason: Reason
    wake_at: float
    detail: str = ""
    severity: Literal["info", "warning"] = "info"
