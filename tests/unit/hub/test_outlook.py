"""What a forced failover would lose, as far as a hub can know: never less than it says, and never a guess."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.positions import Lsn, WalPosition
from core.records import Ballot, HaRecord, ReplicationMode, SyncRecord
from core.status import MemberState, Role
from hub.judges.outlook import Heard, Outlook, Prospect, outlook
from hub.judges.situation import Situation
from tests.support.situations import desired, healthy, leaderless, observed


def lost_primary(mode: ReplicationMode = "sync", k: int = 1, names: tuple[str, ...] = ("m2",)) -> Situation:
    """m1 led and its node is gone; m2 and m3 are there, and nobody leads."""
    s = leaderless(healthy())
    ha = HaRecord(term=1, leader="m1", system_id="7", sync=SyncRecord(mode=mode, k=k, names=names))
    return replace(s, ha=ha, silent=frozenset({"n1"}))


def ballot(member: str, lsn: int, *, timeline: int = 1, leader_lsn: int = 0, term: int = 2) -> Ballot:
    return Ballot(member=member, node=f"n{member[1]}", term=term, timeline=timeline, lsn=lsn, leader_lsn=leader_lsn)


def looked(s: Situation, *ballots: Ballot, target: str = "", heartbeats: dict[str, int] | None = None) -> Outlook:
    assert s.ha is not None
    heard = {
        name: Heard(position=WalPosition(1, Lsn(lsn)), source="heartbeat", age_s=4.0)
        for name, lsn in (heartbeats or {}).items()
    }
    for one in ballots:
        heard[one.member] = Heard(position=WalPosition(one.timeline, Lsn(one.lsn)), source="ballot")
    return outlook(s, s.ha, heard, ballots, target)


def prospect(found: Outlook, name: str) -> Prospect:
    return next(one for one in found.prospects if one.member == name)


# --- what would be lost -----------------------------------------------------------------------------------------------


def test_the_member_that_every_commit_was_confirmed_by_loses_nothing() -> None:
    found = looked(lost_primary(), ballot("m2", 900), ballot("m3", 500))
    assert found.target == "m2"
    assert prospect(found, "m2").loss == "none"
    assert prospect(found, "m2").loss_text == "no acknowledged commit is lost: each was confirmed by m2"
    m3 = prospect(found, "m3")
    assert (m3.loss, m3.behind_bytes) == ("possible", 400)
    assert m3.loss_text == (
        "m3 is not in the sync set (m2): commits that it lacks are lost; m3 was heard of at 0/1F4, at least 400 bytes "
        "of log behind the furthest"
    )


def test_with_the_sync_set_lost_the_rest_can_only_lose() -> None:
    s = replace(lost_primary(), silent=frozenset({"n1", "n2"}))
    found = looked(s, ballot("m3", 500, leader_lsn=700))
    assert (found.target, found.furthest) == ("m3", "m1")
    assert prospect(found, "m2").obstacle == "node n2 of m2 is silent, so it would not hear of the order"
    assert prospect(found, "m3").behind_bytes == 200
    assert found.advice == "bringing back n1 (m1), n2 (m2) may save what is lost otherwise"


def test_ballots_of_a_quorum_prove_what_is_not_lost() -> None:
    s = lost_primary("quorum", 1, ("m2", "m3"))
    found = looked(s, ballot("m2", 900), ballot("m3", 500))
    assert [(one.member, one.loss) for one in found.prospects[1:]] == [("m2", "none"), ("m3", "possible")]
    assert "the ballots prove that m2 has them all" in prospect(found, "m2").loss_text
    alone = looked(replace(s, silent=frozenset({"n1", "n2"})), ballot("m3", 500))
    assert prospect(alone, "m3").loss == "possible"
    assert "each commit was confirmed by 1 of m2, m3" in prospect(alone, "m3").loss_text


def test_when_the_primary_went_on_alone_only_it_has_everything() -> None:
    found = looked(lost_primary("sync", 0, ()), ballot("m2", 900))
    assert "only m1 is on record as having every acknowledged commit" in prospect(found, "m2").loss_text
    assert prospect(found, "m1").loss == "none"


def test_async_always_may_lose_the_last_moments() -> None:
    found = looked(lost_primary("async", 0, ()), heartbeats={"m2": 900, "m3": 950})
    assert found.target == "m3"
    assert prospect(found, "m3").loss_text == (
        "async: commits that m1 acknowledged and m3 had not received are lost; m3 is the furthest that is heard of, at "
        "0/3B6, 4 s ago"
    )
    assert "at least 50 bytes of log behind" in prospect(found, "m2").loss_text


def test_what_is_not_heard_here_is_said_to_be_unknown() -> None:
    found = looked(lost_primary("async", 0, ()))
    assert (found.furthest, prospect(found, "m3").behind_bytes) == ("", None)
    assert "how far m3 is behind is not known to this hub" in prospect(found, "m3").loss_text


def test_an_older_timeline_is_behind_whatever_its_bytes() -> None:
    s = lost_primary("async", 0, ())
    found = looked(s, ballot("m2", 900, timeline=2), ballot("m3", 5000, timeline=1))
    assert (found.target, found.furthest) == ("m2", "m2")
    assert "never followed the furthest to 0/384 on timeline 2" in prospect(found, "m3").loss_text


# --- who can ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("situation", "told"),
    [
        (observed(lost_primary(), "m3", state=MemberState.ABSENT), "m3 has no data to lead with (absent)"),
        (observed(lost_primary(), "m3", state=MemberState.REJOINING), "m3 has no data to lead with (rejoining)"),
        (desired(lost_primary(), "m3", desired="absent"), "m3 is to be absent"),
        (replace(lost_primary(), silent=frozenset({"n3"})), "node n3 of m3 is silent"),
    ],
)
def test_who_could_not_even_begin_is_no_target(situation: Situation, told: str) -> None:
    found = looked(situation, ballot("m2", 1), ballot("m3", 900))
    assert told in prospect(found, "m3").obstacle
    assert found.target != "m3"


def test_what_guards_data_is_no_obstacle() -> None:
    s = observed(desired(lost_primary(), "m3", no_failover=True), "m3", state=MemberState.LAGGING)
    assert prospect(looked(s), "m3").obstacle == ""


def test_who_has_voted_is_chosen_before_a_last_leader_that_may_be_dead_unnoticed() -> None:
    s = replace(lost_primary(), silent=frozenset())
    found = looked(s, ballot("m3", 500), heartbeats={"m1": 900})
    assert (found.target, prospect(found, "m1").loss, prospect(found, "m1").obstacle) == ("m3", "none", "")


def test_nobody_is_chosen_when_nobody_can() -> None:
    s = replace(lost_primary(), silent=frozenset({"n1", "n2", "n3"}))
    assert looked(s).target == ""


# --- what is waited for -----------------------------------------------------------------------------------------------


def test_a_primary_that_lives_is_a_reason_to_switch_over_instead() -> None:
    s = healthy()
    assert s.ha is not None
    found = outlook(s, s.ha, {}, (), "m2")
    assert found.primary_alive
    assert found.waits_for == ("m1 on n1 leads in term 1 and is well",)
    assert "`moorctl instance switchover demo/orders --to m2`" in found.advice
    assert "is the primary already" in prospect(found, "m1").obstacle


@pytest.mark.parametrize(
    "situation",
    [
        replace(healthy(), silent=frozenset({"n1"})),
        observed(healthy(), "m1", state=MemberState.CRASHED),
        observed(healthy(), "m1", role=Role.REPLICA),
    ],
)
def test_a_primary_that_is_not_well_is_not_called_alive(situation: Situation) -> None:
    assert situation.ha is not None
    found = outlook(situation, situation.ha, {}, (), "")
    assert not found.primary_alive
    assert "until its lease ends or it gives up by itself" in found.waits_for[0]


def test_what_members_wait_for_is_told_member_by_member() -> None:
    s = observed(lost_primary(), "m3", message="nobody may lead: missing: m2", reason="ElectionStuck")
    assert s.ha is not None
    s = replace(s, ha=replace(s.ha, paused=True, paused_by="ada", pause_reason="new disk"))
    found = looked(s)
    assert found.waits_for == (
        "automatic failover is paused by ada (new disk)",
        "m1: node n1 is silent",
        "m3: nobody may lead: missing: m2",
    )
    assert "moorctl instance resume demo/orders" in found.advice


def test_an_election_without_trouble_is_said_to_be_under_way() -> None:
    s = replace(lost_primary(), silent=frozenset())
    assert looked(s).waits_for == ("an election is under way: it takes some seconds",)


@given(
    st.sampled_from(["async", "sync", "quorum"]),
    st.integers(0, 2),
    st.sets(st.sampled_from(["m1", "m2", "m3"])),
    st.dictionaries(st.sampled_from(["m1", "m2", "m3"]), st.integers(0, 9), max_size=3),
)
def test_no_loss_is_promised_only_to_who_meets_every_commit_on_record(
    mode: ReplicationMode, k: int, names: set[str], voted: dict[str, int]
) -> None:
    """By brute force: a commit at c is on the last leader and on some k of the names, so each of those was at c or
    beyond when it voted. Who is promised to lose nothing must be at or beyond every c that the ballots allow."""
    k = min(k, len(names)) if mode != "async" else 0
    s = lost_primary(mode, k, tuple(sorted(names)))
    ballots = [ballot(name, 100 + lsn) for name, lsn in voted.items() if name != "m1"]
    found = looked(s, *ballots)
    for one in found.prospects:
        if one.loss == "possible" or one.member == "m1":
            continue
        cast = {b.member: b.lsn for b in ballots}
        if k >= len(names) and one.member in names:
            continue  # whatever was acknowledged is on every one of the names
        others = [name for name in names if name not in cast]
        for commit in range(100, 111):
            holders = [name for name in names if name in cast and cast[name] >= commit]
            could_be_acknowledged = len(holders) + len(others) >= k
            assert not could_be_acknowledged or cast[one.member] >= commit
