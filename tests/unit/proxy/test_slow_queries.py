"""Which statement a slow query was, told from the beginning of what its client sent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.postgres.messages import SYNC, close, message, parse, run
from proxy.slow_queries import KEPT_BYTES_MAX, LOGGED_PER_S, STATEMENT_BYTES_MAX, SlowQueries, beginning, statement_of
from tests.support.clocks import ManualClock
from tests.support.logs import logged_by

WHO = {"client": "10.0.0.9", "user": "app", "database": "shop", "instance": "demo/orders", "server": "m1"}
UPDATE = b"UPDATE stock SET left = left - $1 WHERE id = $2"


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (message(b"Q", b"SELECT 1\0"), "SELECT 1"),
        (parse(b"", UPDATE) + run(b"", [b"5", b"secret"]) + SYNC, UPDATE.decode()),
        (run(b"s1", [b"5", b"secret"]) + SYNC, UPDATE.decode()),
        (close(b"old") + run(b"s1", [b"5", b"secret"]) + SYNC, UPDATE.decode()),
        (run(b"never prepared") + SYNC, ""),
        (SYNC, ""),
        (b"Q\0\0", ""),
        (b"", ""),
        (message(b"Q", b"  SELECT\n  'gr\xc3\xbc\xc3\x9fe'\0"), "SELECT\n  'grüße'"),
        (message(b"Q", b"SELECT '\xff'\0"), "SELECT ''"),
    ],
)
def test_the_statement_is_told_and_no_parameter_is(sent: bytes, told: str) -> None:
    assert statement_of(beginning(sent), lambda name: UPDATE if name == b"s1" else b"") == told


@given(st.integers(1, 3 * KEPT_BYTES_MAX), st.sampled_from([b"Q", b"P"]))
def test_a_long_statement_is_shortened(length: int, kind: bytes) -> None:
    body = b"x" * length + b"\0"
    sent = message(kind, body if kind == b"Q" else b"name\0" + body + b"\0\0")
    told = statement_of(beginning(sent), lambda _: b"")
    assert told == ("x" * length if length <= STATEMENT_BYTES_MAX else "x" * STATEMENT_BYTES_MAX + "…")


@given(st.binary(max_size=200))
def test_no_bytes_of_a_client_are_too_odd(data: bytes) -> None:
    statement_of(data, lambda _: b"")


def test_a_database_that_is_slow_as_a_whole_does_not_fill_the_disk() -> None:
    clock = ManualClock()
    slow = SlowQueries(clock)
    with logged_by("proxy.slow_queries") as logged:
        for _ in range(3 * LOGGED_PER_S):
            slow.note("SELECT 1", **WHO, duration_s=0.7, waited_s=0.0)
        clock.advance(1.5)
        slow.note("SELECT 2", **WHO, duration_s=0.8004, waited_s=0.25)
    assert [event for event, _ in logged].count("query_slow") == LOGGED_PER_S + 1
    assert ("slow_queries_left_out", {"count": 2 * LOGGED_PER_S}) in logged
    times = {"duration_ms": 800.4, "waited_ms": 250.0}
    assert logged[-1] == ("query_slow", {**WHO, **times, "statement": "SELECT 2"})
