"""Figures add up, and survive the wire; a histogram's buckets hold every time exactly once."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.figures import BOUNDS_S, BUCKETS, Figures, bucket_labels, sum_of, sums_of, unpacked

counts = st.lists(st.integers(0, 1 << 50), max_size=BUCKETS).map(tuple)
by_state = st.dictionaries(st.sampled_from(["28P01", "53300", "57P01", "40", "23"]), st.integers(1, 1 << 40))
figures = st.builds(
    Figures,
    queries=st.integers(0, 1 << 60),
    query_us=st.integers(0, 1 << 60),
    logins=st.integers(0, 1 << 40),
    slow=st.integers(0, 1 << 40),
    query_counts=counts,
    wait_counts=counts,
    errors=by_state,
    refused=by_state,
    ended=by_state,
)


@given(figures)
def test_what_is_packed_into_json_is_unpacked_as_it_was(one: Figures) -> None:
    back = unpacked(json.loads(json.dumps(one.packed())))
    assert back.packed() == one.packed()
    assert back + one == one + one


@given(figures, figures, figures)
def test_figures_add_up_in_any_order(one: Figures, two: Figures, three: Figures) -> None:
    together = sum_of([one, two, three])
    assert together == (three + one) + two
    assert together.queries == one.queries + two.queries + three.queries
    assert sum(together.query_counts) == sum(map(sum, (one.query_counts, two.query_counts, three.query_counts)))
    for code in together.refused:
        assert together.refused[code] == sum(part.refused.get(code, 0) for part in (one, two, three))


def test_nothing_counted_costs_nothing_on_the_wire() -> None:
    assert Figures().packed() == {}
    assert len(json.dumps(Figures(queries=5).packed())) < 12


@pytest.mark.parametrize(
    "raw", [{"z": 1}, {"n": ["5"]}, {"n": [1] * 99}, {"q": [1.5]}, {"e": {"40": "many"}}, {"n": 3}]
)
def test_what_are_no_figures_is_refused(raw: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected form"):
        unpacked(raw)


def test_the_bounds_are_sorted_and_labelled() -> None:
    assert list(BOUNDS_S) == sorted(set(BOUNDS_S))
    assert len(bucket_labels()) == BUCKETS
    assert [float(label) for label in bucket_labels()[:-1]] == list(BOUNDS_S)


@given(st.lists(st.dictionaries(st.sampled_from(["demo/a", "demo/b", "demo/c"]), figures), max_size=4))
def test_reports_of_several_processes_add_up_by_instance(reports: list[dict[str, Figures]]) -> None:
    sums = sums_of(reports)
    assert set(sums) == {instance for report in reports for instance in report}
    for instance, total in sums.items():
        assert total == sum_of(report[instance] for report in reports if instance in report)
