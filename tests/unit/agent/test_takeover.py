"""What the history is told of a change of leadership."""

from __future__ import annotations

from agent.ha.takeover import Takeover, told_at_acquire
from core.records import ForcedFailover, LeadershipChange
from tests.support.builders import at, ballot, ha, sync


def told(*ballots: object, **record: object) -> LeadershipChange:
    cast = [b for b in ballots if b is not None]
    return told_at_acquire(ha(**record), cast, me="m2", position=at(1000), leaderless_s=0.25)  # type: ignore[arg-type]


def test_the_chosen_ballot_comes_first_with_the_reason_and_the_proof() -> None:
    line = told(ballot("m3", 900), ballot("m2"), sync=sync(1, "m2"))
    assert line.ballots == (
        "m2 at 0/3E8 on timeline 1: has every acknowledged commit (m2 of the sync set 1 of m2 voted); furthest",
        "m3 at 0/384 on timeline 1",
    )
    assert line.loss == "none"
    assert line.leaderless_s == 0.25


def test_the_ballot_of_the_last_leader_is_proof_enough() -> None:
    line = told(ballot("m1", was_leader=True), ballot("m2"), sync=sync(1, "m3"))
    assert "m1, who led last, has cast a ballot itself" in line.ballots[0]
    assert line.ballots[1] == "m1 at 0/3E8 on timeline 1 (led last)"


def test_what_may_be_lost_in_async_mode_is_said_with_the_figure() -> None:
    line = told(ballot("m2", leader_lsn=1500))
    assert line.loss.startswith("at least 500 bytes of log that others have or heard of")
    assert "nobody received" in line.loss


def test_a_handover_loses_nothing_and_needs_no_ballots() -> None:
    line = told(released_term=1, handover="m2")
    assert line.ballots == ("m2 at 0/3E8 on timeline 1: m1 had seen that it has every byte when it handed over",)
    assert line.loss == "none"


def test_a_forced_failover_names_who_forced_it_and_what_others_had() -> None:
    order = ForcedFailover(id="f1", target="m2", after_term=1, requested_by="ada")
    line = told(ballot("m3", 3000), forced=order)
    assert line.ballots == ("m2 at 0/3E8 on timeline 1: forced by ada", "m3 at 0/BB8 on timeline 1")
    assert line.loss.startswith("at least 2000 bytes")


def test_a_last_leader_that_leads_again_loses_nothing() -> None:
    line = told(leader="m2")
    assert line.ballots == ("m2 at 0/3E8 on timeline 1: led last and has its own log",)
    assert line.loss == "none"


def test_a_new_instance_has_nothing_to_lose() -> None:
    assert told(term=0, leader="", system_id="").loss == "none"


def test_the_steps_add_up_to_the_time_without_a_primary() -> None:
    takeover = Takeover(term=2, leaderless_since=10.0, acquired_at=10.2)
    takeover.seen_primary(10.5, acknowledges=False)
    takeover.seen_primary(10.9, acknowledges=True)
    takeover.seen_primary(20.0, acknowledges=True)
    assert [(step.name, step.took_s) for step in takeover.steps()] == [
        ("elected", 0.2),
        ("promoted", 0.3),
        ("opened", 0.4),
    ]


def test_in_a_standby_instance_nothing_is_lost_by_a_takeover() -> None:
    line = told(ballot("m3", 900), ballot("m2"), standby=True)
    assert line.ballots[0].endswith("follows the remote primary for the others")
    assert line.loss.startswith("none")
    assert told(standby=True, system_id="").ballots == ("m2 copies the remote primary's data",)


def test_the_way_to_the_first_commit_begins_with_the_promotion() -> None:
    takeover = Takeover(term=2, leaderless_since=10.0, acquired_at=11.0)
    takeover.still_standby(500.0)
    takeover.seen_primary(501.0, acknowledges=True)
    assert [step.took_s for step in takeover.steps()] == [0.0, 1.0, 0.0]
