"""What a member's agent answers to the agents of the other members (`agent.peer.Answerer`)."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from agent.ha import report
from agent.ha.election import may_grant
from agent.ha.hold import begun, may_hold
from agent.ha.view import EngineState
from agent.peer import HeldHere, position_message
from core.errors import MoorageError, words
from core.log import EventLog
from protos.v1 import peer_pb2

if TYPE_CHECKING:
    from agent.ha.keeper import Keeper

log = EventLog("agent.answers")
LOOK_WITHIN_S = 0.5  # a peer's question waits so long for a new look at the engine
READY_WITHIN_S = 1.0  # what is not ready by then is made by the promotion
HELD_WITHIN_S = 0.8  # for the proxy's word; the primary that asks waits a second


class Answers:
    """Of one keeper."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def member_nodes(self) -> frozenset[str]:
        instance = self._keeper.instance
        return frozenset(member.node for member in instance.members) if instance else frozenset()

    def grant_failsafe(self, *, primary: str, term: int, promise_s: float, ask: int, all_granted: int) -> str:
        """The rule is `election.may_grant`; a grant is remembered before it is given."""
        keeper, facts = self._keeper, self._keeper.facts
        now = keeper.node.clock.now()
        standing = now < facts.standing_until
        refusal = may_grant(keeper.view(), asker=primary, term=term, standing=standing, now=now)
        if not refusal:
            facts.promised_until, facts.promised_term = max(facts.promised_until, now + promise_s), term
            facts.vouching.granted(primary, term, ask=ask, all_granted=all_granted, promise_s=promise_s, now=now)
            keeper.node.routes_changed()
        return refusal

    async def hold_clients(self, *, leader: str, term: int, request_id: str, for_s: float) -> HeldHere:
        """Let the clients at this node's proxy wait, or go on (`for_s` 0); told when the proxy has it in force."""
        keeper, facts = self._keeper, self._keeper.facts
        refusal = may_hold(keeper.instance, leader=leader, term=term)
        if refusal:
            return HeldHere(refusal=refusal)
        if for_s:
            now = keeper.node.clock.now()
            facts.hold = begun(term=term, request_id=request_id, for_s=for_s, now=now)
            asyncio.get_running_loop().call_later(facts.hold.until - now, keeper.node.routes_changed)
        elif facts.hold is not None and facts.hold.request_id == request_id:
            facts.hold = None
        try:
            told = await keeper.node.routes_settled(HELD_WITHIN_S)
        except MoorageError as error:
            return HeldHere(refusal=str(error))
        return HeldHere(busy=told.busy.get(str(keeper.ref.instance), 0))

    async def member_status(self, *, about_to_lead: bool) -> peer_pb2.MemberStatusResponse:
        """The engine is looked at anew, for whoever asks waits for a position."""
        keeper = self._keeper
        if about_to_lead and keeper.engine.state is EngineState.RUNNING and not keeper.operations.kind:
            await self._make_ready()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_WITHIN_S):
                await keeper.next_look()
        state, _reason, _message = report.member_state(keeper)
        return peer_pb2.MemberStatusResponse(
            state=report.STATE_TO_WIRE[state],
            role=report.ROLE_TO_WIRE[keeper.engine.role],
            position=position_message(keeper.engine.position),
        )

    async def _make_ready(self) -> None:
        try:
            async with asyncio.timeout(READY_WITHIN_S):
                await self._keeper.driver.make_ready()
        except (TimeoutError, OSError, MoorageError) as error:
            log.warning("not_made_ready", member=str(self._keeper.ref), error=words(error))

    async def verifiers(self, users: list[str]) -> dict[str, str | None]:
        """Of the own engine; MoorageError when it does not answer."""
        return await self._keeper.verifiers(users)
