"""What a session's time went to, and how figures are kept of many."""

from __future__ import annotations

import math
from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.figures import BOUNDS_S
from proxy.meters import COMPLAINTS_MAX, OTHERS, PERIOD_S, Meter, Meters, Stopwatch

APP = ("demo/orders", "app", "shop")


def watch() -> Stopwatch:
    return Stopwatch(Meter(*APP))


def test_a_query_is_timed_from_its_first_byte_to_its_answer() -> None:
    one = watch()
    one.start(10.0)
    assert one.answered(1, True, False, 10.004) == pytest.approx(0.004)
    figures = one.meter.figures()
    assert (figures.queries, figures.transactions, figures.query_us, figures.transaction_us) == (1, 1, 4000, 4000)
    assert not one.running


def test_a_transaction_lasts_from_its_first_query_to_its_last_answer() -> None:
    one = watch()
    for begin, end, idle in ((1.0, 1.1, False), (2.0, 2.1, False), (3.0, 3.5, True), (7.0, 7.5, True)):
        one.start(begin)
        one.answered(1, idle, False, end)
    meter = one.meter
    assert (meter.queries, meter.transactions) == (4, 2)
    assert meter.query_s == pytest.approx(1.2)
    assert meter.transaction_s == pytest.approx(2.5 + 0.5)


def test_answers_to_who_asks_ahead_count_from_the_answer_before() -> None:
    one = watch()
    one.start(1.0)
    assert one.answered(1, True, True, 1.2) == pytest.approx(0.2)
    assert one.answered(2, True, False, 1.8) == pytest.approx(0.3)
    assert (one.meter.queries, one.meter.transactions) == (3, 3)
    assert one.meter.query_s == pytest.approx(0.8)
    assert one.meter.transaction_s == pytest.approx(0.8)


def test_what_a_query_waits_for_a_server_is_in_its_time_and_told_apart() -> None:
    one = watch()
    one.start(5.0)
    one.hold(5.0)
    one.hold(5.5)
    assert one.held_since() == 5.0
    one.release(7.0)
    one.release(8.0)
    assert one.answered(1, True, False, 7.25) == pytest.approx(2.25)
    assert one.held_s == pytest.approx(2.0)
    figures = one.meter.figures()
    assert (figures.held_us, figures.wait_us, figures.waits) == (2_000_000, 2_000_000, 1)


def test_a_new_client_that_waits_for_a_server_has_no_query_yet() -> None:
    one = watch()
    one.hold(1.0)
    one.release(1.5)
    assert (one.meter.waits, one.meter.held_s, one.meter.queries) == (1, 0.0, 0)


@given(st.lists(st.floats(0, 200, allow_nan=False), max_size=60))
def test_every_time_is_in_the_bucket_a_plain_search_finds(times: list[float]) -> None:
    """The second implementation counts for each bound how many times are not above it, as Prometheus reads them."""
    meter = Meter(*APP)
    for seconds in times:
        meter.waited(seconds)
    up_to = [sum(meter.wait_counts[: at + 1]) for at in range(len(meter.wait_counts))]
    assert up_to == [sum(seconds <= bound for seconds in times) for bound in (*BOUNDS_S, math.inf)]
    assert sum(meter.figures().wait_counts) == len(times) == meter.figures().waits


@given(st.lists(st.tuples(st.floats(0.00001, 50), st.integers(1, 9)), max_size=30))
def test_histogram_and_sums_tell_of_the_same_queries(answers: list[tuple[float, int]]) -> None:
    one, now = watch(), 1.0
    for seconds, count in answers:
        one.start(now)
        now += seconds
        took_s = one.answered(count, True, False, now)
        assert one.meter.query_counts[bisect_left(BOUNDS_S, took_s)] >= count
    figures = one.meter.figures()
    assert sum(figures.query_counts) == figures.queries == sum(count for _, count in answers)
    assert figures.query_us == pytest.approx(sum(seconds for seconds, _ in answers) * 1e6, abs=5)


def test_names_that_clients_bring_cannot_fill_the_memory() -> None:
    meters = Meters(meters_max=10)
    for number in range(50):
        meters.of("demo/orders", f"user{number}", "shop").queries += 1
    assert meters.of("demo/orders", "another", "shop") is meters.of("demo/orders", OTHERS, OTHERS)
    assert meters.figures()["demo/orders"].queries == 50
    assert len(meters.of_instance("demo/orders")) == 11
    for number in range(999):
        meters.inflow("demo/orders").refuse(f"{number:05}")
    assert len(meters.inflow("demo/orders").refused) <= COMPLAINTS_MAX + 1


def test_the_figures_of_an_instance_are_those_of_all_its_users_and_of_who_was_refused() -> None:
    meters = Meters()
    meters.of(*APP).failed("40001")
    meters.of("demo/orders", "report", "shop").failed("40P01")
    meters.of("demo/other", "app", "shop").told("57P01")
    meters.inflow("demo/orders").refuse("28P01")
    figures = meters.figures()
    assert figures["demo/orders"].errors == {"40": 2}
    assert figures["demo/orders"].refused == {"28P01": 1}
    assert figures["demo/other"].ended == {"57P01": 1}
    meters.wish({"demo/other": 0.5})
    assert set(meters.figures()) == {"demo/other"}
    assert meters.of_instance("demo/orders") == []
    assert meters.of("demo/other", "app", "shop").wishes.slow_s == 0.5


def test_averages_are_of_the_last_whole_period() -> None:
    meters = Meters(now=100.0)
    meter = meters.of(*APP)

    def rate(now: float) -> float:
        ((_, stretch),) = meters.last_period("demo/orders", now)
        return (stretch.after.queries - stretch.before.queries) / stretch.seconds

    meter.queries += 30
    assert rate(110.0) == pytest.approx(3.0)  # the first period is not over: since the start
    meters.roll(100.0 + PERIOD_S)
    assert rate(100.0 + PERIOD_S) == pytest.approx(0.5)
    meter.queries += 600
    meters.roll(100.0 + PERIOD_S + 1)  # too soon
    assert rate(100.0 + PERIOD_S + 30) == pytest.approx(0.5)
    meters.roll(100.0 + 2 * PERIOD_S)
    assert rate(100.0 + 2 * PERIOD_S) == pytest.approx(10.0)


def test_reports_of_many_instances_hold_the_busiest() -> None:
    meters = Meters(figures_max=3)
    for number in range(6):
        meters.of(f"demo/i{number}", "app", "shop").logins = number
    assert set(meters.figures()) == {"demo/i3", "demo/i4", "demo/i5"}


def test_adding_meters_is_adding_their_figures() -> None:
    one, other = (Meter("demo/orders", name, "shop") for name in ("app", "report"))
    for number, name in enumerate(name for name in Meter.__slots__ if isinstance(getattr(one, name), int | float)):
        setattr(one, name, number)
        setattr(other, name, 1000 * number)
    one.query_counts[3], other.query_counts[5], other.wait_counts[0] = 7, 8, 9
    one.failed("40001")
    other.failed("40P01")
    other.told("57P01")
    together = one.figures() + other.figures()
    total = Meter("demo/orders", "", "")
    one.add_to(total)
    other.add_to(total)
    assert total.figures() == together
