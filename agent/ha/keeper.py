"""The shell of one member: gather, decide, carry out, wait; any news or timeout starts again at the top.

All judgement is in the pure `decide`. The keeper adds only this: at most one long operation on the engine at a time,
which a fence preempts; a guard of its own that fences when the lease runs out even if the loop hangs in a call; and a
memory on disk of term and fence deadline, so that an agent that comes back finds the same limits in force. Beside it:
`facts` since when things are so, `answers` to the other members' agents, `housekeeping` in quiet moments.

A member of an instance stays as it is while the hub is away; what was pulled last is what is wanted.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from agent.context import NodeContext
from agent.engines.base import Engine as EngineDriver
from agent.ha import report
from agent.ha.actions import Decision
from agent.ha.answers import Answers
from agent.ha.decide import decide
from agent.ha.facts import Facts, stalled
from agent.ha.following import streams_log_of
from agent.ha.hold import in_force
from agent.ha.housekeeping import Housekeeping
from agent.ha.leaseclock import LeaseClock
from agent.ha.operations import Operations
from agent.ha.performer import Performer
from agent.ha.premises import may_write
from agent.ha.takeover import Takeover, acknowledges
from agent.ha.view import Engine, EngineState, OperationKind, View
from agent.heartbeat import Leaders
from agent.local import Memory
from agent.peer import position_message
from agent.routing import CLIENT_MARGIN_S, LeaderTrust, is_late, route_of
from core.errors import MoorageError, words
from core.ids import MemberRef
from core.log import EventLog
from core.positions import Lsn
from core.records import REMOTE, InstanceView, MemberDesired, MemberSecrets, ReplicationMode
from core.routes import Route
from core.status import Role
from protos.v1 import agent_pb2
from protos.v1.common_pb2 import MemberId

log = EventLog("agent.keeper")
OBSERVE_TIMEOUT_S = 5.0  # the engine's own query limits are shorter; this one is for a hung file system
TURN_MIN_S = 0.02  # between two turns, however many wakes come
FRESH_TURN_S = 0.002  # after an action that was not asked for the turn before: what follows it is decided at once
STUCK_TURNS_TTL = 2.0  # a loop that has not turned for so many TTLs leads no more


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
            spent=self.memory.spent,
        )
        self.engine = Engine(state=EngineState.STOPPED)
        self.operations = Operations(node.clock, self.wake)
        self.performer = Performer(self)
        self.housekeeping = Housekeeping(self)
        self.answers = Answers(self)
        self.troubles = report.Troubles()
        self.deleted = False
        self._decision: Decision | None = None
        self._wake = asyncio.Event()
        self._guard_wake = asyncio.Event()
        self._was_writable = False
        self._forgetful = False  # the last write of its memory failed
        self._looked = asyncio.Condition()
        self._looks_begun = 0  # number of the look under way or last ended
        self._looks_ended = 0
        self._turned_at = node.clock.now()
        self._watching_death = False
        self.late = False  # a replica too far behind to take reads
        self.observed = False  # the engine has been looked at since this agent started
        self.unwanted = asyncio.Event()  # the hub lists this member no more

    # --- news from outside ------------------------------------------------------------------------------------------

    def update(self, desired: MemberDesired, secrets: MemberSecrets, view: InstanceView | None) -> None:
        """A new desired state or view was pulled."""
        before = self.instance.leader if self.instance else None
        if desired != self.desired:
            self.operations.try_again()
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

    async def next_look(self) -> None:
        """Until a look at the engine that begins from now on has ended."""
        wanted = self._looks_begun + 1
        self.wake()
        async with self._looked:
            await self._looked.wait_for(lambda: self._looks_ended >= wanted)

    async def verifiers(self, users: list[str]) -> dict[str, str | None]:
        """By what the engine checks these users' passwords; MoorageError when it does not answer."""
        return await self.driver.verifiers(users)

    def closing(self, closing: bool) -> None:
        """A handover begins or ends to stop the engine: its clients have no primary from now on."""
        self.facts.closing = closing
        self.node.routes_changed()
        if closing:
            self._report()

    # --- lease --------------------------------------------------------------------------------------------------------

    def lease_renewed(self, sent_at: float, leaders: Leaders) -> None:
        """The hub confirmed the node's lease in a heartbeat sent at `sent_at`, for `leaders` as they were then."""
        told = leaders.get(self.ref.instance)
        if told is None or told.member != self.ref.member:
            return
        record, lease_id = self.instance.leader if self.instance else None, self.node.lease.lease_id
        held = self.lease.lease().term
        if record is not None and record.term == told.term and record.lease_id == lease_id:
            # The key hangs on the very lease that was confirmed: also what was led before this agent was restarted, or
            # by promises alone, or by an Acquire whose answer was lost, is held by it.
            self.lease.acquired(told.term, sent_at, self.node.lease.ttl_s)
            self.facts.lease_id = lease_id
            if held != told.term:
                log.info("leadership_resumed", instance=str(self.ref.instance), term=told.term)
        elif told.term == held and self.facts.lease_id == lease_id:
            self.lease.renewed(sent_at, self.node.lease.ttl_s)
        self.remember_lease()

    def lease_gone(self) -> None:
        self.lease.gone()
        self.remember_lease()
        self.wake()

    def remember_lease(self) -> None:
        """After every change of the lease clock: disk, guard and routes follow."""
        lease = self.lease.lease()
        self.remember(
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
                await self.housekeeping.let_go()
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
        self.facts.note(self.engine, self.instance, now, upstream=self.desired.upstream)
        self._note_followed(now)
        self._tell_if_opened(now)
        decision = decide(self.view(), now)
        fresh = self._log(decision) and bool(decision.actions)
        for action in decision.actions:
            await self.performer.perform(action)
        if not decision.actions and not self.operations.kind:
            await self.housekeeping.look()
        self._report()
        await self._sleep_until(decision.wake_at, at_least_s=FRESH_TURN_S if fresh else TURN_MIN_S)

    def _tell_if_opened(self, now: float) -> None:
        """Before anything else is done: clients wait for the new route, here and at every other node."""
        takeover, engine = self.takeover(), self.engine
        if takeover is not None and self.instance is not None and self.instance.ha.standby:
            takeover.still_standby(now)
        if takeover is not None and engine.state is EngineState.RUNNING and engine.role is Role.PRIMARY:
            takeover.seen_primary(now, acknowledges=acknowledges(engine.sync))
        writable = self.writable()
        if writable is not self._was_writable:
            self._was_writable = writable
            self.node.routes_changed()
            self._report()

    async def _sleep_until(self, wake_at: float, *, at_least_s: float) -> None:
        await asyncio.sleep(at_least_s)
        pause_s = max(0.0, wake_at - self.node.clock.now())
        try:
            async with asyncio.timeout(pause_s):
                await self._wake.wait()
        except TimeoutError:
            pass

    def view(self) -> View:
        """Everything `decide` rests on, as of now."""
        facts, takeover = self.facts, self.takeover()
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
            promised_term=facts.promised_term,
            asked_peers_at=facts.asked_peers_at,
            leaderless_since=facts.leaderless_since,
            ballot_term=self.memory.ballot_term if self.memory.ballot_store == self.node.store_id else 0,
            ballot_position=facts.ballot_position,
            spent_term=self.lease.spent,
            streamed_at=facts.streamed_at,
            followed_term=self.memory.followed_term,
            fenced_at=facts.fenced_at,
            not_streaming_since=facts.not_streaming_since,
            upstream_failed_at=facts.upstream_failed_at,
            probed_at=facts.probed_at,
            probe_answered_at=facts.probe_answered_at,
            closing=facts.closing,
            switchover_since=facts.switchover_since,
            forced_since=facts.forced_since,
            acquired_at=takeover.acquired_at if takeover else 0.0,
            opened_at=takeover.opened_at if takeover else 0.0,
            opening_told=takeover is not None and takeover.told,
            stalled=stalled(facts.flushes, self.node.clock.now()),
            sync_sent=facts.sync_sent if facts.sync_sent_in == self.lease.lease().term else None,
            sync_base=facts.settling.base if facts.settling else Lsn(),
        )

    def takeover(self) -> Takeover | None:
        """Of the term that is held now."""
        takeover = self.facts.takeover
        return takeover if takeover is not None and takeover.term == self.lease.lease().term else None

    def _hand_to_driver(self) -> None:
        self.driver.update(self.desired_of_engine(), self.secrets)
        if self.instance is not None:
            self.driver.set_peers(tuple(m for m in self.instance.members if m.member != self.ref.member))

    def desired_of_engine(self) -> MemberDesired:
        """An engine opens by the mode it is told: it acknowledges alone only when the record, too, says async. While
        the mode is being changed to async, the record still claims that standbys have everything."""
        replication, recorded = self.desired.replication, self.recorded_mode()
        if replication.mode != "async" or recorded == "async":
            return self.desired
        return replace(self.desired, replication=replace(replication, mode=recorded))

    async def _observe(self) -> None:
        self._looks_begun += 1
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
            leader_forks=self.facts.forks if leader and self.facts.forks_of == self._followed(leader.member) else (),
            failure=operations.failure or seen.failure,
            failed=operations.failed,
            retry_at=max(operations.retry_at, seen.retry_at),
            failed_starts=max(operations.failed_starts, seen.failed_starts),
            broken=operations.broken or seen.broken,
            hindered=operations.hindered,
        )
        async with self._looked:
            self._looks_ended = self._looks_begun
            self._looked.notify_all()

    def _followed(self, leader: str) -> str:
        """Whose history the own log has to agree with."""
        standby = self.instance is not None and self.instance.ha.standby
        return REMOTE if standby and leader == self.ref.member else leader

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

    def _note_followed(self, now: float) -> None:
        """The term whose log is being written or received at this moment."""
        lease, leader = self.lease.lease(), self.instance.leader if self.instance else None
        engine = self.engine
        if engine.state is not EngineState.RUNNING:
            return
        if engine.role is Role.PRIMARY and lease.term and now < lease.fence_at:
            self.follows_term(lease.term)
        elif engine.role is Role.REPLICA and engine.streaming and leader and streams_log_of(self.view(), leader.member):
            self.follows_term(leader.term)

    def follows_term(self, term: int) -> None:
        """The data is of this term's log from now on. Kept durably: it decides whether timelines can be compared. On a
        full disk the older one stays, by which the data may be copied anew without need."""
        if self.memory.followed_term is None or term > self.memory.followed_term:
            try:
                self.remember(replace(self.memory, followed_term=term), durable=True)
            except OSError as error:
                log.error("memory_not_kept", member=str(self.ref), error=words(error))

    def voted(self, term: int) -> None:
        """A ballot for the election of `term` is about to be sent."""
        self.remember(replace(self.memory, ballot_term=term, ballot_store=self.node.store_id), durable=True)

    def known_term(self) -> int:
        """Of the leader, as the hub told."""
        leader = self.instance.leader if self.instance else None
        return leader.term if leader else 0

    def recorded_mode(self) -> ReplicationMode:
        """The mode on record, which a new leader's record keeps."""
        return self.instance.ha.sync.mode if self.instance else "async"

    def remember(self, memory: Memory, *, durable: bool = False) -> None:
        """OSError when it must be durable and cannot be kept. Else a full disk costs only what a restart of the agent
        would know: an older fence deadline, which is on the safe side."""
        self.memory = memory
        if not self.dir.exists():
            return
        try:
            self.node.files.keep_memory(self.dir, memory, durable=durable)
        except OSError as error:
            if durable:
                raise
            if not self._forgetful:
                log.error("memory_not_kept", member=str(self.ref), error=words(error))
            self._forgetful = True
        else:
            self._forgetful = False

    @property
    def decision(self) -> Decision | None:
        """The last one; None before the first."""
        return self._decision

    def _log(self, decision: Decision) -> bool:
        """Once for each new decision, not for each repetition of it. Whether it is new."""
        last, self._decision = self._decision, decision
        if last is not None and _gist(last) == _gist(decision):
            return False
        emit = log.warning if decision.severity == "warning" else log.info
        names = ",".join(type(action).__name__ for action in decision.actions)
        emit("decided", member=str(self.ref), reason=decision.reason.value, detail=decision.detail, actions=names)
        return True

    # --- what is told to others ---------------------------------------------------------------------------------------

    def writable(self) -> bool:
        """This engine is the running primary and the leadership is held at this moment."""
        lease = self.lease.lease()
        return (
            self.engine.state is EngineState.RUNNING
            and self.engine.role is Role.PRIMARY
            and lease.term > 0
            and self.node.clock.now() < lease.fence_at
            and self.operations.kind not in (OperationKind.FENCE, OperationKind.STOP)
            and not self.facts.closing
            and not (self.instance is not None and self.instance.ha.standby)  # promoted by hand
        )

    def route(self) -> Route:
        """Where this node's proxy sends the clients of the instance."""
        lease = self.lease.lease()
        if lease.term and self.writable():
            trust = LeaderTrust(term=lease.term, member=self.ref.member, until=lease.fence_at)
        else:
            trust = self._trust_in_others()
        paused = in_force(self.facts.hold, self.instance, self.node.clock.now())
        return route_of(self.desired, self.instance, writable_here=self.writable(), trust=trust, paused=paused)

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
        lag_bytes = self.driver.facts().lag_bytes
        self.late = is_late(lag_bytes, self.desired.clients.lag_max_bytes, was=self.late)
        self.node.reporter.state(self.ref, report.observed(self, self.housekeeping.settled_generation))
        self.troubles.tell(self)

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
        if decision is None:
            return ""
        return f"{decision.reason.value} ({decision.detail})" if decision.detail else decision.reason.value

    def restarted(self, restart_id: int) -> None:
        """The engine was stopped for this restart; it is carried out once."""
        self.remember(replace(self.memory, restart_id=restart_id))

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
        return may_write(self.view()) and self.operations.kind is not OperationKind.FENCE


def _gist(decision: Decision) -> tuple[object, ...]:
    return decision.reason, decision.detail, tuple(type(action) for action in decision.actions)
