"""A thin asyncio client over etcd's own protocol: what a hub needs, and every trap of it in one place.

- Every call has a deadline and goes to a member that is connected (`hub.etcd.members`).
- Reads are tried again at another member. Of writes only transactions that compare revisions are: `commit` tells how.
- A put to a lease that is gone is LeaseGone, never repeated.
- `list` reads all pages at one revision.
- Mutual TLS with certificate-name users, no tokens: tokens are what breaks clients after an etcd restart.

No other etcd client may be loaded beside it: they register the same protobuf messages.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

import grpc.aio

from core.backoff import Backoff
from core.clock import SystemClock
from core.errors import UserError
from hub.etcd import watch
from hub.etcd.errors import UNCLEAR, Compacted, EtcdUnavailable, LeaseGone, is_too_large, translated
from hub.etcd.keys import prefix_end
from hub.etcd.members import EtcdMember, EtcdMembers, EtcdTls
from hub.etcd.messages import KeyValue, has_effect, key_bytes, key_value, read_request, txn_request
from hub.etcd.txns import Delete, ModIs, Put, Txn
from hub.etcd.watch import Reading, WatchBatch, WatchEvent
from protos.etcd import rpc_pb2

__all__ = ["Commit", "EtcdClient", "EtcdTls", "KeyValue", "Survey", "WatchBatch", "WatchEvent"]

Req = TypeVar("Req")
Res = TypeVar("Res")
Method = Callable[[EtcdMember], grpc.aio.UnaryUnaryMultiCallable[Req, Res]]
ATTEMPTS = 4
PAGE_KEYS = 1000
READ_KEYS_MAX = 128  # etcd's --max-txn-ops
KEEPALIVE_TIMEOUT_S = 1.5  # of one renewal: must leave room for another before the lease ends
LAST_SECOND_S = 0.001  # all that is certain of a lease of which etcd says 0 s
METADATA = (("hasleader", "true"),)  # a member that lost its quorum refuses at once instead of hanging


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """Outcome of a transaction.

    `revision` is the one it made if `made_revision`: the mod_revision of all that it put. Else it made none (it failed,
    or changed nothing), and `revision` is the store's at which it was evaluated.
    """

    succeeded: bool
    revision: int
    made_revision: bool = False
    raft_term: int = 0  # of the member that answered


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptAlive:
    """A renewal of a lease as etcd confirms it."""

    ttl_s: int
    raft_term: int  # of the member that answered


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What lies below a prefix, by one linearizable read."""

    revision: int  # of the store, keys of others included
    newest: int  # the highest mod_revision; 0 when there is no key
    count: int


class EtcdClient:
    """Raises EtcdUnavailable, LeaseGone, Compacted, DeniedError, and UserError for what is too large."""

    def __init__(self, endpoints: Sequence[str], *, tls: EtcdTls | None = None, timeout_s: float = 5.0) -> None:
        self._timeout_s = timeout_s
        self._members = EtcdMembers(endpoints, tls=tls, clock=SystemClock())

    async def aclose(self) -> None:
        await self._members.aclose()

    # --- reading --------------------------------------------------------------------------------------------------

    async def get(self, key: str) -> KeyValue | None:
        """Linearizable: nothing that was written before the call is missed."""
        response = await self._call(lambda to: to.kv.Range, rpc_pb2.RangeRequest(key=key_bytes(key)))
        return key_value(response.kvs[0]) if response.kvs else None

    async def read(self, keys: Iterable[str], *, revision: int = 0) -> tuple[dict[str, KeyValue], int]:
        """Those of the keys that exist, and the one revision they were read at: the one given, or (0) the present one,
        linearizable. Compacted when etcd has forgotten the one given."""
        found: dict[str, KeyValue] = {}
        wanted = list(dict.fromkeys(keys))
        for start in range(0, len(wanted), READ_KEYS_MAX):
            request = read_request(wanted[start : start + READ_KEYS_MAX], revision)
            response = await self._call(lambda to: to.kv.Txn, request)
            revision = revision or response.header.revision
            for one in response.responses:
                found |= {kv.key: kv for kv in map(key_value, one.response_range.kvs)}
        return found, revision

    async def list(self, prefix: str) -> tuple[list[KeyValue], int]:
        """All keys with the prefix and the one revision they were read at."""
        found: list[KeyValue] = []
        revision = 0
        start, end = key_bytes(prefix), prefix_end(prefix)
        while True:
            request = rpc_pb2.RangeRequest(key=start, range_end=end, limit=PAGE_KEYS, revision=revision)
            response = await self._call(lambda to: to.kv.Range, request)
            revision = revision or response.header.revision
            found += map(key_value, response.kvs)
            if not response.more:
                return found, revision
            start = response.kvs[-1].key + b"\0"

    async def survey(self, prefix: str) -> Survey:
        """How much lies below the prefix and how new it is; cheap."""
        request = rpc_pb2.RangeRequest(
            key=key_bytes(prefix),
            range_end=prefix_end(prefix),
            limit=1,  # `count` counts beyond it
            keys_only=True,
            sort_order=rpc_pb2.RangeRequest.DESCEND,
            sort_target=rpc_pb2.RangeRequest.MOD,
        )
        response = await self._call(lambda to: to.kv.Range, request)
        newest = response.kvs[0].mod_revision if response.kvs else 0
        return Survey(revision=response.header.revision, newest=newest, count=response.count)

    async def newest_change(self, prefix: str) -> int:
        """The highest mod_revision below the prefix; 0 when there is no key."""
        return (await self.survey(prefix)).newest

    def watch(self, prefix: str, *, after: int, reading: Reading | None = None) -> AsyncGenerator[WatchBatch, None]:
        """Every change with a revision above `after`, each exactly once; see `hub.etcd.watch`."""
        return watch.watch(self._members, prefix, after=after, reading=reading)

    # --- writing --------------------------------------------------------------------------------------------------

    async def commit(self, txn: Txn) -> Commit:
        """Send the transaction. One that compares nothing is sent once. One that compares is sent again after an
        unclear failure (no answer, a broken connection): once it has taken effect its compares do not hold any more,
        unless somebody else has undone it.

        If the first sending had taken effect unseen, the next one does not succeed. Then etcd's history tells: when at
        the first change of a key that it compares and writes, every key it puts has its value and lease, and every key
        it deletes is absent, it was this transaction, whatever others have written since. For keys that it compares
        as absent no such revision is known, and what lies there now is taken: should others have changed it again in
        between, a success is told as a failure, which callers answer by looking anew. The other way round it would
        take somebody else to write the very same bytes.
        """
        request = txn_request(txn)
        attempts = ATTEMPTS if txn.compares else 1
        backoff = _new_backoff()
        for attempt in range(1, attempts + 1):
            try:
                response = await self._once(lambda to: to.kv.Txn, request)
            except grpc.aio.AioRpcError as error:
                if is_too_large(error):
                    raise _too_large(txn, error) from error
                if error.code() not in UNCLEAR or attempt == attempts:
                    raise translated(error) from error
                await asyncio.sleep(backoff.next_delay())
                continue
            commit = Commit(
                succeeded=response.succeeded,
                revision=response.header.revision,
                made_revision=has_effect(response),
                raft_term=response.header.raft_term,
            )
            if commit.succeeded or attempt == 1:
                return commit
            return await self._own_write(txn, commit)
        raise AssertionError("the last attempt returns or raises")

    async def _own_write(self, txn: Txn, refused: Commit) -> Commit:
        """The outcome of a transaction that was refused after a sending whose fate is unknown."""
        puts = [op for op in txn.then if isinstance(op, Put)]
        deletes = [op.key for op in txn.then if isinstance(op, Delete)]  # a prefix may have been filled anew: no proof
        if not (puts or deletes):
            return refused
        touched = [*(op.key for op in puts), *deletes]
        compared = {compare.key: compare.revision for compare in txn.compares if isinstance(compare, ModIs)}
        witness = next((key for key in touched if compared.get(key)), None)
        first = await self._first_change(witness, after=compared[witness]) if witness is not None else 0
        try:
            found, revision = await self.read(touched, revision=first)
        except Compacted:
            raise EtcdUnavailable("it cannot be told any more whether the change was made", object="etcd") from None
        if any(key in found for key in deletes):
            return refused
        for op in puts:
            there = found.get(op.key)
            if there is None or there.value != op.value or there.lease_id != op.lease_id:
                return refused
        made = max((found[op.key].mod_revision for op in puts), default=first)
        return Commit(succeeded=True, revision=made or revision, made_revision=made > 0)

    async def _first_change(self, key: str, *, after: int) -> int:
        """The revision of the first change of the key after `after`; 0 = it cannot be told. If a transaction that
        compares the key with `after` took effect, it was there: whatever came first made the compare fail for ever."""
        try:
            async with asyncio.timeout(self._timeout_s), aclosing(self.watch(key, after=after)) as batches:
                async for batch in batches:
                    for event in batch.events:
                        if event.key == key:
                            return event.mod_revision
        except (TimeoutError, Compacted):
            pass
        return 0

    async def delete_prefix(self, prefix: str) -> int:
        """Delete all keys with the prefix; how many there were. Sent once: a repetition could hit what is newer."""
        request = rpc_pb2.DeleteRangeRequest(key=key_bytes(prefix), range_end=prefix_end(prefix))
        response = await self._call(lambda to: to.kv.DeleteRange, request, attempts=1)
        return response.deleted

    # --- leases ---------------------------------------------------------------------------------------------------

    async def grant(self, ttl_s: int) -> int:
        """A new lease's id. One that was granted unseen expires by itself."""
        response = await self._call(lambda to: to.lease.LeaseGrant, rpc_pb2.LeaseGrantRequest(TTL=ttl_s))
        return response.ID

    async def keepalive(self, lease_id: int) -> int:
        """Renew once; remaining seconds as etcd says. See `renew`."""
        return (await self.renew(lease_id)).ttl_s

    async def renew(self, lease_id: int) -> KeptAlive:
        """Renew once. LeaseGone when there is no such lease.

        Not repeated on failure: the caller counts from when it asked, and asks again itself.
        """
        response = await self._renewed(lease_id)
        if response is None:
            raise EtcdUnavailable("the renewal's stream ended without an answer", object="etcd")
        if response.TTL <= 0:
            raise LeaseGone("no such lease", object=f"lease {lease_id:x}")
        return KeptAlive(ttl_s=response.TTL, raft_term=response.header.raft_term)

    async def _renewed(self, lease_id: int) -> rpc_pb2.LeaseKeepAliveResponse | None:
        """Etcd's answer to one renewal, on a stream of its own (the protocol has no single call for it)."""
        member = await self._members.pick()
        call = member.lease.LeaseKeepAlive(metadata=METADATA, timeout=KEEPALIVE_TIMEOUT_S)
        try:
            with self._members.observed(member):
                await call.write(rpc_pb2.LeaseKeepAliveRequest(ID=lease_id))
                response = await call.read()
        except grpc.aio.AioRpcError as error:
            raise translated(error) from error
        except asyncio.InvalidStateError:  # write() on a call that had ended already
            return None
        finally:
            call.cancel()
        return response if isinstance(response, rpc_pb2.LeaseKeepAliveResponse) else None

    async def time_to_live(self, lease_id: int) -> float:
        """Seconds that the lease lasts at least; 0 when it is gone, and more as long as etcd has it."""
        request = rpc_pb2.LeaseTimeToLiveRequest(ID=lease_id)
        response = await self._call(lambda to: to.lease.LeaseTimeToLive, request)
        # Etcd rounds down, and below 0 for a lease that is over but not yet revoked: only one it does not have lacks a
        # granted TTL.
        return max(float(response.TTL), LAST_SECOND_S) if response.grantedTTL else 0.0

    async def revoke(self, lease_id: int) -> None:
        """End the lease and everything that hangs on it; fine when it is gone already."""
        try:
            await self._call(lambda to: to.lease.LeaseRevoke, rpc_pb2.LeaseRevokeRequest(ID=lease_id))
        except LeaseGone:
            return

    # --- the ways to call -----------------------------------------------------------------------------------------

    async def _call(self, method: Method[Req, Res], request: Req, *, attempts: int = ATTEMPTS) -> Res:
        """More than one attempt is for what may be repeated without harm."""
        backoff = _new_backoff()
        for attempt in range(1, attempts + 1):
            try:
                return await self._once(method, request)
            except grpc.aio.AioRpcError as error:
                if error.code() not in UNCLEAR or attempt == attempts:
                    raise translated(error) from error
                await asyncio.sleep(backoff.next_delay())
        raise AssertionError("the last attempt returns or raises")

    async def _once(self, method: Method[Req, Res], request: Req) -> Res:
        member = await self._members.pick()
        with self._members.observed(member):
            return await method(member)(request, timeout=self._timeout_s, metadata=METADATA)


def _new_backoff() -> Backoff:
    return Backoff(base_s=0.1, cap_s=1.0, uniform=random.uniform)


def _too_large(txn: Txn, error: grpc.aio.AioRpcError) -> UserError:
    """What is too large about it, for whoever made the request that led to it."""
    puts = sorted((op for op in txn.then if isinstance(op, Put)), key=lambda op: len(op.value), reverse=True)
    size = sum(len(op.value) for op in puts)
    biggest = f"; the largest is {puts[0].key} with {len(puts[0].value)}" if puts else ""
    return UserError(
        f"the change is too large for etcd ({len(txn.then)} keys, {size} bytes{biggest}): {error.details()}",
        object="etcd",
        hint="Etcd takes at most 128 keys and 1.5 MiB at once: make several smaller changes.",
    )
