"""A thin asyncio client over etcd's own protocol: what a hub needs, and every trap of it in one place.

- Every call has a deadline. Reads are tried again; so are transactions, because all of ours compare mod_revisions: a
  repetition of one that took effect unseen does not succeed, and then the values tell whether they are our own.
- A put to a lease that is gone is LeaseGone, never repeated blindly.
- `list` reads all pages at one revision.
- Mutual TLS with certificate-name users, no tokens: tokens are what breaks clients after an etcd restart.

No other etcd client may be loaded beside it: they register the same protobuf messages.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc
import grpc.aio

from core.backoff import Backoff
from core.config import split_host_port
from core.errors import UserError
from hub.etcd import watch
from hub.etcd.errors import Compacted, EtcdUnavailable, LeaseGone
from hub.etcd.keys import prefix_end
from hub.etcd.options import CHANNEL_OPTIONS
from hub.etcd.txns import CreatedIs, Delete, DeletePrefix, ModIs, Op, Put, Txn
from hub.etcd.watch import WatchBatch, WatchEvent
from protos.etcd import kv_pb2, rpc_pb2
from protos.etcd.rpc_pb2_grpc import KVStub, LeaseStub, WatchStub

__all__ = ["Commit", "EtcdClient", "EtcdTls", "KeyValue", "WatchBatch", "WatchEvent"]

Req = TypeVar("Req")
Res = TypeVar("Res")
ATTEMPTS = 4
PAGE_KEYS = 1000
KEEPALIVE_TIMEOUT_S = 1.5  # of one renewal: must leave room for another before the lease ends
METADATA = (("hasleader", "true"),)  # a member that lost its quorum refuses at once instead of hanging
_RETRIED = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdTls:
    """PEM files for mutual TLS with etcd."""

    ca: Path
    cert: Path
    key: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyValue:
    """One key as read."""

    key: str
    value: bytes
    mod_revision: int
    create_revision: int
    lease_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """Outcome of a transaction; `revision` is the store's after it."""

    succeeded: bool
    revision: int


class EtcdClient:
    """One connection pool to all members. Raises EtcdUnavailable, LeaseGone, Compacted, UserError (too large)."""

    def __init__(self, endpoints: Sequence[str], *, tls: EtcdTls | None = None, timeout_s: float = 5.0) -> None:
        self._timeout_s = timeout_s
        target = _target(endpoints)
        if tls is None:
            self._channel = grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
        else:
            credentials = grpc.ssl_channel_credentials(
                tls.ca.read_bytes(), private_key=tls.key.read_bytes(), certificate_chain=tls.cert.read_bytes()
            )
            self._channel = grpc.aio.secure_channel(target, credentials, options=CHANNEL_OPTIONS)
        self._kv = KVStub(self._channel)
        self._lease = LeaseStub(self._channel)
        self._watch = WatchStub(self._channel)

    async def aclose(self) -> None:
        await self._channel.close()

    # --- reading --------------------------------------------------------------------------------------------------

    async def get(self, key: str) -> KeyValue | None:
        """Linearizable: nothing that was written before the call is missed."""
        response = await self._call(self._kv.Range, rpc_pb2.RangeRequest(key=key.encode()))
        return _key_value(response.kvs[0]) if response.kvs else None

    async def newest_change(self, prefix: str) -> int:
        """The highest mod_revision below the prefix, by a linearizable read; 0 when there is no key."""
        request = rpc_pb2.RangeRequest(
            key=prefix.encode(),
            range_end=prefix_end(prefix),
            limit=1,
            keys_only=True,
            sort_order=rpc_pb2.RangeRequest.DESCEND,
            sort_target=rpc_pb2.RangeRequest.MOD,
        )
        response = await self._call(self._kv.Range, request)
        return response.kvs[0].mod_revision if response.kvs else 0

    async def list(self, prefix: str) -> tuple[list[KeyValue], int]:
        """All keys with the prefix and the one revision they were read at."""
        found: list[KeyValue] = []
        revision = 0
        start, end = prefix.encode(), prefix_end(prefix)
        while True:
            request = rpc_pb2.RangeRequest(key=start, range_end=end, limit=PAGE_KEYS, revision=revision)
            response = await self._call(self._kv.Range, request)
            revision = revision or response.header.revision
            found += map(_key_value, response.kvs)
            if not response.more:
                return found, revision
            start = response.kvs[-1].key + b"\0"

    def watch(self, prefix: str, *, after: int) -> AsyncGenerator[WatchBatch, None]:
        """Every change with a revision above `after`, each exactly once; see `hub.etcd.watch`."""
        return watch.watch(self._watch, prefix, after=after)

    # --- writing --------------------------------------------------------------------------------------------------

    async def commit(self, txn: Txn) -> Commit:
        """Send the transaction; after an unclear failure send it again and find out whether it had taken effect."""
        request = _txn_request(txn)
        unclear = False
        backoff = Backoff(base_s=0.1, cap_s=1.0, uniform=random.uniform)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                response = await self._kv.Txn(request, timeout=self._timeout_s, metadata=METADATA)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _RETRIED or attempt == ATTEMPTS:
                    raise _translated(error) from error
                unclear = True
                await asyncio.sleep(backoff.next_delay())
                continue
            succeeded = response.succeeded or (unclear and await self._was_ours(txn))
            return Commit(succeeded=succeeded, revision=response.header.revision)
        raise AssertionError("the last attempt returns or raises")

    async def _was_ours(self, txn: Txn) -> bool:
        """Whether what lies in etcd now is what this transaction writes: its first sending took effect."""
        for op in txn.then:
            match op:
                case Put(key=key, value=value, lease_id=lease_id):
                    found = await self.get(key)
                    if found is None or found.value != value or found.lease_id != lease_id:
                        return False
                case Delete(key=key):
                    if await self.get(key) is not None:
                        return False
                case DeletePrefix():
                    pass  # deleting what others may since have written anew proves nothing
        return any(isinstance(op, Put | Delete) for op in txn.then)

    async def delete_prefix(self, prefix: str) -> int:
        """Delete all keys with the prefix; how many there were."""
        request = rpc_pb2.DeleteRangeRequest(key=prefix.encode(), range_end=prefix_end(prefix))
        response = await self._call(self._kv.DeleteRange, request)
        return response.deleted

    # --- leases ---------------------------------------------------------------------------------------------------

    async def grant(self, ttl_s: int) -> int:
        """A new lease's id. One that was granted unseen expires by itself."""
        response = await self._call(self._lease.LeaseGrant, rpc_pb2.LeaseGrantRequest(TTL=ttl_s))
        return response.ID

    async def keepalive(self, lease_id: int) -> int:
        """Renew once; remaining seconds as etcd says. LeaseGone when there is no such lease.

        Not repeated on failure: the caller counts from when it asked, and asks again itself.
        """
        call = self._lease.LeaseKeepAlive(metadata=METADATA, timeout=KEEPALIVE_TIMEOUT_S)
        try:
            await call.write(rpc_pb2.LeaseKeepAliveRequest(ID=lease_id))
            response = await call.read()
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from error
        except asyncio.InvalidStateError as error:
            raise EtcdUnavailable("the renewal's stream had ended", object="etcd") from error
        finally:
            call.cancel()
        if not isinstance(response, rpc_pb2.LeaseKeepAliveResponse):
            raise EtcdUnavailable("the renewal's stream ended without an answer", object="etcd")
        if response.TTL <= 0:
            raise LeaseGone("no such lease", object=f"lease {lease_id:x}")
        return response.TTL

    async def time_to_live(self, lease_id: int) -> float:
        """Remaining seconds, 0 when the lease is gone."""
        request = rpc_pb2.LeaseTimeToLiveRequest(ID=lease_id)
        response = await self._call(self._lease.LeaseTimeToLive, request)
        return max(0.0, float(response.TTL))

    async def revoke(self, lease_id: int) -> None:
        """End the lease and everything that hangs on it; fine when it is gone already."""
        try:
            await self._call(self._lease.LeaseRevoke, rpc_pb2.LeaseRevokeRequest(ID=lease_id))
        except LeaseGone:
            return

    # --- the one way to call --------------------------------------------------------------------------------------

    async def _call(self, method: grpc.aio.UnaryUnaryMultiCallable[Req, Res], request: Req) -> Res:
        """For what may be repeated without harm."""
        backoff = Backoff(base_s=0.1, cap_s=1.0, uniform=random.uniform)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await method(request, timeout=self._timeout_s, metadata=METADATA)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _RETRIED or attempt == ATTEMPTS:
                    raise _translated(error) from error
                await asyncio.sleep(backoff.next_delay())
        raise AssertionError("the last attempt returns or raises")


def _target(endpoints: Sequence[str]) -> str:
    """One gRPC target for all members. Addresses are given as they are; a name is left to DNS."""
    hosts = [split_host_port(endpoint) for endpoint in endpoints]
    try:
        versions = {ipaddress.ip_address(host).version for host, _ in hosts}
    except ValueError:
        if len(hosts) > 1:
            raise UserError(
                "several etcd endpoints must be IP addresses", object="etcd_endpoints", hint="Or give one DNS name."
            ) from None
        return f"dns:///{endpoints[0]}"
    return f"ipv{max(versions)}:" + ",".join(endpoints)


def _key_value(kv: kv_pb2.KeyValue) -> KeyValue:
    return KeyValue(
        key=kv.key.decode(),
        value=kv.value,
        mod_revision=kv.mod_revision,
        create_revision=kv.create_revision,
        lease_id=kv.lease,
    )


def _txn_request(txn: Txn) -> rpc_pb2.TxnRequest:
    return rpc_pb2.TxnRequest(
        compare=[_compare(compare.key, compare) for compare in txn.compares], success=[_op(op) for op in txn.then]
    )


def _compare(key: str, compare: ModIs | CreatedIs) -> rpc_pb2.Compare:
    if isinstance(compare, ModIs):
        return rpc_pb2.Compare(
            key=key.encode(),
            target=rpc_pb2.Compare.MOD,
            result=rpc_pb2.Compare.EQUAL,
            mod_revision=compare.revision,
        )
    return rpc_pb2.Compare(
        key=key.encode(),
        target=rpc_pb2.Compare.CREATE,
        result=rpc_pb2.Compare.EQUAL,
        create_revision=compare.revision,
    )


def _op(op: Op) -> rpc_pb2.RequestOp:
    match op:
        case Put(key=key, value=value, lease_id=lease_id):
            return rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key.encode(), value=value, lease=lease_id))
        case Delete(key=key):
            return rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=key.encode()))
        case DeletePrefix(prefix=prefix):
            request = rpc_pb2.DeleteRangeRequest(key=prefix.encode(), range_end=prefix_end(prefix))
            return rpc_pb2.RequestOp(request_delete_range=request)


def _translated(error: grpc.aio.AioRpcError) -> Exception:
    details = error.details() or error.code().name.lower()
    if "requested lease not found" in details:
        return LeaseGone("no such lease", object="etcd")
    if "compacted" in details:
        return Compacted(0)
    if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
        return UserError(f"etcd refuses the request: {details}", object="etcd")
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        hint = "Compact, defragment each member, then disarm the alarm (etcdctl alarm list)."
        return EtcdUnavailable(details, object="etcd", hint=hint)
    return EtcdUnavailable(details, object="etcd", hint="See whether etcd runs and its quorum is whole.")
