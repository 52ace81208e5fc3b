"""What lies in etcd and travels in polls: frozen values, plain JSON outside, no pydantic inside.

Every record is a standard dataclass so that pure modules and the simulator can use it; `core.codec` checks strangers'
bytes against the same classes with pydantic. Unknown fields are ignored when reading, so that version N reads what N+1
wrote; all fields but names have defaults, so that N+1 reads what N wrote. `*_at` fields are wall seconds for people:
no decision rests on them.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from typing import Any, Literal

from core.routes import CLIENT_UNREAD_S, Pooling, PoolRule
from core.status import Condition, MemberState, Phase, Role

ReplicationMode = Literal["async", "sync", "quorum"]
TlsMode = Literal["off", "prefer", "require"]
DesiredState = Literal["running", "stopped", "absent"]


def to_json(record: Any) -> bytes:
    """One line of JSON with sorted keys: equal records give equal bytes. Takes any dataclass of this module."""
    return json.dumps(record, sort_keys=True, separators=(",", ":"), default=_plain).encode()


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: getattr(value, name) for name in _field_names(type(value))}
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


@cache
def _field_names(kind: type[Any]) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


# --- nodes, projects, instances -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOffer:
    """An engine installation that a node has: `version` is the major, `full_version` such as 15.12."""

    engine: str
    version: int
    full_version: str
    tls: bool  # whether the engine was built with TLS
    bin_dir: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """nodes/<node>: what is known of a node. The agent writes capacity and offers, operators labels and `cordoned`."""

    name: str
    address: str = ""  # data network address: engines, proxy and peer port listen here
    peer_port: int = 0
    zone: str = ""
    region: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    price_per_hour: float = 0.0
    cpu: float = 0.0  # cores
    memory_bytes: int = 0
    disk_bytes: int = 0
    engines: tuple[EngineOffer, ...] = ()
    agent_version: str = ""
    cordoned: bool = False
    certificate_serial: str = ""  # of the newest certificate issued, hexadecimal
    enrolled_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectRecord:
    """projects/<project>: the validated document as given."""

    name: str
    spec: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceRecord:
    """instances/<project>/<instance>: the desired state as validated, and what operators asked beside it."""

    project: str
    name: str
    spec: dict[str, Any]
    generation: int = 1
    restart_id: int = 0  # grows by one with each requested restart
    deleting: bool = False
    created_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberPlace:
    """Which member lives on which node."""

    member: str
    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceStatus:
    """status/<project>/<instance>: written by the controller only, on transitions only."""

    project: str
    name: str
    phase: Phase = Phase.PENDING
    conditions: tuple[Condition, ...] = ()
    observed_generation: int = 0  # the highest generation every member has converged to
    primary: str = ""  # member name; empty while there is none
    members: tuple[MemberPlace, ...] = ()
    rw_port: int = 0
    ro_port: int = 0
    engine_port: int = 0
    since: float = 0.0  # of the phase


# --- members --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Replication:
    """How commits are acknowledged. `k` standbys must confirm (sync: 1); async ignores it."""

    mode: ReplicationMode = "async"
    k: int = 1
    strict: bool = True  # sync and quorum: rather wait than acknowledge without a standby
    max_failover_lag_bytes: int = 1 << 20  # async only: a member further behind does not become primary by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseDesired:
    """A database to exist, its owner, and the extensions in it."""

    name: str
    owner: str
    extensions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class UserDesired:
    """A role with login. Its password travels apart, as a SCRAM verifier in MemberSecrets."""

    name: str
    superuser: bool = False
    roles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientsDesired:
    """How the proxy shares server connections among the instance's clients, and what bounds them: as in
    `core.routes.Route`, whose fields these become."""

    pooling: Pooling = field(default_factory=Pooling)
    pools: tuple[PoolRule, ...] = ()
    clients_max: int = 0
    clients_per_user_max: int = 0
    client_idle_s: float = 0.0
    idle_transaction_s: float = 0.0
    client_unread_s: float = CLIENT_UNREAD_S
    slow_query_ms: int = 0
    observers: tuple[str, ...] = ()
    lag_max_bytes: int | None = None  # a replica further behind is `late`; None = no bound
    splits: bool = False
    split_functions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RemotePrimary:
    """Whom a standby instance follows: a PostgreSQL that is none of its members. The password travels apart."""

    hosts: tuple[str, ...]  # host:port
    user: str
    sslmode: str = "prefer"
    ca: str = ""  # PEM
    slot: str = ""  # empty = none

    def __str__(self) -> str:
        return ", ".join(self.hosts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Followers:
    """Whom an instance lets replicate beside its members."""

    user: str
    networks: tuple[str, ...]  # CIDR


REMOTE = "remote"  # where a member's name stands: the remote primary. Members are m1, m2, ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberDesired:
    """members/<node>/<project>.<instance>.<member>: the agent's whole input for one member."""

    project: str
    instance: str
    member: str
    node: str
    generation: int = 1
    desired: DesiredState = "running"
    engine: str = "postgresql"
    engine_version: int = 0  # major
    cpu: float = 1.0
    memory_bytes: int = 1 << 30
    disk_bytes: int = 10 << 30
    engine_port: int = 0  # the same on every node of the instance
    rw_port: int = 0  # the proxy's read-write port
    ro_port: int = 0  # the proxy's read-only port
    replication: Replication = field(default_factory=Replication)
    parameters: dict[str, str] = field(default_factory=dict)
    databases: tuple[DatabaseDesired, ...] = ()
    users: tuple[UserDesired, ...] = ()
    no_failover: bool = False
    priority: int = 0  # higher is preferred among equally good candidates
    no_load_balance: bool = False  # no reads are routed to it while another replica can serve them
    clone_source: bool = False  # new members rather copy its data than the primary's
    read_weight: int = 1  # its share of the reads, beside those of the other replicas
    upstream: str = ""  # cascading: the member it streams from while that one can serve; empty = the leader
    restart_id: int = 0  # the engine is restarted once for each new number
    hold_s: float = 30.0  # how long the proxy lets a client wait for a primary
    client_tls: TlsMode = "prefer"
    allow: tuple[str, ...] = ()  # client networks in CIDR form; empty = any
    clients: ClientsDesired = field(default_factory=ClientsDesired)
    standby: RemotePrimary | None = None  # of a standby instance
    followers: Followers | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberSecrets:
    """Travels in the poll answer only; in etcd it lies sealed, on the node in a file of mode 0600. No repr."""

    replication_password: str = field(default="", repr=False)
    remote_password: str = field(default="", repr=False)  # at the remote primary of a standby instance
    verifiers: dict[str, str] = field(default_factory=dict, repr=False)  # user -> SCRAM-SHA-256$...


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberNotice:
    """Something to know about a member whether or not it runs, such as a disk that is filling. `reason` is CamelCase,
    `message` holds no figures that run by themselves."""

    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedMember:
    """observed/<node>/<project>.<instance>.<member>: what the agent last reported; transitions only, no LSN."""

    project: str
    instance: str
    member: str
    node: str
    state: MemberState = MemberState.ABSENT
    role: Role = Role.UNKNOWN
    timeline: int = 0
    generation: int = 0  # converged to
    restart_id: int = 0  # carried out
    streaming_from: str = ""  # member name; replicas only
    pending_restart: tuple[str, ...] = ()  # parameters that wait for a restart
    engine_version: str = ""  # such as 18.1
    engine_tls: bool = False
    reason: str = ""  # CamelCase, for FAILED, CRASHED, LAGGING
    message: str = ""
    notices: tuple[MemberNotice, ...] = ()
    unfit: bool = False  # it must not lead as things are, such as on a full disk
    late: bool = False  # a replica that is too far behind to take reads
    since: float = 0.0


# --- leadership -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderRecord:
    """leader/<project>.<instance>, bound to the lease of the holder's node. Absent = nobody leads."""

    member: str
    node: str
    term: int
    lease_id: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Era:
    """Where the commits are that one leader acknowledged: on itself, and on at least `k` of `names`."""

    leader: str
    k: int = 0
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncRecord:
    """Who may hold the last acknowledged commit: every acknowledged commit is on the last leader and on at least `k` of
    `names`. k = 0 says nothing about anybody but the last leader (with no names: only that one may lead by itself).

    `eras`: until a new leader has recorded a set that holds for everything, k is 0, and every commit acknowledged so
    far is of one of these eras. A leader that is in none of them has acknowledged nothing."""

    mode: ReplicationMode = "async"
    k: int = 0
    names: tuple[str, ...] = ()
    seq: int = 0  # grows with each record of one term: a request that comes late never replaces a later one
    eras: tuple[Era, ...] = ()

    @property
    def named(self) -> frozenset[str]:
        """Every member whose ballot may count by this record."""
        return frozenset({*self.names, *(name for era in self.eras for name in (era.leader, *era.names))})


ERAS_MAX = 4  # leaders in a row that end before each has recorded its first set; the next one forgets them all


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchoverRequest:
    """An operator's wish to move the primary. `target` empty = the best replica."""

    id: str
    target: str = ""
    requested_by: str = ""
    requested_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduledSwitchover:
    """A switchover to be asked for at a time. The hub's controller turns it into a request once `at` has come."""

    id: str
    at: float  # wall seconds
    target: str = ""
    requested_by: str = ""
    requested_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ForcedFailover:
    """An operator's order to make `target` the leader after the term `after_term`, whatever is lost by it.

    It lifts what guards data in the election (sync set, lag, no_failover), never what keeps two from leading: the
    target still needs the leader key to be absent, and a leader that still holds it fences itself and lets go first."""

    id: str
    target: str
    after_term: int  # good for the election that follows this term only
    requested_by: str = ""
    requested_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTaken:
    """A step of a change of leadership, and how long it took in seconds."""

    name: str
    took_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LeadershipChange:
    """One line of an instance's history. `kind`: led, released, opened (for writes), switchover_ended, ordered (a
    forced failover), forced (led by such an order), paused, resumed, unbound (from its remote primary: a standby
    instance was promoted); empty in what older versions wrote."""

    term: int
    member: str
    reason: str
    timeline: int = 0
    lsn: str = ""
    at: float = 0.0
    kind: str = ""
    seen: str = ""  # what was seen, in plain words
    seen_by: str = ""  # member or hub
    leaderless_s: float = 0.0  # how long the member that took over had seen nobody lead
    ballots: tuple[str, ...] = ()  # one line a ballot, the chosen one first
    steps: tuple[StepTaken, ...] = ()
    loss: str = ""  # whether acknowledged commits may have been lost, in plain words


@dataclass(frozen=True, slots=True, kw_only=True)
class HaRecord:
    """ha/<project>.<instance>: the memory of leadership that outlives every leader."""

    term: int = 0  # of the last leader; the next one gets term + 1
    leader: str = ""  # the last leader, whether or not it still leads
    bootstrap: str = ""  # the member that may initialise while system_id is empty
    system_id: str = ""  # the engine's system identifier; empty = never initialised
    sync: SyncRecord = field(default_factory=SyncRecord)
    released_term: int = 0  # the leader of this term stopped its engine and let go: no need to wait for it
    handover: str = ""  # whom the released leader wants next; empty = the best
    switchover: SwitchoverRequest | None = None
    scheduled: ScheduledSwitchover | None = None
    forced: ForcedFailover | None = None
    standby: bool = False  # follows a remote primary: no member accepts writes. Once false it stays so
    paused: bool = False  # no automatic failover
    paused_by: str = ""
    paused_at: float = 0.0
    pause_reason: str = ""
    history: tuple[LeadershipChange, ...] = ()  # newest last, at most HISTORY_MAX

    @property
    def eras(self) -> tuple[Era, ...]:
        """Whose acknowledged commits an election has to cover."""
        return self.sync.eras or (Era(leader=self.leader, k=self.sync.k, names=self.sync.names),)


HISTORY_MAX = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Ballot:
    """ballots/<project>.<instance>/<term>/<member>, lease-bound: a candidate's position for the election of `term`."""

    member: str
    node: str
    term: int
    timeline: int
    lsn: int
    leader_lsn: int = 0  # the furthest position of the last leader that this candidate heard of; 0 = unknown
    was_leader: bool = False  # the candidate was the leader of the last term: it has every acknowledged commit
    priority: int = 0
    no_failover: bool = False


# --- what an agent gets of the instances on its node ------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerMember:
    """A member as the other members see it."""

    member: str
    node: str
    address: str
    engine_port: int
    peer_port: int
    alive: bool  # the hub has heard of its node lately
    state: MemberState = MemberState.ABSENT
    role: Role = Role.UNKNOWN
    timeline: int = 0
    engine_tls: bool = False
    streaming_from: str = ""
    unfit: bool = False  # it must not lead as things are, such as on a full disk
    late: bool = False  # a replica that is too far behind to take reads
    no_failover: bool = False
    priority: int = 0
    no_load_balance: bool = False
    clone_source: bool = False
    read_weight: int = 1
    upstream: str = ""  # cascading: the member it is to stream from; such a member is in no sync set


def remote_peer(remote: RemotePrimary) -> PeerMember:
    """The remote primary in a peer's place: whom a standby leader copies and streams from. Where it is, is told by its
    connection string."""
    return PeerMember(
        member=REMOTE,
        node=str(remote),
        address="",
        engine_port=0,
        peer_port=0,
        alive=True,
        state=MemberState.RUNNING,
        role=Role.PRIMARY,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceView:
    """Everything the HA decision and the proxy routes of one instance need, as of one etcd revision."""

    project: str
    instance: str
    leader: LeaderRecord | None
    ha: HaRecord
    ballots: tuple[Ballot, ...]
    members: tuple[PeerMember, ...]
    revision: int = 0  # etcd revision this view is of


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """The whole answer of a poll: what the node must run, with secrets, and the views it needs."""

    members: tuple[MemberDesired, ...] = ()
    secrets: dict[str, MemberSecrets] = field(default_factory=dict, repr=False)  # by MemberRef.key
    views: tuple[InstanceView, ...] = ()


# --- the rest -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinToken:
    """tokens/<id>: a one-time permission to enrol. Only the secret's SHA-256 is kept."""

    id: str
    secret_sha256: str
    node: str = ""  # the only node name it is good for; empty = any
    expires_at: float = 0.0
    used_by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorRecord:
    """operators/<id>: who may use the operator service. Only the token secret's SHA-256 is kept."""

    id: str
    name: str
    role: Literal["viewer", "operator", "admin"] = "admin"
    secret_sha256: str = ""
    created_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HubRecord:
    """hubs/<hub>, leased: an alive hub and the nodes whose heartbeats it gets; rewritten only when that set changes."""

    hub: str
    agent_address: str = ""  # host:port
    operator_address: str = ""
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """events/<time>-<random>: something that happened, for people. Kept for a bounded time."""

    at: float
    event: str  # snake_case past tense, as in logs
    object: str  # node/n1, demo/orders, demo/orders/m1
    severity: Literal["info", "warning", "error"] = "info"
    message: str = ""
    source: str = ""  # hub or node name
