"""The agent as the simulator has it: the real `decide`, `LeaseClock`, `may_grant`, `settle` and `route_of` in a shell
of the same order as `agent.ha.keeper`: gather, decide, carry out, wait.

What it keeps on disk survives its process; deadlines count only in the same boot of the host.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from agent.ha import actions as do
from agent.ha.decide import decide
from agent.ha.election import may_grant
from agent.ha.leaseclock import ASK_TIMEOUT_S, RENEW, LeaseClock, Vouching
from agent.ha.syncset import Settling, settle
from agent.ha.view import Engine as Seen
from agent.ha.view import EngineState, Operation, OperationKind, View
from agent.routing import CLIENT_MARGIN_S, LeaderTrust, route_of
from core.positions import Lsn, WalPosition
from core.records import (
    Ballot,
    HaRecord,
    InstanceView,
    LeadershipChange,
    MemberDesired,
    ObservedMember,
    SyncRecord,
)
from core.status import MemberState, Role
from hub.etcd import txns
from tests.sim.network import Network, Reply
from tests.sim.world import Failure, Host, Process, Running, Signal, Work, World

if TYPE_CHECKING:
    from tests.sim.engine_model import Engine
    from tests.sim.hub_model import Hub
    from tests.sim.proxy_model import Proxy

HUB_TIMEOUT_S = 3.0
HEARTBEAT_TIMEOUT_S = 1.8
RETRY_S = 0.4
POLL_TIMEOUT_S = 14.0
STREAM_GRACE_S = 3.0
CATCH_UP_WITHIN_S = 5.0
TURN_MIN_S = 0.02


@dataclass(frozen=True, slots=True)
class Memory:
    """keeper.json, lease.json and desired.json"""

    boot: int = -1
    term: int = 0
    renewed_at: float = 0.0
    fence_at: float = 0.0
    spent: int = 0
    lease_id: int = 0
    instance: InstanceView | None = None
    followed_term: int = 0


@dataclass(slots=True)
class Facts:
    """Lost with the process."""

    promised_until: float = 0.0
    vouching: Vouching = field(default_factory=Vouching)
    all_granted: int = 0  # the last one that everybody granted
    told: LeaderTrust = field(default_factory=LeaderTrust)  # by the hub, about another leader
    asked_peers_at: float = 0.0
    leaderless_since: float = 0.0
    ballot_term: int = 0
    ballot_position: WalPosition = field(default_factory=WalPosition)
    standing_until: float = 0.0
    probed_at: float = 0.0
    not_streaming_since: float = 0.0
    streamed_at: float | None = None
    fenced_at: float = 0.0
    switchover_since: float = 0.0
    sync_sent: SyncRecord | None = None
    sync_sent_in: int = 0
    settling: Settling | None = None
    failures: int = 0
    failure: str = ""
    retry_at: float = 0.0


class Agent:
    """One node's agent with its one member."""

    def __init__(
        self, world: World, host: Host, network: Network, *, desired: MemberDesired, hubs: list[Hub], engine: Engine,
        proxy: Proxy, ttl_s: float,
    ) -> None:  # fmt: skip
        self.world = world
        self.host = host
        self.network = network
        self.desired = desired
        self.me = desired.member
        self.hubs = hubs
        self.engine = engine
        self.proxy = proxy
        self.ttl_s = ttl_s
        self.process = Process(host, f"agent {self.me}")
        engine.process_of_agent = self.process
        self.others: dict[str, Agent] = {}
        self.memory = Memory()
        self.reasons: set[do.Reason] = set()
        self.decision: do.Decision | None = None
        self.promise_ttls = 1.0  # shorter by a mutation
        self.facts = Facts()

    # --- life ---

    def start(self) -> None:
        self.process.start()
        if self.memory.boot != self.host.boot:
            self.memory = replace(self.memory, boot=self.host.boot, renewed_at=0.0, fence_at=0.0)
        kept = self.memory
        self.lease = LeaseClock.restored(
            term=kept.term, renewed_at=kept.renewed_at, fence_at=kept.fence_at, ttl_s=self.ttl_s, spent=kept.spent
        )
        self.lease_id = kept.lease_id
        self.instance = kept.instance
        self.facts = Facts()
        self.seen = Seen(state=EngineState.STOPPED)
        self.started_at = self.host.now()
        self.operation: Operation | None = None
        self._running: Running | None = None
        self._hub = self.world.rng.randrange(len(self.hubs))
        self._wake = Signal(self.process)
        self._beat_now = Signal(self.process)
        self._reported: ObservedMember | None = None
        self._reporting = False
        self.engine.on_death = self._wake_later
        for loop in (self._turns(), self._beats(), self._pulls(), self._guard()):
            self.process.spawn(loop)

    def _wake_later(self) -> None:
        if self.process.alive:
            self.process.later(0.002, self._wake.set)

    @property
    def hub(self) -> Hub:
        return self.hubs[self._hub]

    def _ask_hub(self, handler: Callable[[Reply], None], timeout_s: float) -> Work:
        hub = self._hub
        try:
            return (yield self.network.call(self.process, self.hub.process, handler, timeout_s=timeout_s))
        except Failure:
            if self._hub == hub:
                self._hub = (hub + 1) % len(self.hubs)
            raise

    # --- the loop ---

    def _turns(self) -> Work:
        while True:
            self._wake.clear()
            if self.instance is not None:
                self.engine.peers = {
                    m.member: self.others[m.member].engine for m in self.instance.members if m.member != self.me
                }
            self._observe()
            now = self.host.now()
            self._note_since_when(now)
            view = self.view()
            decision = decide(view, now)
            if self.decision is None or decision.reason is not self.decision.reason:
                self.world.note(f"{self.me}: {decision.reason.value} {decision.detail}")
            self.decision = decision
            self.reasons.add(decision.reason)
            for action in decision.actions:
                with contextlib.suppress(Failure):
                    yield from self._perform(action)
            self._report()
            self.routes_changed()
            yield self.process.sleep(TURN_MIN_S)
            yield self._wake.wait(max(0.0, decision.wake_at - self.host.now()))

    def _observe(self) -> None:
        facts, seen = self.facts, self.engine.observe()
        self.seen = replace(seen, failure=facts.failure, retry_at=facts.retry_at, failed_starts=facts.failures)

    def _note_since_when(self, now: float) -> None:
        facts, engine, instance = self.facts, self.seen, self.instance
        leaderless = instance is not None and instance.leader is None
        facts.leaderless_since = (facts.leaderless_since or now) if leaderless else 0.0
        asked = instance is not None and instance.ha.switchover is not None
        facts.switchover_since = (facts.switchover_since or now) if asked else 0.0
        running = engine.state is EngineState.RUNNING
        apart = running and engine.role is Role.REPLICA and not engine.streaming
        facts.not_streaming_since = (facts.not_streaming_since or now) if apart else 0.0
        if engine.streaming:
            facts.streamed_at = now
        if running:
            facts.fenced_at = 0.0
        self._note_followed()
        primary = running and engine.role is Role.PRIMARY
        facts.settling = settle(facts.settling, engine.sync, engine.position.lsn, now) if primary else None

    def _note_followed(self) -> None:
        """The own data is part of the log of this term: it is led here, or streamed from who leads it."""
        engine, leader = self.seen, self.instance.leader if self.instance else None
        term = 0
        if engine.state is EngineState.RUNNING and engine.role is Role.PRIMARY:
            term = self.lease.term
        elif leader is not None and engine.streaming and engine.upstream == leader.member:
            term = leader.term
        if term > self.memory.followed_term:
            self.memory = replace(self.memory, followed_term=term)

    def view(self) -> View:
        facts = self.facts
        return View(
            me=self.me,
            desired=self.desired,
            instance=self.instance,
            engine=self.seen,
            lease=self.lease.lease(),
            ttl_s=self.ttl_s,
            operation=self.operation,
            started_at=self.started_at,
            promised_until=facts.promised_until,
            asked_peers_at=facts.asked_peers_at,
            leaderless_since=facts.leaderless_since,
            ballot_term=facts.ballot_term,
            ballot_position=facts.ballot_position,
            spent_term=self.lease.spent,
            fenced_at=facts.fenced_at,
            not_streaming_since=facts.not_streaming_since,
            streamed_at=facts.streamed_at,
            followed_term=self.memory.followed_term,
            probed_at=facts.probed_at,
            switchover_since=facts.switchover_since,
            sync_sent=facts.sync_sent if facts.sync_sent_in == self.lease.term else None,
            sync_base=facts.settling.base if facts.settling else Lsn(),
        )

    # --- actions ---

    def _perform(self, action: do.Action) -> Work:
        match action:
            case do.Fence():
                self._fence()
            case do.Initialise():
                self._begin(OperationKind.INITIALISE, self._initialise())
            case do.Clone(source=source):
                self._begin(OperationKind.CLONE, self._clone(source))
            case do.Rejoin(leader=leader, anew=anew):
                self._begin(OperationKind.REJOIN, self._clone(leader) if anew else self._rejoin(leader))
            case do.StartPrimary():
                self._begin(OperationKind.START, self._start_primary())
            case do.StartReplica(upstream=upstream):
                self._begin(OperationKind.START, self.engine.start_replica(upstream))
            case do.Stop():
                self._begin(OperationKind.STOP, self.engine.stop())
            case do.Promote():
                self._begin(OperationKind.PROMOTE, self._promote())
            case do.Handover():
                self._begin(OperationKind.HANDOVER, self._hand_over(action))
            case do.Acquire(after_term=after_term):
                yield from self._acquire(after_term)
            case do.Release(term=term, handover=handover):
                yield from self._release(term, handover)
            case do.CastBallot():
                yield from self._cast_ballot(action)
            case do.RecordSync(term=term, sync=sync):
                self.facts.sync_sent, self.facts.sync_sent_in = sync, term
                yield from self._update(term, lambda ha: txns.with_sync(ha, sync))
            case do.RecordSystemId(term=term, system_id=system_id):
                yield from self._update(term, lambda ha: ha if ha.system_id else replace(ha, system_id=system_id))
            case do.EndSwitchover(term=term, request_id=request_id):
                yield from self._end_switchover(term, request_id)
            case do.ApplySync(sync=sync):
                yield self.process.sleep(0.01)
                self.engine.apply_sync(sync)
            case do.Follow(leader=leader):
                self.engine.follow(leader)
            case do.Detach():
                self.engine.follow("")
            case do.AskPeers(term=term):
                yield from self._ask_peers(term)
            case do.ProbeTimeline(leader=leader):
                self.facts.probed_at = self.host.now()
                yield from self.engine.forks_of(self.others[leader].engine)

    def _begin(self, kind: OperationKind, work: Work) -> None:
        assert self.operation is None, f"{kind} while {self.operation} is under way"
        self.operation = mine = Operation(kind=kind, since=self.host.now())

        def ended(result: Any) -> None:
            if self.operation is not mine:
                return
            self.operation = None
            if isinstance(result, Failure):
                self.facts.failures += 1
                self.facts.failure = f"{kind.value}: {result}"
                pause_s = min(10.0, 2.0 ** (self.facts.failures - 1))
                self.facts.retry_at = self.host.now() + pause_s
            else:
                self.facts.failures, self.facts.failure, self.facts.retry_at = 0, "", 0.0
            self._wake.set()

        self._running = self.process.spawn(work, ended)

    def _fence(self) -> None:
        if self.operation is not None and self.operation.kind is OperationKind.FENCE:
            return
        if self._running is not None:
            self._running.cancel()
        self.operation = None
        self.facts.fenced_at = self.host.now()
        self._begin(OperationKind.FENCE, self._end_engine())

    def _end_engine(self) -> Work:
        yield self.process.sleep(self.world.rng.uniform(0.02, 0.5))
        self.engine.end(crashed=False)

    def _initialise(self) -> Work:
        yield from self.engine.initialise(f"{self.me}-{self.world.rng.random()}")
        yield from self._start_primary()

    def _nobody_yet(self) -> SyncRecord:
        return SyncRecord(mode=self.desired.replication.mode)

    def _start_primary(self) -> Work:
        self.engine.apply_sync(self._nobody_yet())
        yield from self.engine.start_primary()

    def _promote(self) -> Work:
        self.engine.apply_sync(self._nobody_yet())
        yield self.process.sleep(0.1)
        yield from self.engine.promote()

    def _clone(self, source: str) -> Work:
        yield from self.engine.stop()
        term = self._ha().term
        yield from self.engine.clone(self.others[source].engine)
        self.memory = replace(self.memory, followed_term=max(term, self.memory.followed_term))
        yield from self.engine.start_replica(source)

    def _rejoin(self, leader: str) -> Work:
        term = self._ha().term
        yield from self.engine.rejoin(self.others[leader].engine)
        self.memory = replace(self.memory, followed_term=max(term, self.memory.followed_term))
        yield from self.engine.start_replica(leader)

    def _hand_over(self, action: do.Handover) -> Work:
        target = self.others[action.target]
        try:
            yield from self.engine.stop()
            position = self.engine.observe().position
            until = self.host.now() + CATCH_UP_WITHIN_S
            while True:
                seen = yield self.network.call(
                    self.process, target.process, lambda reply: reply(target.engine.observe()), timeout_s=ASK_TIMEOUT_S
                )
                if seen.position >= position and seen.role is Role.REPLICA:
                    break
                if self.host.now() > until:
                    raise Failure("the target does not catch up")
                yield self.process.sleep(0.03)
            yield from self._release(action.term, action.target)
        except Failure as failure:
            lease = self.lease.lease()
            if lease.term == action.term and self.host.now() < lease.fence_at:
                yield from self._start_primary()
            yield from self._end_switchover(action.term, action.request_id)
            raise failure

    # --- calls ---

    def _acquire(self, after_term: int) -> Work:
        sent_at = self.host.now()
        self.facts.standing_until = sent_at + 2 * HUB_TIMEOUT_S
        position = self.seen.position
        change = LeadershipChange(
            term=0,
            member=self.me,
            reason="",
            timeline=position.timeline,
            lsn=str(position.lsn) if position.timeline else "",
        )
        hub, lease_id, ha = self.hub, self.lease_id, self._ha()

        def ask(reply: Reply) -> None:
            hub.acquire(self.me, self.host.name, after_term, lease_id, change, reply)

        answer = yield from self._ask_hub(ask, HUB_TIMEOUT_S)
        if isinstance(answer, Failure):
            raise answer
        self.facts.standing_until = 0.0
        if answer is None:
            return
        term, self.lease_id = answer
        self.lease.acquired(term, sent_at, self.ttl_s)
        self.facts.sync_sent, self.facts.sync_sent_in = SyncRecord(mode=ha.sync.mode), term
        self._remember()
        self._beat_now.set()
        self._wake.set()

    def _release(self, term: int, handover: str) -> Work:
        self.lease.released()
        self._remember()
        hub, position = self.hub, self.seen.position
        change = LeadershipChange(
            term=term,
            member=self.me,
            reason="",
            timeline=position.timeline,
            lsn=str(position.lsn) if position.timeline else "",
        )
        answer = yield from self._ask_hub(
            lambda reply: hub.release(self.me, term, handover, change, reply), HUB_TIMEOUT_S
        )
        if isinstance(answer, Failure):
            raise answer

    def _cast_ballot(self, action: do.CastBallot) -> Work:
        ballot = Ballot(
            member=self.me,
            node=self.host.name,
            term=action.term,
            timeline=action.position.timeline,
            lsn=action.position.lsn.value,
            leader_lsn=self.seen.leader_lsn.value,
            was_leader=action.was_leader,
            priority=self.desired.priority,
            no_failover=self.desired.no_failover,
        )
        hub = self.hub
        cast = yield from self._ask_hub(lambda reply: hub.cast_ballot(ballot, reply), HUB_TIMEOUT_S)
        if cast is True:
            self.facts.ballot_term, self.facts.ballot_position = action.term, action.position

    def _update(self, term: int, change: Callable[[HaRecord], HaRecord | None]) -> Work:
        hub = self.hub
        yield from self._ask_hub(lambda reply: hub.update(self.me, term, change, reply), HUB_TIMEOUT_S)

    def _end_switchover(self, term: int, request_id: str) -> Work:
        def change(ha: HaRecord) -> HaRecord:
            over = ha.switchover is not None and ha.switchover.id == request_id
            return replace(ha, switchover=None) if over else ha

        yield from self._update(term, change)

    def _ask_peers(self, term: int) -> Work:
        asked_at = self.host.now()
        self.facts.asked_peers_at = asked_at
        number, all_granted = int(asked_at * 1000), self.facts.all_granted
        promise_s = self.promise_ttls * self.ttl_s
        answers: list[str] = []
        peers = self.view().peers
        enough = Signal(self.process)

        def take(answer: Any) -> None:
            answers.append("no answer" if isinstance(answer, Failure) else answer)
            if len(answers) == len(peers):
                enough.set()

        for peer in peers:
            other = self.others[peer.member]

            def ask(reply: Reply, other: Agent = other) -> None:
                reply(other.grant(self.me, term, promise_s, number, all_granted))

            self.network.call(self.process, other.process, ask, timeout_s=ASK_TIMEOUT_S)(take)
        if peers:
            yield enough.wait(2 * ASK_TIMEOUT_S)
        if len(answers) == len(peers) and not any(answers):
            self.facts.all_granted = number
            self.lease.granted(asked_at, promise_s)
            self._remember()

    def grant(self, asker: str, term: int, promise_s: float, ask: int, all_granted: int) -> str:
        now = self.host.now()
        standing = now < self.facts.standing_until
        refusal = may_grant(self.view(), asker=asker, term=term, standing=standing, now=now)
        if not refusal:
            self.facts.promised_until = max(self.facts.promised_until, now + promise_s)
            self.facts.vouching.granted(asker, term, ask=ask, all_granted=all_granted, promise_s=promise_s, now=now)
            self.routes_changed()
        return refusal

    def _ha(self) -> HaRecord:
        return self.instance.ha if self.instance else HaRecord()

    # --- lease ---

    def _beats(self) -> Work:
        while True:
            sent_at, lease_id = self.host.now(), self.lease_id
            ask = functools.partial(self.hub.heartbeat, self.host.name, lease_id)
            try:
                answer = yield from self._ask_hub(ask, HEARTBEAT_TIMEOUT_S)
            except Failure as failure:
                answer = failure
            failed = isinstance(answer, Failure)
            pause_s = RETRY_S if failed else self._take_beat(answer, lease_id, sent_at)
            self._beat_now.clear()
            yield self._beat_now.wait(pause_s)

    def _take_beat(self, answer: tuple[str, int, str, float], lease_id: int, sent_at: float) -> float:
        renewal, term, member, remaining_s = answer
        if renewal == "gone" and lease_id == self.lease_id:
            self.lease_id = 0
            self.lease.gone()
            self._remember()
            self._wake.set()
        elif renewal == "confirmed" and lease_id == self.lease_id:
            self._renewed(sent_at)
        self.facts.told = LeaderTrust(term=term, member=member, until=sent_at + remaining_s - CLIENT_MARGIN_S)
        self.routes_changed()
        return RETRY_S if renewal == "unconfirmed" else max(0.1, self.ttl_s * RENEW - (self.host.now() - sent_at))

    def _renewed(self, sent_at: float) -> None:
        leader = self.instance.leader if self.instance else None
        if leader is not None and leader.member == self.me and leader.lease_id == self.lease_id:
            if leader.term != self.lease.term:
                self._wake.set()
            self.lease.acquired(leader.term, sent_at, self.ttl_s)
        elif leader is None:
            self.lease.renewed(sent_at, self.ttl_s)
        self._remember()

    def _remember(self) -> None:
        lease = self.lease.lease()
        self.memory = replace(
            self.memory,
            term=lease.term,
            renewed_at=lease.renewed_at,
            fence_at=lease.fence_at,
            spent=self.lease.spent,
            lease_id=self.lease_id,
        )
        self.routes_changed()

    def _guard(self) -> Work:
        """Fences at the deadline even when the loop waits for an answer."""
        while True:
            now, lease = self.host.now(), self.lease.lease()
            alive = self.seen.state in (EngineState.RUNNING, EngineState.STARTING, EngineState.UNRESPONSIVE)
            if lease.term and now >= lease.fence_at and alive and self.seen.role is not Role.REPLICA:
                self._fence()
            yield self.process.sleep(max(0.05, min(1.0, lease.fence_at - now if now < lease.fence_at else 1.0)))

    # --- news ---

    def _pulls(self) -> Work:
        while True:
            ask = functools.partial(self.hub.poll, self.instance)
            try:
                view = yield from self._ask_hub(ask, POLL_TIMEOUT_S)
            except Failure:
                yield self.process.sleep(self.world.rng.uniform(0.1, 1.0))
                continue
            if view != self.instance:
                self.instance = view
                self.memory = replace(self.memory, instance=view)
                self._wake.set()

    def _report(self) -> None:
        observed = self._observed()
        if (observed != self._reported or self._is_known_otherwise(observed)) and not self._reporting:
            self._reporting = True
            hub = self.hub

            def ended(result: Any) -> None:
                self._reporting = False
                if not isinstance(result, Failure):
                    self._reported = observed

            self.process.spawn(self._ask_hub(lambda reply: hub.report(observed, reply), HUB_TIMEOUT_S), ended)

    def _is_known_otherwise(self, observed: ObservedMember) -> bool:
        """A report that was held up may arrive after a later one: what the hub shows of oneself is put right."""
        members = self.instance.members if self.instance else ()
        shown = next((m for m in members if m.member == self.me), None)
        return shown is not None and (shown.state, shown.role, shown.timeline, shown.streaming_from) != (
            observed.state,
            observed.role,
            observed.timeline,
            observed.streaming_from,
        )

    def _observed(self) -> ObservedMember:
        engine = self.seen
        return ObservedMember(
            project=self.desired.project,
            instance=self.desired.instance,
            member=self.me,
            node=self.host.name,
            state=self._member_state(),
            role=engine.role,
            timeline=engine.position.timeline,
            streaming_from=engine.upstream if engine.streaming else "",
        )

    def _member_state(self) -> MemberState:
        engine = self.seen
        if self.operation is not None:
            return MemberState.STARTING
        if engine.state is not EngineState.RUNNING:
            down = {EngineState.ABSENT: MemberState.ABSENT, EngineState.STARTING: MemberState.STARTING}
            return down.get(engine.state, MemberState.STOPPED)
        if engine.role is Role.PRIMARY:
            return MemberState.RUNNING if self.writable() else MemberState.STARTING
        leader = self.instance.leader if self.instance else None
        if leader is None or engine.streaming:
            return MemberState.RUNNING
        apart_s = self.host.now() - self.facts.not_streaming_since
        return MemberState.STARTING if apart_s < STREAM_GRACE_S else MemberState.LAGGING

    # --- routes ---

    def writable(self) -> bool:
        lease = self.lease.lease()
        closed = (OperationKind.FENCE, OperationKind.HANDOVER, OperationKind.STOP)
        return (
            self.seen.state is EngineState.RUNNING
            and self.seen.role is Role.PRIMARY
            and lease.term > 0
            and self.host.now() < lease.fence_at
            and (self.operation is None or self.operation.kind not in closed)
        )

    def routes_changed(self) -> None:
        lease = self.lease.lease()
        writable = self.writable()
        trust = (
            LeaderTrust(term=lease.term, member=self.me, until=lease.fence_at) if writable else self._trust_in_others()
        )
        self.proxy.take(route_of(self.desired, self.instance, writable_here=writable, trust=trust))

    def _trust_in_others(self) -> LeaderTrust:
        told, vouching = self.facts.told, self.facts.vouching
        vouched = LeaderTrust(term=vouching.term, member=vouching.member, until=vouching.until)
        if told.member != vouched.member:
            return max(told, vouched, key=lambda trust: trust.term)
        return max(told, vouched, key=lambda trust: trust.until)
