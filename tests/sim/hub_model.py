"""The hub as the simulator has it: a mirror that lags behind etcd, and the agents' calls as transactions of `hub.etcd`.

It follows `hub.leadership` and `hub.leases` step by step: the rules are in the transactions' compares, a failed one is
looked at again, and a renewal is confirmed only by a read after it. Held-up requests are served late, whatever their
sender has given up meanwhile.
"""

from __future__ import annotations

import json
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
    ObservedMember,
    SyncRecord,
    to_json,
)
from hub.etcd import keys, txns
from hub.judges.assemble import instance_view, places
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


def member_ref(member: str) -> MemberRef:
    return MemberRef(REF, MemberName(member))


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
        parsed = keys.parse(change.key)
        assert parsed is not None, change.key
        match parsed.kind, parsed.parts:
            case "nodes", (node,):
                self._put(self.nodes, node, NodeRecord, entry)
            case "leader", (_,):
                self._put(self.leaders, REF, LeaderRecord, entry)
            case "ha", (_,):
                self._put(self.ha, REF, HaRecord, entry)
            case "members", (node, ref):
                self._put(self.members, (node, MemberRef.from_key(ref)), MemberDesired, entry)
            case "observed", (node, ref):
                self._put(self.observed, (node, MemberRef.from_key(ref)), ObservedMember, entry)
            case "ballots", (_, _term, member):
                self._put_ballot(member, entry)
            case "silent", (node,):
                (self.silent.discard if entry is None else self.silent.add)(node)
            case _:
                raise AssertionError(f"the model of the hub does not know {change.key}")
        if entry is not None:
            self.revision = max(self.revision, entry.mod_revision)

    def _put(self, where: dict[Any, Versioned], key: Any, kind: type, entry: Entry | None) -> None:
        if entry is None:
            where.pop(key, None)
        else:
            where[key] = Versioned(parse(kind, entry.value), entry.mod_revision, entry.create_revision)

    def _put_ballot(self, member: str, entry: Entry | None) -> None:
        cast = self.ballots.setdefault(REF, {})
        if entry is not None:
            self._put(cast, member, Ballot, entry)
        else:
            cast.pop(member, None)  # one term's ballots at a time: an older one of the same member was replaced


@dataclass(slots=True)
class Held:
    """A poll that waits for news."""

    known: InstanceView | None
    reply: Reply


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
        self._watch_until = 0.0
        etcd.watchers.append(self._watched)
        self.start()

    def start(self) -> None:
        self.process.start()
        self.mirror = Mirror()
        self.news = Signal(self.process)
        self._view: InstanceView | None = None
        self._held: list[Held] = []
        self._leases: dict[int, float] = {}  # until when a lease that was renewed here lasts, on this host's clock
        self._ballot_leases: dict[str, tuple[int, float]] = {}
        for key, entry in self.etcd.store.entries.items():
            self.mirror.apply(Change(key, entry))
        self.mirror.revision = self.etcd.store.revision
        self.heard.clear()

    # --- mirror ---

    def _watched(self, changes: list[Change]) -> None:
        """Events come in order, later than they happened."""
        revision = self.etcd.store.revision
        at = max(self._watch_until, self.world.now + self.world.rng.uniform(0.0005, 0.004) + self.lag_s)
        self._watch_until = at
        process, life = self.process, self.process.life

        def arrive() -> None:
            if process.life == life:
                process.soon(lambda: self._apply(changes, revision))

        self.world.at(at - self.world.now, arrive)

    def _apply(self, changes: list[Change], revision: int) -> None:
        for change in changes:
            self.mirror.apply(change)
        self.mirror.revision = max(self.mirror.revision, revision)
        self._view = None
        self.news.set()
        self.news.clear()
        view = self.view()
        held, self._held = self._held, []
        for poll in held:
            if poll.known != view:
                poll.reply(view)
            else:
                self._held.append(poll)

    def view(self) -> InstanceView:
        if self._view is None:
            view = instance_view(self.mirror, places(self.mirror.members), REF)
            assert view is not None, "the instance is placed"
            self._view = view
        return self._view

    def _present(self) -> tuple[Versioned | None, Versioned]:
        return self.mirror.leaders.get(REF), self.mirror.ha[REF]

    # --- calls of agents ---

    def poll(self, known: InstanceView | None, reply: Reply) -> None:
        view = self.view()
        if view != known:
            reply(view)
            return
        held = Held(known, reply)
        self._held.append(held)

        def enough() -> None:
            if held in self._held:
                self._held.remove(held)
                reply(self.view())

        self.process.later(HOLD_S, enough)

    def heartbeat(self, node: str, lease_id: int, reply: Reply) -> None:
        self.heard[node] = self.world.now
        self.process.spawn(self._heartbeat(lease_id), reply)

    def acquire(
        self, member: str, node: str, after_term: int, lease_id: int, change: LeadershipChange, reply: Reply
    ) -> None:
        self.process.spawn(self._acquire(member, node, after_term, lease_id, change), reply)

    def release(self, member: str, term: int, handover: str, change: LeadershipChange, reply: Reply) -> None:
        self.process.spawn(self._release(member, term, handover, change), reply)

    def cast_ballot(self, ballot: Ballot, reply: Reply) -> None:
        self.process.spawn(self._cast_ballot(ballot), reply)

    def update(self, member: str, term: int, change: Callable[[HaRecord], HaRecord | None], reply: Reply) -> None:
        self.process.spawn(self._update(member, term, change), reply)

    def report(self, observed: ObservedMember, reply: Reply) -> None:
        key = keys.observed(observed.node, member_ref(observed.member))
        self.process.spawn(self._put(key, to_json(observed)), reply)

    # --- as transactions ---

    def _ask_etcd(self, question: Callable[[], Any]) -> Work:
        """The answer, LeaseGoneError as a value; Failure when etcd does not answer."""

        def handler(reply: Reply) -> None:
            try:
                reply(question())
            except LeaseGoneError as gone:
                reply(gone)

        answer = yield self.network.call(self.process, self.etcd.process, handler, timeout_s=ETCD_TIMEOUT_S)
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

    def _is_current(self, leader: Versioned | None, ha: Versioned) -> Work:
        revision = leader.mod_revision if leader else 0
        same = [txns.ModIs(keys.leader(REF), revision), txns.ModIs(keys.ha(REF), ha.mod_revision)]
        return (yield from self._commit(txns.all_of(same, [])))

    def _acquire(self, member: str, node: str, after_term: int, lease_id: int, change: LeadershipChange) -> Work:
        """(term, lease) when acquired, else None."""
        lease = 0
        for _ in range(ROUNDS):
            leader, ha = self._present()
            if leader is not None and _is(leader.record, member, after_term + 1):
                renewed = yield from self._renew(leader.record.lease_id)
                return (leader.record.term, leader.record.lease_id) if renewed == "confirmed" else None
            if leader is not None or ha.record.term != after_term:
                if (yield from self._is_current(leader, ha)):
                    return None
                continue
            lease = lease or (yield from self._fresh_lease(lease_id))
            txn = txns.acquire(
                REF,
                ha=ha.record,
                ha_revision=ha.mod_revision,
                member=member,
                node=node,
                lease_id=lease,
                change=change,
                node_revision=self.mirror.nodes[node].mod_revision,
            )
            if (yield from self._commit(txn)) is True:
                return after_term + 1, lease
        return None

    def _fresh_lease(self, lease_id: int) -> Work:
        if lease_id:
            renewed = yield from self._ask_etcd(lambda: self.etcd.keepalive(lease_id))
            if not isinstance(renewed, LeaseGoneError):
                return lease_id
        return (yield from self._ask_etcd(lambda: self.etcd.grant(self.ttl_s)))

    def _release(self, member: str, term: int, handover: str, change: LeadershipChange) -> Work:
        for _ in range(ROUNDS):
            leader, ha = self._present()
            if leader is None or not _is(leader.record, member, term):
                if (yield from self._is_current(leader, ha)):
                    return False
                continue
            noted = replace(ha.record, history=(*ha.record.history, change)[-HISTORY_MAX:])
            txn = txns.release(
                REF,
                leader=leader.record,
                leader_revision=leader.mod_revision,
                ha=noted,
                ha_revision=ha.mod_revision,
                handover=handover,
            )
            if (yield from self._commit(txn)) is True:
                return True
        return False

    def _cast_ballot(self, ballot: Ballot) -> Work:
        for _ in range(ROUNDS):
            leader, ha = self._present()
            if leader is not None or ha.record.term + 1 != ballot.term:
                if (yield from self._is_current(leader, ha)):
                    return False
                continue
            lease_id, granted_at = self._ballot_leases.get(ballot.node, (0, 0.0))
            if not lease_id or self.process.host.now() - granted_at > BALLOT_TTL_S / 2:
                lease_id = yield from self._ask_etcd(lambda: self.etcd.grant(BALLOT_TTL_S))
                self._ballot_leases[ballot.node] = (lease_id, self.process.host.now())
            txn = txns.cast_ballot(REF, ballot=ballot, ha_revision=ha.mod_revision, lease_id=lease_id)
            cast = yield from self._commit(txn)
            if cast is True:
                return True
            if isinstance(cast, LeaseGoneError):
                self._ballot_leases.pop(ballot.node, None)
        return False

    def _update(self, member: str, term: int, change: Callable[[HaRecord], HaRecord | None]) -> Work:
        for _ in range(ROUNDS):
            leader, ha = self._present()
            if leader is None or not _is(leader.record, member, term):
                if (yield from self._is_current(leader, ha)):
                    return False
                continue
            next_ha = change(ha.record)
            if next_ha is None or next_ha == ha.record:
                if (yield from self._is_current(leader, ha)):
                    return next_ha is not None
                continue
            txn = txns.update_ha(
                REF, leader_created=leader.create_revision, ha_revision=ha.mod_revision, next_ha=next_ha
            )
            if (yield from self._commit(txn)) is True:
                return True
        return False

    def _put(self, key: str, value: bytes) -> Work:
        return (yield from self._ask_etcd(lambda: self.etcd.commit(txns.all_of([], [txns.Put(key, value)]))))

    # --- heartbeats ---

    def _heartbeat(self, lease_id: int) -> Work:
        """(renewal, term, member, remaining_s): the hub's whole answer."""
        try:
            renewal = (yield from self._renew(lease_id)) if lease_id else ""
        except Failure:
            renewal = "unconfirmed"
        leader = self.mirror.leaders.get(REF)
        if leader is None:
            return renewal, 0, "", 0.0
        try:
            remaining_s = yield from self._remaining(leader)
        except Failure:
            remaining_s = 0.0
        return renewal, leader.record.term, leader.record.member, remaining_s

    def _renew(self, lease_id: int) -> Work:
        started = self.process.host.now()
        raft_term = yield from self._ask_etcd(lambda: self.etcd.keepalive(lease_id))
        if isinstance(raft_term, LeaseGoneError):
            self._leases.pop(lease_id, None)
            return "gone"
        leader = self.mirror.leaders.get(REF)
        carried = leader is not None and leader.record.lease_id == lease_id
        compares = [txns.CreatedIs(keys.leader(REF), leader.create_revision)] if carried and leader else []

        def read() -> tuple[bool, int]:
            return self.etcd.commit(txns.all_of(compares, [])), self.etcd.raft_term

        there, term_of_read = yield from self._ask_etcd(read)
        if not there or (term_of_read != raft_term and not self.trusts_keepalive):
            return "unconfirmed"
        self._leases[lease_id] = started + self.ttl_s
        return "confirmed"

    def _remaining(self, leader: Versioned) -> Work:
        lease_id = leader.record.lease_id
        now = self.process.host.now()
        until = self._leases.get(lease_id, 0.0)
        if until - now < self.ttl_s / 2:
            left_s = yield from self._ask_etcd(lambda: self.etcd.time_to_live(lease_id))
            compare = txns.CreatedIs(keys.leader(REF), leader.create_revision)
            there = yield from self._ask_etcd(lambda: self.etcd.commit(txns.all_of([compare], [])))
            until = max(until, now + left_s) if there else 0.0
        return max(0.0, until - self.process.host.now())


def _is(leader: LeaderRecord, member: str, term: int) -> bool:
    return leader.member == member and leader.term == term


def seed_etcd(etcd: Etcd, members: tuple[MemberDesired, ...], *, system: SyncRecord) -> None:
    """What the controllers write when an instance is placed."""
    puts: list[txns.Op] = []
    for member in members:
        node = NodeRecord(name=member.node, address=member.node, peer_port=1)
        puts.append(txns.Put(keys.node(member.node), to_json(node)))
        puts.append(txns.Put(keys.member(member.node, member_ref(member.member)), to_json(member)))
    puts.append(txns.Put(keys.ha(REF), to_json(HaRecord(bootstrap=members[0].member, sync=system))))
    etcd.commit(txns.all_of([], puts))


def record_in(etcd: Etcd, key: str) -> dict[str, Any] | None:
    """The plain JSON under a key, for checkers."""
    entry = etcd.store.entries.get(key)
    return json.loads(entry.value) if entry else None
