"""The one watch: every change exactly once, across reconnects, member deaths and freezes.

The traps, each with a test:
- Resume from the last *event's* mod_revision, or from the header of an empty answer (progress). Never from the
  `created` answer nor from a batch's header: etcd puts the store's present revision there, and what lies
  between would be lost.
- `fragment`: a large revision comes in pieces that are joined before anything is told.
- Compaction and cancellation are errors for the caller, never a stream that hangs.
- After each break a jittered pause, reset only by an answer.
- `call.write`/`read` rather than a request iterator: the iterator leaves pending tasks behind at every cancel.
- `hasleader`: a member that lost its quorum ends the watch, by an error or by a cancellation that gives the reason
  (`etcdserver: no leader`), and the watch goes on at another. Only denied access is final.
- A member that is behind what was told already brings nothing until it has caught up: another one is asked.

A member that stands still is noticed by its channel's pings (`hub.etcd.options`). What no stream can show, a watch that
stays open and brings nothing, is for somebody to notice who knows that there is news: `Reading.reopen`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import grpc.aio

from core.log import EventLog
from hub.etcd.errors import UNCLEAR, Compacted, WatchCanceled
from hub.etcd.keys import prefix_end
from hub.etcd.members import EtcdMembers
from hub.etcd.messages import key_bytes, key_text
from protos.etcd import kv_pb2, rpc_pb2

log = EventLog("hub.watch")
METADATA = (("hasleader", "true"),)
PAUSE_FIRST_S = 0.1
PAUSE_MAX_S = 3.0
CREATED_WITHIN_S = 5.0  # etcd confirms a watch at once; later a watch may be quiet for ever
_FINAL = ("permission denied", "user name is empty", "invalid auth token")
Call = grpc.aio.StreamStreamCall[rpc_pb2.WatchRequest, rpc_pb2.WatchResponse]


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchEvent:
    """One change. `value` None = the key was deleted."""

    key: str
    value: bytes | None
    mod_revision: int
    create_revision: int
    lease_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchBatch:
    """All changes up to `revision` have been told with this batch; `events` may be empty (progress)."""

    revision: int
    events: tuple[WatchEvent, ...]


class Reading:
    """A handle on a running watch. `reopen` makes it go on at another member; nothing is lost or told twice by it."""

    def __init__(self) -> None:
        self._limit: asyncio.Timeout | None = None

    def reopen(self) -> None:
        """Without effect while a stream is being opened."""
        if self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time())
            self._limit = None

    async def read(self, call: Call) -> rpc_pb2.WatchResponse | None:
        """The next answer; None at the stream's end. TimeoutError after `reopen`."""
        async with asyncio.timeout(None) as limit:
            self._limit = limit
            try:
                response = await call.read()
            finally:
                self._limit = None
        return response if isinstance(response, rpc_pb2.WatchResponse) else None


class _Ended(Exception):
    """The stream is of no more use; another one may be."""


async def watch(
    members: EtcdMembers, prefix: str, *, after: int, reading: Reading | None = None
) -> AsyncGenerator[WatchBatch, None]:
    """For ever. Raises Compacted (list again, then watch from there) and WatchCanceled."""
    reading = reading or Reading()
    breaks = 0
    while True:
        member = await members.pick()
        call: Call = member.watch.Watch(metadata=METADATA)
        pieces: list[kv_pb2.Event] = []
        try:
            with members.observed(member):
                await _create(call, prefix, after)
            if breaks:
                log.info("watch_resumed", revision=after, endpoint=member.endpoint, breaks=breaks)
            while (response := await reading.read(call)) is not None:
                _raise_if_ended(response)
                pieces += response.events
                if response.fragment:
                    continue
                after = pieces[-1].kv.mod_revision if pieces else max(after, response.header.revision)
                breaks = 0
                yield WatchBatch(revision=after, events=tuple(map(_event, pieces)))
                pieces = []
            reason = "etcd ended the stream"
        except TimeoutError:  # no confirmation, or `reopen`
            reason = "the member brings nothing"
            members.suspect(member)
        except (asyncio.InvalidStateError, _Ended) as error:
            reason = str(error) or repr(error)  # InvalidStateError: write() on a call that had failed already
        except grpc.aio.AioRpcError as error:
            reason = error.details() or error.code().name
            if error.code() not in UNCLEAR:
                raise WatchCanceled(reason, object="etcd") from error
        finally:
            call.cancel()
        if not breaks:
            log.info("watch_interrupted", revision=after, endpoint=member.endpoint, reason=reason)
        pause_s = min(PAUSE_FIRST_S * 2.0 ** min(breaks, 32), PAUSE_MAX_S)
        await asyncio.sleep(random.uniform(pause_s / 2, pause_s))
        breaks += 1


async def _create(call: Call, prefix: str, after: int) -> None:
    """Ask for the watch and await its confirmation, which says nothing of what was delivered."""
    request = rpc_pb2.WatchCreateRequest(
        key=key_bytes(prefix),
        range_end=prefix_end(prefix),
        start_revision=after + 1,
        progress_notify=True,
        fragment=True,
    )
    async with asyncio.timeout(CREATED_WITHIN_S):
        await call.write(rpc_pb2.WatchRequest(create_request=request))
        response = await call.read()
    if not isinstance(response, rpc_pb2.WatchResponse):
        raise _Ended("the stream ended before the watch was confirmed")
    _raise_if_ended(response)
    if not response.created:
        raise WatchCanceled("etcd answered without confirming the watch", object="etcd")
    if response.header.revision < after:
        raise _Ended(f"the member is at revision {response.header.revision} only")


def _raise_if_ended(response: rpc_pb2.WatchResponse) -> None:
    if response.compact_revision:
        raise Compacted(response.compact_revision)
    if response.canceled:
        reason = response.cancel_reason or "etcd ended the watch without a reason"
        if any(words in reason for words in _FINAL):
            raise WatchCanceled(reason, object="etcd")
        raise _Ended(reason)


def _event(event: kv_pb2.Event) -> WatchEvent:
    deleted = event.type == kv_pb2.Event.DELETE
    return WatchEvent(
        key=key_text(event.kv.key),
        value=None if deleted else event.kv.value,
        mod_revision=event.kv.mod_revision,
        create_revision=event.kv.create_revision,
        lease_id=event.kv.lease,
    )
