"""The one watch: every change exactly once, across reconnects, member deaths and freezes.

The traps, each with a test:
- Resume from the last *event's* mod_revision, or from the header of an empty answer (progress). Never from the
  `created` answer nor from a batch's header: etcd puts the store's present revision there, and what lies
  between would be lost.
- `fragment`: a large revision comes in pieces that are joined before anything is told.
- Compaction and cancellation are errors for the caller, never a stream that hangs.
- After each break a jittered pause, reset only by an answer.
- `call.write`/`read` rather than a request iterator: the iterator leaves pending tasks behind at every cancel.
- `hasleader`: a member that lost its quorum ends the watch, which goes on at another.

A member that stands still is noticed by its channel's pings (`hub.etcd.options`). What no stream can show, a watch that
stays open and brings nothing, is the mirror's own check to find.
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


async def watch(members: EtcdMembers, prefix: str, *, after: int) -> AsyncGenerator[WatchBatch, None]:
    """For ever. Raises Compacted (list again, then watch from there) and WatchCanceled."""
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
            breaks = 0
            while isinstance(response := await call.read(), rpc_pb2.WatchResponse):
                _raise_if_ended(response)
                pieces += response.events
                if response.fragment:
                    continue
                after = pieces[-1].kv.mod_revision if pieces else max(after, response.header.revision)
                yield WatchBatch(revision=after, events=tuple(map(_event, pieces)))
                pieces = []
            reason = "etcd ended the stream"
        except (asyncio.InvalidStateError, TimeoutError) as error:
            reason = repr(error)  # write() on a call that had failed already, or no confirmation
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
        raise TimeoutError("the stream ended before the watch was confirmed")
    _raise_if_ended(response)
    if not response.created:
        raise WatchCanceled("etcd answered without confirming the watch", object="etcd")


def _raise_if_ended(response: rpc_pb2.WatchResponse) -> None:
    if response.compact_revision:
        raise Compacted(response.compact_revision)
    if response.canceled:
        raise WatchCanceled(response.cancel_reason or "etcd ended the watch", object="etcd")


def _event(event: kv_pb2.Event) -> WatchEvent:
    deleted = event.type == kv_pb2.Event.DELETE
    return WatchEvent(
        key=key_text(event.kv.key),
        value=None if deleted else event.kv.value,
        mod_revision=event.kv.mod_revision,
        create_revision=event.kv.create_revision,
        lease_id=event.kv.lease,
    )
