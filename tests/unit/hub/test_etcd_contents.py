"""The mirror's dictionaries under single events: what is kept, what is dropped, what is told."""

from __future__ import annotations

import logging

import pytest

from core.ids import InstanceRef, MemberName, MemberRef
from core.records import (
    Ballot,
    Event,
    HaRecord,
    InstanceRecord,
    LeaderRecord,
    MemberDesired,
    NodeRecord,
    ObservedMember,
    to_json,
)
from hub.etcd import keys
from hub.etcd.contents import EVENTS_KEPT_MAX, Contents
from hub.etcd.messages import KeyValue
from hub.etcd.watch import WatchEvent
from tests.support.logs import logged_by

ORDERS = InstanceRef("demo", "orders")
M1 = MemberRef(ORDERS, MemberName("m1"))
NOT_JSON = b"{"


def put(key: str, record: object, revision: int, *, created: int = 0) -> WatchEvent:
    value = record if isinstance(record, bytes) else to_json(record)
    return WatchEvent(key=key, value=value, mod_revision=revision, create_revision=created or revision, lease_id=0)


def deleted(key: str, revision: int) -> WatchEvent:
    return WatchEvent(key=key, value=None, mod_revision=revision, create_revision=0, lease_id=0)


def listed(*events: WatchEvent) -> list[KeyValue]:
    return [
        KeyValue(
            key=event.key,
            value=event.value or b"",
            mod_revision=event.mod_revision,
            create_revision=event.create_revision,
            lease_id=event.lease_id,
        )
        for event in events
    ]


def node(name: str, **facts) -> NodeRecord:
    return NodeRecord(name=name, **facts)


def ballot(term: int, member: str) -> Ballot:
    return Ballot(member=member, node="n1", term=term, timeline=1, lsn=5)


@pytest.fixture
def contents() -> Contents:
    return Contents()


@pytest.fixture
def logged():
    """(event, fields) of each error so far."""
    with logged_by("hub.mirror", level=logging.ERROR) as logged:
        yield logged


def test_a_change_is_typed_versioned_and_told_by_what_it_touches(contents: Contents) -> None:
    desired = MemberDesired(project="demo", instance="orders", member="m1", node="n1")
    changes = contents.apply_all(
        [
            put(keys.node("n1"), node("n1", zone="a"), 5, created=3),
            put(keys.member("n2", M1), desired, 6),
            put(keys.silent("n3"), b"", 7),
        ]
    )
    held = contents.nodes["n1"]
    assert (held.record.zone, held.mod_revision, held.create_revision) == ("a", 5, 3)
    assert contents.members["n2", M1].record == desired
    assert contents.silent == {"n3"}
    assert changes.nodes == {"n1", "n2", "n3"}
    assert changes.instances == {ORDERS}
    assert not changes.everything


def test_every_place_of_the_layout_is_filled_and_emptied(contents: Contents) -> None:
    observed = ObservedMember(project="demo", instance="orders", member="m1", node="n1")
    there = [
        put(keys.STORE_ID, b"life-1", 1),
        put(keys.CA, b"sealed", 1),
        put(keys.node("n1"), node("n1"), 2),
        put(keys.project("demo"), b'{"name":"demo"}', 3),
        put(keys.instance(ORDERS), InstanceRecord(project="demo", name="orders", spec={}), 4),
        put(keys.status(ORDERS), b'{"project":"demo","name":"orders"}', 5),
        put(keys.member("n1", M1), MemberDesired(project="demo", instance="orders", member="m1", node="n1"), 6),
        put(keys.observed("n1", M1), observed, 7),
        put(keys.leader(ORDERS), LeaderRecord(member="m1", node="n1", term=1), 8),
        put(keys.ha(ORDERS), HaRecord(term=1), 9),
        put(keys.ballot(ORDERS, 2, "m1"), ballot(2, "m1"), 10),
        put(keys.port(15000), b"demo/orders", 11),
        put(keys.token("t1"), b'{"id":"t1","secret_sha256":"x"}', 12),
        put(keys.OPERATORS + "o1", b'{"id":"o1","name":"ann"}', 13),
        put(keys.hub("h1"), b'{"hub":"h1"}', 14),
        put(keys.secret(ORDERS, "app"), b"sealed", 15),
        put(keys.claim("controllers"), b"{}", 16),
        put(keys.silent("n1"), b"", 17),
    ]
    places = [name for name in vars(contents) if not name.startswith("_") and name != "events"]
    contents.apply_all(there)
    assert [name for name in places if not getattr(contents, name)] == []
    contents.apply_all([deleted(event.key, 20) for event in there])
    assert [name for name in places if getattr(contents, name)] == []
    assert not contents._revisions


def test_a_value_that_cannot_be_read_leaves_the_last_good_one_and_is_logged_once(contents: Contents, logged) -> None:
    contents.apply_all([put(keys.node("n1"), node("n1", zone="good"), 5)])
    changes = contents.apply_all([put(keys.node("n1"), NOT_JSON, 6)])
    assert contents.nodes["n1"].record.zone == "good"
    assert contents.nodes["n1"].mod_revision == 5, "a transaction that compares it is refused: it saw something else"
    assert not changes.nodes
    [(event, fields)] = logged
    assert (event, fields["key"], fields["revision"]) == ("record_undecodable", "/moorage/nodes/n1", 6)


def test_it_is_not_logged_again_when_everything_is_listed_anew_and_the_good_one_is_kept_there_too(
    contents: Contents, logged
) -> None:
    good, bad = put(keys.node("n1"), node("n1", zone="good"), 5), put(keys.node("n1"), NOT_JSON, 6)
    contents.apply_all([good, bad])
    contents.replace_all(listed(bad), 9)
    assert contents.nodes["n1"].record.zone == "good"
    assert len(logged) == 1
    contents.apply_all([put(keys.node("n1"), NOT_JSON, 10)])
    assert [fields["revision"] for _, fields in logged] == [6, 10]


def test_a_value_that_was_never_good_is_not_served(contents: Contents) -> None:
    contents.apply_all([put(keys.node("n1"), b'{"name": 7}', 5), put(keys.port(15000), b"\xff", 6)])
    assert contents.nodes == {}
    assert contents.ports == {}


def test_an_unreadable_value_is_gone_when_its_key_is_and_good_when_it_is_mended(contents: Contents) -> None:
    contents.apply_all([put(keys.node("n1"), node("n1"), 5), put(keys.node("n1"), NOT_JSON, 6)])
    contents.apply_all([put(keys.node("n1"), node("n1", zone="b"), 7)])
    assert contents.nodes["n1"].record.zone == "b"
    contents.apply_all([put(keys.node("n1"), NOT_JSON, 8), deleted(keys.node("n1"), 9)])
    assert contents.nodes == {}


@pytest.mark.parametrize(
    "key",
    [
        "/moorage/novelties/x",
        "/moorage/nodes/n1/more",
        "/moorage/ports/ssh",
        "/moorage/instances/Demo/orders",
        "/moorage/members/n1/orders",
        "/moorage/leader/demo.orders/x",
        "/moorage/ballots/demo.orders/first/m1",
        "/moorage/",
        "/moorage/nodes/\udcff\udcfe/x",
    ],
)
def test_a_key_that_nobody_knows_is_logged_and_its_deletion_is_not(contents: Contents, logged, key: str) -> None:
    changes = contents.apply_all([put(key, b"?", 5)])
    assert [event for event, _ in logged] == ["record_undecodable"]
    contents.apply_all([deleted(key, 6)])
    assert len(logged) == 1
    assert not changes.nodes
    assert not changes.instances


def test_only_ballots_of_the_election_that_is_due_are_shown(contents: Contents) -> None:
    contents.apply_all([put(keys.ballot(ORDERS, term, f"m{term}"), ballot(term, f"m{term}"), term) for term in (1, 2)])
    assert set(contents.ballots[ORDERS]) == {"m1"}
    contents.apply_all([put(keys.ha(ORDERS), HaRecord(term=1), 5)])
    assert set(contents.ballots[ORDERS]) == {"m2"}
    contents.apply_all([deleted(keys.ballot(ORDERS, 2, "m2"), 6)])
    assert ORDERS not in contents.ballots


def test_a_new_list_deletes_what_it_lacks_changes_what_differs_and_says_everything(contents: Contents) -> None:
    contents.apply_all([put(keys.node("n1"), node("n1"), 1), put(keys.node("n2"), node("n2"), 2)])
    nodes = contents.nodes
    changes = contents.replace_all(
        listed(put(keys.node("n2"), node("n2", zone="b"), 7), put(keys.node("n3"), node("n3"), 8)), 9
    )
    assert {name: one.mod_revision for name, one in contents.nodes.items()} == {"n2": 7, "n3": 8}
    assert contents.nodes is nodes, "whoever holds the dictionary goes on seeing the truth"
    assert changes.everything
    assert changes.nodes == {"n1", "n2", "n3"}


def test_events_are_kept_in_order_bounded_and_told_once(contents: Contents) -> None:
    told = [Event(at=float(number), event="node_joined", object="node/n1") for number in range(EVENTS_KEPT_MAX + 5)]
    batch = [put(keys.event(number, "ab"), event, number + 1) for number, event in enumerate(told)]
    assert contents.apply_all(batch).events == tuple(told)
    assert list(contents.events) == told[5:]
    changes = contents.replace_all(listed(*batch[-3:]), EVENTS_KEPT_MAX + 9)
    assert list(contents.events) == told[-3:]
    assert changes.events == ()
