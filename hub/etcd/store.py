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
        """True when it took effect. Either way the mirror shows, on return, at least what the transaction met: whoever
        was refused may look at the mirror and try again at once.

        TimedOutError when the mirror does not get there in time; the transaction may have taken effect all the same.
        """
        outcome = await self.client.commit(txn)
        if outcome.made_revision:
            await self.mirror.reached(outcome.revision, MIRROR_WITHIN_S)
            return outcome.succeeded
        # No revision of its own that could be waited for, and the store's counts foreign keys that no watch of ours
        # brings. So wait for the keys themselves.
        touched = [compare.key for compare in txn.compares]
        touched += [op.key for op in txn.then if not isinstance(op, txns.DeletePrefix)]
        found, revision = await self.client.read(touched)
        seen = {key: found[key].mod_revision if key in found else 0 for key in touched}
        await self.mirror.shows(seen, revision, MIRROR_WITHIN_S)
        return outcome.succeeded

    async def add_event(self, event: Event) -> None:
        """Append to the events; two of one millisecond do not meet. Does not wait for the mirror."""
        key = keys.event(int(event.at * 1000), secrets.token_hex(4))
        await self.client.commit(txns.put_if(key, to_json(event), revision=0))


async def ensure_store_id(client: EtcdClient) -> str:
    """The id of this life of etcd's data, made when there is none."""
    await client.commit(txns.put_if(keys.STORE_ID, secrets.token_hex(8).encode(), revision=0))
    found = await client.get(keys.STORE_ID)
    assert found is not None, "it was written a moment ago"
    return found.value.decode()
