"""One member's keeper as the simulator has it: the real `decide`, `LeaseClock`, `may_grant`, `settle` and `route_of` in
a shell of the same order as `agent.ha.keeper`: gather, decide, carry out, wait. What a node has once: `node_model`.

What it keeps on disk survives its process; deadlines count only in the same boot of the host.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from agent.ha import actions as do
from agent.ha.decide import decide
from agent.ha.election import may_grant
from agent.ha.facts import UPSTREAM_WITHIN_S, Flushes, flushes, stalled
from agent.ha.following import streams_log_of
from agent.ha.hold import Hold, in_force, may_hold
from agent.ha.leaseclock import ASK_TIMEOUT_S, LeaseClock, Vouching
from agent.ha.syncset import Settling, settle
from agent.ha.takeover import Takeover, acknowledges
from agent.ha.view import Engine as Seen
from agent.ha.view import EngineState, Operation, OperationKind, View
from agent.reconcile import CONVERGE_EVERY_S
from agent.routing import LeaderTrust, route_of
from core.ids import InstanceRef
from core.positions import Lsn, WalPosition
from core.records import (
    HISTORY_MAX,
    Ballot,
    HaRecord,
    InstanceView,
    LeadershipChange,
    MemberDesired,
    ObservedMember,
    PeerMember,
    SyncRecord,
)
from core.status import MemberState, Role
from hub.etcd import txns
from tests.sim.hub_model import member_ref
from tests.sim.network import Reply
from tests.sim.node_model import NodeAgent
from tests.sim.world import Failure, Process, Running, Signal, Work

if TYPE_CHECKING:
    from tests.sim.engine_model import Engine
    from tests.sim.proxy_model import Proxy

HUB_TIMEOUT_S = 3.0
STREAM_GRACE_S = 3.0
CATCH_UP_WITHIN_S = 5.0
HOLD_FOR_S = 3.0
HOLD_TIMEOUT_S = 1.0
TURN_MIN_S = 0.02
FRESH_TURN_S = 0.002
NOBODY = LeaderTrust()


@dataclass(slots=True)
class Memory:
    """keeper.json, in the member's directory"""

    boot: int = -1
    term: int = 0
    renewed_at: float = 0.0
    fence_at: float = 0.0
    spent: int = 0
    lease_id: int = 0  # that the leader key of `term` hangs on
    ballot_term: int = 0
    followed_term: int | None = None


@dataclass(slots=True)
class Facts:
    """Lost with the process."""

    promised_until: float = 0.0
    promised_term: int = 0
    vouching: Vouching = field(default_factory=Vouching)
    all_granted: int = 0  # the last one that everybody granted
    asked_peers_at: float = 0.0
    leaderless_since: float = 0.0
    ballot_position: WalPosition = field(default_factory=WalPosition)
    standing_until: float = 0.0
    upstream_failed_at: float = 0.0
    probed_at: float = 0.0
    probe_answered_at: float = 0.0
    not_streaming_since: float = 0.0
    streamed_at: float | None = None
    fenced_at: float = 0.0
    switchover_since: float = 0.0
    forced_order: str = ""
    forced_since: float = 0.0
    takeover: Takeover | None = None
    hold: Hold | None = None
    closing: bool = False
    sync_sent: SyncRecord | None = None
    sync_sent_in: int = 0
    settling: Settling | None = None
    flushes: Flushes = field(default_factory=dict)
    failures: int = 0
    failure: str = ""
    retry_at: float = 0.0


class Agent:
    """The keeper of one member, in the process of its node's agent."""

    def __init__(self, shell: NodeAgent, *, desired: MemberDesired, engine: Engine, proxy: Proxy) -> None:
        self.shell = shell
        self.world = shell.world
        self.host = shell.host
        self.network = shell.network
        self.process: Process = shell.process
        self.desired = desired
        self.me = desired.member
        self.ref = InstanceRef(desired.project, desired.instance)
        self.id = member_ref(self.me, self.ref)
        self.engine = engine
        self.proxy = proxy
        self.ttl_s = shell.ttl_s
        self.running = False
        self.deleted = False
        engine.process_of_agent = self.process
        self.others: dict[str, Agent] = {}
        self.instance: InstanceView | None = None
        self.memory = Memory()
        self.reasons: set[do.Reason] = set()
        self.decision: do.Decision | None = None
        self.promise_ttls = 1.0  # shorter by a mutation
        self.restores_spent = True  # not by a mutation
        self.facts = Facts()
        shell.members[desired.instance, self.me] = self

    # --- life ---

    def begin(self, desired: MemberDesired, instance: InstanceView | None) -> None:
        """The member is wanted here; the agent has just started, or just heard of it."""
        if self.memory.boot != self.host.boot:
            self.memory.boot, self.memory.term = self.host.boot, 0
            self.memory.renewed_at = self.memory.fence_at = 0.0
        kept = self.memory
        self.lease = LeaseClock.restored(
            term=kept.term,
            renewed_at=kept.renewed_at,
            fence_at=kept.fence_at,
            ttl_s=self.ttl_s,
            spent=kept.spent if self.restores_spent else 0,
        )
        self.running, self.deleted = True, False
        self.desired, self.instance = desired, instance
        self.facts = Facts()
        self.seen = Seen(state=EngineState.STOPPED)
        self.started_at = self.shell.started_at
        self.operation: Operation | None = None
        self._running: Running | None = None
        self._wake = Signal(self.process)
        self._reported: tuple[MemberState, Role, int, str] | None = None
        self._reporting = False
        self._routed: tuple[Any, ...] = ()
        self._settled = ()
        self.engine.on_death = self._wake_later
        self._loop = self.process.spawn(self._turns())
        self._guarded = False
        self._arm_guard()

    def update(self, desired: MemberDesired, instance: InstanceView | None) -> None:
        """Another state was pulled."""
        before = self.instance.leader if self.instance else None
        if self.deleted and desired.desired != "absent":
            self.end()
            self.begin(desired, instance)
            return
        self.desired, self.instance = desired, instance or self.instance
        if self.instance is not None and self.instance.leader not in (None, before):
            self.shell.beat_now.set()
        self._wake.set()
        self.routes_changed()

    def end(self) -> None:
        """Not wanted here any more: stops, keeps its data if it has not been told to delete it."""
        if not self.running:
            return
        self.running = False
        self._loop.cancel()
        if self._running is not None:
            self._running.cancel()
        self.operation = None
        self.engine.on_death = lambda: None
        self.engine.end(crashed=False)
        self.proxy.drop()

    def lose_disk(self) -> None:
        """Data and keeper.json are gone, and the engine with them."""
        self.engine.lose_data()
        self.memory = Memory()
        if self.running and self.process.alive:
            self.end()
            self.begin(self.desired, self.instance)

    def _wake_later(self) -> None:
        if self.process.alive:
            self.process.later(0.002, self._wake.set)

    # --- the loop ---

    def _turns(self) -> Work:
        while True:
            self._wake.clear()
            if self.instance is not None:
                self._tell_engine_its_peers(self.instance)
            self._observe()
            now = self.host.now()
            self._note_since_when(now)
            view = self.view()
            decision = decide(view, now)
            fresh = self.decision is None or decision.reason is not self.decision.reason
            if fresh:
                self.world.note(f"{self.engine.label}: {decision.reason.value} {decision.detail}")
            self.decision = decision
            self.reasons.add(decision.reason)
            for action in decision.actions:
                with contextlib.suppress(Failure):
                    yield from self._perform(action)
            if not decision.actions and self.operation is None:
                self._keep_house()
            self._report()
            self.routes_changed()
            yield self.process.sleep(FRESH_TURN_S if fresh and decision.actions else TURN_MIN_S)
            yield self._wake.wait(max(0.0, decision.wake_at - self.host.now()))

    def _tell_engine_its_peers(self, instance: InstanceView) -> None:
        if instance.members is not self._peers_of:
            self._peers_of = instance.members
            self.engine.peers = {
                m.member: self.others[m.member].engine for m in instance.members if m.member != self.me
            }

    _peers_of: tuple[PeerMember, ...] = ()

    def _keep_house(self) -> None:
        """In a quiet moment, as `agent.reconcile` says: delete what is to be absent, else look at the settings, which
        succeeds here, and with that what failed before is forgotten."""
        if self.desired.desired == "absent":
            self._destroy()
        elif self.seen.state is EngineState.RUNNING and (self.seen.role is Role.REPLICA or self.writable()):
            settled = self.seen.role, self.lease.term, self.desired
            now = self.host.now()
            if settled != self._settled or now - self._settled_at >= CONVERGE_EVERY_S:
                self._settled, self._settled_at = settled, now
                self.facts.failures, self.facts.failure, self.facts.retry_at = 0, "", 0.0

    _settled: tuple[Any, ...] = ()
    _settled_at = 0.0

    def _destroy(self) -> None:
        """Once it is down and does not lead."""
        leader = self.instance.leader if self.instance else None
        down = self.seen.state in (EngineState.STOPPED, EngineState.CRASHED, EngineState.ABSENT)
        if down and not (leader is not None and leader.member == self.me) and not self.deleted:
            self.engine.lose_data()
            self.memory = Memory()
            self.deleted = True

    def _observe(self) -> None:
        facts, seen = self.facts, self.engine.observe()
        if facts.failures:
            seen = replace(seen, failure=facts.failure, retry_at=facts.retry_at, failed_starts=facts.failures)
        self.seen = seen

    def _note_since_when(self, now: float) -> None:
        facts, engine, instance = self.facts, self.seen, self.instance
        leaderless = instance is not None and instance.leader is None
        facts.leaderless_since = (facts.leaderless_since or now) if leaderless else 0.0
        asked = instance is not None and instance.ha.switchover is not None
        facts.switchover_since = (facts.switchover_since or now) if asked else 0.0
        forced = instance.ha.forced if instance is not None else None
        order = forced.id if forced is not None else ""
        if order != facts.forced_order:
            facts.forced_order, facts.forced_since = order, now if order else 0.0
        running = engine.state is EngineState.RUNNING
        apart = running and engine.role is Role.REPLICA and not engine.streaming
        facts.not_streaming_since = (facts.not_streaming_since or now) if apart else 0.0
        if engine.streaming:
            facts.streamed_at = now
        cascades = apart and engine.upstream == self.desired.upstream != ""
        if cascades and now - facts.not_streaming_since >= UPSTREAM_WITHIN_S:
            facts.upstream_failed_at = now
        if running:
            facts.fenced_at = 0.0
        self._note_followed(now)
        primary = running and engine.role is Role.PRIMARY
        facts.settling = settle(facts.settling, engine.sync, engine.position.lsn, now) if primary else None
        facts.flushes = flushes(facts.flushes, engine, now) if primary else {}
        takeover = self._takeover()
        if takeover is not None and primary:
            takeover.seen_primary(now, acknowledges=acknowledges(engine.sync))

    def _takeover(self) -> Takeover | None:
        takeover = self.facts.takeover
        return takeover if takeover is not None and takeover.term == self.lease.term else None

    def _note_followed(self, now: float) -> None:
        """The own data is part of the log of this term: it is led here, or streamed from who leads it."""
        engine, leader, lease = self.seen, self.instance.leader if self.instance else None, self.lease.lease()
        if engine.state is not EngineState.RUNNING:
            return
        if engine.role is Role.PRIMARY and lease.term and now < lease.fence_at:
            self._follows_term(lease.term)
        elif engine.role is Role.REPLICA and engine.streaming and leader and streams_log_of(self.view(), leader.member):
            self._follows_term(leader.term)

    def _follows_term(self, term: int) -> None:
        if self.memory.followed_term is None or term > self.memory.followed_term:
            self.memory.followed_term = term

    def view(self) -> View:
        facts, takeover = self.facts, self._takeover()
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
            promised_term=facts.promised_term,
            asked_peers_at=facts.asked_peers_at,
            leaderless_since=facts.leaderless_since,
            ballot_term=self.memory.ballot_term,
            ballot_position=facts.ballot_position,
            spent_term=self.lease.spent,
            fenced_at=facts.fenced_at,
            not_streaming_since=facts.not_streaming_since,
            streamed_at=facts.streamed_at,
            followed_term=self.memory.followed_term,
            upstream_failed_at=facts.upstream_failed_at,
            probed_at=facts.probed_at,
            probe_answered_at=facts.probe_answered_at,
            closing=facts.closing,
            switchover_since=facts.switchover_since,
            forced_since=facts.forced_since,
            acquired_at=takeover.acquired_at if takeover else 0.0,
            opened_at=takeover.opened_at if takeover else 0.0,
            opening_told=takeover is not None and takeover.told,
            stalled=stalled(facts.flushes, self.host.now()),
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
            case do.Promote(above=above):
                self._begin(OperationKind.PROMOTE, self._promote(above))
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
            case do.TellOpened(term=term):
                yield from self._tell_opened(term)
            case do.ApplySync(sync=sync):
                yield self.process.sleep(0.01)
                self.engine.apply_sync(sync)
            case do.Follow(upstream=upstream):
                self.engine.follow(upstream)
            case do.Detach():
                self.engine.follow("")
            case do.AskPeers(term=term):
                yield from self._ask_peers(term)
            case do.ProbeTimeline(leader=leader):
                self.facts.probed_at = self.host.now()
                yield from self.engine.forks_of(self.others[leader].engine)
                self.facts.probe_answered_at = self.facts.probed_at

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
        """Alone only where the elections go by the rule of async mode, too."""
        mode, recorded = self.desired.replication.mode, self._ha().sync.mode
        return SyncRecord(mode=mode if mode == recorded else "sync")

    def _start_primary(self) -> Work:
        self.engine.apply_sync(self._nobody_yet())
        yield from self.engine.start_primary()

    def _promote(self, above: int) -> Work:
        self.engine.apply_sync(self._nobody_yet())
        yield self.process.sleep(0.1)
        yield from self.engine.promote(above=above)

    def _clone(self, source: str) -> Work:
        yield from self.engine.stop()
        term, leader = self._ha().term, self._ha().leader
        if source != leader:
            yield from self.engine.ask_leave(self.others[leader].engine)
        yield from self.engine.clone(self.others[source].engine, by_replica=source != leader)
        self._follows_term(term)
        yield from self.engine.start_replica(source if source == self.desired.upstream else leader)

    def _rejoin(self, leader: str) -> Work:
        term = self._ha().term
        yield from self.engine.rejoin(self.others[leader].engine)
        self._follows_term(term)
        yield from self.engine.start_replica(leader)

    def _hand_over(self, action: do.Handover) -> Work:
        """As `agent.ha.handover`: hold the clients everywhere, stop, see that the target has everything, let go."""
        lets_go = False
        try:
            yield from self._hold_all(action, HOLD_FOR_S)
            self._close(True)
            yield from self.engine.stop()
            if self.engine.observe().state is not EngineState.STOPPED:
                raise Failure("the engine ended in no orderly way")
            yield from self._wait_for(action.target, self.engine.observe().position)
            lets_go = True
            yield from self._release(action.term, action.target)
        except Failure as failure:
            if lets_go:
                raise
            lease = self.lease.lease()
            crashed = self.engine.observe().state is EngineState.CRASHED
            if lease.term == action.term and self.host.now() < lease.fence_at and not crashed:
                yield from self._start_primary()
            yield from self._end_switchover(action.term, action.request_id)
            yield from self._hold_all(action, 0.0)
            raise failure
        finally:
            self._close(False)

    def _close(self, closing: bool) -> None:
        self.facts.closing = closing
        self.routes_changed()

    def _hold_all(self, action: do.Handover, for_s: float) -> Work:
        """Who does not answer holds nobody; nothing rests on it."""
        self.hold_clients(self.me, action.term, action.request_id, for_s)
        for peer in self.view().peers:
            other = self.others[peer.member]

            def ask(reply: Reply, other: Agent = other) -> None:
                reply(other.hold_clients(self.me, action.term, action.request_id, for_s))

            with contextlib.suppress(Failure):
                yield self.network.call(self.process, other.process, ask, timeout_s=HOLD_TIMEOUT_S)

    def hold_clients(self, leader: str, term: int, request_id: str, for_s: float) -> str:
        """Empty, or why not."""
        refusal = may_hold(self.instance, leader=leader, term=term) if self.running else "no such member here"
        if refusal:
            return refusal
        if for_s:
            self.facts.hold = Hold(term=term, request_id=request_id, until=self.host.now() + for_s)
            self.process.later(for_s, self.routes_changed)
        elif self.facts.hold is not None and self.facts.hold.request_id == request_id:
            self.facts.hold = None
        self.routes_changed()
        return ""

    def _wait_for(self, member: str, position: WalPosition) -> Work:
        """Until the target has received everything up to `position`."""
        target, until = self.others[member], self.host.now() + CATCH_UP_WITHIN_S
        while True:
            seen = yield self.network.call(
                self.process, target.process, lambda reply: reply(target.engine.observe()), timeout_s=ASK_TIMEOUT_S
            )
            if seen.position >= position and seen.role is Role.REPLICA:
                return
            if self.host.now() > until:
                raise Failure("the target does not catch up")
            yield self.process.sleep(0.03)

    # --- calls ---

    def _acquired(self, term: int, sent_at: float, lease_id: int) -> None:
        self.memory.lease_id = lease_id
        self.lease.acquired(term, sent_at, self.ttl_s)

    def _acquire(self, after_term: int) -> Work:
        """One at a time on a node, for they share the lease."""
        while self.shell.acquiring:
            yield self.process.sleep(0.05)
        self.shell.acquiring = True
        try:
            yield from self._ask_to_acquire(after_term)
        finally:
            self.shell.acquiring = False

    def _ask_to_acquire(self, after_term: int) -> Work:
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
        hub, lease_id = self.shell.hub, self.shell.lease_id

        def ask(reply: Reply) -> None:
            hub.acquire(self.id, self.host.name, after_term, lease_id, change, reply)

        answer = yield from self.shell.ask_hub(ask, HUB_TIMEOUT_S)
        if isinstance(answer, Failure):
            raise answer
        self.facts.standing_until = 0.0
        if answer is None:
            return
        term, lease_id, sync = answer
        self.shell.take(lease_id)
        self._acquired(term, sent_at, lease_id)
        self.facts.takeover = Takeover(
            term=term, leaderless_since=self.facts.leaderless_since, acquired_at=self.host.now()
        )
        self.facts.sync_sent, self.facts.sync_sent_in = sync, term
        self._remember()
        self.routes_changed()
        self.shell.beat_now.set()
        self._wake.set()

    def _release(self, term: int, handover: str) -> Work:
        self.lease.released()
        self._remember()
        self.routes_changed()
        hub, position = self.shell.hub, self.seen.position
        change = LeadershipChange(
            term=term,
            member=self.me,
            reason="",
            timeline=position.timeline,
            lsn=str(position.lsn) if position.timeline else "",
        )
        answer = yield from self.shell.ask_hub(
            lambda reply: hub.release(self.id, term, handover, change, reply), HUB_TIMEOUT_S
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
        hub = self.shell.hub
        self.memory.ballot_term = action.term
        cast = yield from self.shell.ask_hub(lambda reply: hub.cast_ballot(self.ref, ballot, reply), HUB_TIMEOUT_S)
        if cast is True:
            self.facts.ballot_position = action.position

    def _update(self, term: int, change: Callable[[HaRecord], HaRecord | None]) -> Work:
        hub = self.shell.hub
        yield from self.shell.ask_hub(lambda reply: hub.update(self.id, term, change, reply), HUB_TIMEOUT_S)

    def _tell_opened(self, term: int) -> Work:
        takeover = self._takeover()
        if takeover is None:
            return
        takeover.told = True
        opened = LeadershipChange(term=term, member=self.me, reason="", kind="opened")
        yield from self._update(term, lambda ha: replace(ha, history=(*ha.history, opened)[-HISTORY_MAX:]))

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
        members = self.instance.members if self.instance else ()
        peers = [m for m in members if m.member != self.me]
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
        if len(answers) == len(peers) and not any(answers) and self.host.now() - asked_at <= ASK_TIMEOUT_S:
            self.facts.all_granted = number
            self.lease.granted(asked_at, promise_s)
            self._remember()
            self.routes_changed()

    def grant(self, asker: str, term: int, promise_s: float, ask: int, all_granted: int) -> str:
        if not self.running:
            return "no such member here"
        now = self.host.now()
        standing = now < self.facts.standing_until
        refusal = may_grant(self.view(), asker=asker, term=term, standing=standing, now=now)
        if not refusal:
            self.facts.promised_until, self.facts.promised_term = max(self.facts.promised_until, now + promise_s), term
            self.facts.vouching.granted(asker, term, ask=ask, all_granted=all_granted, promise_s=promise_s, now=now)
            self.routes_changed()
        return refusal

    def _ha(self) -> HaRecord:
        return self.instance.ha if self.instance else HaRecord()

    # --- lease ---

    def lease_renewed(self, sent_at: float, term: int, member: str) -> None:
        """The hub confirmed the node's lease, and that `member` leads in `term`."""
        if member != self.me:
            return
        record = self.instance.leader if self.instance else None
        if record is not None and record.term == term and record.lease_id == self.shell.lease_id:
            if term != self.lease.term:
                self._wake.set()
            self._acquired(term, sent_at, record.lease_id)
        elif term == self.lease.term and self.memory.lease_id == self.shell.lease_id:
            self.lease.renewed(sent_at, self.ttl_s)
        self._remember()

    def lease_gone(self) -> None:
        self.lease.gone()
        self._remember()
        self.routes_changed()
        self._wake.set()

    def _remember(self) -> None:
        """To disk; the caller sees to the routes."""
        lease, memory = self.lease.lease(), self.memory
        memory.term, memory.spent = lease.term, self.lease.spent
        memory.renewed_at, memory.fence_at = lease.renewed_at, lease.fence_at
        self._arm_guard()

    def _arm_guard(self) -> None:
        """It fences at the deadline even when the loop waits for an answer."""
        if not self._guarded and self.lease.term:
            self._guarded = True
            self.process.later(max(0.05, self.lease.lease().fence_at - self.host.now()), self._guard)

    def _guard(self) -> None:
        self._guarded = False
        if not self.running or not self.lease.term:
            return
        alive = self.seen.state in (EngineState.RUNNING, EngineState.STARTING, EngineState.UNRESPONSIVE)
        if self.host.now() >= self.lease.lease().fence_at and alive and self.seen.role is not Role.REPLICA:
            self._fence()
        self._arm_guard()

    # --- news ---

    def _report(self) -> None:
        if self._reporting:
            return
        gist = self._gist()
        if gist != self._reported or self._is_known_otherwise(gist):
            self._reporting = True
            hub, observed = self.shell.hub, self._observed()

            def ended(result: Any) -> None:
                self._reporting = False
                if not isinstance(result, Failure):
                    self._reported = gist

            ask = self.shell.ask_hub(lambda reply: hub.report(self.ref, observed, reply), HUB_TIMEOUT_S)
            self.process.spawn(ask, ended)

    def _gist(self) -> tuple[MemberState, Role, int, str]:
        """All of the report that changes."""
        engine = self.seen
        from_whom = engine.upstream if engine.streaming else ""
        return self._member_state(), engine.role, engine.position.timeline, from_whom

    def _is_known_otherwise(self, gist: tuple[MemberState, Role, int, str]) -> bool:
        """A report that was held up may arrive after a later one: what the hub shows of oneself is put right."""
        for shown in self.instance.members if self.instance else ():
            if shown.member == self.me:
                return (shown.state, shown.role, shown.timeline, shown.streaming_from) != gist
        return False

    def _observed(self) -> ObservedMember:
        state, role, timeline, streaming_from = self._gist()
        return ObservedMember(
            project=self.desired.project,
            instance=self.desired.instance,
            member=self.me,
            node=self.host.name,
            state=state,
            role=role,
            timeline=timeline,
            streaming_from=streaming_from,
        )

    def _member_state(self) -> MemberState:
        engine = self.seen
        if self.deleted:
            return MemberState.DELETED
        if self.operation is not None:
            return MemberState.STARTING
        if engine.state is not EngineState.RUNNING:
            down = {EngineState.ABSENT: MemberState.ABSENT, EngineState.STARTING: MemberState.STARTING}
            return down.get(engine.state, MemberState.STOPPED)
        if engine.role is Role.PRIMARY:
            return MemberState.RUNNING if self.writable() else MemberState.STARTING
        leader = self.instance.leader if self.instance else None
        if leader is None or (engine.streaming and engine.upstream == leader.member):
            return MemberState.RUNNING
        apart_s = self.host.now() - self.facts.not_streaming_since
        return MemberState.STARTING if apart_s < STREAM_GRACE_S else MemberState.LAGGING

    # --- routes ---

    def writable(self) -> bool:
        seen, lease = self.seen, self.lease
        return (
            seen.role is Role.PRIMARY
            and seen.state is EngineState.RUNNING
            and lease.term > 0
            and self.host.now() < lease.lease().fence_at
            and (self.operation is None or self.operation.kind not in (OperationKind.FENCE, OperationKind.STOP))
            and not self.facts.closing
        )

    def routes_changed(self) -> None:
        if not self.running:
            return
        writable = self.writable()
        if writable:
            lease = self.lease.lease()
            trust = LeaderTrust(term=lease.term, member=self.me, until=lease.fence_at)
        else:
            trust = self._trust_in_others()
        hold = self.facts.hold
        paused = hold is not None and in_force(hold, self.instance, self.host.now())
        told = self._routed
        if told and told[0] is self.instance and told[1:] == (writable, trust, paused, self.proxy.process.life):
            return
        self._routed = (self.instance, writable, trust, paused, self.proxy.process.life)
        self.proxy.take(route_of(self.desired, self.instance, writable_here=writable, trust=trust, paused=paused))

    def _trust_in_others(self) -> LeaderTrust:
        told, vouching = self.shell.told.get(self.desired.instance), self.facts.vouching
        if not vouching.term:
            return told or NOBODY
        vouched = LeaderTrust(term=vouching.term, member=vouching.member, until=vouching.until)
        if told is None:
            return vouched
        if told.member != vouched.member:
            return max(told, vouched, key=lambda trust: trust.term)
        return max(told, vouched, key=lambda trust: trust.until)
