"""A node's state holds its members and what they need to know of their instances, and nothing else moves its mark."""

from __future__ import annotations

import hashlib

import pytest

from core.codec import from_json
from core.ids import InstanceRef
from core.records import MemberSecrets, NodeState, to_json
from core.status import MemberState, Role
from hub.judges.assemble import assemble, fingerprint, instance_view, places
from tests.support.contents import ORDERS, World, member_ref

BILLS = InstanceRef("demo", "bills")


@pytest.fixture
def world() -> World:
    """orders on n1, n2, n3; bills on n3 only; n4 empty."""
    world = World()
    for name in ("n1", "n2", "n3", "n4"):
        world.node(name)
    for number in (1, 2, 3):
        world.member(f"n{number}", f"m{number}")
    world.member("n3", "m1", BILLS)
    world.ha_record(term=4, leader="m1")
    world.ha_record(BILLS)
    world.lead("n1", "m1", 4)
    return world


def state_of(world: World, node: str) -> NodeState:
    return assemble(world, places(world.members), node, {})


def mark(world: World, node: str) -> int:
    return fingerprint(to_json(state_of(world, node)))


def marks(world: World) -> dict[str, int]:
    return {node: mark(world, node) for node in ("n1", "n2", "n3", "n4")}


def moved(world: World, before: dict[str, int]) -> set[str]:
    return {node for node, now in marks(world).items() if now != before[node]}


def test_a_node_gets_its_members_and_a_view_of_each_of_their_instances(world):
    state = state_of(world, "n3")
    assert [(m.instance, m.member) for m in state.members] == [("bills", "m1"), ("orders", "m3")]
    assert [view.instance for view in state.views] == ["bills", "orders"]
    assert state_of(world, "n4") == NodeState()


def test_a_view_shows_leader_term_and_every_member_with_its_nodes_address(world):
    world.observe("n2", "m2", timeline=3, streaming_from="m1", engine_tls=True)
    view = instance_view(world, places(world.members), ORDERS)
    assert view.leader.member == "m1"
    assert view.ha.term == 4
    assert [(p.member, p.node, p.address, p.peer_port, p.engine_port) for p in view.members] == [
        ("m1", "n1", "10.0.0.1", 7, 15000),
        ("m2", "n2", "10.0.0.2", 7, 15000),
        ("m3", "n3", "10.0.0.3", 7, 15000),
    ]
    second = view.members[1]
    assert (second.state, second.role, second.timeline) == (MemberState.RUNNING, Role.REPLICA, 3)
    assert (second.streaming_from, second.engine_tls, second.alive) == ("m1", True, True)


def test_a_view_tells_what_is_particular_to_each_member(world):
    tags = {"no_failover": True, "priority": 7, "no_load_balance": True, "clone_source": True, "upstream": "m3"}
    world.member("n2", "m2", **tags)
    view = instance_view(world, places(world.members), ORDERS)
    told = {name: getattr(view.members[1], name) for name in tags}
    assert (view.members[1].member, told) == ("m2", tags)
    assert not any(getattr(view.members[0], name) for name in tags)


def test_a_view_tells_who_must_not_lead_as_things_are(world):
    world.observe("n2", "m2", unfit=True)
    view = instance_view(world, places(world.members), ORDERS)
    assert [peer.unfit for peer in view.members] == [False, True, False]


def test_only_ballots_of_the_running_election_are_shown_in_the_order_of_members(world):
    world.cast("n3", "m3", 5)
    world.cast("n2", "m2", 5)
    world.cast("n1", "m1", 4)
    view = instance_view(world, places(world.members), ORDERS)
    assert [(ballot.member, ballot.term) for ballot in view.ballots] == [("m2", 5), ("m3", 5)]


def test_a_member_on_a_silent_or_removed_node_is_not_alive(world):
    world.mark_silent("n2")
    del world.nodes["n3"]
    view = instance_view(world, places(world.members), ORDERS)
    assert [peer.alive for peer in view.members] == [True, False, False]
    assert view.members[2].address == ""


def test_an_instance_without_ha_record_has_no_view_yet(world):
    del world.ha[BILLS]
    state = state_of(world, "n3")
    assert [view.instance for view in state.views] == ["orders"]
    assert len(state.members) == 2


def test_secrets_are_only_the_nodes_own(world):
    secrets = {"demo.orders.m3": MemberSecrets(replication_password="x"), "demo.orders.m1": MemberSecrets()}
    state = assemble(world, places(world.members), "n3", secrets)
    assert state.secrets.keys() == {"demo.orders.m3"}


@pytest.mark.parametrize(
    ("change", "woken"),
    [
        (lambda w: w.lead("n2", "m2", 5), {"n1", "n2", "n3"}),
        (lambda w: w.ha_record(BILLS, term=1), {"n3"}),
        (lambda w: w.cast("n2", "m2", 5), {"n1", "n2", "n3"}),
        (lambda w: w.observe("n2", "m2"), {"n1", "n2", "n3"}),
        (lambda w: w.member("n3", "m1", BILLS, generation=2), {"n3"}),
        (lambda w: w.mark_silent("n2"), {"n1", "n2", "n3"}),
        (lambda w: w.mark_silent("n4"), set()),
        (lambda w: w.node("n2", address="10.9.9.9"), {"n1", "n2", "n3"}),
        (lambda w: w.node("n2", labels={"rack": "7"}, cordoned=True), set()),
        (lambda w: w.member("n4", "m4"), {"n1", "n2", "n3", "n4"}),
        (lambda w: w.remove_member("n3", "m3"), {"n1", "n2", "n3"}),
    ],
    ids=["leader", "ha", "ballot", "observed", "desired", "silent", "elsewhere", "address", "labels", "new", "gone"],
)
def test_a_change_moves_the_mark_of_exactly_the_concerned_nodes(world, change, woken):
    before = marks(world)
    change(world)
    assert moved(world, before) == woken


def test_the_mark_is_the_hash_of_the_document_and_never_zero(world):
    document = to_json(state_of(world, "n1"))
    assert mark(world, "n1") == int.from_bytes(hashlib.sha256(document).digest()[:8], "big")
    assert 0 < mark(world, "n4") < 2**64


def test_two_hubs_that_learned_the_same_in_another_order_assemble_the_same_bytes(world):
    other = World(**{name: getattr(world, name) for name in ("store_id", "revision", "ha", "leaders", "nodes")})
    other.members = dict(reversed(world.members.items()))
    for node in ("n1", "n2", "n3", "n4"):
        assert to_json(state_of(world, node)) == to_json(state_of(other, node))


def test_the_agent_reads_what_the_hub_writes(world):
    world.observe("n1", "m1", role=Role.PRIMARY)
    state = assemble(world, places(world.members), "n1", {"demo.orders.m1": MemberSecrets(verifiers={"app": "S"})})
    assert from_json(NodeState, to_json(state)) == state


def test_places_knows_neighbours_both_ways(world):
    where = places(world.members)
    assert where.on_node["n3"] == (member_ref(BILLS, "m1"), member_ref(ORDERS, "m3"))
    assert where.neighbours("n3") == {"n1", "n2", "n3"}
    assert where.neighbours("n4") == {"n4"}
    assert where.nodes_of(BILLS) == {"n3"}
    assert where.nodes_of(InstanceRef("demo", "none")) == set()
