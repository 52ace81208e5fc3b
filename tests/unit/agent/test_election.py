"""Who may lead next, and who may be promised what."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.ha.election import Elected, Pending, Stuck, Verdict, could_succeed, elect, may_grant, why_not_succeeded
from core.records import Ballot, HaRecord, LeadershipChange, PeerMember, SyncRecord
from core.status import MemberState, Role
from tests.support.builders import (
    NOW,
    as_candidate,
    as_follower,
    as_leader,
    ballot,
    ha,
    instance,
    leading_peer,
    peer,
    sync,
)

LAG = 100
MEMBERS = (leading_peer("m1", alive=False), peer("m2"), peer("m3"))


def verdict(
    *ballots: Ballot, record: HaRecord | None = None, members: tuple[PeerMember, ...] = MEMBERS, after: float = 2.0
) -> Verdict:
    return elect(record or ha(), ballots, members, max_lag_bytes=LAG, leaderless_for=after)


def why(found: Verdict) -> str:
    assert isinstance(found, Stuck), found
    return found.why


# --- async ------------------------------------------------------------------------------------------------------------


def test_the_furthest_replica_is_elected() -> None:
    assert verdict(ballot("m2", 1000), ballot("m3", 1010)) == Elected(("m3",))


def test_the_last_leader_may_lead_again_from_an_older_timeline() -> None:
    """Forced to lead, it died before it was promoted; who led before it is no bar."""
    members = (leading_peer("m1", alive=True), peer("m2", timeline=3))
    assert verdict(ballot("m1", 10, timeline=1, was_leader=True), members=members) == Elected(("m1",))


def test_equals_are_ranked_by_priority_then_name() -> None:
    assert verdict(ballot("m2"), ballot("m3")) == Elected(("m2",))
    assert verdict(ballot("m2"), ballot("m3", priority=1)) == Elected(("m3",))


def test_the_handover_target_wins_among_equals() -> None:
    record = ha(released_term=1, handover="m3")
    assert verdict(ballot("m2", priority=9), ballot("m3"), record=record) == Elected(("m3",))


def test_a_handover_of_an_earlier_term_means_nothing() -> None:
    record = ha(term=2, released_term=1, handover="m3")
    assert verdict(ballot("m2", term=3), ballot("m3", term=3), record=record) == Elected(("m2",))


def test_a_member_that_must_not_lead_only_tells_its_position() -> None:
    assert verdict(ballot("m2", 1000), ballot("m3", 1010, no_failover=True)) == Elected(("m2",))


def test_a_replica_too_far_behind_what_was_heard_of_the_leader_is_refused_with_the_figures() -> None:
    found = why(verdict(ballot("m2", 1000, leader_lsn=1101), ballot("m3", 900)))
    assert "m2" in found
    assert "101 bytes behind m1" in found
    assert "(100)" in found


def test_the_position_at_which_the_leader_let_go_is_heard_of_too() -> None:
    record = ha(history=(LeadershipChange(term=1, member="m1", reason="", timeline=1, lsn="0/800"),))
    assert "1048 bytes behind" in why(verdict(ballot("m2", 1000), record=record))


def test_a_replica_that_never_followed_the_leader_to_its_timeline_is_refused() -> None:
    members = (leading_peer("m1", timeline=2, alive=False), peer("m2"), peer("m3"))
    assert "has not followed m1 to timeline 2" in why(verdict(ballot("m2"), members=members))
    assert verdict(ballot("m2", timeline=2), ballot("m3", 5000), members=members) == Elected(("m2",))


def test_an_election_without_any_ballot_is_stuck() -> None:
    assert "no member has cast a ballot" in why(verdict())


def test_ballots_of_another_term_or_a_stranger_do_not_count() -> None:
    assert isinstance(verdict(ballot("m2", term=1), ballot("m9")), Stuck)


def test_a_winner_whose_node_is_silent_is_passed_over() -> None:
    members = (peer("m2"), peer("m3", alive=False))
    assert verdict(ballot("m2", 1000), ballot("m3", 1010), members=members) == Elected(("m2",))


# --- waiting for ballots ----------------------------------------------------------------------------------------------


def test_ballots_that_may_come_are_waited_for_a_second() -> None:
    assert verdict(ballot("m2"), after=0.25) == Pending(("m3",), 0.75)
    assert verdict(ballot("m2"), after=1.0) == Elected(("m2",))


@pytest.mark.parametrize(
    "absent",
    [
        peer("m3", alive=False),
        peer("m3", state=MemberState.CREATING),
        peer("m3", state=MemberState.STOPPED),
        peer("m3", role=Role.UNKNOWN),
    ],
)
def test_who_cannot_vote_is_not_waited_for(absent: PeerMember) -> None:
    assert verdict(ballot("m2"), members=(leading_peer("m1"), peer("m2"), absent), after=0.0) == Elected(("m2",))


def test_the_next_in_rank_may_go_when_the_first_does_not() -> None:
    ballots = (ballot("m2", 1000), ballot("m3", 1010))
    assert verdict(*ballots, after=3.9) == Elected(("m3",))
    assert verdict(*ballots, after=4.0) == Elected(("m3", "m2"))


# --- sync and quorum --------------------------------------------------------------------------------------------------


def test_the_sync_standby_is_elected_and_so_is_who_has_as_much() -> None:
    record = ha(sync=sync(1, "m2"))
    assert verdict(ballot("m2", 1000), ballot("m3", 990), record=record) == Elected(("m2",))
    assert verdict(ballot("m2", 1000), ballot("m3", 1010), record=record) == Elected(("m3",))


def test_without_the_sync_standbys_ballot_nobody_is_elected() -> None:
    found = why(verdict(ballot("m3", 9999), record=ha(sync=sync(1, "m2"))))
    assert "missing: m2" in found
    assert "or that of m1" in found


def test_with_nobody_on_record_only_the_last_leader_is_elected() -> None:
    record = ha(sync=sync(0))
    assert "only m1 has every acknowledged commit" in why(verdict(ballot("m2"), record=record))
    assert verdict(
        ballot("m1", was_leader=True), ballot("m2", 990), record=record, members=(*MEMBERS[1:], peer("m1"))
    ) == (Elected(("m1",)))


def test_who_has_as_much_as_the_last_leader_may_lead_instead_of_it() -> None:
    ballots = (ballot("m1", was_leader=True, no_failover=True), ballot("m2"), ballot("m3", 999))
    members = (peer("m1"), *MEMBERS[1:])
    assert verdict(*ballots, record=ha(sync=sync(0)), members=members, after=9.0) == Elected(("m2",))


def test_a_ballot_of_an_earlier_leader_proves_nothing() -> None:
    record = ha(leader="m3", sync=sync(0))
    assert isinstance(verdict(ballot("m2", was_leader=True), record=record), Stuck)


def test_the_word_of_the_last_leader_is_enough() -> None:
    record = ha(sync=sync(1, "m3"), released_term=1, handover="m2")
    assert verdict(ballot("m2"), record=record) == Elected(("m2",))


def test_a_quorum_needs_the_ballots_that_meet_every_set() -> None:
    record = ha(sync=sync(2, "m2", "m3", "m4", mode="quorum"))
    members = (*MEMBERS, peer("m4"), peer("m5"))
    one = verdict(ballot("m2"), ballot("m5", 5000), record=record, members=members)
    assert "ballots of 2 of m2, m3, m4" in why(one)
    two = verdict(ballot("m2", 1000), ballot("m3", 1010), record=record, members=members)
    assert two == Elected(("m3",))


def test_with_all_ballots_less_is_required() -> None:
    # 2 of 3 have every commit, so with all three ballots the second furthest is a bound.
    record = ha(sync=sync(2, "m2", "m3", "m4", mode="quorum"))
    ballots = (ballot("m2", 1000), ballot("m3", 1010, no_failover=True), ballot("m4", 900))
    assert verdict(*ballots, record=record, members=(*MEMBERS, peer("m4"))) == Elected(("m2",))


def test_nobody_is_elected_over_a_member_that_must_not_lead_but_has_more() -> None:
    record = ha(sync=sync(1, "m2"))
    found = why(verdict(ballot("m2", 1010, no_failover=True), ballot("m3", 1000), record=record))
    assert "m2 must not lead" in found
    assert "m3 lacks what they have" in found


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_whoever_is_elected_has_all_that_may_have_been_acknowledged(data: st.DataObject) -> None:
    """Against the definition: a commit is acknowledged when k of the names have it."""
    members = [f"m{n}" for n in range(1, data.draw(st.integers(2, 6)) + 1)]
    others = members[1:]
    names = data.draw(st.lists(st.sampled_from(others), unique=True, min_size=1))
    k = data.draw(st.integers(1, len(names)))
    has = {member: data.draw(st.integers(1, 5), label=member) for member in others}
    acknowledged = sorted((has[name] for name in names), reverse=True)[k - 1]
    has["m1"] = max(has.values())
    voters = data.draw(st.lists(st.sampled_from(members), unique=True))
    barred = data.draw(st.sets(st.sampled_from(members)))
    found = elect(
        ha(sync=SyncRecord(mode="quorum", k=k, names=tuple(names))),
        [ballot(m, has[m], was_leader=m == "m1", no_failover=m in barred) for m in voters],
        [peer(m) for m in members],
        max_lag_bytes=0,
        leaderless_for=data.draw(st.sampled_from([1.0, 5.0, 20.0])),
    )
    if isinstance(found, Elected):
        assert all(has[member] >= acknowledged and member not in barred for member in found.members)
    able = [m for m in voters if m not in barred and has[m] == max(has.values())]
    if set(names) <= set(voters) and able:
        assert isinstance(found, Elected)


# --- could_succeed ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "members", "expected"),
    [
        (sync(0, mode="async"), (peer("m2"),), True),
        (sync(0, mode="async"), (peer("m2", alive=False),), False),
        (sync(0, mode="async"), (peer("m2", no_failover=True),), False),
        (sync(0, mode="async"), (peer("m2", state=MemberState.LAGGING),), True),
        (sync(0), (peer("m2"), peer("m3")), False),
        (sync(1, "m2"), (peer("m3"),), False),
        (sync(1, "m2"), (peer("m2"),), True),
        (sync(1, "m2", "m3", mode="quorum"), (peer("m2"), peer("m3", alive=False)), False),
        (sync(2, "m2", "m3", mode="quorum"), (peer("m2"), peer("m3", alive=False)), True),
    ],
)
def test_a_leader_knows_whether_the_others_could_go_on(
    record: SyncRecord, members: tuple[PeerMember, ...], expected: bool
) -> None:
    assert could_succeed(ha(sync=record), members) is expected


@pytest.mark.parametrize(
    ("record", "members", "why"),
    [
        (sync(0, mode="async"), (peer("m2", alive=False),), "no replica is up"),
        (sync(0, mode="async"), (peer("m2", no_failover=True),), "m2 must not lead (no_failover)"),
        (sync(0), (peer("m2"),), "no replica is on record to have every acknowledged commit"),
        (sync(1, "m2", "m3", mode="quorum"), (peer("m3"),), "ballots of 2 of m2, m3 would be needed"),
    ],
)
def test_it_says_why_they_could_not(record: SyncRecord, members: tuple[PeerMember, ...], why: str) -> None:
    assert why_not_succeeded(ha(sync=record), members) == why


# --- promises ---------------------------------------------------------------------------------------------------------


def granted(view: Any = None, *, asker: str = "m1", term: int = 1, standing: bool = False) -> str:
    return may_grant(view or as_follower(), asker=asker, term=term, standing=standing, now=NOW)


def test_a_replica_promises_its_primary() -> None:
    assert granted() == ""


def test_a_replica_promises_also_after_the_primarys_key_is_gone() -> None:
    assert granted(as_candidate()) == ""


def test_a_replica_promises_a_primary_whose_leadership_it_has_not_heard_of_yet() -> None:
    assert granted(asker="m3", term=2) == ""


@pytest.mark.parametrize(
    ("sentence", "refusal"),
    [
        ("a stranger", granted(asker="m9")),
        ("anybody while nothing is known of the instance", granted(as_follower(instance=None))),
        ("a primary of an earlier term", granted(as_follower(instance=instance(leader="m3", term=2)))),
        ("another member that claims the same term", granted(asker="m3")),
        ("one that has let go", granted(as_candidate(instance=instance(leader="", released_term=1)))),
        ("anybody while it leads itself", granted(as_leader(), asker="m2")),
        ("anybody while the key is its own", granted(as_follower(instance=instance(leader="m2")), asker="m1")),
        ("anybody while it takes the leadership", granted(standing=True)),
    ],
)
def test_a_member_does_not_promise(sentence: str, refusal: str) -> None:
    assert refusal, sentence


def test_a_member_that_has_voted_does_not_promise() -> None:
    assert "has cast its ballot" in granted(as_candidate(ballot_term=2))


def test_a_member_that_voted_in_a_former_life_does_not_promise() -> None:
    assert "has cast its ballot" in granted(as_candidate(instance=instance(leader="", ballots=(ballot("m2"),))))
