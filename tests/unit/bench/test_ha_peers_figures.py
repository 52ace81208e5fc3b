"""The arithmetic of the side-by-side bench: what is a gap, what is a ratio, what the tables say."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.peers.figures import (
    BEGIN,
    END,
    Creation,
    Round,
    Spread,
    between_markers,
    count_between,
    longest_gap,
    markdown,
    ratios,
    rows,
    spreads,
    tables,
)

ROUND = Round(
    system="moorage",
    case="node_loss",
    number=1,
    gap_s=6.0,
    recovered=True,
    healed=True,
    heal_s=2.0,
    heal_gap_s=0.1,
    errors=3,
    failed_writes=1,
    lost=0,
    doubtful=0,
    said=(),
)


def peer(gap_s: float, **changes: object) -> Round:
    return replace(ROUND, system="patroni", gap_s=gap_s, **changes)


# --- gaps -------------------------------------------------------------------------------------------------------------


def test_a_gap_reaches_from_the_last_write_before_the_fault_to_the_first_after_it() -> None:
    assert longest_gap([1.0, 1.9, 5.0, 5.1, 6.0], since=2.0, until=5.5) == pytest.approx(3.1)


def test_a_pause_that_was_over_before_the_fault_is_no_gap() -> None:
    assert longest_gap([0.0, 8.0, 8.5, 9.0, 9.5], since=8.2, until=9.2) == pytest.approx(0.5)


def test_a_pause_long_after_writes_went_on_is_no_gap() -> None:
    assert longest_gap([0.9, 1.1, 1.2, 2.0, 90.0], since=1.0, until=1.5) == pytest.approx(0.8)


def test_silence_to_the_end_is_a_gap() -> None:
    assert longest_gap([1.0, 2.0], since=2.5, until=102.0) == pytest.approx(100.0)


def test_no_acknowledgement_at_all_is_a_gap_of_the_whole_time() -> None:
    assert longest_gap([], since=2.0, until=7.0) == pytest.approx(5.0)


def test_a_time_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(ValueError, match="before it begins"):
        longest_gap([1.0], since=2.0, until=1.0)


@given(st.lists(st.floats(0, 100), max_size=30), st.floats(20, 60), st.floats(0, 20), st.floats(0, 1))
def test_another_write_during_the_time_never_makes_the_gap_longer(
    times: list[float], since: float, length: float, share: float
) -> None:
    until = since + length
    another = min(until, since + share * length)
    assert longest_gap([*times, another], since, until) <= longest_gap(times, since, until)


def test_errors_are_counted_from_the_fault_until_writes_are_steady() -> None:
    assert count_between([0.5, 1.0, 1.5, 2.0, 2.5], 1.0, 2.0) == 3


# --- spreads, ratios, rows --------------------------------------------------------------------------------------------


def test_rounds_of_one_fault_become_minimum_median_maximum() -> None:
    found = spreads([peer(30.0), peer(20.0), peer(31.0)])
    assert found == {("patroni", "node_loss"): Spread(20.0, 30.0, 31.0)}


def test_a_ratio_is_our_median_to_the_peers() -> None:
    gaps = spreads([ROUND, replace(ROUND, gap_s=7.0), replace(ROUND, gap_s=50.0), peer(28.0)])
    assert ratios(gaps) == {("patroni", "node_loss"): 0.25}


def test_a_fault_that_one_side_has_not_seen_has_no_ratio() -> None:
    assert ratios(spreads([ROUND, peer(20.0, case="switchover")])) == {}


def test_rows_have_the_common_form_and_count_lost_writes_over_all_rounds() -> None:
    made = rows([ROUND, peer(20.0, lost=2), peer(24.0, lost=1), peer(22.0, lost=-1)], [])
    values = {(row["case"], row["system"], row["metric"]): row["value"] for row in made}
    assert {*made[0]} == {"case", "system", "metric", "unit", "value"}
    assert values["node_loss", "patroni", "lost_writes"] == 3
    assert values["node_loss", "patroni", "write_gap_median"] == 22.0
    assert values["node_loss", "patroni", "moorage_to_peer"] == pytest.approx(6 / 22, abs=1e-4)


def test_what_the_file_holds_makes_the_same_rounds_again() -> None:
    one = replace(ROUND, said=("it broke", "it is refused"))
    assert Round.read(json.loads(json.dumps(asdict(one)))) == one


# --- tables -----------------------------------------------------------------------------------------------------------


def test_the_tables_show_ratios_figures_and_errors() -> None:
    text = tables([ROUND, peer(24.0, errors=700)], [Creation(system="patroni", seconds=8.0, version="4.1.5, ttl 30")])
    assert "0.25 (1/4.0)" in text
    assert "24.00" in text
    assert "700, 0 lost" in text
    assert "create three members" in text
    assert "Patroni, defaults: 4.1.5, ttl 30." in text


def test_a_round_that_went_wrong_is_said_beside_the_medians() -> None:
    text = tables([peer(100.0, recovered=False, healed=False, lost=-1, note="no leader")], [])
    assert "no writes again within 100 s, not whole again within the bound, the table could not" in text
    assert "(no leader)" in text


def test_our_figures_alone_make_a_table_without_ratios() -> None:
    text = tables([ROUND], [])
    assert "share of the peer" not in text
    assert "6.00" in text


def test_columns_of_a_table_are_even() -> None:
    lines = markdown(["a", "long head"], [["wide cell", "b"]]).splitlines()
    assert len({len(line) for line in lines}) == 1


def test_only_what_stands_between_the_markers_is_replaced() -> None:
    document = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = between_markers(document, "new")
    assert once == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    assert between_markers(once, "new") == once


def test_a_document_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="no part between"):
        between_markers("nothing here", "new")


def test_the_published_document_has_a_place_for_the_tables() -> None:
    document = Path(__file__).resolve().parents[3] / "docs" / "benchmarks.md"
    assert "the tables" in between_markers(document.read_text(), "the tables")
