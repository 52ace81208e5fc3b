"""Etcd's protobuf messages from our values and back. Nothing here calls anything."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hub.etcd.keys import prefix_end
from hub.etcd.txns import Compare, Delete, DeletePrefix, ModIs, Op, Put, Txn
from protos.etcd import kv_pb2, rpc_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyValue:
    """One key as read."""

    key: str
    value: bytes
    mod_revision: int
    create_revision: int
    lease_id: int


def key_bytes(key: str) -> bytes:
    """The key as etcd has it; undoes `key_text`."""
    return key.encode(errors="surrogateescape")


def key_text(key: bytes) -> str:
    """The key as text. Ours are ASCII; a stranger's key of any bytes must not end the hub."""
    return key.decode(errors="surrogateescape")


def key_value(kv: kv_pb2.KeyValue) -> KeyValue:
    return KeyValue(
        key=key_text(kv.key),
        value=kv.value,
        mod_revision=kv.mod_revision,
        create_revision=kv.create_revision,
        lease_id=kv.lease,
    )


def read_request(keys: Iterable[str], revision: int) -> rpc_pb2.TxnRequest:
    """A transaction that reads the keys as of one revision, 0 = now."""
    ranges = [rpc_pb2.RangeRequest(key=key_bytes(key), revision=revision) for key in keys]
    return rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_range=request) for request in ranges])


def txn_request(txn: Txn) -> rpc_pb2.TxnRequest:
    return rpc_pb2.TxnRequest(
        compare=[_compare(compare) for compare in txn.compares], success=[_op(op) for op in txn.then]
    )


def has_effect(response: rpc_pb2.TxnResponse) -> bool:
    """Whether the transaction changed anything, that is made a revision. Deleting what is not there makes none."""
    return response.succeeded and any(
        one.HasField("response_put") or one.response_delete_range.deleted > 0 for one in response.responses
    )


def _compare(compare: Compare) -> rpc_pb2.Compare:
    if isinstance(compare, ModIs):
        return rpc_pb2.Compare(
            key=key_bytes(compare.key),
            target=rpc_pb2.Compare.MOD,
            result=rpc_pb2.Compare.EQUAL,
            mod_revision=compare.revision,
        )
    return rpc_pb2.Compare(
        key=key_bytes(compare.key),
        target=rpc_pb2.Compare.CREATE,
        result=rpc_pb2.Compare.EQUAL,
        create_revision=compare.revision,
    )


def _op(op: Op) -> rpc_pb2.RequestOp:
    match op:
        case Put(key=key, value=value, lease_id=lease_id):
            return rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key_bytes(key), value=value, lease=lease_id))
        case Delete(key=key):
            return rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=key_bytes(key)))
        case DeletePrefix(prefix=prefix):
            request = rpc_pb2.DeleteRangeRequest(key=key_bytes(prefix), range_end=prefix_end(prefix))
            return rpc_pb2.RequestOp(request_delete_range=request)
