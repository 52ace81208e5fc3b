"""What can go wrong between the hub and etcd, and how gRPC's words for it become ours."""

from __future__ import annotations

import grpc
import grpc.aio

from core.errors import ConflictError, DeniedError, MoorageError, UnavailableError, UserError

# The request may or may not have been carried out, and another member may answer.
UNCLEAR = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,  # how a server that ends, or is overloaded, lets go of a call
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,  # a connection reset under the call
    }
)


class EtcdUnavailable(UnavailableError):
    """No member of etcd answered in time; a request that writes may or may not have taken effect."""


class LeaseGone(ConflictError):
    """The lease has expired or was revoked; what hung on it is gone."""


class Compacted(MoorageError):
    """The history that was asked for was compacted: list again. `revision` is how far, 0 = not told."""

    def __init__(self, revision: int) -> None:
        told = f"history up to revision {revision}" if revision else "the history that was asked for"
        super().__init__(f"{told} was compacted", object="etcd")
        self.revision = revision


class WatchCanceled(MoorageError):
    """Etcd ended the watch for a reason that trying again does not cure."""


def translated(error: grpc.aio.AioRpcError) -> MoorageError:
    """Our error for a call that failed."""
    code, details = error.code(), error.details() or error.code().name.lower()
    if "requested lease not found" in details:
        return LeaseGone("no such lease", object="etcd")
    if "has been compacted" in details:
        return Compacted(0)
    match code:
        case grpc.StatusCode.INVALID_ARGUMENT:
            return UserError(f"etcd refuses the request: {details}", object="etcd")
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "larger than max" in details:
            return UserError(f"the message is too large: {details}", object="etcd")
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "space exceeded" in details:
            hint = "Compact, defragment each member, then disarm the alarm (etcdctl alarm list)."
            return EtcdUnavailable(details, object="etcd", hint=hint)
        case grpc.StatusCode.PERMISSION_DENIED | grpc.StatusCode.UNAUTHENTICATED:
            hint = "Give the etcd user that this hub's certificate names (its CN) readwrite on /moorage/."
            return DeniedError(details, object="etcd", hint=hint)
        case _:
            return EtcdUnavailable(details, object="etcd", hint="See whether etcd runs and its quorum is whole.")


def is_too_large(error: grpc.aio.AioRpcError) -> bool:
    """Whether etcd or gRPC refused a request for its size: more bytes, or more keys, than one may have."""
    details = error.details() or ""
    return any(words in details for words in ("request is too large", "too many operations", "larger than max"))
