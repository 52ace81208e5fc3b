"""What a member does in quiet moments, whoever leads: deletion, restart, settings, as `agent.reconcile` says."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, assert_never

from agent.reconcile import Observed, Step, reconcile
from core.errors import MoorageError, words
from core.log import EventLog

if TYPE_CHECKING:
    from agent.ha.keeper import Keeper

log = EventLog("agent.keeper")
CONVERGE_TIMEOUT_S = 60.0
CONVERGE_TTLS = 1.0  # of a leader: nothing else is decided meanwhile, and a loop that stands still leads no more


class Housekeeping:
    """Of one keeper. `settled_generation`: of the desired state that the engine was last made to agree with."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._settled: tuple[object, ...] = ()
        self._settled_at = 0.0
        self.settled_generation = 0

    async def look(self) -> None:
        """Quiet moment: deletion, restart, settings, as `reconcile` says."""
        keeper = self._keeper
        observed = Observed(
            state=keeper.engine.state,
            role=keeper.engine.role,
            leads=self._leads(),
            writable=keeper.writable(),
            restart_id=keeper.memory.restart_id,
            settled=self._settled == self._settings_wanted(),
            settled_at=self._settled_at,
        )
        step = reconcile(keeper.desired, observed, keeper.node.clock.now())
        match step:
            case Step.NOTHING:
                pass
            case Step.DESTROY:
                await self._destroy()
            case Step.RESTART:
                keeper.performer.restart()
            case Step.CONVERGE:
                await self._converge()
            case _:
                assert_never(step)

    def _leads(self) -> bool:
        keeper = self._keeper
        leader = keeper.instance.leader if keeper.instance else None
        return leader is not None and leader.member == keeper.ref.member

    def _settings_wanted(self) -> tuple[object, ...]:
        """Everything that `driver.converge` depends on."""
        keeper = self._keeper
        members = keeper.instance.members if keeper.instance else ()
        peers = tuple((m.member, m.node, m.address, m.engine_tls, m.upstream) for m in members)
        return (
            keeper.desired_of_engine(),
            keeper.secrets,
            peers,
            keeper.engine.role,
            keeper.lease.lease().term,
        )

    async def _destroy(self) -> None:
        keeper = self._keeper
        try:
            async with asyncio.timeout(CONVERGE_TIMEOUT_S):
                await keeper.driver.destroy()
                await asyncio.to_thread(shutil.rmtree, keeper.dir, ignore_errors=True)
                keeper.node.files.forget_memory(keeper.dir)
        except (TimeoutError, OSError, MoorageError) as error:
            keeper.operations.note_failure(f"cannot delete: {words(error)}")
            return
        keeper.deleted = True
        keeper.node.reporter.event(
            "member_deleted", str(keeper.ref), f"nothing of it is left on {keeper.node.config.node}"
        )

    async def _converge(self) -> None:
        keeper, wanted = self._keeper, self._settings_wanted()
        generation = keeper.desired.generation
        leads = keeper.lease.lease().term > 0
        try:
            async with asyncio.timeout(CONVERGE_TTLS * keeper.node.lease.ttl_s if leads else CONVERGE_TIMEOUT_S):
                done = await keeper.driver.converge()
        except (TimeoutError, OSError, MoorageError) as error:
            log.warning("converge_failed", member=str(keeper.ref), error=words(error))
            keeper.operations.note_failure(f"settings: {words(error)}")
            return
        if done:
            self._settled, self._settled_at = wanted, keeper.node.clock.now()
            self.settled_generation = generation
            keeper.operations.note_success()
            standby = keeper.instance is not None and keeper.instance.ha.standby  # no role was made there
            if not keeper.memory.prepared and not standby:
                keeper.remember(replace(keeper.memory, prepared=True))

    async def let_go(self) -> None:
        """Not wanted here any more, but never told to delete: stop, keep the data, say so."""
        keeper = self._keeper
        log.warning("member_not_wanted", member=str(keeper.ref), data=str(keeper.dir))
        try:
            async with asyncio.timeout(CONVERGE_TIMEOUT_S):
                await keeper.driver.stop()
        except (TimeoutError, OSError, MoorageError) as error:
            log.error("stop_failed", member=str(keeper.ref), error=words(error))
