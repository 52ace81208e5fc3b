"""Switchover, as the old primary does it: nothing is given away before the target has every byte.

Proxies hold new sessions from the moment the request lies in the instance's ha record. The old primary checkpoints
(so that its stop is short), stops in an orderly way (its walsenders send everything, the shutdown checkpoint
included), asks the target's own agent whether it has that position, and only then releases the leadership to it. On any
doubt it starts again as primary: it never let go, so nobody else can have led meanwhile.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from agent.ha.actions import Handover
from core.errors import MoorageError, TimedOutError, words
from core.log import EventLog
from core.positions import WalPosition
from core.records import PeerMember

if TYPE_CHECKING:
    from agent.ha.keeper import Keeper
    from agent.ha.performer import Performer

log = EventLog("agent.handover")
CHECKPOINT_WITHIN_S = 30.0
STOP_WITHIN_S = 15.0
CATCH_UP_WITHIN_S = 5.0
ASK_EVERY_S = 0.03
ASK_TIMEOUT_S = 1.0
HANDOVER_REASON = "switchover asked for by an operator"


async def hand_over(keeper: Keeper, performer: Performer, action: Handover) -> None:
    """Errors are raised after the roll-back; the request is ended with what went wrong."""
    target = performer.peer(action.target)
    keeper.node.routes_changed()
    try:
        async with asyncio.timeout(CHECKPOINT_WITHIN_S):
            await keeper.driver.checkpoint()
        async with asyncio.timeout(STOP_WITHIN_S):
            await keeper.driver.stop()
            stopped = await keeper.driver.observe()
        keeper.engine = stopped
        await _wait_for(keeper, target, stopped.position)
        await performer.release(term=action.term, target=action.target, reason=HANDOVER_REASON)
    except (MoorageError, TimeoutError, OSError) as error:
        await _roll_back(keeper, performer, action, words(error))
        raise


async def _wait_for(keeper: Keeper, target: PeerMember, position: WalPosition) -> None:
    """Until the target has received everything up to `position`."""
    last: WalPosition | None = None
    try:
        async with asyncio.timeout(CATCH_UP_WITHIN_S):
            while last is None or last.lsn <= position.lsn:  # position is where the shutdown checkpoint begins
                last = await keeper.node.peers.position_of(keeper.ref.instance, target, timeout_s=ASK_TIMEOUT_S)
                await asyncio.sleep(ASK_EVERY_S)
    except TimeoutError as error:
        raise TimedOutError(
            f"{target.member} is at {last or 'an unknown position'}, not at {position}, after {CATCH_UP_WITHIN_S} s"
        ) from error


async def _roll_back(keeper: Keeper, performer: Performer, action: Handover, why: str) -> None:
    log.warning("handover_rolled_back", member=str(keeper.ref), target=action.target, error=why)
    lease = keeper.lease.lease()
    if lease.term == action.term and keeper.node.clock.now() < lease.fence_at:
        await keeper.driver.start_primary()
    await performer.end_switchover(action.term, action.request_id, f"switchover to {action.target} rolled back: {why}")
