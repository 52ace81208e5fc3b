"""How long a leadership may be relied on."""

from __future__ import annotations

import pytest

from agent.ha.leaseclock import ASK_TIMEOUT_S, DRIFT, LeaseClock, Vouching, margin_s
from agent.ha.view import Lease

TTL = 6.0


def held(term: int = 1, at: float = 10.0) -> LeaseClock:
    clock = LeaseClock()
    clock.acquired(term, at, TTL)
    return clock


def test_a_lease_counts_from_when_it_was_asked_for_less_the_margin() -> None:
    assert held().lease() == Lease(term=1, renewed_at=10.0, fence_at=10.0 + 4.5)


@pytest.mark.parametrize("ttl_s", [3.0, 6.0, 30.0])
def test_the_slowest_clock_fences_before_the_fastest_etcd_ends_the_lease(ttl_s: float) -> None:
    clock = LeaseClock()
    clock.acquired(1, 0.0, ttl_s)
    assert clock.lease().fence_at * (1 + DRIFT) < ttl_s


def test_a_renewal_extends_it() -> None:
    clock = held()
    clock.renewed(12.0, TTL)
    assert clock.lease() == Lease(term=1, renewed_at=12.0, fence_at=16.5)


def test_an_answer_that_comes_out_of_order_shortens_nothing() -> None:
    clock = held()
    clock.renewed(12.0, TTL)
    clock.renewed(11.0, TTL)
    assert clock.lease().fence_at == 16.5


def test_a_renewal_without_a_leadership_gives_none() -> None:
    clock = LeaseClock()
    clock.renewed(12.0, TTL)
    assert clock.lease() == Lease()


def test_a_lease_that_is_gone_leaves_nothing() -> None:
    clock = held()
    clock.gone()
    assert clock.lease() == Lease()


def test_a_lease_that_is_gone_is_not_renewed_by_the_next_lease_of_the_node() -> None:
    clock = held()
    clock.granted(13.0, TTL)
    clock.gone()
    clock.renewed(14.0, TTL)
    assert clock.lease().fence_at == 13.0 + 4.5


def test_promises_carry_a_primary_beyond_its_lease() -> None:
    clock = held()
    clock.granted(13.0, TTL)
    assert clock.lease() == Lease(term=1, renewed_at=10.0, fence_at=17.5)
    clock.gone()
    assert clock.lease() == Lease(term=1, renewed_at=10.0, fence_at=17.5)


def test_promises_without_a_term_carry_nobody() -> None:
    clock = LeaseClock()
    clock.granted(13.0, TTL)
    assert clock.lease() == Lease()


def test_promises_to_one_term_do_not_count_for_the_next() -> None:
    clock = held()
    clock.granted(30.0, TTL)
    clock.acquired(2, 12.0, TTL)
    assert clock.lease() == Lease(term=2, renewed_at=12.0, fence_at=16.5)


def test_a_released_term_is_spent_whatever_the_hub_still_confirms() -> None:
    clock = held()
    clock.released()
    clock.acquired(1, 12.0, TTL)
    clock.renewed(13.0, TTL)
    assert clock.lease() == Lease()
    assert clock.spent == 1


def test_the_next_term_after_a_released_one_counts() -> None:
    clock = held()
    clock.released()
    clock.acquired(2, 20.0, TTL)
    assert clock.lease().term == 2


def test_the_answer_to_an_old_acquire_does_not_bring_an_old_term_back() -> None:
    clock = held(term=3)
    clock.acquired(2, 99.0, TTL)
    assert clock.lease() == Lease(term=3, renewed_at=10.0, fence_at=14.5)


def restored(fence_at: float, *, spent: int = 0) -> LeaseClock:
    return LeaseClock.restored(term=1, renewed_at=10.0, fence_at=fence_at, ttl_s=TTL, spent=spent)


def test_an_agent_that_comes_back_finds_its_limits_in_force() -> None:
    assert restored(14.5).lease() == Lease(term=1, renewed_at=10.0, fence_at=14.5)


def test_a_lease_that_it_held_before_is_renewed_as_before() -> None:
    clock = restored(14.5)
    clock.renewed(12.0, TTL)
    assert clock.lease().fence_at == 16.5


def test_a_deadline_that_peers_had_promised_is_not_renewed_by_a_lease() -> None:
    clock = restored(17.0)
    clock.renewed(16.0, TTL)
    assert clock.lease().fence_at == 17.0


def test_a_spent_term_stays_spent_over_a_restart() -> None:
    clock = LeaseClock.restored(term=0, renewed_at=0.0, fence_at=0.0, ttl_s=TTL, spent=1)
    clock.acquired(1, 12.0, TTL)
    assert clock.lease() == Lease()


# --- what a peer's proxy may rely on ----------------------------------------------------------------------------------


def ask(vouching: Vouching, number: int, *, all_granted: int = 0, now: float, term: int = 1) -> None:
    vouching.granted("m1", term, ask=number, all_granted=all_granted, promise_s=TTL, now=now)


def test_one_promise_vouches_for_nothing() -> None:
    vouching = Vouching()
    ask(vouching, 1, now=20.0)
    assert vouching.until == 0.0


def test_a_question_that_everybody_granted_vouches_until_its_own_deadline() -> None:
    vouching = Vouching()
    ask(vouching, 1, now=20.0)
    ask(vouching, 2, all_granted=1, now=21.0)
    assert (vouching.member, vouching.term) == ("m1", 1)
    assert vouching.until == 20.0 - ASK_TIMEOUT_S + TTL - margin_s(TTL)


def test_a_question_that_was_not_granted_here_vouches_for_nothing() -> None:
    vouching = Vouching()
    ask(vouching, 7, all_granted=6, now=20.0)
    assert vouching.until == 0.0


def test_another_term_begins_anew() -> None:
    vouching = Vouching()
    ask(vouching, 1, now=20.0)
    ask(vouching, 2, all_granted=1, now=21.0)
    ask(vouching, 1, now=22.0, term=2)
    assert vouching.until == 0.0
    assert vouching.term == 2


def test_only_the_latest_questions_are_kept() -> None:
    vouching = Vouching()
    for number in range(1, 100):
        ask(vouching, number, now=20.0 + number)
    ask(vouching, 100, all_granted=1, now=120.0)
    assert vouching.until == 0.0
