"""The one watch: every change exactly once, across reconnects, member deaths and freezes.

The traps, each with a test:
- Resume from the last *event's* mod_revision, or from the header of an empty answer (progress). Never from the
  `created` answer nor from a batch's header: etcd puts the store's present revision there, and what lies
  between would be lost.
- `fragment`: a large revision comes in pieces that are joined before anything is told.
- Compaction and cancellation are errors for the caller, never a stream that hangs.
- After each break a jittered pause, reset only by an answer.
- `call.write`/`read` rather than a request iterator: the iterator leaves pending tasks behind at every cancel.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import grpc
import grpc.aio

from core.log import EventLog
from hub.etcd.errors import Compacted, WatchCanceled
from hub.etcd.keys import prefix_end
from protos.etcd import kv_pb2, rpc_pb2
from protos.etcd.rpc_pb2_grpc import WatchStub

log = EventLog("hub.watch")
METADATA = (("hasleader", "true"),)
PAUSE_FIRST_S = 0.1
PAUSE_MAX_S = 3.0
_TRANSIENT = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}
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


async def watch(stub: WatchStub, prefix: str, *, after: int) -> AsyncGenerator[WatchBatch, None]:
    """For ever. Raises Compacted (list again, then watch from there) and WatchCanceled."""
    pause_s = PAUSE_FIRST_S
    while True:
        call: Call = stub.Watch(metadata=METADATA)
        pieces: list[kv_pb2.Event] = []
        try:
            await call.write(rpc_pb2.WatchRequest(create_request=_create_request(prefix, after)))
            while isinstance(response := await call.read(), rpc_pb2.WatchResponse):
                _raise_if_ended(response)
                pause_s = PAUSE_FIRST_S
                if response.created:
                    continue
                pieces += response.events
                if response.fragment:
                    continue
                after = pieces[-1].kv.mod_revision if pieces else max(after, response.header.revision)
                yield WatchBatch(revision=after, events=tuple(map(_event, pieces)))
                pieces = []
        except asyncio.InvalidStateError:
            pass  # write() on a call that had failed already
        except grpc.aio.AioRpcError as error:
            if error.code() not in _TRANSIENT:
                raise WatchCanceled(error.details() or error.code().name, object="etcd") from error
            log.info("watch_interrupted", revision=after, error=error.details())
        finally:
            call.cancel()
        await asyncio.sleep(random.uniform(pause_s / 2, pause_s))
        pause_s = min(pause_s * 2, PAUSE_MAX_S)


def _create_request(prefix: str, after: int) -> rpc_pb2.WatchCreateRequest:
    return rpc_pb2.WatchCreateRequest(
        key=prefix.encode(),
        range_end=prefix_end(prefix),
        start_revision=after + 1,
        progress_notify=True,
        fragment=True,
    )


def _raise_if_ended(response: rpc_pb2.WatchResponse) -> None:
    if response.compact_revision:
        raise Compacted(response.compact_revision)
    if response.canceled:
        raise WatchCanceled(response.cancel_reason or "etcd ended the watch", object="etcd")


def _event(event: kv_pb2.Event) -> WatchEvent:
    deleted = event.type == kv_pb2.Event.DELETE
    return WatchEvent(
        key=event.kv.key.decode(),
        value=None if deleted else event.kv.value,
        mod_revision=event.kv.mod_revision,
        create_revision=event.kv.create_revision,
        lease_id=event.kv.lease,
    )
