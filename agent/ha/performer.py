"""Carries out what `decide` asks for: one branch an action.

Long actions become the member's one operation; calls to hub, peers and engine are made at once, each with its own
deadline. A call that fails is only logged: the next turn decides again from what is then true.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, assert_never

from agent.ha import handover
from agent.ha.actions import (
    Acquire,
    Action,
    ApplySync,
    AskPeers,
    CastBallot,
    Clone,
    Detach,
    EndSwitchover,
    Fence,
    Follow,
    Handover,
    Initialise,
    ProbeTimeline,
    Promote,
    RecordSync,
    RecordSystemId,
    Rejoin,
    Release,
    StartPrimary,
    StartReplica,
    Stop,
    TellOpened,
)
from agent.ha.leaseclock import ASK_TIMEOUT_S
from agent.ha.takeover import Takeover, told_at_acquire
from agent.ha.view import OperationKind
from agent.peer import Question, position_message
from core.codec import from_json
from core.errors import ConflictError, MoorageError, words
from core.log import EventLog
from core.records import REMOTE, Ballot, LeadershipChange, PeerMember, StepTaken, SyncRecord, remote_peer, to_json
from core.status import Role
from protos.v1 import agent_pb2 as pb
from protos.v1.common_pb2 import MemberId

if TYPE_CHECKING:
    from agent.ha.keeper import Keeper

log = EventLog("agent.performer")
HUB_TIMEOUT_S = 3.0
ACQUIRE_TURN_S = 0.3  # else in the next turn
FENCE_WITHIN_S = 1.0
PROMISE_TTLS = 1.0  # a peer promises not to stand for so many TTLs


class Performer:
    """The hands of one keeper."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._node = keeper.node

    async def perform(self, action: Action) -> None:  # noqa: C901, PLR0912 - one flat branch an action
        """Start or do it. Failures are logged, never raised."""
        try:
            match action:
                case Fence():
                    await self.fence()
                case (
                    Initialise()
                    | Clone()
                    | Rejoin()
                    | StartPrimary()
                    | StartReplica()
                    | Stop()
                    | Promote()
                    | Handover()
                ):
                    self._begin(action)
                case Acquire():
                    await self._acquire(action)
                case Release():
                    await self._release(action)
                case CastBallot():
                    await self._cast_ballot(action)
                case RecordSync():
                    await self._record_sync(action)
                case RecordSystemId():
                    await self._update_ha(action.term, system_id=action.system_id)
                case EndSwitchover():
                    await self.end_switchover(action.term, action.request_id, action.note)
                case ApplySync():
                    await self._keeper.driver.apply_sync(action.sync)
                case Follow():
                    await self._follow(action.upstream)
                case Detach():
                    await self._keeper.driver.follow(None)
                case TellOpened():
                    await self._tell_opened(action.term)
                case AskPeers():
                    await self._ask_peers(action.term)
                case ProbeTimeline():
                    await self._probe(action.leader)
                case _:
                    assert_never(action)
        except (MoorageError, OSError, TimeoutError) as error:
            log.warning(
                "action_failed",
                member=str(self._keeper.ref),
                action=type(action).__name__,
                error=words(error),
            )

    def peer(self, member: str) -> PeerMember:
        """The member as the others see it; ConflictError when it is not there (any more)."""
        remote = self._keeper.desired.standby
        found = remote_peer(remote) if member == REMOTE and remote else self._keeper.view().peer(member)
        if found is None:
            raise ConflictError(f"{member} is not a member", object=str(self._keeper.ref.instance))
        return found

    # --- long operations ----------------------------------------------------------------------------------------------

    def _begin(
        self, action: Initialise | Clone | Rejoin | StartPrimary | StartReplica | Stop | Promote | Handover
    ) -> None:
        keeper, subject = self._keeper, str(self._keeper.ref)
        match action:
            case Initialise():
                keeper.operations.start(OperationKind.INITIALISE, self._initialise(), subject)
            case Clone():
                keeper.operations.start(OperationKind.CLONE, self._clone(self.peer(action.source)), subject)
            case Rejoin():
                keeper.operations.start(
                    OperationKind.REJOIN, self._rejoin(self.peer(action.leader), anew=action.anew), subject
                )
            case StartPrimary():
                keeper.operations.start(OperationKind.START, keeper.driver.start_primary(), subject)
            case StartReplica():
                upstream = self.peer(action.upstream) if action.upstream else None
                keeper.operations.start(OperationKind.START, keeper.driver.start_replica(upstream), subject)
            case Stop():
                keeper.operations.start(OperationKind.STOP, keeper.driver.stop(), subject)
            case Promote():
                keeper.operations.start(OperationKind.PROMOTE, self._promote(action), subject)
            case Handover():
                work = handover.hand_over(keeper, self, action)
                keeper.operations.start(OperationKind.HANDOVER, work, subject)
            case _:
                assert_never(action)

    async def _initialise(self) -> None:
        await self._keeper.driver.initialise()
        await self._keeper.driver.start_primary()

    async def _promote(self, action: Promote) -> None:
        # Before the engine can take a write it must know to wait for standbys, or that it need not: the sync set of a
        # new leader is only itself, and strict modes let commits wait until the record names standbys.
        # While the mode is being changed to async, the record still claims that standbys have everything.
        wanted, recorded = self._keeper.desired.replication.mode, self._keeper.recorded_mode()
        mode = recorded if wanted == "async" else wanted
        await self._keeper.driver.promote(SyncRecord(mode=mode, k=0, names=()), above=action.above)
        self._node.reporter.event("promoted", str(self._keeper.ref), f"primary in term {action.term}")

    async def _clone(self, source: PeerMember) -> None:
        """From a replica only with the leader's leave: whom the leader does not know, it does not let in."""
        keeper, term = self._keeper, self._keeper.known_term()
        leader = keeper.instance.leader.member if keeper.instance and keeper.instance.leader else source.member
        if source.member == REMOTE:
            leader = REMOTE
        elif leader != source.member:
            await keeper.driver.timeline_forks(self.peer(leader))
        await keeper.driver.clone(source)
        keeper.follows_term(term)
        upstream = source.member if source.member == keeper.desired.upstream else leader
        await keeper.driver.start_replica(self.peer(upstream))

    async def _rejoin(self, leader: PeerMember, *, anew: bool) -> None:
        term = self._keeper.known_term()
        what = await self._keeper.driver.rejoin(leader, anew=anew)
        self._keeper.follows_term(term)
        self._node.reporter.event("rejoined", str(self._keeper.ref), what)

    async def fence(self) -> None:
        """No write from now on. Preempts every other operation."""
        keeper = self._keeper
        if keeper.operations.kind is OperationKind.FENCE:
            return
        await keeper.operations.preempt(OperationKind.FENCE, self._fence(), str(keeper.ref))
        self._node.routes_changed()

    async def _fence(self) -> None:
        self._keeper.facts.fenced_at = self._node.clock.now()
        await self._keeper.driver.fence(FENCE_WITHIN_S)
        self._node.reporter.event(
            "fenced", str(self._keeper.ref), "the engine was stopped: it may no longer lead", severity="warning"
        )

    def restart(self) -> None:
        """Begin a restart of the engine in its present role, for the desired restart_id."""
        keeper = self._keeper
        keeper.operations.start(OperationKind.STOP, self._restart(keeper.desired.restart_id), str(keeper.ref))

    async def _restart(self, restart_id: int) -> None:
        keeper = self._keeper
        followed = keeper.engine.upstream
        upstream = self.peer(REMOTE) if followed == REMOTE else keeper.view().peer(followed)
        as_primary = keeper.engine.role is Role.PRIMARY
        await keeper.driver.stop()
        keeper.restarted(restart_id)
        if not as_primary:
            await keeper.driver.start_replica(upstream)
        # A primary is started again by the next decision, if it still leads.

    # --- calls --------------------------------------------------------------------------------------------------------

    def _id(self) -> MemberId:
        ref = self._keeper.ref
        return MemberId(project=ref.instance.project, instance=ref.instance.instance, member=ref.member)

    async def _acquire(self, action: Acquire) -> None:
        keeper, lease = self._keeper, self._node.lease
        reason = keeper.decided_because()
        async with asyncio.timeout(ACQUIRE_TURN_S):  # the loop stands still while another instance's call lasts
            await lease.acquiring.acquire()
        try:
            sent_at = self._node.clock.now()
            # An answer that is lost may still take effect: meanwhile nobody else is promised anything.
            keeper.facts.standing_until = sent_at + 2 * HUB_TIMEOUT_S
            leaderless_since = keeper.facts.leaderless_since
            request = pb.AcquireRequest(
                id=self._id(),
                after_term=action.after_term,
                lease_id=lease.lease_id,
                reason=reason,
                position=position_message(keeper.engine.position),
                told_json=self._told(sent_at - leaderless_since if leaderless_since else 0.0),
                knows_eras=True,
            )
            answer = await self._node.link.call(lambda stub: stub.Acquire, request, timeout_s=HUB_TIMEOUT_S)
            keeper.facts.standing_until = 0.0
            if answer.acquired:
                lease.take(answer.lease_id)
                lease.ttl_s = float(answer.lease_ttl_s or lease.ttl_s)
        finally:
            lease.acquiring.release()
        if not answer.acquired:
            log.info("acquire_refused", member=str(keeper.ref), leader=answer.leader, term=answer.term)
            return
        keeper.lease.acquired(answer.term, sent_at, lease.ttl_s)
        keeper.facts.lease_id = answer.lease_id
        keeper.facts.takeover = Takeover(
            term=answer.term, leaderless_since=leaderless_since, acquired_at=self._node.clock.now()
        )
        keeper.remember_lease()
        # The transaction that made it the leader has written exactly this record: no need to send it once more.
        told = from_json(SyncRecord, answer.sync_json, where="hub") if answer.sync_json else None
        keeper.facts.sync_sent, keeper.facts.sync_sent_in = told, answer.term
        self._node.kick_heartbeat()
        keeper.wake()
        log.info("leadership_acquired", member=str(keeper.ref), term=answer.term)

    def _told(self, leaderless_s: float) -> bytes:
        """For the history."""
        keeper, instance = self._keeper, self._keeper.instance
        assert instance is not None, "nobody stands for an unknown instance"
        told = told_at_acquire(
            instance.ha,
            instance.ballots,
            me=keeper.ref.member,
            position=keeper.engine.position,
            leaderless_s=leaderless_s,
        )
        return to_json(told)

    async def _tell_opened(self, term: int) -> None:
        keeper, takeover = self._keeper, self._keeper.takeover()
        if takeover is None:
            return
        takeover.told = True  # whatever becomes of it: it is only for people
        opened = LeadershipChange(term=term, member=keeper.ref.member, reason="", steps=takeover.steps())
        request = pb.UpdateHaRequest(id=self._id(), term=term, opened_json=to_json(opened))
        await self._node.link.call(lambda stub: stub.UpdateHa, request, timeout_s=HUB_TIMEOUT_S)

    async def _release(self, action: Release) -> None:
        await self.release(term=action.term, target=action.handover, reason=self._keeper.decided_because())

    async def release(self, *, term: int, target: str, reason: str, steps: tuple[StepTaken, ...] = ()) -> None:
        """Give the leadership up; the caller has seen to it that the engine accepts no writes."""
        keeper = self._keeper
        request = pb.ReleaseRequest(
            id=self._id(),
            term=term,
            handover=target,
            reason=reason,
            position=position_message(keeper.engine.position),
            told_json=to_json(LeadershipChange(term=term, member=keeper.ref.member, reason="", steps=steps)),
        )
        # Spent before it is sent: the request may take effect however its answer fares.
        keeper.lease.released()
        keeper.remember_lease()
        answer = await self._node.link.call(lambda stub: stub.Release, request, timeout_s=HUB_TIMEOUT_S)
        log.info("leadership_released", member=str(keeper.ref), term=term, to=target, was_ours=answer.released)

    async def _cast_ballot(self, action: CastBallot) -> None:
        keeper = self._keeper
        ballot = Ballot(
            member=keeper.ref.member,
            node=self._node.config.node,
            term=action.term,
            timeline=action.position.timeline,
            lsn=action.position.lsn.value,
            leader_lsn=keeper.engine.leader_lsn.value,
            was_leader=action.was_leader,
            priority=keeper.desired.priority,
            no_failover=keeper.desired.no_failover or bool(keeper.engine.unfit),
        )
        request = pb.CastBallotRequest(ballot_json=to_json(ballot), id=self._id())
        # Remembered before it is sent: it may count although no answer comes, also after a restart of this agent.
        keeper.voted(action.term)
        answer = await self._node.link.call(lambda stub: stub.CastBallot, request, timeout_s=HUB_TIMEOUT_S)
        if answer.cast:
            keeper.facts.ballot_position = action.position

    async def _update_ha(self, term: int, *, sync_json: bytes | None = None, system_id: str | None = None) -> None:
        request = pb.UpdateHaRequest(id=self._id(), term=term, sync_json=sync_json, system_id=system_id)
        answer = await self._node.link.call(lambda stub: stub.UpdateHa, request, timeout_s=HUB_TIMEOUT_S)
        if not answer.updated:
            log.warning("ha_update_refused", member=str(self._keeper.ref), term=term)

    async def _record_sync(self, action: RecordSync) -> None:
        facts = self._keeper.facts
        facts.sync_sent, facts.sync_sent_in = action.sync, action.term
        await self._update_ha(action.term, sync_json=to_json(action.sync))

    async def end_switchover(self, term: int, request_id: str, note: str) -> None:
        """Clear the request; `note` goes into the history."""
        request = pb.UpdateHaRequest(id=self._id(), term=term, end_switchover=request_id, note=note)
        await self._node.link.call(lambda stub: stub.UpdateHa, request, timeout_s=HUB_TIMEOUT_S)
        self._node.reporter.event("switchover_ended", str(self._keeper.ref.instance), note, severity="warning")

    async def _follow(self, upstream: str) -> None:
        await self._keeper.driver.follow(self.peer(upstream))

    async def _probe(self, leader: str) -> None:
        facts = self._keeper.facts
        facts.probed_at = self._node.clock.now()
        facts.forks = await self._keeper.driver.timeline_forks(self.peer(leader))
        facts.forks_of, facts.probe_answered_at = leader, facts.probed_at

    async def _ask_peers(self, term: int) -> None:
        keeper = self._keeper
        asked_at = self._node.clock.now()
        keeper.facts.asked_peers_at = asked_at
        is_first = asked_at - keeper.facts.all_granted / 1000 > self._node.lease.ttl_s
        question = Question(
            primary=keeper.ref,
            term=term,
            promise_s=PROMISE_TTLS * self._node.lease.ttl_s,
            ask=int(asked_at * 1000),
            all_granted=keeper.facts.all_granted,
        )
        refusals = await self._node.peers.all_grant(question, keeper.view().peers, timeout_s=ASK_TIMEOUT_S)
        if self._node.clock.now() - asked_at > ASK_TIMEOUT_S:
            refusals = refusals or "the answers came too late"
        if refusals:
            log.warning("failsafe_refused", member=str(keeper.ref), term=term, why=refusals)
            return
        keeper.facts.all_granted = question.ask
        keeper.lease.granted(asked_at, question.promise_s)
        keeper.remember_lease()
        if is_first:
            # The proxies of the others rely on this primary once they know that everybody granted, and what the hub
            # has told them ends before the next question is due.
            await self._ask_peers(term)
