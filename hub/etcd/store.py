"""Writing through: a transaction is done when this hub's own mirror shows it."""

from __future__ import annotations

import secrets

from core.records import Event, to_json
from hub.etcd import keys, txns
from hub.etcd.client import EtcdClient
from hub.etcd.mirror import Mirror

MIRROR_WITHIN_S = 5.0


class Store:
    """What services and controllers write with."""

    def __init__(self, client: EtcdClient, mirror: Mirror) -> None:
        self.client = client
        self.mirror = mirror

    async def commit(self, txn: txns.Txn) -> bool:
        """True when it took effect. Either way the mirror shows, on return, at least what the transaction saw."""
        outcome = await self.client.commit(txn)
        if txn.compares or txn.then:
            await self.mirror.reached(await self._shown_by(outcome.revision, outcome.succeeded), MIRROR_WITHIN_S)
        return outcome.succeeded

    async def _shown_by(self, revision: int, succeeded: bool) -> int:
        """The revision at which the watch shows it: a success makes its own; of a failure only what lies below our
        prefix counts, since the store's revision also counts keys of others that the watch never brings."""
        return revision if succeeded else min(revision, await self.client.newest_change(keys.ROOT))

    async def add_event(self, event: Event) -> None:
        """Append to the events; two of one millisecond do not meet."""
        key = keys.event(int(event.at * 1000), secrets.token_hex(4))
        await self.client.commit(txns.put_if(key, to_json(event), revision=0))


async def ensure_store_id(client: EtcdClient) -> str:
    """The id of this life of etcd's data, made when there is none."""
    await client.commit(txns.put_if(keys.STORE_ID, secrets.token_hex(8).encode(), revision=0))
    found = await client.get(keys.STORE_ID)
    assert found is not None, "it was written a moment ago"
    return found.value.decode()
