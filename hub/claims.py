"""Work that is to be done once among all hubs: claimed by a key that is bound to an etcd lease.

Whoever creates `claims/<work>` has the claim for as long as its lease lives. Every write that is made in its name
carries the compare `created_revision(claim) == mine` (`Holding.compare`), and that, not the lease, is what keeps two
holders apart: a hub that was paused past its lease, or whose request was delayed, changes nothing any more, whatever
it believes. So the keeper of the lease need not be strict with itself; it only stops work that has become pointless.

A hub that ends in an orderly way revokes the lease, and its twin takes over within one look.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from core.clock import Clock
from core.errors import MoorageError, UnavailableError
from core.log import EventLog
from hub.etcd import keys, txns
from hub.etcd.client import EtcdClient
from hub.etcd.errors import LeaseGone

TTL_S = 6  # how long a dead hub's work rests before its twin goes on
LOOK_EVERY_S = TTL_S / 3
CALL_TIMEOUT_S = 2.0
assert LOOK_EVERY_S + CALL_TIMEOUT_S < TTL_S, "one lost renewal must not lose the claim"

log = EventLog("hub.claims")


class ClaimLost(MoorageError):
    """The lease of the claim has gone."""

    code = "claim-lost"


@dataclass(frozen=True, slots=True)
class Holding:
    """A claim that was held when last looked at."""

    key: str
    created: int  # create_revision of the key
    lease_id: int

    @property
    def compare(self) -> txns.Compare:
        """To be part of every transaction made in the claim's name."""
        return txns.CreatedIs(self.key, self.created)


class Claim:
    """One kind of work, as one hub tries to get and keep it."""

    def __init__(self, client: EtcdClient, clock: Clock, *, work: str, hub: str) -> None:
        self._client = client
        self._clock = clock
        self._key = keys.claim(work)
        self._work = work
        self._hub = hub

    async def run(self, duty: Callable[[Holding], Awaitable[None]]) -> None:
        """Do `duty` whenever this hub holds the claim, for ever. It is cancelled when the claim is lost; if it ends or
        fails by itself, so does this."""
        while True:
            holding = await self._take()
            log.info("claim_taken", work=self._work, hub=self._hub)
            try:
                await self._hold(holding, duty)
                return
            except* ClaimLost as lost:
                log.warning("claim_lost", work=self._work, hub=self._hub, reason=str(lost.exceptions[0]))
            finally:
                await self._give_up(holding)

    async def _hold(self, holding: Holding, duty: Callable[[Holding], Awaitable[None]]) -> None:
        async with asyncio.TaskGroup() as group:
            keeper = group.create_task(self._keep(holding), name=f"keeper of claim {self._work}")
            await duty(holding)
            keeper.cancel()

    async def _take(self) -> Holding:
        """Wait until the claim is free, and take it."""
        while True:
            try:
                holding = await self.take_if_free()
            except (UnavailableError, LeaseGone, TimeoutError) as error:
                log.debug("claim_not_tried", work=self._work, error=str(error))
            else:
                if holding is not None:
                    return holding
            await asyncio.sleep(LOOK_EVERY_S)

    async def take_if_free(self) -> Holding | None:
        """One attempt; None when somebody else has it. Raises what etcd's absence raises."""
        async with asyncio.timeout(CALL_TIMEOUT_S):
            if await self._client.get(self._key) is not None:
                return None
        async with asyncio.timeout(CALL_TIMEOUT_S):
            lease_id = await self._client.grant(TTL_S)
        value = json.dumps({"hub": self._hub}).encode()
        # Should the answer to this be lost, the lease is left to itself and takes the key with it.
        async with asyncio.timeout(CALL_TIMEOUT_S):
            commit = await self._client.commit(txns.put_if(self._key, value, revision=0, lease_id=lease_id))
        if commit.succeeded:
            return Holding(self._key, commit.revision, lease_id)
        await self._revoke(lease_id)
        return None

    async def _keep(self, holding: Holding) -> None:
        """Renew the lease until that fails for good, or the key is not ours any more (somebody may have removed it)."""
        good_until = self._clock.now() + TTL_S
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            sent_at = self._clock.now()
            try:
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    await self._client.keepalive(holding.lease_id)
                    found = await self._client.get(self._key)
                good_until = sent_at + TTL_S
            except LeaseGone as error:
                raise ClaimLost("the lease has expired", object=self._work) from error
            except (UnavailableError, TimeoutError) as error:
                if self._clock.now() >= good_until:
                    raise ClaimLost("the lease could not be renewed in time", object=self._work) from error
                continue
            if found is None or found.create_revision != holding.created:
                raise ClaimLost("the key of the claim was removed", object=self._work)

    async def _give_up(self, holding: Holding) -> None:
        await self._revoke(holding.lease_id)

    async def _revoke(self, lease_id: int) -> None:
        """At best; else the lease ends by itself."""
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await self._client.revoke(lease_id)
        except (MoorageError, TimeoutError) as error:
            log.debug("lease_not_revoked", work=self._work, error=str(error))
