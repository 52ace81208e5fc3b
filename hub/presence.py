"""This hub's own line in etcd: that it is alive, where it is reached, and which nodes it hears.

`hubs/<name>` hangs on a lease that this task keeps alive; when the process dies the key goes by itself, and the judge
of silence takes that as "its agents are moving". The set of nodes is looked at once a second and written only when it
has changed, so a quiet fleet writes nothing and a herd that comes back writes once a second.

A starting hub deletes what a former life left under its name before it writes its own: the key's create_revision then
tells the lives apart. Two living hubs under one name would go on overwriting each other, so a hub whose key was written
or deleted by somebody else while its own lease lives gives up: as a rule the elder of the two.
"""

from __future__ import annotations

import asyncio
import random

from core.backoff import Backoff
from core.clock import Clock
from core.errors import ConflictError, MoorageError, UnavailableError
from core.log import EventLog
from core.records import HubRecord, to_json
from hub.config import HubConfig
from hub.etcd import keys, txns
from hub.etcd.client import EtcdClient
from hub.etcd.errors import LeaseGone
from hub.etcd.mirror import Mirror
from hub.liveness import Liveness

TTL_S = 6
LOOK_EVERY_S = 1.0
RENEW_EVERY_S = TTL_S / 3
LEAVE_WITHIN_S = 2.0

log = EventLog("hub.presence")


class NameTakenError(ConflictError):
    """Two hubs run under one name."""


class Presence:
    """Publishes this hub while `run` runs."""

    def __init__(
        self,
        config: HubConfig,
        *,
        clock: Clock,
        client: EtcdClient,
        mirror: Mirror,
        liveness: Liveness,
    ) -> None:
        self._config = config
        self._clock = clock
        self._client = client
        self._mirror = mirror
        self._liveness = liveness
        self._key = keys.hub(config.name)
        self._lease_id = 0
        self._revision = 0  # of this hub's own last write
        self._published: frozenset[str] = frozenset()

    async def run(self) -> None:
        """For ever; etcd's absence is waited out. NameTakenError when another living hub has this name."""
        backoff = Backoff(base_s=0.5, cap_s=5.0, uniform=random.uniform)
        while True:
            try:
                await self._appear()
                backoff.reset()
                await self._stay()
            except NameTakenError:
                raise
            except MoorageError as error:
                log.warning("hub_record_lost", hub=self._config.name, error=str(error))
            await asyncio.sleep(backoff.next_delay())

    async def leave(self) -> None:
        """Take the line away at once; best effort, the lease ends by itself."""
        lease_id, self._lease_id = self._lease_id, 0
        if not lease_id:
            return
        try:
            async with asyncio.timeout(LEAVE_WITHIN_S):
                await self._client.revoke(lease_id)
        except (MoorageError, TimeoutError) as error:
            log.debug("hub_record_left_to_expire", error=str(error))

    async def _appear(self) -> None:
        self._lease_id = await self._client.grant(TTL_S)
        await self._client.commit(txns.all_of([], [txns.Delete(self._key)]))
        self._revision = 0
        await self._publish(self._heard())
        log.info("hub_record_written", hub=self._config.name)

    async def _stay(self) -> None:
        renewed_at = self._clock.now()
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            now = self._clock.now()
            if now - renewed_at >= RENEW_EVERY_S and await self._renewed(given_up=now - renewed_at > TTL_S):
                renewed_at = now
            heard = self._heard()
            if heard != self._published:
                await self._publish(heard)
            await self._check_name()

    async def _renewed(self, *, given_up: bool) -> bool:
        """Keep the lease alive. False when etcd did not answer this time; raises LeaseGone, or when it is too late."""
        try:
            await self._client.keepalive(self._lease_id)
        except UnavailableError:
            if given_up:
                raise
            return False
        return True

    def _heard(self) -> frozenset[str]:
        return frozenset(self._liveness.heard_within(self._config.silent_after_s))

    async def _publish(self, heard: frozenset[str]) -> None:
        record = HubRecord(
            hub=self._config.name,
            agent_address=self._config.agents_address,
            operator_address=self._config.operators_address,
            nodes=tuple(sorted(heard)),
        )
        txn = txns.put_if(self._key, to_json(record), revision=self._revision, lease_id=self._lease_id)
        outcome = await self._client.commit(txn)
        if not outcome.succeeded:
            raise self._taken()
        self._revision, self._published = outcome.revision, heard

    async def _check_name(self) -> None:
        """Whether somebody else has written or deleted this hub's key. Asks etcd only if the mirror makes it likely."""
        known = self._mirror.hubs.get(self._config.name)
        if known is not None and known.mod_revision <= self._revision:
            return
        found = await self._client.get(self._key)
        if found is not None and found.lease_id == self._lease_id:
            self._revision = found.mod_revision
        elif found is not None or await self._client.time_to_live(self._lease_id) > 0:
            raise self._taken()
        else:
            raise LeaseGone("the hub's lease has gone", object=f"hub/{self._config.name}")

    def _taken(self) -> NameTakenError:
        return NameTakenError(
            "another hub writes under this name",
            object=f"hub/{self._config.name}",
            hint="Give each hub its own `name` in its configuration.",
        )
