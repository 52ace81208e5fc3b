"""From what is known of an instance to the route of its clients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agent.routing import LeaderTrust, is_late, route_of
from core.records import (
    REMOTE,
    HaRecord,
    InstanceView,
    LeaderRecord,
    MemberDesired,
    PeerMember,
    RemotePrimary,
    Replication,
    SwitchoverRequest,
)
from core.status import MemberState, Role

DESIRED = MemberDesired(project="demo", instance="orders", member="m1", node="n1", rw_port=6000, ro_port=6001)


def peer(name: str, role: Role = Role.REPLICA, **fields: Any) -> PeerMember:
    base = PeerMember(
        member=name,
        node=f"n{name[1:]}",
        address=f"127.0.0.1{name[1:]}",
        engine_port=5000,
        peer_port=7402,
        alive=True,
        state=MemberState.RUNNING,
        role=role,
        streaming_from="" if role is Role.PRIMARY else "m2",
    )
    return replace(base, **fields)


def view(**fields: Any) -> InstanceView:
    base = InstanceView(
        project="demo",
        instance="orders",
        leader=LeaderRecord(member="m2", node="n2", term=4),
        ha=HaRecord(term=4, leader="m2"),
        ballots=(),
        members=(peer("m1"), peer("m2", Role.PRIMARY), peer("m3")),
    )
    return replace(base, **fields)


TRUST = LeaderTrust(term=4, member="m2", until=50.0)


def test_writes_go_to_the_leader_that_is_vouched_for() -> None:
    route = route_of(DESIRED, view(), writable_here=False, trust=TRUST)
    assert route.primary is not None
    assert (route.primary.member, route.term, route.expires_at_s) == ("m2", 4, 50.0)
    assert [endpoint.member for endpoint in route.replicas] == ["m1", "m3"]


def test_no_primary_while_another_member_is_vouched_for_than_leads() -> None:
    other = LeaderTrust(term=3, member="m3", until=50.0)
    assert route_of(DESIRED, view(), writable_here=False, trust=other).primary is None


def test_a_leader_that_takes_the_leadership_again_keeps_its_route() -> None:
    again = view(leader=LeaderRecord(member="m2", node="n2", term=5), ha=HaRecord(term=5, leader="m2"))
    assert route_of(DESIRED, again, writable_here=False, trust=TRUST).primary is not None


def test_a_view_older_than_the_trust_gives_no_primary() -> None:
    newer = LeaderTrust(term=5, member="m2", until=50.0)
    assert route_of(DESIRED, view(), writable_here=False, trust=newer).primary is None


def test_no_primary_before_the_new_leader_says_it_is_one() -> None:
    promoting = view(members=(peer("m1"), peer("m2", Role.REPLICA, state=MemberState.STARTING), peer("m3")))
    assert route_of(DESIRED, promoting, writable_here=False, trust=TRUST).primary is None


def test_own_primary_only_while_it_may_write() -> None:
    mine = view(
        leader=LeaderRecord(member="m1", node="n1", term=4),
        ha=HaRecord(term=4, leader="m1"),
        members=(peer("m1", Role.PRIMARY), peer("m2", streaming_from="m1")),
    )
    assert route_of(DESIRED, mine, writable_here=False, trust=TRUST).primary is None
    here = route_of(DESIRED, mine, writable_here=True, trust=TRUST).primary
    assert here is not None
    assert here.member == "m1"


def test_a_leader_whose_key_lapsed_keeps_its_route_while_its_members_vouch_for_it() -> None:
    lapsed = view(leader=None)
    kept = route_of(DESIRED, lapsed, writable_here=False, trust=TRUST).primary
    assert kept is not None
    assert kept.member == "m2"


def test_a_leader_that_let_go_loses_its_route_at_once() -> None:
    released = view(leader=None, ha=HaRecord(term=4, leader="m2", released_term=4))
    assert route_of(DESIRED, released, writable_here=False, trust=TRUST).primary is None


def test_silent_lagging_or_strayed_replicas_serve_no_reads() -> None:
    members = (
        peer("m1", alive=False),
        peer("m2", Role.PRIMARY),
        peer("m3", state=MemberState.LAGGING),
        peer("m4", streaming_from="m9"),
        peer("m5"),
    )
    route = route_of(DESIRED, view(members=members), writable_here=False, trust=TRUST)
    assert [endpoint.member for endpoint in route.replicas] == ["m5"]


def test_a_replica_to_be_spared_serves_reads_only_while_no_other_does() -> None:
    spared = peer("m1", no_load_balance=True)
    members = (spared, peer("m2", Role.PRIMARY), peer("m3"))
    route = route_of(DESIRED, view(members=members), writable_here=False, trust=TRUST)
    assert [endpoint.member for endpoint in route.replicas] == ["m3"]
    alone = (spared, peer("m2", Role.PRIMARY), peer("m3", alive=False))
    route = route_of(DESIRED, view(members=alone), writable_here=False, trust=TRUST)
    assert [endpoint.member for endpoint in route.replicas] == ["m1"]


def test_a_switchover_that_is_only_asked_for_pauses_nothing() -> None:
    asked = view(ha=HaRecord(term=4, leader="m2", switchover=SwitchoverRequest(id="s1")))
    assert not route_of(DESIRED, asked, writable_here=False, trust=TRUST).paused
    assert route_of(DESIRED, asked, writable_here=False, trust=TRUST, paused=True).paused


def test_without_a_view_there_is_a_route_without_servers() -> None:
    route = route_of(DESIRED, None, writable_here=False, trust=LeaderTrust())
    assert (route.primary, route.replicas) == (None, ())


@pytest.mark.parametrize(
    ("mode", "strict", "expected"),
    [("async", True, False), ("sync", True, True), ("quorum", True, True), ("sync", False, False)],
)
def test_a_route_is_strict_where_commits_must_not_be_acknowledged_alone(mode, strict, expected):
    desired = replace(DESIRED, replication=Replication(mode=mode, strict=strict))
    assert route_of(desired, None, writable_here=False, trust=TRUST).strict is expected


def standby_view(*members: PeerMember) -> InstanceView:
    return view(ha=HaRecord(term=4, leader="m2", standby=True), members=members)


def test_all_members_of_a_standby_instance_serve_reads_and_none_takes_writes() -> None:
    remote = RemotePrimary(hosts=("far:5432",), user="follower")
    leader = peer("m2", streaming_from=REMOTE)
    follows = replace(DESIRED, standby=remote)
    route = route_of(follows, standby_view(peer("m1"), leader), writable_here=False, trust=TRUST)
    assert (route.primary, route.follows) == (None, "far:5432")
    assert [endpoint.member for endpoint in route.replicas] == ["m1", "m2"]
    cut_off = replace(leader, state=MemberState.LAGGING, streaming_from="")
    route = route_of(follows, standby_view(peer("m1"), cut_off), writable_here=False, trust=TRUST)
    assert [endpoint.member for endpoint in route.replicas] == ["m1", "m2"], "the remote primary is away, not the data"
    lagging = replace(peer("m1"), state=MemberState.LAGGING)
    route = route_of(follows, standby_view(lagging, leader), writable_here=False, trust=TRUST)
    assert [endpoint.member for endpoint in route.replicas] == ["m2"]
    assert route_of(DESIRED, view(), writable_here=False, trust=TRUST).follows == ""


def test_a_late_replica_takes_no_reads_and_the_primary_is_nobodys_replica() -> None:
    late = view(members=(peer("m1"), peer("m2", Role.PRIMARY), peer("m3", late=True)))
    assert [one.member for one in route_of(DESIRED, late, writable_here=False, trust=TRUST).replicas] == ["m1"]
    spared = view(members=(peer("m1", no_load_balance=True), peer("m2", Role.PRIMARY), peer("m3", late=True)))
    assert [one.member for one in route_of(DESIRED, spared, writable_here=False, trust=TRUST).replicas] == ["m1"]
    alone = view(members=(peer("m1", late=True), peer("m2", Role.PRIMARY)))
    assert route_of(DESIRED, alone, writable_here=False, trust=TRUST).replicas == ()


def test_a_replica_that_was_late_comes_well_within_the_bound_before_it_takes_reads_again() -> None:
    late, told = False, []
    for lag_bytes in (0, 100, 101, 99, 51, 50, 100, 101):
        late = is_late(lag_bytes, 100, was=late)
        told.append(late)
    assert told == [False, False, True, True, True, False, False, True]
    assert not is_late(1 << 40, None, was=True)
    assert is_late(1, 0, was=False)
    assert not is_late(0, 0, was=True)
