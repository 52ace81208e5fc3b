"""What agents report of their nodes, merged into etcd: transitions only, and only what differs from what lies there.

The agent's facts and the operators' wishes share the node's record, so each change is made on the record as it is now
and written by compare-and-swap. A member's observed record is written only while the member itself is still there: the
compare on its key keeps a late report from leaving an orphan behind after the member was deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from core.errors import ConflictError, DeniedError, UserError
from core.ids import InstanceRef, MemberRef
from core.log import EventLog
from core.records import Event, NodeRecord, ObservedMember, to_json
from hub.etcd import keys, txns
from hub.etcd.mirror import Mirror
from hub.etcd.store import Store

ROUNDS = 4
BATCH = 30  # members in one transaction: two compares and one put each, of etcd's 128 operations
EVENT_TEXT_MAX = 2000

log = EventLog("hub.reports")


class Reports:
    """Writes what nodes say."""

    def __init__(self, mirror: Mirror, store: Store) -> None:
        self._mirror = mirror
        self._store = store

    async def update_node(self, node: str, change: Callable[[NodeRecord], NodeRecord]) -> None:
        """Write the node's record as `change` makes it from the present one."""
        for _ in range(ROUNDS):
            known = self._mirror.nodes.get(node)
            if known is None:
                raise ConflictError("the node was removed meanwhile", object=f"node/{node}")
            wanted = change(known.record)
            if wanted == known.record:
                return
            if await self._store.commit(txns.put_if(keys.node(node), to_json(wanted), revision=known.mod_revision)):
                log.info("node_updated", node=node)
                return
        raise ConflictError("the node's record keeps changing", object=f"node/{node}", hint="Try again.")

    async def observe(self, node: str, reported: Sequence[tuple[MemberRef, ObservedMember]]) -> None:
        """Write the observed records that changed. Members that are not on the node (any more) are left out."""
        for start in range(0, len(reported), BATCH):
            await self._observe_batch(node, reported[start : start + BATCH])

    async def _observe_batch(self, node: str, reported: Sequence[tuple[MemberRef, ObservedMember]]) -> None:
        for _ in range(ROUNDS):
            parts = list(self._changes(node, reported))
            if not parts:
                return
            compares = [compare for part, _ in parts for compare in part]
            if await self._store.commit(txns.all_of(compares, [put for _, put in parts])):
                return
        raise ConflictError("its members' records keep changing", object=f"node/{node}", hint="Try again.")

    def _changes(
        self, node: str, reported: Sequence[tuple[MemberRef, ObservedMember]]
    ) -> Iterator[tuple[list[txns.Compare], txns.Put]]:
        for ref, observed in reported:
            member = self._mirror.members.get((node, ref))
            known = self._mirror.observed.get((node, ref))
            if member is None or (known is not None and known.record == observed):
                continue
            key = keys.observed(node, ref)
            compares: list[txns.Compare] = [
                txns.CreatedIs(keys.member(node, ref), member.create_revision),
                txns.ModIs(key, known.mod_revision if known is not None else 0),
            ]
            yield compares, txns.Put(key, to_json(observed))

    async def tell(self, node: str, event: Event, instances: Iterable[InstanceRef]) -> None:
        """Append an event in the node's name, about itself or about one of `instances`, which have a member on it."""
        about = [f"node/{node}", *(str(instance) for instance in instances)]
        if not any(event.object == name or event.object.startswith(f"{name}/") for name in about):
            raise DeniedError("events may be about the node itself or its members", object=event.object[:200])
        if not event.event.replace("_", "").isalnum() or len(event.event) > 64:
            raise UserError("an event's name is snake_case, at most 64 characters", object="event_json.event")
        await self._store.add_event(replace(event, source=node, message=event.message[:EVENT_TEXT_MAX]))
