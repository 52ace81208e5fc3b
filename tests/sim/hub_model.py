"""The hub as the simulator has it: a mirror that lags behind etcd, and the agents' calls as transactions of `hub.etcd`.

It follows `hub.leadership` and `hub.leases` step by step: the rules are in the transactions' compares, a failed one is
looked at again, and a renewal is confirmed only by a read after it. Held-up requests are served late, whatever their
sender has given up meanwhile.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from core.codec import from_json
from core.ids import InstanceRef, MemberName, MemberRef
from core.records import (
    HISTORY_MAX,
    Ballot,
    HaRecord,
    InstanceView,
    LeaderRecord,
    LeadershipChange,
    MemberDesired,
    NodeRecord,
    NodeState,
    ObservedMember,
    SyncRecord,
    to_json,
)
from hub.etcd import keys, txns
from hub.judges.assemble import Places, instance_view, places
from tests.sim.etcd_model import Change, Entry, Etcd, LeaseGoneError
from tests.sim.network import Network, Reply
from tests.sim.world import Failure, Host, Process, Signal, Work, World

T = TypeVar("T")
REF = InstanceRef("demo", "orders")
ROUNDS = 4
ETCD_TIMEOUT_S = 1.5
HOLD_S = 8.0
BALLOT_TTL_S = 12.0
_parsed: dict[tuple[type, bytes], Any] = {}


def parse(kind: type[T], value: bytes) -> T:
    """The record, from a cache: the same bytes are read by several hubs and many seeds."""
    found = _parsed.get((kind, value))
    if found is None:
        if len(_parsed) > 20_000:
            _parsed.clear()
        found = _parsed[kind, value] = from_json(kind, value, where="simulated etcd")
    return found


def member_ref(member: str, ref: InstanceRef = REF) -> MemberRef:
    return MemberRef(ref, MemberName(member))


@functools.cache
def parse_key(key: str) -> tuple[str, Any]:
    """The kind of record under a key, and under which key the mirror keeps it."""
    parsed = keys.parse(key)
    assert parsed is not None, key
    match parsed.kind, parsed.parts:
        case ("nodes" | "silent") as kind, (node,):
            return kind, node
        case ("leader" | "ha") as kind, (ref,):
            return kind, InstanceRef.from_key(ref)
        case ("members" | "observed") as kind, (node, member):
            return kind, (node, MemberRef.from_key(member))
        case "ballots", (ref, _term, member):
            return "ballots", (InstanceRef.from_key(ref), member)
    raise AssertionError(f"the model of the hub does not know {key}")


@dataclass(frozen=True, slots=True)
class Versioned:
    record: Any
    mod_revision: int
    create_revision: int


@dataclass(slots=True)
class Mirror:
    """`Contents` of `hub.judges.assemble`, as of some revision."""

    revision: int = 0
    nodes: dict[str, Versioned] = field(default_factory=dict)
    leaders: dict[InstanceRef, Versioned] = field(default_factory=dict)
    ha: dict[InstanceRef, Versioned] = field(default_factory=dict)
    members: dict[tuple[str, MemberRef], Versioned] = field(default_factory=dict)
    observed: dict[tuple[str, MemberRef], Versioned] = field(default_factory=dict)
    ballots: dict[InstanceRef, dict[str, Versioned]] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)

    def apply(self, change: Change) -> None:
        entry = change.entry
        kind, key = parse_key(change.key)
        match kind:
            case "nodes":
                self._put(self.nodes, key, NodeRecord, entry)
            case "leader":
                self._put(self.leaders, key, LeaderRecord, entry)
            case "ha":
                self._put(self.ha, key, HaRecord, entry)
            case "members":
                self._put(self.members, key, MemberDesired, entry)
            case "observed":
                self._put(self.observed, key, ObservedMember, entry)
            case "ballots":
                # One term's ballots at a time: an older one of the same member was replaced.
                self._put(self.ballots.setdefault(key[0], {}), key[1], Ballot, entry)
            case "silent":
                (self.silent.discard if entry is None else self.silent.add)(key)
        if entry is not None:
            self.revision = max(self.revision, entry.mod_revision)

    def _put(self, where: dict[Any, Versioned], key: Any, kind: type, entry: Entry | None) -> None:
        if entry is None:
            where.pop(key, None)
        else:
            where[key] = Versioned(parse(kind, entry.value), entry.mod_revision, entry.create_revision)


@dataclass(frozen=True, slots=True)
class Told:
    """A heartbeat's answer: the renewal, and who leads each of the node's instances, in which term, how long still."""

    renewal: str  # confirmed, unconfirmed, gone; empty = there was no lease to renew
    leaders: dict[str, tuple[int, str, float]]


@dataclass(slots=True)
class Held:
    """A poll that waits for news, for HOLD_S at most."""

    hub: Hub
    node: str
    known: NodeState | None
    reply: Reply
    done: bool = False

    def answer(self, state: NodeState) -> None:
        self.done = True
        self.reply(state)

    def expire(self) -> None:
        self.answer(self.hub.state(self.node))


class Hub:
    """One hub. Calls are made by `Network.call` with one of its methods as handler."""

    def __init__(self, world: World, host: Host, network: Network, etcd: Etcd, *, ttl_s: float) -> None:
        self.world = world
        self.process = Process(host, f"hub {host.name}")
        self.network = network
        self.etcd = etcd
        self.ttl_s = ttl_s
        self.lag_s = 0.0  # of the watch, beside the network's own delay
        self.heard: dict[str, float] = {}  # node -> true time
        self.trusts_keepalive = False  # a mutation: renewals count without comparing raft terms
        self.trusts_answer = False  # a mutation: renewals count without any read after them
        self._watch_until = 0.0
        etcd.watchers.append(self._watched)
        self.start()

    def start(self) -> None:
        self.process.start()
        self.mirror = Mirror()
        self.news = Signal(self.process)
        self._views: dict[InstanceRef, InstanceView | None] = {}
        self._states: dict[str, NodeState] = {}
        self._held: list[Held] = []
        self._leases: dict[int, float] = {}  # until when a lease that was renewed here lasts, on this host's clock
        self._ballot_leases: dict[str, tuple[int, float]] = {}
        for key, entry in self.etcd.store.entries.items():
            self.mirror.apply(Change(key, entry))
        self.mirror.revision = self.etcd.store.revision
        self._places: Places = places(self.mirror.members)
        self._instances: dict[str, list[InstanceRef]] = {}
        self.heard.clear()

    # --- mirror ---

    def _watched(self, changes: list[Change]) -> None:
        """Events come in order, later than they happened."""
        if not self.process.alive:
            return
        revision = self.etcd.store.revision
        at = max(self._watch_until, self.world.now + self.world.rng.uniform(0.0005, 0.004) + self.lag_s)
        self._watch_until = at
        self.world.push(at - self.world.now, self.process, lambda: self._apply(changes, revision))

    def _apply(self, changes: list[Change], revision: int) -> None:
        before = len(self.mirror.members)
        for change in changes:
            self.mirror.apply(change)
        self.mirror.revision = max(self.mirror.revision, revision)
        if len(self.mirror.members) != before:
            self._places = places(self.mirror.members)
            self._instances.clear()
        self._views.clear()
        self._states.clear()
        self.news.set()
        self.news.clear()
        held, self._held = self._held, []
        for poll in held:
            if poll.done:
                continue
            if poll.known != (state := self.state(poll.node)):
                poll.answer(state)
            else:
                self._held.append(poll)

    def state(self, node: str) -> NodeState:
        """What `hub.judges.assemble.assemble` makes of the mirror, without secrets; views are shared by the nodes."""
        found = self._states.get(node)
        if found is None:
            refs = self._places.on_node.get(node, ())
            views = [self._view(ref) for ref in self._instances_on(node)]
            found = self._states[node] = NodeState(
                members=tuple(self.mirror.members[node, ref].record for ref in refs),
                views=tuple(view for view in views if view is not None),
            )
        return found

    def _instances_on(self, node: str) -> list[InstanceRef]:
        found = self._instances.get(node)
        if found is None:
            refs = self._places.on_node.get(node, ())
            found = self._instances[node] = list(dict.fromkeys(ref.instance for ref in refs))
        return found

    def _view(self, ref: InstanceRef) -> InstanceView | None:
        """All hubs assemble the same from the same revision, so one of them does it for both."""
        if ref not in self._views:
            shared = self.etcd.assembled
            found = shared.get(ref)
            if found is None or found[0] != self.mirror.revision:
                found = shared[ref] = (self.mirror.revision, instance_view(self.mirror, self._places, ref))
            self._views[ref] = found[1]
        return self._views[ref]

    def _present(self, ref: InstanceRef) -> tuple[Versioned | None, Versioned]:
        return self.mirror.leaders.get(ref), self.mirror.ha[ref]

    # --- calls of agents ---

    def poll(self, node: str, known: NodeState | None, reply: Reply) -> None:
        state = self.state(node)
        if state != known:
            reply(state)
            return
        held = Held(self, node, known, reply)
        self._held.append(held)
        self.process.limit(HOLD_S, held)

    def heartbeat(self, node: str, lease_id: int, reply: Reply) -> None:
        self.heard[node] = self.world.now
        self.process.spawn(self._heartbeat(node, lease_id), reply)

    def acquire(
        self, me: MemberRef, node: str, after_term: int, lease_id: int, change: LeadershipChange, reply: Reply
    ) -> None:
        self.process.spawn(self._acquire(me, node, after_term, lease_id, change), reply)

    def release(self, me: MemberRef, term: int, handover: str, change: LeadershipChange, reply: Reply) -> None:
        self.process.spawn(self._release(me, term, handover, change), reply)

    def cast_ballot(self, ref: InstanceRef, ballot: Ballot, reply: Reply) -> None:
        self.process.spawn(self._cast_ballot(ref, ballot), reply)

    def update(self, me: MemberRef, term: int, change: Callable[[HaRecord], HaRecord | None], reply: Reply) -> None:
        self.process.spawn(self._update(me, term, change), reply)

    def report(self, ref: InstanceRef, observed: ObservedMember, reply: Reply) -> None:
        """Of a member that is not wanted any more nothing is written."""
        member = keys.member(observed.node, member_ref(observed.member, ref))
        key = keys.observed(observed.node, member_ref(observed.member, ref))
        known = self.mirror.members.get((observed.node, member_ref(observed.member, ref)))
        if known is None:
            reply(False)
            return
        txn = txns.all_of([txns.CreatedIs(member, known.create_revision)], [txns.Put(key, to_json(observed))])
        self.process.spawn(self._ask_etcd(lambda: self.etcd.commit(txn)), reply)

    # --- as transactions ---

    def _ask_etcd(self, question: Callable[[], Any]) -> Work:
        """The answer, LeaseGoneError as a value; Failure when etcd does not answer."""

        def handler(reply: Reply) -> None:
            try:
                reply(question())
            except LeaseGoneError as gone:
                reply(gone)

        answer = yield self.network.call(
            self.process, self.etcd.process, handler, timeout_s=ETCD_TIMEOUT_S, repeatable=False
        )
        return answer

    def _commit(self, txn: txns.Txn) -> Work:
        """True, False or LeaseGoneError, after the mirror has caught up with it."""

        def question() -> tuple[bool, int]:
            return self.etcd.commit(txn), self.etcd.store.revision

        answer = yield from self._ask_etcd(question)
        if isinstance(answer, LeaseGoneError):
            return answer
        succeeded, revision = answer
        patience = 40
        while self.mirror.revision < revision and patience:
            patience -= 1
            yield self.news.wait(0.05)
        if self.mirror.revision < revision:
            raise Failure("the mirror does not catch up")
        return succeeded

    def _is_current(self, ref: InstanceRef, leader: Versioned | None, ha: Versioned) -> Work:
        revision = leader.mod_revision if leader else 0
        same = [txns.ModIs(keys.leader(ref), revision), txns.ModIs(keys.ha(ref), ha.mod_revision)]
        return (yield from self._commit(txns.all_of(same, [])))

    def _acquire(self, me: MemberRef, node: str, after_term: int, lease_id: int, change: LeadershipChange) -> Work:
        """(term, lease, sync record or None) when acquired, else None."""
        lease, ref = 0, me.instance
        for _ in range(ROUNDS):
            leader, ha = self._present(ref)
            if leader is not None and _is(leader.record, me, after_term + 1):
                renewed = yield from self._renew(leader.record.lease_id, [ref])
                return (leader.record.term, leader.record.lease_id, None) if renewed == "confirmed" else None
            if leader is not None or ha.record.term != after_term:
                if (yield from self._is_current(ref, leader, ha)):
                    return None
                continue
            lease = lease or (yield from self._fresh_lease(lease_id))
            txn = txns.acquire(
                ref,
                ha=ha.record,
                ha_revision=ha.mod_revision,
                member=me.member,
                node=node,
                lease_id=lease,
                change=change,
                node_revision=self.mirror.nodes[node].mod_revision,
                knows_eras=True,
            )
            acquired = yield from self._commit(txn)
            if acquired is True:
                return after_term + 1, lease, txns.sync_of_new_leader(ha.record, me.member, knows_eras=True)
            if isinstance(acquired, LeaseGoneError):
                lease = 0
        return None

    def _fresh_lease(self, lease_id: int) -> Work:
        if lease_id:
            renewed = yield from self._ask_etcd(lambda: self.etcd.keepalive(lease_id))
            if not isinstance(renewed, LeaseGoneError):
                return lease_id
        return (yield from self._ask_etcd(lambda: self.etcd.grant(self.ttl_s)))

    def _release(self, me: MemberRef, term: int, handover: str, change: LeadershipChange) -> Work:
        ref = me.instance
        for _ in range(ROUNDS):
            leader, ha = self._present(ref)
            if leader is None or not _is(leader.record, me, term):
                if (yield from self._is_current(ref, leader, ha)):
                    return False
                continue
            noted = replace(ha.record, history=(*ha.record.history, change)[-HISTORY_MAX:])
            txn = txns.release(
                ref,
                leader=leader.record,
                leader_revision=leader.mod_revision,
                ha=noted,
                ha_revision=ha.mod_revision,
                handover=handover,
            )
            if (yield from self._commit(txn)) is True:
                return True
        return False

    def _cast_ballot(self, ref: InstanceRef, ballot: Ballot) -> Work:
        for _ in range(ROUNDS):
            leader, ha = self._present(ref)
            if leader is not None or ha.record.term + 1 != ballot.term:
                if (yield from self._is_current(ref, leader, ha)):
                    return False
                continue
            lease_id, granted_at = self._ballot_leases.get(ballot.node, (0, 0.0))
            if not lease_id or self.process.host.now() - granted_at > BALLOT_TTL_S / 2:
                lease_id = yield from self._ask_etcd(lambda: self.etcd.grant(BALLOT_TTL_S))
                self._ballot_leases[ballot.node] = (lease_id, self.process.host.now())
            txn = txns.cast_ballot(ref, ballot=ballot, ha_revision=ha.mod_revision, lease_id=lease_id)
            cast = yield from self._commit(txn)
            if cast is True:
                return True
            if isinstance(cast, LeaseGoneError):
                self._ballot_leases.pop(ballot.node, None)
        return False

    def _update(self, me: MemberRef, term: int, change: Callable[[HaRecord], HaRecord | None]) -> Work:
        ref = me.instance
        for _ in range(ROUNDS):
            leader, ha = self._present(ref)
            if leader is None or not _is(leader.record, me, term):
                if (yield from self._is_current(ref, leader, ha)):
                    return False
                continue
            next_ha = change(ha.record)
            if next_ha is None or next_ha == ha.record:
                if (yield from self._is_current(ref, leader, ha)):
                    return next_ha is not None
                continue
            txn = txns.update_ha(
                ref, leader_created=leader.create_revision, ha_revision=ha.mod_revision, next_ha=next_ha
            )
            if (yield from self._commit(txn)) is True:
                return True
        return False

    # --- heartbeats ---

    def _heartbeat(self, node: str, lease_id: int) -> Work:
        """The hub's whole answer."""
        refs = self._instances_on(node)
        renewal = ""
        leaders: dict[str, tuple[int, str, float]] = {}
        try:
            if lease_id:
                renewal = "unconfirmed"
                renewal = yield from self._renew(lease_id, refs)
            for ref in refs:
                yield from self._look_up(ref)
        except Failure:
            pass
        now = self.process.host.now()
        for ref in refs:
            leader = self.mirror.leaders.get(ref)
            if leader is not None:
                left_s = max(0.0, self._leases.get(leader.record.lease_id, 0.0) - now)
                leaders[ref.instance] = (leader.record.term, leader.record.member, left_s)
        return Told(renewal, leaders)

    def _renew(self, lease_id: int, refs: list[InstanceRef]) -> Work:
        """As `hub.leases` does it: only a read that was begun after the keepalive's answer confirms."""
        compares = [
            txns.CreatedIs(keys.leader(ref), leader.create_revision)
            for ref in refs
            if (leader := self.mirror.leaders.get(ref)) is not None and leader.record.lease_id == lease_id
        ]
        if not compares:
            left_s = yield from self._ask_etcd(lambda: self.etcd.time_to_live(lease_id))
            return "unconfirmed" if left_s > 0 else "gone"
        started = self.process.host.now()
        raft_term = yield from self._ask_etcd(lambda: self.etcd.keepalive(lease_id))
        if isinstance(raft_term, LeaseGoneError):
            self._leases.pop(lease_id, None)
            return "gone"
        if self.trusts_answer:
            self._leases[lease_id] = started + self.ttl_s
            return "confirmed"

        def read() -> tuple[bool, int]:
            return self.etcd.commit(txns.all_of(compares, [])), self.etcd.raft_term

        there, term_of_read = yield from self._ask_etcd(read)
        if not there or (term_of_read != raft_term and not self.trusts_keepalive):
            return "unconfirmed"
        self._leases[lease_id] = started + self.ttl_s
        return "confirmed"

    def _look_up(self, ref: InstanceRef) -> Work:
        """How long a lease lasts that another hub renews, unless what is known is fresh."""
        leader = self.mirror.leaders.get(ref)
        if leader is None:
            return
        lease_id = leader.record.lease_id
        now = self.process.host.now()
        until = self._leases.get(lease_id, 0.0)
        if until - now < self.ttl_s / 2:
            left_s = yield from self._ask_etcd(lambda: self.etcd.time_to_live(lease_id))
            compare = txns.CreatedIs(keys.leader(ref), leader.create_revision)
            there = yield from self._ask_etcd(lambda: self.etcd.commit(txns.all_of([compare], [])))
            self._leases[lease_id] = max(until, now + left_s) if there else 0.0


def _is(leader: LeaderRecord, me: MemberRef, term: int) -> bool:
    return leader.member == me.member and leader.term == term


def seed_node(etcd: Etcd, name: str) -> None:
    """What enrolling writes."""
    node = NodeRecord(name=name, address=name, peer_port=1)
    etcd.commit(txns.all_of([], [txns.Put(keys.node(name), to_json(node))]))


def seed_etcd(etcd: Etcd, members: tuple[MemberDesired, ...], *, system: SyncRecord) -> None:
    """What the controllers write when an instance is placed."""
    puts: list[txns.Op] = []
    ref = InstanceRef(members[0].project, members[0].instance)
    puts += [txns.Put(keys.member(m.node, member_ref(m.member, ref)), to_json(m)) for m in members]
    puts.append(txns.Put(keys.ha(ref), to_json(HaRecord(bootstrap=members[0].member, sync=system))))
    etcd.commit(txns.all_of([], puts))
