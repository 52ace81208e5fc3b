"""Transactions, keys, addresses and failures on their way to etcd and back."""

from __future__ import annotations

from pathlib import Path

import grpc
import grpc.aio
import pytest

from core.errors import DeniedError, UserError
from hub.etcd import txns
from hub.etcd.client import EtcdClient, EtcdTls
from hub.etcd.errors import Compacted, EtcdUnavailable, LeaseGone, is_too_large, translated
from hub.etcd.members import target_of
from hub.etcd.messages import has_effect, key_bytes, key_text, txn_request
from protos.etcd import rpc_pb2

CODE = grpc.StatusCode


def failure(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


def test_a_transaction_becomes_compares_and_operations_in_its_order() -> None:
    txn = txns.all_of(
        [txns.ModIs("/moorage/a", 0), txns.CreatedIs("/moorage/b", 7)],
        [txns.Put("/moorage/a", b"v", 5), txns.Delete("/moorage/b"), txns.DeletePrefix("/moorage/c/")],
    )
    request = txn_request(txn)
    absent, same_life = request.compare
    assert (absent.key, absent.target, absent.mod_revision) == (b"/moorage/a", rpc_pb2.Compare.MOD, 0)
    assert (same_life.target, same_life.create_revision) == (rpc_pb2.Compare.CREATE, 7)
    assert {compare.result for compare in request.compare} == {rpc_pb2.Compare.EQUAL}
    put, delete, delete_prefix = request.success
    assert (put.request_put.value, put.request_put.lease) == (b"v", 5)
    assert (delete.request_delete_range.key, delete.request_delete_range.range_end) == (b"/moorage/b", b"")
    assert delete_prefix.request_delete_range.range_end == b"/moorage/c0"
    assert not request.failure


@pytest.mark.parametrize(
    ("answers", "effect"),
    [
        ([rpc_pb2.ResponseOp(response_put=rpc_pb2.PutResponse())], True),
        ([rpc_pb2.ResponseOp(response_delete_range=rpc_pb2.DeleteRangeResponse(deleted=1))], True),
        ([rpc_pb2.ResponseOp(response_delete_range=rpc_pb2.DeleteRangeResponse(deleted=0))], False),
        ([rpc_pb2.ResponseOp(response_range=rpc_pb2.RangeResponse())], False),
        ([], False),
    ],
)
def test_only_a_put_or_a_deletion_of_something_makes_a_revision(answers, effect) -> None:
    assert has_effect(rpc_pb2.TxnResponse(succeeded=True, responses=answers)) is effect


def test_a_key_that_is_not_utf8_keeps_its_identity() -> None:
    assert key_bytes(key_text(b"/moorage/\xff\x00")) == b"/moorage/\xff\x00"


@pytest.mark.parametrize(
    ("endpoint", "target"),
    [
        ("10.0.0.1:2379", "ipv4:10.0.0.1:2379"),
        ("[fd00::1]:2379", "ipv6:[fd00::1]:2379"),
        ("etcd-1.example:2379", "dns:///etcd-1.example:2379"),
    ],
)
def test_addresses_are_dialled_as_they_are_and_names_are_left_to_dns(endpoint, target) -> None:
    assert target_of(endpoint) == target


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        (CODE.UNAVAILABLE, "etcdserver: no leader", EtcdUnavailable),
        (CODE.DEADLINE_EXCEEDED, "", EtcdUnavailable),
        (CODE.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", EtcdUnavailable),
        (CODE.RESOURCE_EXHAUSTED, "etcdserver: too many requests", EtcdUnavailable),
        (CODE.RESOURCE_EXHAUSTED, "grpc: received message larger than max (3 vs. 2)", UserError),
        (CODE.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request", UserError),
        (CODE.NOT_FOUND, "etcdserver: requested lease not found", LeaseGone),
        (CODE.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted", Compacted),
        (CODE.PERMISSION_DENIED, "etcdserver: permission denied", DeniedError),
        (CODE.UNAUTHENTICATED, "etcdserver: invalid auth token", DeniedError),
    ],
)
def test_each_failure_of_etcd_has_its_error(code, details, kind) -> None:
    error = translated(failure(code, details))
    assert type(error) is kind
    assert not details or details in str(error) or kind in (LeaseGone, Compacted)


def test_a_full_etcd_says_how_to_free_it() -> None:
    error = translated(failure(CODE.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded"))
    assert "defragment" in error.hint


def test_too_large_is_told_from_other_refusals() -> None:
    assert is_too_large(failure(CODE.INVALID_ARGUMENT, "etcdserver: request is too large"))
    assert is_too_large(failure(CODE.INVALID_ARGUMENT, "etcdserver: too many operations in txn request"))
    assert not is_too_large(failure(CODE.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request"))


def test_a_missing_certificate_file_is_named(tmp_path: Path) -> None:
    tls = EtcdTls(ca=tmp_path / "ca.crt", cert=tmp_path / "hub.crt", key=tmp_path / "hub.key")
    with pytest.raises(UserError, match=r"ca\.crt: cannot be read: No such file") as refused:
        EtcdClient(["127.0.0.1:2379"], tls=tls)
    assert refused.value.object == str(tls.ca)
