"""Events for operators: past ones from memory, then new ones as the mirror brings them.

A watcher that reads too slowly is cut off rather than served from an unbounded queue, and all are when the hub drains:
each sees why, and comes back.
After the mirror has listed etcd anew, what came since the last event given is looked up by time, so nothing is told
twice and nothing that is still in memory is left out.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from itertools import islice

from core.errors import MoorageError, OverloadedError, UnavailableError
from core.records import Event
from hub.etcd.mirror import Changes, Mirror

DEFAULT_PAST = 100
QUEUE_MAX = 1000
WATCHERS_MAX = 100


class EventStreams:
    """All watchers of this hub."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._feeds: set[_Feed] = set()

    async def stream(self, *, prefix: str, limit: int, follow: bool) -> AsyncGenerator[Event, None]:
        """At most `limit` (0 = 100) past events of objects that begin with `prefix`, oldest first; then, with `follow`,
        new ones until the caller stops. OverloadedError when there are too many watchers, or this one lags behind;
        UnavailableError when the hub drains."""
        if not follow:
            for event in past(self._mirror.events, prefix, limit):
                yield event
            return
        if len(self._feeds) >= WATCHERS_MAX:
            raise OverloadedError(f"{len(self._feeds)} watchers already", hint="Close some, or ask another hub.")
        feed = _Feed(self._mirror, prefix)
        unsubscribe = self._mirror.subscribe(feed.take)
        self._feeds.add(feed)
        try:
            # Nothing is awaited between subscribing and this: no event can fall between the past and the new.
            for event in past(self._mirror.events, prefix, limit):
                yield event
            while True:
                yield await feed.next()
        finally:
            self._feeds.discard(feed)
            unsubscribe()

    def end_all(self) -> None:
        """Send every watcher elsewhere."""
        for feed in self._feeds:
            feed.end(UnavailableError("the hub is shutting down", hint="Watch again; another hub answers."))


def past(events: Iterable[Event], prefix: str, limit: int) -> list[Event]:
    """The newest `limit` events that fit, oldest first."""
    fitting = (event for event in reversed(list(events)) if event.object.startswith(prefix))
    return list(islice(fitting, limit or DEFAULT_PAST))[::-1]


class _Feed:
    """What one watcher has not been given yet. Invariant: bounded; once it was ended it takes no more, and its error
    comes after what was taken before."""

    def __init__(self, mirror: Mirror, prefix: str) -> None:
        self._mirror = mirror
        self._prefix = prefix
        self._queue: deque[Event] = deque()
        self._news = asyncio.Event()
        self._error: MoorageError | None = None
        self._newest = max((event.at for event in mirror.events), default=0.0)

    def take(self, changes: Changes) -> None:
        """Called by the mirror after each batch."""
        events: Iterable[Event] = changes.events
        if changes.everything:
            events = [event for event in self._mirror.events if event.at > self._newest]
        for event in events:
            self._newest = max(self._newest, event.at)
            if event.object.startswith(self._prefix) and self._error is None:
                self._put(event)

    def _put(self, event: Event) -> None:
        if len(self._queue) >= QUEUE_MAX:
            self.end(OverloadedError("events come faster than they are read", hint="Watch with a longer prefix."))
            return
        self._queue.append(event)
        self._news.set()

    def end(self, error: MoorageError) -> None:
        self._error = self._error or error
        self._news.set()

    async def next(self) -> Event:
        """Waits without limit: a watcher of a quiet system waits for ever, and the call's own deadline bounds it."""
        while not self._queue:
            if self._error is not None:
                raise self._error
            self._news.clear()
            await self._news.wait()
        return self._queue.popleft()
