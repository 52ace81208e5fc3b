"""The arithmetic of the proxy bench: what pgbench said, what a slice cost, what is a ratio, what the tables say."""

from __future__ import annotations

import pytest

from tests.bench.relays.cases import Case, all_cases, chosen_cases
from tests.bench.relays.figures import BOUNDS, Bound, Slice, added, medians, ratios, rows, tables
from tests.bench.relays.pgbench import Outcome, arguments, read_logs, read_outcome, used_between

REPORT = """pgbench (15.20 (Debian 15.20-0+deb12u1))
transaction type: <builtin: select only>
scaling factor: 10
query mode: prepared
number of clients: 64
number of threads: 2
maximum number of tries: 1
duration: 3 s
number of transactions actually processed: 30000
number of failed transactions: 0 (0.000%)
latency average = 3.100 ms
initial connection time = 85.412 ms
tps = 10000.500000 (without initial connection time)
"""
CASE = "prepared_64_session"


def slice_of(system: str, number: int, case: str = CASE, **metrics: float) -> Slice:
    return Slice(case=case, system=system, number=number, metrics=metrics)


# --- cases ------------------------------------------------------------------------------------------------------------


def test_names_of_cases_are_different_and_tell_all() -> None:
    names = [case.name for case in all_cases()]
    assert len(set(names)) == len(names)
    assert {CASE, "simple_256_session_tls", "extended_16_transaction", "connect_8_session", "idle_1000_session"} <= set(
        names
    )


def test_cases_are_chosen_by_pattern_in_the_usual_order() -> None:
    assert [case.name for case in chosen_cases(["idle_*", "prepared_1_session"])] == [
        "prepared_1_session",
        "idle_1000_session",
        "idle_1000_session_tls",
        "idle_9800_transaction",
    ]
    assert chosen_cases([]) == all_cases()


def test_a_pattern_that_fits_no_case_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"'prepared_65_session'; there are prepared_64_session"):
        chosen_cases(["prepared_65_session"])


def test_only_systems_that_pool_by_transaction_are_asked_to() -> None:
    wanted = ["moorage", "pgbouncer", "haproxy"]
    assert Case("simple", 1, "transaction").systems(wanted) == ["moorage", "pgbouncer"]
    assert Case("prepared", 1, "transaction").systems(wanted) == ["moorage"]


def test_the_engine_has_no_memory_of_a_proxy_to_measure() -> None:
    assert Case("idle", 1000).systems(["direct", "moorage"]) == ["moorage"]


def test_bounds_are_about_cases_that_exist() -> None:
    names = {case.name for case in all_cases()}
    assert {bound.case for bound in BOUNDS} <= names


# --- pgbench ----------------------------------------------------------------------------------------------------------


def test_a_report_tells_transactions_and_their_rate() -> None:
    outcome = read_outcome(REPORT)
    assert outcome == Outcome(30000, 10000.5)
    assert outcome.seconds == pytest.approx(3.0, abs=0.001)


@pytest.mark.parametrize(
    ("changed", "to"),
    [
        ("number of failed transactions: 0", "number of failed transactions: 7"),
        ("processed: 30000", "processed: 0"),
        ("tps = ", "pgbench: error: Run was aborted; the above results are incomplete.\ntps = "),
        (REPORT, 'pgbench: error: connection to server at "127.0.0.1" failed'),
    ],
)
def test_a_run_that_was_not_whole_is_no_figure(changed: str, to: str) -> None:
    assert changed in REPORT
    with pytest.raises(ValueError, match=r"failed|end"):
        read_outcome(REPORT.replace(changed, to))


def test_connecting_for_each_transaction_is_said_to_pgbench() -> None:
    words = arguments(Case("connect", 8), 2.0, conninfo="port=1", log_prefix="/tmp/log")
    assert "-C" in words
    assert words[words.index("-M") + 1] == "simple"
    assert words[words.index("-T") + 1] == "2"
    assert words[-1] == "port=1"
    assert "-C" not in arguments(Case("prepared", 64), 2.0, conninfo="port=1", log_prefix="/tmp/log")


def test_latencies_and_the_end_come_from_the_log() -> None:
    logged = read_logs(f"3 {number} {number * 10} 0 1000 {500_000 + number}" for number in range(100))
    assert (logged.p50_ms, logged.p99_ms) == (0.5, 0.99)
    assert logged.end == pytest.approx(1000.500099)


def test_a_log_without_a_line_is_no_figure() -> None:
    with pytest.raises(ValueError, match="no transaction"):
        read_logs([])


def test_processor_time_is_that_of_the_transactions_and_not_of_connecting_before() -> None:
    samples = [(0.0, 5.0), (1.0, 5.8), (2.0, 6.0), (3.0, 6.2), (4.0, 6.2)]
    assert used_between(samples, 1.0, 3.0) == pytest.approx(0.4)
    assert used_between(samples, 1.5, 2.5) == pytest.approx(0.2)
    assert used_between(samples, -1.0, 9.0) == pytest.approx(1.2)


# --- ratios and tables ------------------------------------------------------------------------------------------------


def test_a_ratio_is_between_slices_of_the_same_round() -> None:
    slices = [
        *(slice_of("moorage", number, tps=tps) for number, tps in enumerate((80.0, 8.0, 90.0), 1)),
        *(slice_of("pgbouncer", number, tps=tps) for number, tps in enumerate((100.0, 10.0, 100.0), 1)),
    ]
    assert ratios(slices)[CASE, "moorage", "ratio_to_pgbouncer"] == pytest.approx(0.8)
    assert medians(slices)[CASE, "moorage", "tps"] == 80.0


def test_a_round_that_only_one_of_them_has_seen_has_no_ratio() -> None:
    assert ratios([slice_of("moorage", 1, tps=1.0), slice_of("pgbouncer", 2, tps=1.0)]) == {}


def test_a_lone_clients_added_latency_is_the_difference_to_the_engine_alone() -> None:
    case = "prepared_1_session"
    slices = [slice_of("direct", 1, case, p50_ms=0.05), slice_of("moorage", 1, case, p50_ms=0.11)]
    assert added(slices) == {(case, "moorage", "added_p50_us"): pytest.approx(60.0)}
    assert added([slice_of("direct", 1, p50_ms=0.05), slice_of("moorage", 1, p50_ms=0.11)]) == {}


def test_rows_have_the_common_form() -> None:
    made = rows([slice_of("moorage", 1, tps=9.0, p99_ms=2.0), slice_of("haproxy", 1, tps=10.0, p99_ms=1.0)])
    assert {*made[0]} == {"case", "system", "metric", "unit", "value"}
    values = {(row["system"], row["metric"]): (row["value"], row["unit"]) for row in made}
    assert values["moorage", "ratio_to_haproxy"] == (0.9, "x")
    assert values["moorage", "p99_ratio_to_haproxy"] == (2.0, "x")
    assert values["haproxy", "tps"] == (10.0, "1/s")


@pytest.mark.parametrize(("value", "least", "kept"), [(1.0, True, True), (0.9, True, False), (1.1, False, False)])
def test_a_bound_is_a_least_or_a_most(value: float, least: bool, kept: bool) -> None:
    assert Bound(CASE, "ratio_to_pgbouncer", 1.0, least=least).kept_by(value) is kept


def test_the_tables_tell_bounds_ratios_and_figures() -> None:
    text = tables(
        [
            slice_of("moorage", 1, tps=900.0, cpu_us_per_transaction=30.0),
            slice_of("pgbouncer", 1, tps=1000.0, cpu_us_per_transaction=24.0),
        ]
    )
    assert "0.90 (not yet)" in text
    assert "| 1.25 " in text
    assert "| 30.0 " in text
    assert "Memory" not in text


def test_what_others_took_of_the_machine_is_said() -> None:
    text = tables([slice_of("moorage", number, tps=1.0, others_share=number / 100) for number in range(1, 11)])
    assert "Others took 6% of the machine meanwhile (median of 10 slices in up to 10 rounds; 9% in" in text


def test_a_system_alone_makes_tables_without_ratios() -> None:
    text = tables([slice_of("moorage", 1, tps=900.0)])
    assert "share of the peer" not in text
    assert "900" in text
