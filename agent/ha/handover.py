"""Switchover, as the old primary does it: nothing is given away before the target has every byte.

While clients go on it checkpoints, so that its stop will be short. Then it asks every member's agent to hold the
clients (`agent.ha.hold`) and waits until their transactions have ended, for a bounded time. It stops in an orderly way
(its walsenders send everything, the shutdown checkpoint included), asks the target's own agent whether it has that
position, and only then releases the leadership to it. On any doubt before that it starts again as primary and lets the
clients go on: it never let go, so nobody else can have led meanwhile. Once the release is sent nothing is taken back,
for it may take effect at any time.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from agent.ha.actions import Handover
from agent.ha.view import EngineState
from agent.peer import HeldHere, HoldAsked
from core.errors import EngineError, MoorageError, TimedOutError, UnavailableError, words
from core.log import EventLog
from core.positions import WalPosition
from core.records import PeerMember, StepTaken

if TYPE_CHECKING:
    from agent.ha.keeper import Keeper
    from agent.ha.performer import Performer

log = EventLog("agent.handover")
CHECKPOINT_WITHIN_S = 30.0
CHECKPOINTS_MAX = 3
SHORT_S = 1.0  # after a checkpoint that took longer there is much to write again
DRAIN_WITHIN_S = 5.0  # a transaction that takes longer is ended by the stop
HOLD_EVERY_S = 0.03
HOLD_FOR_S = 3.0  # and renewed: a handover that ends without a word (fenced, its agent killed) holds nobody for long
HOLD_AGAIN_S = 1.0
HOLD_TIMEOUT_S = 1.0
STOP_WITHIN_S = 15.0
CATCH_UP_WITHIN_S = 5.0
ASK_EVERY_S = 0.01
ASK_TIMEOUT_S = 1.0
GREET_TIMEOUT_S = 2.0
HANDOVER_REASON = "switchover asked for by an operator"
FORCED_REASON = "an operator forced another member to lead; handed over in an orderly way"


class Steps:
    """How long each step took, for the history."""

    def __init__(self, keeper: Keeper) -> None:
        self._clock = keeper.node.clock
        self._since = self._clock.now()
        self.taken: list[StepTaken] = []

    def took(self, name: str) -> None:
        now = self._clock.now()
        self.taken.append(StepTaken(name=name, took_s=round(now - self._since, 3)))
        self._since = now


async def hand_over(keeper: Keeper, performer: Performer, action: Handover) -> None:
    """Errors are raised after the roll-back; the request is ended with what went wrong."""
    target = performer.peer(action.target)
    steps, hold = Steps(keeper), Holding(keeper, action)
    lets_go = False
    try:
        await _checkpoint(keeper, hold)
        steps.took("checkpointed")
        hold.keep()
        await hold.drain()
        steps.took("clients held")
        keeper.closing(True)
        async with asyncio.timeout(STOP_WITHIN_S):
            await keeper.driver.stop()
            stopped = await keeper.driver.observe()
        keeper.engine = stopped
        if stopped.state is not EngineState.STOPPED or not stopped.clean:
            # What it acknowledged last is in no place that can be asked: the last checkpoint is not the end of its log.
            raise EngineError("the engine ended in no orderly way", object=str(keeper.ref))
        steps.took("stopped")
        await _wait_for(keeper, target, stopped.position)
        steps.took("target has everything")
        lets_go = True
        await performer.release(
            term=action.term, target=action.target, reason=_reason(keeper, action), steps=tuple(steps.taken)
        )
    except (MoorageError, TimeoutError, OSError) as error:
        if lets_go:
            # The leadership may be the target's by now. Nothing is taken back; clients wait for it as long as they are
            # held. If the hub never heard of it, the next turn lets go once more, and the request stands.
            log.warning("handover_unanswered", member=str(keeper.ref), target=action.target, error=words(error))
            raise
        try:
            await _roll_back(keeper, performer, action, words(error))
        finally:
            hold.let_lapse()
            await hold.end()
        raise
    finally:
        hold.let_lapse()
        keeper.closing(False)


def _reason(keeper: Keeper, action: Handover) -> str:
    order = keeper.instance.ha.forced if keeper.instance else None
    return FORCED_REASON if order is not None and order.id == action.request_id else HANDOVER_REASON


async def _checkpoint(keeper: Keeper, hold: Holding) -> None:
    """Until one is short. Before that the peers' agents are called, so that the way to them is open when it matters."""
    await hold.greet()
    async with asyncio.timeout(CHECKPOINT_WITHIN_S):
        for _ in range(CHECKPOINTS_MAX):
            begun = keeper.node.clock.now()
            await keeper.driver.checkpoint()
            if keeper.node.clock.now() - begun < SHORT_S:
                break


class Holding:
    """The clients of all members, held for one switchover."""

    def __init__(self, keeper: Keeper, action: Handover) -> None:
        self._keeper = keeper
        self._action = action
        self._peers = keeper.view().peers
        self._keeping: asyncio.Task[None] | None = None

    async def greet(self) -> None:
        """The target makes ready. Who does not answer now is not waited for later."""
        answers = await asyncio.gather(*(self._answers(peer) for peer in self._peers))
        self._peers = tuple(peer for peer, answered in zip(self._peers, answers, strict=True) if answered)

    async def _answers(self, peer: PeerMember) -> bool:
        instance, target = self._keeper.ref.instance, peer.member == self._action.target
        try:
            await self._keeper.node.peers.position_of(instance, peer, timeout_s=GREET_TIMEOUT_S, about_to_lead=target)
        except UnavailableError as error:
            log.warning("clients_not_held", member=str(self._keeper.ref), peer=peer.member, why=str(error))
            return False
        return True

    async def drain(self) -> None:
        """Until all hold and nobody is at work any more, at most DRAIN_WITHIN_S."""
        clock = self._keeper.node.clock
        until = clock.now() + DRAIN_WITHIN_S
        asked: tuple[PeerMember | None, ...] = (None, *self._peers)  # None = this member itself
        while True:
            answers = await asyncio.gather(*(self._ask(one, HOLD_FOR_S) for one in asked))
            busy = {one: held.busy for one, held in zip(asked, answers, strict=True) if held.busy}
            if not busy:
                return
            if clock.now() >= until:
                log.warning("clients_not_drained", member=str(self._keeper.ref), sessions=sum(busy.values()))
                return
            asked = tuple(busy)
            await asyncio.sleep(HOLD_EVERY_S)

    def keep(self) -> None:
        """Renew it from now on until `let_lapse`, as long as the handover itself is under way."""
        group = self._keeper.operations.group
        assert group is not None, "a handover runs in the keeper's task group"
        self._keeping = group.create_task(self._renew(), name=f"hold clients of {self._keeper.ref.instance}")

    def let_lapse(self) -> None:
        """Renew it no more: it ends by itself, or with the next leader."""
        if self._keeping is not None:
            self._keeping.cancel()
            self._keeping = None

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(HOLD_AGAIN_S)
            await asyncio.gather(*(self._ask(one, HOLD_FOR_S) for one in (None, *self._peers)))

    async def end(self) -> None:
        """Let all go on."""
        await asyncio.gather(*(self._ask(one, 0.0) for one in (None, *self._peers)))

    async def _ask(self, peer: PeerMember | None, for_s: float) -> HeldHere:
        keeper, action = self._keeper, self._action
        try:
            if peer is None:
                held = await keeper.answers.hold_clients(
                    leader=keeper.ref.member, term=action.term, request_id=action.request_id, for_s=for_s
                )
            else:
                asked = HoldAsked(leader=keeper.ref, term=action.term, request_id=action.request_id, for_s=for_s)
                held = await keeper.node.peers.hold_clients(asked, peer, timeout_s=HOLD_TIMEOUT_S)
        except MoorageError as error:
            held = HeldHere(refusal=str(error))
        if held.refusal:
            who = peer.member if peer else keeper.ref.member
            log.warning("clients_not_held", member=str(keeper.ref), peer=who, why=held.refusal)
        return held


async def _wait_for(keeper: Keeper, target: PeerMember, position: WalPosition) -> None:
    """Until the target has received everything up to `position`."""
    last: WalPosition | None = None
    try:
        async with asyncio.timeout(CATCH_UP_WITHIN_S):
            while True:
                last = await keeper.node.peers.position_of(keeper.ref.instance, target, timeout_s=ASK_TIMEOUT_S)
                # A later position of another timeline says nothing of this log.
                # The position is where the shutdown checkpoint begins.
                if last.timeline == position.timeline and last.lsn > position.lsn:
                    return
                await asyncio.sleep(ASK_EVERY_S)
    except TimeoutError as error:
        raise TimedOutError(
            f"{target.member} is at {last or 'an unknown position'}, not at {position}, after {CATCH_UP_WITHIN_S} s"
        ) from error


async def _roll_back(keeper: Keeper, performer: Performer, action: Handover, why: str) -> None:
    """It has not let go: whoever leads after this was elected."""
    lease = keeper.lease.lease()
    leads = lease.term == action.term and keeper.node.clock.now() < lease.fence_at
    # One that has crashed is judged like any other crash, by the next decision: others may take over sooner.
    if leads and keeper.engine.state is not EngineState.CRASHED:
        await keeper.driver.start_primary()
        keeper.closing(False)
        ended = "rolled back"
    else:
        ended = "broken off"
    log.warning("handover_ended", member=str(keeper.ref), target=action.target, how=ended, error=why)
    await performer.end_switchover(action.term, action.request_id, f"switchover to {action.target} {ended}: {why}")
