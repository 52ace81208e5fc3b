"""Events for operators: past ones from memory, then new ones as the mirror brings them.

A watcher that reads too slowly is cut off rather than served from an unbounded queue; it sees why, and comes back.
After the mirror has listed etcd anew, what came since the last event given is looked up by time, so nothing is told
twice and nothing that is still in memory is left out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from itertools import islice

from core.errors import OverloadedError
from core.records import Event
from hub.etcd.mirror import Changes, Mirror

DEFAULT_PAST = 100
QUEUE_MAX = 1000
WATCHERS_MAX = 100


class EventStreams:
    """All watchers of this hub."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._watchers = 0

    async def stream(self, *, prefix: str, limit: int, follow: bool) -> AsyncGenerator[Event, None]:
        """At most `limit` (0 = 100) past events of objects that begin with `prefix`, oldest first; then, with `follow`,
        new ones until the caller stops. OverloadedError when there are too many watchers, or this one lags behind."""
        if not follow:
            for event in past(self._mirror.events, prefix, limit):
                yield event
            return
        if self._watchers >= WATCHERS_MAX:
            raise OverloadedError(f"{self._watchers} watchers already", hint="Close some, or ask another hub.")
        feed = _Feed(self._mirror, prefix)
        unsubscribe = self._mirror.subscribe(feed.take)
        self._watchers += 1
        try:
            # Nothing is awaited between subscribing and this: no event can fall between the past and the new.
            for event in past(self._mirror.events, prefix, limit):
                yield event
            while True:
                yield await feed.next()
        finally:
            self._watchers -= 1
            unsubscribe()


def past(events: Iterable[Event], prefix: str, limit: int) -> list[Event]:
    """The newest `limit` events that fit, oldest first."""
    fitting = (event for event in reversed(list(events)) if event.object.startswith(prefix))
    return list(islice(fitting, limit or DEFAULT_PAST))[::-1]


class _Feed:
    """What one watcher has not been given yet. Invariant: bounded; once it has overflowed it ends with an error."""

    def __init__(self, mirror: Mirror, prefix: str) -> None:
        self._mirror = mirror
        self._prefix = prefix
        self._queue: asyncio.Queue[Event] = asyncio.Queue(QUEUE_MAX)
        self._overflowed = False
        self._newest = max((event.at for event in mirror.events), default=0.0)

    def take(self, changes: Changes) -> None:
        """Called by the mirror after each batch."""
        events: Iterable[Event] = changes.events
        if changes.everything:
            events = [event for event in self._mirror.events if event.at > self._newest]
        for event in events:
            self._newest = max(self._newest, event.at)
            if event.object.startswith(self._prefix):
                self._put(event)

    def _put(self, event: Event) -> None:
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            self._overflowed = True

    async def next(self) -> Event:
        """Waits without limit: a watcher of a quiet system waits for ever, and the call's own deadline bounds it."""
        if self._overflowed and self._queue.empty():
            raise OverloadedError("events come faster than they are read", hint="Watch again with a narrower prefix.")
        return await self._queue.get()
