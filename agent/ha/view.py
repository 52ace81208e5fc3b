"""Everything one HA decision rests on, gathered by the keeper: frozen, no clock, no I/O.

All times are monotonic seconds of this host. "Known" facts of others come from the hub's view and may be old; facts of
the own engine, lease and promises are exact.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from core.positions import Lsn, WalPosition
from core.records import InstanceView, MemberDesired, PeerMember, SyncRecord
from core.status import Role


class EngineState(StrEnum):
    """The own engine, seen by process, socket and data directory."""

    ABSENT = "absent"  # no usable data directory
    STOPPED = "stopped"  # data directory, no process; it ended as asked
    CRASHED = "crashed"  # data directory, no process; it ended by itself
    STARTING = "starting"  # process, not accepting connections yet
    RUNNING = "running"  # answers queries
    UNRESPONSIVE = "unresponsive"  # process, but has not answered for longer than the limit


class OperationKind(StrEnum):
    """Long work on the own engine; at most one at a time."""

    INITIALISE = "initialise"
    CLONE = "clone"
    REJOIN = "rejoin"
    START = "start"
    STOP = "stop"
    PROMOTE = "promote"
    HANDOVER = "handover"
    FENCE = "fence"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    kind: OperationKind
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Standby:
    """A replica as the own (primary) engine sees it."""

    member: str
    flushed: Lsn
    streaming: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """A timeline's end: `timeline` was left at `lsn`."""

    timeline: int
    lsn: Lsn


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """The own engine."""

    state: EngineState
    role: Role = Role.UNKNOWN  # running: what it says; else what its data directory is set up to be
    position: WalPosition = field(
        default_factory=WalPosition
    )  # primary: written; replica: received; stopped: last known
    clean: bool = False  # stopped as a primary by an orderly shutdown: `position` is all that it ever wrote
    leader_lsn: Lsn = field(default_factory=Lsn)  # replica: the furthest position the primary told it of
    system_id: str = ""
    upstream: str = ""  # replica: the member it is set to stream from
    streaming: bool = False  # replica: it does stream
    standbys: tuple[Standby, ...] = ()  # primary only
    sync: SyncRecord = field(default_factory=SyncRecord)  # primary only: the setting in force in the engine
    leader_forks: tuple[Fork, ...] = ()  # history of the leader's timeline, when it was asked for
    failed_starts: int = 0  # in a row
    failure: str = ""  # why the last operation failed; empty after a success
    failed: OperationKind | None = None  # which operation failed last; None after a success
    retry_at: float = 0.0  # not before this time may a failed operation be tried again
    broken: bool = False  # its data or log cannot be used: only a copy from the leader helps
    hindered: bool = False  # what failed waits for something outside, such as room on the disk: the data is good
    unfit: str = ""  # why it must not become the leader, such as a full disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The leadership this agent may rely on. `term` 0 = none."""

    term: int = 0
    renewed_at: float = 0.0  # when the last confirmed renewal was *sent*
    fence_at: float = 0.0  # past this the engine must not accept writes (lease or failsafe, whichever is later)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Input of `decide`."""

    me: str  # member name
    desired: MemberDesired
    instance: InstanceView | None  # None = the hub has never told
    engine: Engine
    lease: Lease
    ttl_s: float
    operation: Operation | None = None
    started_at: float = 0.0  # of this agent
    hub_seen_at: float = 0.0  # last successful answer of the hub, of any kind
    promised_until: float = 0.0  # granted to a primary over the peer port: do not stand before
    promised_term: int = 0  # in which that primary leads
    asked_peers_at: float = 0.0  # when this primary last asked its peers whether it may go on
    leaderless_since: float = 0.0  # when this agent first saw that nobody leads; 0 = somebody does
    ballot_term: int = 0  # the election this agent has cast its ballot for
    ballot_position: WalPosition = field(default_factory=WalPosition)
    spent_term: int = 0  # highest term given up or lost by this member: a Release of it may be under way, never use it
    fenced_at: float = 0.0  # when this agent last fenced the engine; 0 = not since it last ran
    not_streaming_since: float = 0.0  # since when this running replica streams from nobody; 0 = it streams
    streamed_at: float | None = None  # when this replica was last seen streaming from a leader; None = not in this life
    followed_term: int | None = None  # last term whose log this data is of (led, streamed, copied); kept on disk
    upstream_failed_at: float = 0.0  # when the replica it is to stream from last gave it no stream for a while
    probed_at: float = 0.0  # when the leader was last asked for the history of its timeline
    probe_answered_at: float = 0.0  # when it last answered that
    closing: bool = False  # the handover under way is stopping the engine
    switchover_since: float = 0.0  # when this agent first saw the present switchover request; 0 = there is none
    forced_since: float = 0.0  # when this agent first saw the present order of a forced failover; 0 = there is none
    acquired_at: float = 0.0  # when this agent took the present term; 0 = not in this life
    opened_at: float = 0.0  # when commits were first acknowledged in the term this agent took; 0 = not yet
    opening_told: bool = False  # it is in the history
    stalled: frozenset[str] = frozenset()  # standbys that are behind and have flushed nothing for a while
    sync_sent: SyncRecord | None = None  # last record sent by this life of the agent in this term, however it ended
    sync_base: Lsn = field(default_factory=Lsn)  # a position written after engine.sync was in force; 0 = not settled

    @property
    def peers(self) -> tuple[PeerMember, ...]:
        """The other members."""
        return tuple(m for m in self.instance.members if m.member != self.me) if self.instance else ()

    def peer(self, member: str) -> PeerMember | None:
        return next((m for m in self.peers if m.member == member), None)
