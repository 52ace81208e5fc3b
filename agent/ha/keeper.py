"""The shell of one member: gather, decide, carry out, wait; any news or timeout starts again at the top.

All judgement is in the pure `decide`. The keeper adds only this: at most one long operation on the engine at a time,
which a fence preempts; a guard of its own that fences when the lease runs out even if the loop hangs in a call; and a
memory on disk of term and fence deadline, so that an agent that comes back finds the same limits in force.

A member of an instance stays as it is while the hub is away; what was pulled last is what is wanted.
"""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass, field, replace
from typing import assert_never

from agent.context import NodeContext
from agent.engines.base import Engine as EngineDriver
from agent.ha import report
from agent.ha.actions import Decision
from agent.ha.decide import decide
from agent.ha.election import may_grant
from agent.ha.leaseclock import LeaseClock, Vouching
from agent.ha.operations import Operations
from agent.ha.performer import Performer
from agent.ha.syncset import Settling, settle
from agent.ha.view import Engine, EngineState, Fork, OperationKind, View
from agent.heartbeat import Leaders
from agent.local import Memory
from agent.peer import position_message
from agent.reconcile import Observed, Step, reconcile
from agent.routing import CLIENT_MARGIN_S, LeaderTrust, route_of
from core.errors import MoorageError, words
from core.ids import MemberRef
from core.log import EventLog
from core.positions import Lsn, WalPosition
from core.records import InstanceView, MemberDesired, MemberSecrets, ReplicationMode, SyncRecord
from core.routes import Route
from core.status import Role
from protos.v1 import agent_pb2, peer_pb2
from protos.v1.common_pb2 import MemberId

log = EventLog("agent.keeper")
OBSERVE_TIMEOUT_S = 5.0  # the engine's own query limits are shorter; this one is for a hung file system
TURN_MIN_S = 0.02  # between two turns, however many wakes come
CONVERGE_TIMEOUT_S = 60.0
STUCK_TURNS_TTL = 2.0  # a loop that has not turned for so many TTLs leads no more


@dataclass(slots=True)
class Facts:
    """What this keeper remembers between turns; all of it is lost without harm when the agent ends."""

    promised_until: float = 0.0  # to a primary over the peer port
    vouching: Vouching = field(default_factory=Vouching)  # the promises seen from the proxy's side
    all_granted: int = 0  # this primary's last question that every member granted
    asked_peers_at: float = 0.0
    leaderless_since: float = 0.0
    ballot_position: WalPosition = field(default_factory=WalPosition)
    standing_until: float = 0.0  # an Acquire may still take effect before
    probed_at: float = 0.0
    forks: tuple[Fork, ...] = ()  # of the timeline of `forks_of`
    forks_of: str = ""
    fenced_at: float = 0.0
    streamed_at: float | None = None
    not_streaming_since: float = 0.0
    switchover_since: float = 0.0
    sync_sent: SyncRecord | None = None  # in the term `sync_sent_in`
    sync_sent_in: int = 0
    settling: Settling | None = None


class Keeper:
    """One member on this node. `run()` ends when the member is deleted or no longer wanted here."""

    def __init__(
        self,
        node: NodeContext,
        driver: EngineDriver,
        *,
        ref: MemberRef,
        desired: MemberDesired,
        secrets: MemberSecrets,
        view: InstanceView | None,
    ) -> None:
        self.node = node
        self.ref = ref
        self.desired = desired
        self.secrets = secrets
        self.instance = view
        self.driver = driver
        self.dir = driver.setup.paths.root
        self.facts = Facts()
        remembered = node.files.memory(self.dir)
        # A member that is made anew has no restart to catch up with.
        self.memory: Memory = Memory(restart_id=desired.restart_id) if remembered is None else remembered
        self.lease = LeaseClock.restored(
            term=self.memory.term,
            renewed_at=self.memory.renewed_at,
            fence_at=self.memory.fence_at,
            ttl_s=node.lease.ttl_s,
        )
        self.engine = Engine(state=EngineState.STOPPED)
        self.operations = Operations(node.clock, self.wake)
        self.performer = Performer(self)
        self.deleted = False
        self._decision: Decision | None = None
        self._wake = asyncio.Event()
        self._guard_wake = asyncio.Event()
        self._turned_at = node.clock.now()
        self._settled: tuple[object, ...] = ()
        self._settled_generation = 0
        self._settled_at = 0.0
        self._watching_death = False
        self.observed = False  # the engine has been looked at since this agent started
        self.unwanted = asyncio.Event()  # the hub lists this member no more

    # --- news from outside ------------------------------------------------------------------------------------------

    def update(self, desired: MemberDesired, secrets: MemberSecrets, view: InstanceView | None) -> None:
        """A new desired state or view was pulled."""
        before = self.instance.leader if self.instance else None
        self.desired, self.secrets = desired, secrets
        self.instance = view or self.instance
        if self.instance is not None and self.instance.leader not in (None, before):
            # Its answer tells how long the new leader may be relied upon: the route waits for that.
            self.node.kick_heartbeat()
        own = next((m for m in self.instance.members if m.member == self.ref.member), None) if self.instance else None
        if own is not None:
            self.node.reporter.shown(self.ref, own)
        self.wake()
        self.node.routes_changed()

    def no_longer_wanted(self) -> None:
        """The member is not in the desired state any more; its data stays unless it was deleted as `absent`."""
        self.unwanted.set()
        self.wake()

    def wake(self) -> None:
        self._wake.set()

    # --- peers' questions (agent.peer.Answerer) -----------------------------------------------------------------------

    def member_nodes(self) -> frozenset[str]:
        return frozenset(member.node for member in self.instance.members) if self.instance else frozenset()

    def grant_failsafe(self, *, primary: str, term: int, promise_s: float, ask: int, all_granted: int) -> str:
        """The rule is `election.may_grant`; a grant is remembered before it is given."""
        now = self.node.clock.now()
        refusal = may_grant(self.view(), asker=primary, term=term, standing=now < self.facts.standing_until, now=now)
        if not refusal:
            self.facts.promised_until = max(self.facts.promised_until, now + promise_s)
            self.facts.vouching.granted(primary, term, ask=ask, all_granted=all_granted, promise_s=promise_s, now=now)
            self.node.routes_changed()
        return refusal

    def member_status(self) -> peer_pb2.MemberStatusResponse:
        state, _reason, _message = report.member_state(self)
        return peer_pb2.MemberStatusResponse(
            state=report.STATE_TO_WIRE[state],
            role=report.ROLE_TO_WIRE[self.engine.role],
            position=position_message(self.engine.position),
        )

    # --- lease --------------------------------------------------------------------------------------------------------

    def lease_renewed(self, sent_at: float, leaders: Leaders) -> None:
        """The hub confirmed the node's lease in a heartbeat sent at `sent_at`, for `leaders` as they were then."""
        told = leaders.get(self.ref.instance)
        if told is None or told.member != self.ref.member:
            return
        record = self.instance.leader if self.instance else None
        if told.term == self.lease.lease().term:
            self.lease.renewed(sent_at, self.node.lease.ttl_s)
        elif record is not None and record.term == told.term and record.lease_id == self.node.lease.lease_id:
            # Led before the agent was restarted, or an Acquire whose answer was lost: the renewal proves it is held.
            self.lease.acquired(told.term, sent_at, self.node.lease.ttl_s)
            log.info("leadership_resumed", instance=str(self.ref.instance), term=told.term)
        self.remember_lease()

    def lease_gone(self) -> None:
        self.lease.gone()
        self.remember_lease()
        self.wake()

    def remember_lease(self) -> None:
        """After every change of the lease clock: disk, guard and routes follow."""
        lease = self.lease.lease()
        self._remember(
            replace(
                self.memory,
                term=lease.term,
                renewed_at=lease.renewed_at,
                fence_at=lease.fence_at,
                spent=self.lease.spent,
            )
        )
        self._guard_wake.set()
        self.node.routes_changed()

    # --- the loop -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        stop_listening = self.node.lease.listen(self.lease_renewed, self.lease_gone)
        try:
            async with asyncio.TaskGroup() as group:
                self.operations.group = group
                guard = group.create_task(self._guard(), name=f"guard {self.ref}")
                while not (self.deleted or self.unwanted.is_set()):
                    await self._turn(group)
                guard.cancel()
                await self.operations.cancel()
            if not self.deleted:
                await self._let_go()
        finally:
            stop_listening()
            await asyncio.shield(self.driver.aclose())
            self.node.routes_changed()

    async def _turn(self, group: asyncio.TaskGroup) -> None:
        self._wake.clear()
        self._turned_at = self.node.clock.now()
        self._hand_to_driver()
        await self._observe()
        if not self.observed:
            self.observed = True
            self.node.routes_changed()
        if self.engine.state in (EngineState.RUNNING, EngineState.STARTING, EngineState.UNRESPONSIVE):
            self._watch_death(group)
        now = self.node.clock.now()
        self._note_since_when(now)
        decision = decide(self.view(), now)
        self._log(decision)
        for action in decision.actions:
            await self.performer.perform(action)
        if not decision.actions and not self.operations.kind:
            await self._housekeeping()
        self._report()
        await self._sleep_until(decision.wake_at)

    async def _sleep_until(self, wake_at: float) -> None:
        await asyncio.sleep(TURN_MIN_S)
        pause_s = max(0.0, wake_at - self.node.clock.now())
        try:
            async with asyncio.timeout(pause_s):
                await self._wake.wait()
        except TimeoutError:
            pass

    def view(self) -> View:
        """Everything `decide` rests on, as of now."""
        facts = self.facts
        return View(
            me=self.ref.member,
            desired=self.desired,
            instance=self.instance,
            engine=self.engine,
            lease=self.lease.lease(),
            ttl_s=self.node.lease.ttl_s,
            operation=self.operations.current(),
            started_at=self.node.started_at,
            hub_seen_at=self.node.hub_seen_at,
            promised_until=facts.promised_until,
            asked_peers_at=facts.asked_peers_at,
            leaderless_since=facts.leaderless_since,
            ballot_term=self.memory.ballot_term if self.memory.ballot_store == self.node.store_id else 0,
            ballot_position=facts.ballot_position,
            spent_term=self.lease.spent,
            streamed_at=facts.streamed_at,
            followed_term=self.memory.followed_term,
            fenced_at=facts.fenced_at,
            not_streaming_since=facts.not_streaming_since,
            probed_at=facts.probed_at,
            switchover_since=facts.switchover_since,
            sync_sent=facts.sync_sent if facts.sync_sent_in == self.lease.lease().term else None,
            sync_base=facts.settling.base if facts.settling else Lsn(),
        )

    def _hand_to_driver(self) -> None:
        self.driver.update(self.desired, self.secrets)
        if self.instance is not None:
            self.driver.set_peers(tuple(m for m in self.instance.members if m.member != self.ref.member))

    async def _observe(self) -> None:
        try:
            async with asyncio.timeout(OBSERVE_TIMEOUT_S):
                seen = await self.driver.observe()
        except (TimeoutError, OSError, MoorageError) as error:
            log.warning("observe_failed", member=str(self.ref), error=words(error))
            seen = replace(self.engine, state=EngineState.UNRESPONSIVE)
        operations = self.operations
        leader = self.instance.leader if self.instance else None
        self.engine = replace(
            seen,
            leader_forks=self.facts.forks if leader and leader.member == self.facts.forks_of else (),
            failure=operations.failure or seen.failure,
            retry_at=max(operations.retry_at, seen.retry_at),
            failed_starts=max(operations.failures, seen.failed_starts),
        )

    def _watch_death(self, group: asyncio.TaskGroup) -> None:
        if self._watching_death:
            return
        self._watching_death = True

        async def watch() -> None:
            await self.driver.wait_died()
            self._watching_death = False
            self.node.routes_changed()
            self.wake()

        group.create_task(watch(), name=f"death of {self.ref}")

    def _note_since_when(self, now: float) -> None:
        """What the rules ask the age of."""
        facts, engine, instance = self.facts, self.engine, self.instance
        leaderless = instance is not None and instance.leader is None
        facts.leaderless_since = (facts.leaderless_since or now) if leaderless else 0.0
        asked = instance is not None and instance.ha.switchover is not None
        facts.switchover_since = (facts.switchover_since or now) if asked else 0.0
        apart = engine.state is EngineState.RUNNING and engine.role is Role.REPLICA and not engine.streaming
        facts.not_streaming_since = (facts.not_streaming_since or now) if apart else 0.0
        if engine.state is EngineState.RUNNING:
            facts.fenced_at = 0.0
        if engine.streaming:
            facts.streamed_at = now
        self._note_followed(now)
        primary = engine.state is EngineState.RUNNING and engine.role is Role.PRIMARY
        facts.settling = settle(facts.settling, engine.sync, engine.position.lsn, now) if primary else None

    def _note_followed(self, now: float) -> None:
        """The term whose log is being written or received at this moment."""
        lease, leader = self.lease.lease(), self.instance.leader if self.instance else None
        engine = self.engine
        if engine.state is not EngineState.RUNNING:
            return
        if engine.role is Role.PRIMARY and lease.term and now < lease.fence_at:
            self.follows_term(lease.term)
        elif engine.role is Role.REPLICA and engine.streaming and leader and engine.upstream == leader.member:
            self.follows_term(leader.term)

    def follows_term(self, term: int) -> None:
        """The data is of this term's log from now on. Kept durably: it decides whether timelines can be compared."""
        if self.memory.followed_term is None or term > self.memory.followed_term:
            self._remember(replace(self.memory, followed_term=term), durable=True)

    def voted(self, term: int) -> None:
        """A ballot for the election of `term` is about to be sent."""
        self._remember(replace(self.memory, ballot_term=term, ballot_store=self.node.store_id), durable=True)

    def known_term(self) -> int:
        """Of the leader, as the hub told."""
        leader = self.instance.leader if self.instance else None
        return leader.term if leader else 0

    def recorded_mode(self) -> ReplicationMode:
        """The mode on record, which a new leader's record keeps."""
        return self.instance.ha.sync.mode if self.instance else "async"

    def _remember(self, memory: Memory, *, durable: bool = False) -> None:
        self.memory = memory
        if self.dir.exists():
            self.node.files.keep_memory(self.dir, memory, durable=durable)

    def _log(self, decision: Decision) -> None:
        """Once for each new decision, not for each repetition of it."""
        last, self._decision = self._decision, decision
        if last is not None and _gist(last) == _gist(decision):
            return
        emit = log.warning if decision.severity == "warning" else log.info
        names = ",".join(type(action).__name__ for action in decision.actions)
        emit("decided", member=str(self.ref), reason=decision.reason.value, detail=decision.detail, actions=names)

    # --- what is not leadership ---------------------------------------------------------------------------------------

    async def _housekeeping(self) -> None:
        """Quiet moment: deletion, restart, settings, as `reconcile` says."""
        now = self.node.clock.now()
        observed = Observed(
            state=self.engine.state,
            role=self.engine.role,
            leads=self._leads(),
            writable=self.writable(),
            restart_id=self.memory.restart_id,
            settled=self._settled == self._settings_wanted(),
            settled_at=self._settled_at,
        )
        step = reconcile(self.desired, observed, now)
        match step:
            case Step.NOTHING:
                pass
            case Step.DESTROY:
                await self._destroy()
            case Step.RESTART:
                self.performer.restart()
            case Step.CONVERGE:
                await self._converge()
            case _:
                assert_never(step)

    def _leads(self) -> bool:
        leader = self.instance.leader if self.instance else None
        return leader is not None and leader.member == self.ref.member

    def _settings_wanted(self) -> tuple[object, ...]:
        """Everything that `driver.converge` depends on."""
        members = self.instance.members if self.instance else ()
        peers = tuple((m.member, m.node, m.address, m.engine_tls) for m in members)
        return (self.desired, self.secrets, peers, self.engine.role, self.lease.lease().term)

    async def _destroy(self) -> None:
        try:
            async with asyncio.timeout(CONVERGE_TIMEOUT_S):
                await self.driver.destroy()
                await asyncio.to_thread(shutil.rmtree, self.dir, ignore_errors=True)
        except (TimeoutError, OSError, MoorageError) as error:
            self.operations.note_failure(f"cannot delete: {words(error)}")
            return
        self.deleted = True
        self.node.reporter.event("member_deleted", str(self.ref), f"nothing of it is left on {self.node.config.node}")

    async def _converge(self) -> None:
        wanted = self._settings_wanted()
        generation = self.desired.generation
        try:
            async with asyncio.timeout(CONVERGE_TIMEOUT_S):
                done = await self.driver.converge()
        except (TimeoutError, OSError, MoorageError) as error:
            log.warning("converge_failed", member=str(self.ref), error=words(error))
            self.operations.note_failure(f"settings: {words(error)}")
            return
        if done:
            self._settled, self._settled_at = wanted, self.node.clock.now()
            self._settled_generation = generation
            self.operations.note_success()
            if not self.memory.prepared:
                self._remember(replace(self.memory, prepared=True))

    async def _let_go(self) -> None:
        """Not wanted here any more, but never told to delete: stop, keep the data, say so."""
        log.warning("member_not_wanted", member=str(self.ref), data=str(self.dir))
        try:
            async with asyncio.timeout(CONVERGE_TIMEOUT_S):
                await self.driver.stop()
        except (TimeoutError, OSError, MoorageError) as error:
            log.error("stop_failed", member=str(self.ref), error=words(error))

    # --- what is told to others ---------------------------------------------------------------------------------------

    def writable(self) -> bool:
        """This engine is the running primary and the leadership is held at this moment."""
        lease = self.lease.lease()
        return (
            self.engine.state is EngineState.RUNNING
            and self.engine.role is Role.PRIMARY
            and lease.term > 0
            and self.node.clock.now() < lease.fence_at
            and self.operations.kind not in (OperationKind.FENCE, OperationKind.HANDOVER, OperationKind.STOP)
        )

    def route(self) -> Route:
        """Where this node's proxy sends the clients of the instance."""
        lease = self.lease.lease()
        if lease.term and self.writable():
            trust = LeaderTrust(term=lease.term, member=self.ref.member, until=lease.fence_at)
        else:
            trust = self._trust_in_others()
        return route_of(self.desired, self.instance, writable_here=self.writable(), trust=trust)

    def _trust_in_others(self) -> LeaderTrust:
        told = self.node.leaders.get(self.ref.instance)
        vouching = self.facts.vouching
        vouched = LeaderTrust(term=vouching.term, member=vouching.member, until=vouching.until)
        if told is None:
            return vouched
        by_hub = LeaderTrust(term=told.term, member=told.member, until=told.until - CLIENT_MARGIN_S)
        if by_hub.member != vouched.member:
            return max(by_hub, vouched, key=lambda trust: trust.term)
        return max(by_hub, vouched, key=lambda trust: trust.until)

    def _report(self) -> None:
        self.node.reporter.state(self.ref, report.observed(self, self._settled_generation))

    def sample(self) -> agent_pb2.MemberSample:
        """For the heartbeat."""
        facts = self.driver.facts()
        state, _reason, _message = report.member_state(self)
        return agent_pb2.MemberSample(
            id=MemberId(project=self.ref.instance.project, instance=self.ref.instance.instance, member=self.ref.member),
            state=report.STATE_TO_WIRE[state],
            role=report.ROLE_TO_WIRE[self.engine.role],
            position=position_message(self.engine.position),
            lag_bytes=facts.lag_bytes,
            connections=facts.connections,
            data_bytes=facts.data_bytes,
        )

    def decided_because(self) -> str:
        """The sentence of the last decision, for the history."""
        decision = self._decision
        return f"{decision.reason.value} {decision.detail}".strip() if decision else ""

    def restarted(self, restart_id: int) -> None:
        """The engine was stopped for this restart; it is carried out once."""
        self._remember(replace(self.memory, restart_id=restart_id))

    # --- the guard ----------------------------------------------------------------------------------------------------

    async def _guard(self) -> None:
        """Fence at the deadline whatever the loop is doing; and a loop that is stuck leads no more."""
        while True:
            self._guard_wake.clear()
            now = self.node.clock.now()
            lease = self.lease.lease()
            stuck = lease.term > 0 and now - self._turned_at > STUCK_TURNS_TTL * self.node.lease.ttl_s
            if lease.term and (now >= lease.fence_at or stuck) and self._might_accept_writes():
                log.error("guard_fences", member=str(self.ref), term=lease.term, loop_stuck=stuck)
                await self.performer.fence()
            pause_s = lease.fence_at - now if lease.term and now < lease.fence_at else 1.0
            try:
                async with asyncio.timeout(max(0.05, min(1.0, pause_s))):
                    await self._guard_wake.wait()
            except TimeoutError:
                pass

    def _might_accept_writes(self) -> bool:
        alive = self.engine.state in (EngineState.RUNNING, EngineState.STARTING, EngineState.UNRESPONSIVE)
        return alive and self.engine.role is not Role.REPLICA and self.operations.kind is not OperationKind.FENCE


def _gist(decision: Decision) -> tuple[object, ...]:
    return decision.reason, decision.detail, tuple(type(action) for action in decision.actions)
