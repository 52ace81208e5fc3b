"""Who goes where, and who may stay."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.routes import Endpoint, Route
from proxy.routing import Forward, Hold, Refuse, admit, allowed, still_valid

M1, M2, M3 = (Endpoint(member=f"m{n}", host=f"10.0.0.{n}", port=5432) for n in (1, 2, 3))
NOW = 100.0
ROUTE = Route(
    instance="demo/orders", rw_port=15000, ro_port=15001, term=3, primary=M1, expires_at_s=105.0, replicas=(M2, M3)
)
LONE = replace(ROUTE, replicas=())
LEADERLESS = replace(ROUTE, primary=None)
EXPIRED = replace(ROUTE, expires_at_s=NOW)
PAUSED = replace(ROUTE, paused=True)


def verdict(route, *, read_only=False, client="10.1.2.3", sessions=None, avoid=(), turn=0):
    return admit(route, read_only=read_only, client=client, sessions=sessions or {}, now=NOW, avoid=avoid, turn=turn)


@pytest.mark.parametrize(
    ("route", "expected"),
    [
        (ROUTE, Forward(M1, fenced=True)),
        (LONE, Forward(M1, fenced=True)),
        (replace(ROUTE, expires_at_s=NOW + 0.001), Forward(M1, fenced=True)),
        (LEADERLESS, Hold("there is no primary")),
        (EXPIRED, Hold("nobody vouches for m1 as primary any more")),
        (PAUSED, Hold("a switchover is under way")),
    ],
)
def test_writers_go_to_a_primary_that_is_vouched_for_or_wait(route, expected):
    assert verdict(route) == expected


@pytest.mark.parametrize(
    ("route", "sessions", "avoid", "expected"),
    [
        (ROUTE, {}, (), Forward(M2, fenced=False)),
        (ROUTE, {"m2": 1}, (), Forward(M3, fenced=False)),
        (ROUTE, {"m2": 1, "m3": 1}, (), Forward(M2, fenced=False)),
        (ROUTE, {"m3": 7}, {"m2"}, Forward(M3, fenced=False)),
        (ROUTE, {}, {"m2", "m3"}, Forward(M1, fenced=True)),
        (LONE, {}, (), Forward(M1, fenced=True)),
        (LEADERLESS, {}, (), Forward(M2, fenced=False)),
        (EXPIRED, {}, (), Forward(M2, fenced=False)),
        (PAUSED, {}, (), Forward(M2, fenced=False)),
        (replace(LEADERLESS, replicas=()), {}, (), Hold("there is no primary")),
        (LEADERLESS, {}, {"m2", "m3"}, Hold("there is no primary")),
        (replace(EXPIRED, replicas=()), {}, (), Hold("nobody vouches for m1 as primary any more")),
        (replace(PAUSED, replicas=()), {}, (), Hold("a switchover is under way")),
    ],
)
def test_readers_go_to_the_least_loaded_replica_and_fall_back_to_the_primary(route, sessions, avoid, expected):
    assert verdict(route, read_only=True, sessions=sessions, avoid=avoid) == expected


@pytest.mark.parametrize(
    ("turn", "sessions", "expected"), [(0, {}, M2), (1, {}, M3), (2, {}, M2), (1, {"m3": 1}, M2), (0, {"m2": 1}, M3)]
)
def test_equal_replicas_are_taken_in_turn(turn, sessions, expected):
    assert verdict(ROUTE, read_only=True, sessions=sessions, turn=turn) == Forward(expected, fenced=False)


@pytest.mark.parametrize(
    ("sessions", "expected"),
    [({}, {"m2": 30, "m3": 10}), ({"m2": 2, "m3": 1}, {"m2": 40}), ({"m2": 3, "m3": 1}, {"m2": 30, "m3": 10})],
)
def test_replicas_get_reads_by_weight(sessions, expected):
    route = replace(ROUTE, replicas=(replace(M2, weight=3), M3))
    members = [verdict(route, read_only=True, sessions=sessions, turn=turn).endpoint.member for turn in range(40)]
    assert {member: members.count(member) for member in set(members)} == expected


@pytest.mark.parametrize("read_only", [False, True])
def test_an_unknown_instance_is_refused(read_only):
    answer = verdict(None, read_only=read_only)
    assert isinstance(answer, Refuse)
    assert answer.sqlstate == "3D000"


@pytest.mark.parametrize("read_only", [False, True])
def test_an_address_outside_the_allow_list_is_refused(read_only):
    answer = verdict(replace(ROUTE, allow=("192.168.0.0/16",)), read_only=read_only)
    assert isinstance(answer, Refuse)
    assert answer.sqlstate == "28000"


@pytest.mark.parametrize(
    ("client", "networks", "expected"),
    [
        ("10.1.2.3", (), True),
        ("10.1.2.3", ("10.0.0.0/8",), True),
        ("10.1.2.3", ("192.168.0.0/16", "10.1.2.3"), True),
        ("10.1.2.3", ("10.1.2.9/24",), True),  # host bits are forgiven
        ("10.1.2.3", ("192.168.0.0/16",), False),
        ("10.1.2.3", ("nonsense",), False),
        ("10.1.2.3", ("nonsense", "10.0.0.0/8"), True),
        ("2001:db8::7", ("2001:db8::/32",), True),
        ("2001:db8::7", ("10.0.0.0/8",), False),
        ("", ("0.0.0.0/0",), False),
    ],
)
def test_allow_lists(client, networks, expected):
    assert allowed(client, networks) is expected


@pytest.mark.parametrize(
    ("route", "expected"),
    [
        (ROUTE, True),
        (replace(ROUTE, term=9), True),
        (replace(ROUTE, replicas=()), True),
        (PAUSED, True),
        (replace(ROUTE, primary=replace(M1, tls=True)), True),
        (None, False),
        (LEADERLESS, False),
        (EXPIRED, False),
        (replace(ROUTE, primary=M2), False),
        (replace(ROUTE, primary=replace(M1, port=5433)), False),
        (replace(ROUTE, primary=replace(M1, host="10.0.0.9")), False),
    ],
)
def test_a_writer_stays_while_its_server_is_the_primary_that_is_vouched_for(route, expected):
    assert still_valid(route, M1, NOW) is expected


routes = st.builds(
    Route,
    instance=st.just("demo/orders"),
    rw_port=st.just(1),
    ro_port=st.just(2),
    primary=st.sampled_from([None, M1, M2]),
    expires_at_s=st.floats(90, 110),
    replicas=st.lists(st.sampled_from([M1, M2, M3]), unique=True).map(tuple),
    paused=st.booleans(),
)


@given(routes, st.booleans(), st.floats(90, 110), st.sets(st.sampled_from(["m1", "m2", "m3"])))
def test_who_is_let_in_to_write_may_stay_at_that_moment(route, read_only, now, avoid):
    answer = admit(route, read_only=read_only, client="10.1.2.3", sessions={}, now=now, avoid=avoid)
    if isinstance(answer, Forward) and answer.fenced:
        assert still_valid(route, answer.endpoint, now)
    if isinstance(answer, Forward) and not read_only:
        assert answer.fenced


def test_a_standby_instance_takes_no_writers_and_says_so_at_once():
    route = replace(LEADERLESS, follows="far:5432")
    told = verdict(route)
    assert isinstance(told, Refuse)
    assert told.sqlstate == "25006"
    assert "follows far:5432" in told.message
    assert verdict(route, read_only=True) == Forward(M2, fenced=False)
    assert verdict(replace(route, replicas=()), read_only=True) == Hold("no member serves reads")
    assert verdict(replace(ROUTE, follows="far:5432")) == Forward(M1, fenced=True)
