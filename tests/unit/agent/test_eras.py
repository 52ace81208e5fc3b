"""A leader that has not recorded a set of its own: what its record says, who may follow it, when it acknowledges."""

from __future__ import annotations

import pytest

from agent.ha.actions import Promote, Reason, RecordSync
from agent.ha.decide import decide
from agent.ha.election import Elected, Stuck, elect, why_not_succeeded
from agent.ha.syncset import ALONE, Apply, CatchUp, Record, first_era, next_step
from agent.ha.view import EngineState
from core.positions import Lsn
from core.records import ERAS_MAX, Ballot, Era, ForcedFailover, HaRecord, Replication, SyncRecord
from hub.etcd.txns import sync_of_new_leader
from tests.support.builders import (
    HELD,
    NOW,
    as_candidate,
    as_leader,
    ballot,
    desired,
    ha,
    instance,
    leading_peer,
    peer,
    primary,
    replica,
    sync,
)
from tests.unit.agent.test_syncset import cand

SYNC = Replication(mode="sync")
RELAXED = Replication(mode="sync", strict=False)
FORMER = Era(leader="m1", k=1, names=("m2",))
OWN = Era(leader="m2", k=1, names=("m1", "m3"))
NOBODY = sync(0)


def record(*eras: Era, seq: int = 0) -> SyncRecord:
    return SyncRecord(mode="sync", seq=seq, eras=eras)


# --- what a new leader begins with ------------------------------------------------------------------------------------


def begun(before: HaRecord, member: str = "m2", *, knows_eras: bool = True) -> SyncRecord:
    return sync_of_new_leader(before, member, knows_eras=knows_eras)


def test_a_new_leaders_record_goes_on_saying_where_the_commits_of_before_are() -> None:
    assert begun(ha(sync=sync(1, "m2", seq=7))) == record(FORMER)


def test_a_leader_that_added_no_era_is_left_out_of_the_next_ones_record() -> None:
    assert begun(ha(term=2, leader="m2", sync=record(FORMER)), "m3") == record(FORMER)
    assert begun(ha(term=2, leader="m2", sync=record(FORMER, OWN, seq=1)), "m3") == record(FORMER, OWN)


def test_the_last_leader_leads_on_with_its_own_record() -> None:
    kept = sync(1, "m2", seq=7)
    assert begun(ha(sync=kept), "m1") == kept


def test_only_the_leader_itself_is_on_record_where_that_would_not_hold() -> None:
    order = ForcedFailover(id="1", target="m2", after_term=1)
    assert begun(ha(sync=sync(1, "m2"), forced=order)) == NOBODY
    assert begun(ha(sync=sync(1, "m2")), knows_eras=False) == NOBODY
    assert begun(ha(sync=sync(1, "m2"), system_id="")) == NOBODY
    assert begun(ha(sync=SyncRecord(mode="async"))) == SyncRecord(mode="async")


# --- elections --------------------------------------------------------------------------------------------------------


MEMBERS = (peer("m1"), leading_peer("m2", alive=False), peer("m3"))


def after_m2(*eras: Era, cast: tuple[Ballot, ...], after: float = 2.0) -> Elected | Stuck:
    found = elect(ha(term=2, leader="m2", sync=record(*eras)), cast, MEMBERS, max_lag_bytes=0, leaderless_for=after)
    assert isinstance(found, Elected | Stuck)
    return found


def vote(member: str, lsn: int = 1000, timeline: int = 1) -> Ballot:
    return ballot(member, lsn, term=3, timeline=timeline)


def test_after_a_leader_that_acknowledged_nothing_the_former_leaders_ballot_is_enough() -> None:
    assert after_m2(FORMER, cast=(vote("m1"), vote("m3"))) == Elected(("m1",))
    assert after_m2(FORMER, cast=(vote("m1", 900), vote("m3"))) == Elected(("m3",))


def test_or_the_ballots_that_would_have_been_needed_instead_of_it() -> None:
    era = Era(leader="m1", k=1, names=("m3",))
    assert after_m2(era, cast=(vote("m3"),)) == Elected(("m3",))


def test_without_either_it_is_said_whose_ballot_would_do() -> None:
    found = after_m2(FORMER, cast=(vote("m3"),))
    assert isinstance(found, Stuck)
    assert "1 of m2 are needed, or that of m1 or m2" in found.why


def test_every_era_must_be_covered() -> None:
    followed = vote("m3", 1010, timeline=2)
    assert after_m2(FORMER, OWN, cast=(vote("m1"), followed), after=60.0) == Elected(("m3",))
    assert isinstance(after_m2(FORMER, OWN, cast=(vote("m1"),)), Stuck)
    only_m3 = (FORMER, Era(leader="m2", k=1, names=("m3",)))
    assert after_m2(*only_m3, cast=(vote("m3"), vote("m1"))) == Elected(("m1",))
    assert isinstance(after_m2(*only_m3, cast=(vote("m1", 5000),)), Stuck)


def test_a_leader_leaves_it_to_the_others_when_they_cover_every_era() -> None:
    others = (peer("m1"), peer("m3"))
    assert why_not_succeeded(ha(term=2, leader="m2", sync=record(FORMER)), others) == ""
    assert why_not_succeeded(ha(term=2, leader="m2", sync=record(FORMER)), others[1:]) != ""
    assert why_not_succeeded(ha(term=2, leader="m2", sync=record(FORMER, OWN)), others) == ""


def test_who_led_an_era_stands_with_its_primarys_data() -> None:
    """And who led earlier still does not."""
    stopped = primary(state=EngineState.STOPPED)
    stands = as_candidate(engine=stopped, instance=instance(leader="", term=3, record=ha(
        term=3, leader="m1", sync=record(Era(leader="m2", k=1, names=("m3",)))
    )))  # fmt: skip
    assert decide(stands, NOW).reason is Reason.STARTS_TO_STAND
    other = as_candidate(engine=stopped, instance=instance(leader="", term=3, record=ha(
        term=3, leader="m1", sync=record(Era(leader="m3", k=1, names=("m2",)))
    )))  # fmt: skip
    assert decide(other, NOW).reason is Reason.OUTDATED


# --- steps ------------------------------------------------------------------------------------------------------------


def step(*candidates, on_record: SyncRecord, setting: SyncRecord = NOBODY, base: int = 0, wanted: Replication = SYNC):
    return next_step(
        wanted=wanted,
        record=on_record,
        sent=on_record,
        setting=setting,
        base=Lsn(base),
        candidates=candidates,
        me="m2",
    )


def test_its_own_era_is_recorded_before_anything_is_acknowledged() -> None:
    found = step(cand("m3"), on_record=record(FORMER))
    assert found == Record(sync=record(FORMER, Era(leader="m2", k=1, names=("m3",)), seq=1))


def test_a_setting_that_implies_its_era_comes_into_force() -> None:
    assert step(cand("m3"), on_record=record(FORMER, OWN)) == Apply(sync=sync(1, "m3"))


def test_a_standby_that_its_era_does_not_name_is_added_first() -> None:
    found = step(cand("m4"), on_record=record(FORMER, OWN))
    assert found == Record(sync=record(FORMER, Era(leader="m2", k=1, names=("m1", "m3", "m4")), seq=1))


def test_a_set_that_holds_for_everything_ends_the_eras() -> None:
    on_record, setting = record(FORMER, OWN), sync(1, "m3")
    assert step(cand("m3", 100), on_record=on_record, setting=setting, base=200) == CatchUp(names=("m3",))
    assert step(cand("m3", 200), on_record=on_record, setting=setting, base=200) == Record(sync=sync(1, "m3", seq=1))


def test_to_acknowledge_alone_the_eras_go_first() -> None:
    assert step(on_record=record(FORMER), wanted=RELAXED) == Record(sync=sync(0, seq=1))
    assert step(on_record=sync(0, seq=1), wanted=RELAXED) == Apply(sync=ALONE)
    back = Replication(mode="async")
    assert step(on_record=record(FORMER), wanted=back) == Record(sync=SyncRecord(mode="async", seq=1))


def test_a_setting_that_acknowledges_more_than_is_on_record_ends_the_claims() -> None:
    assert step(cand("m3"), on_record=record(FORMER), setting=ALONE) == Record(sync=sync(0, seq=1))
    assert step(cand("m3"), on_record=record(FORMER, OWN), setting=sync(1, "m9")) == Record(sync=sync(0, seq=1))


def test_too_many_eras_are_given_up() -> None:
    many = tuple(Era(leader=f"m{n}", k=1, names=("m9",)) for n in range(3, 3 + ERAS_MAX))
    assert step(cand("m3"), on_record=record(*many)) == Record(sync=sync(0, seq=1))


@pytest.mark.parametrize(
    ("sent", "wanted", "expected"),
    [
        (record(FORMER), SYNC, record(FORMER, OWN, seq=1)),
        (record(FORMER, OWN), SYNC, None),
        (sync(0), SYNC, None),
        (None, SYNC, None),
        (record(FORMER), Replication(mode="async"), None),
        (record(FORMER), Replication(mode="quorum", k=3), None),
    ],
)
def test_the_first_era_is_recorded_while_the_engine_is_promoted(sent, wanted, expected) -> None:
    found = first_era(wanted, sent, ["m3", "m1"], "m2")
    assert found == (Record(sync=expected) if expected else None)


def test_the_promotion_and_the_first_era_are_one_decision() -> None:
    view = as_leader(
        engine=replica(""),
        desired=desired(replication=SYNC),
        lease=HELD,
        instance=instance(record=ha(sync=record(Era(leader="m3", k=1, names=("m1",))))),
        sync_sent=record(Era(leader="m3", k=1, names=("m1",))),
    )
    decision = decide(view, NOW)
    own = Era(leader="m1", k=1, names=("m2", "m3"))
    expected = record(Era(leader="m3", k=1, names=("m1",)), own, seq=1)
    assert decision.actions == (Promote(1), RecordSync(1, expected))
