"""Events: what happened, for people, kept in etcd for a bounded time.

An event tells of something that is done, so a failure to write one never undoes it: it is logged, and that is all.
`trim` keeps etcd small; it is for the one hub that holds the controllers' claim.
"""

from __future__ import annotations

from typing import Literal

from core.clock import Clock, SystemClock
from core.errors import MoorageError
from core.log import EventLog
from core.records import Event
from hub.etcd import keys, txns
from hub.etcd.store import Store

EVENTS_MAX = 10_000  # about 3 MiB of etcd
EVENTS_AGE_S = 7 * 86400
KEY_STEP_S = 0.002  # two milliseconds differ by one at least, however floats are rounded
TRIM_BATCH = 100  # etcd takes 128 operations in one transaction unless told otherwise
MESSAGE_MAX = 2000  # characters; what is longer belongs into a log

Severity = Literal["info", "warning", "error"]

log = EventLog("hub.events")


class EventWriter:
    """Writes this hub's events. Invariant: each is later than the one before by more than a millisecond, so that their
    keys, which are made from milliseconds, keep them in the order in which they happened."""

    def __init__(self, store: Store, hub: str, *, clock: Clock | None = None) -> None:
        self._store = store
        self._hub = hub
        self._clock = clock or SystemClock()
        self._last_at = 0.0

    async def emit(self, event: str, object: str, message: str = "", severity: Severity = "info") -> None:
        """Append an event. `event` is snake_case past tense, `object` such as node/n1, project/demo or demo/orders."""
        self._last_at = max(self._clock.wall(), self._last_at + KEY_STEP_S)
        record = Event(
            at=self._last_at,
            event=event,
            object=object,
            severity=severity,
            message=message[:MESSAGE_MAX],
            source=self._hub,
        )
        try:
            await self._store.add_event(record)
        except MoorageError as error:
            log.warning("event_not_written", lost=event, object=object, message=message, error=str(error))

    async def trim(self, *, keep: int = EVENTS_MAX, age_s: float = EVENTS_AGE_S) -> int:
        """Delete the oldest events beyond `keep`, and those older than `age_s`. Returns how many went."""
        found, _ = await self._store.client.list(keys.EVENTS)
        names = sorted(kv.key for kv in found)
        oldest = keys.event(int((self._clock.wall() - age_s) * 1000), "")
        surplus = max(0, len(names) - keep)
        doomed = [name for number, name in enumerate(names) if number < surplus or name < oldest]
        for start in range(0, len(doomed), TRIM_BATCH):
            batch = doomed[start : start + TRIM_BATCH]
            await self._store.commit(txns.all_of([], [txns.Delete(name) for name in batch]))
        if doomed:
            log.info("events_trimmed", count=len(doomed), left=len(names) - len(doomed))
        return len(doomed)
