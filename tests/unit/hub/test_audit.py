"""What an entry of the audit trail says of a transaction."""

from __future__ import annotations

import json

import pytest

from hub.audit import VALUE_CHARS_MAX, changes_of, differences
from hub.etcd import keys
from hub.etcd.client import KeyValue
from hub.etcd.txns import Delete, DeletePrefix, Op, Put, Txn

NODE = keys.node("n1")


def known(key: str, value: object) -> dict[str, KeyValue]:
    return {key: KeyValue(key=key, value=json.dumps(value).encode(), create_revision=1, mod_revision=2, lease_id=0)}


@pytest.mark.parametrize(
    ("op", "told"),
    [
        (Put(NODE, b'{"a": 1, "b": 3}'), [{"key": NODE, "field": "b", "before": 2, "after": 3}]),
        (Put(NODE, b'{"a": 1, "b": 2}'), []),
        (Delete(NODE), [{"key": NODE, "field": "", "before": {"a": 1, "b": 2}, "after": None}]),
        (DeletePrefix("/moorage/observed/n1/"), [{"key": "/moorage/observed/n1/", "deleted": "all below"}]),
        (Put(keys.SECRETS + "demo.o/app", b"sealed"), [{"key": "/moorage/secrets/demo.o/app", "written": True}]),
        (Delete(keys.CA), [{"key": keys.CA, "deleted": True}]),
    ],
)  # fmt: skip
def test_changes_are_told_field_by_field_and_secrets_never(op: Op, told: list[dict[str, object]]) -> None:
    assert list(changes_of(known(NODE, {"a": 1, "b": 2}), Txn((), (op,)))) == told


def test_differences_go_into_mappings_and_leave_hashes_out() -> None:
    old = {"same": 1, "inner": {"x": [1], "y": 2}, "secret_sha256": "a", "gone": 1}
    new = {
        "same": 1,
        "inner": {"x": [1, 2], "y": 2},
        "secret_sha256": "b",
        "fresh": None,
        "new": {"secret_sha256": "c"},
    }
    assert list(differences(old, new)) == [
        ("gone", 1, None),
        ("inner.x", [1], [1, 2]),
        ("new", None, {}),
    ]
    assert list(differences(None, {"secret_sha256": "x", "name": "n"})) == [("", None, {"name": "n"})]


def test_long_values_and_many_changes_are_bounded() -> None:
    long = "x" * (VALUE_CHARS_MAX + 1)
    (change,) = changes_of({}, Txn((), (Put(NODE, json.dumps({"a": long}).encode()),)))
    assert str(change["after"]).startswith("sha256:")
    many = {f"f{number}": number for number in range(300)}
    told = list(changes_of(known(NODE, {}), Txn((), (Put(NODE, json.dumps(many).encode()),))))
    assert len(told) == 201
    assert told[-1] == {"left_out": 100}
