"""Whether a client is at rest, and what of its words is kept."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.postgres.messages import SYNC, close, message, parse, run
from proxy.postgres.requests import KEPT_BYTES_MAX, NAMES_MAX, Pool, Requests
from proxy.postgres.statements import READ_BYTES_MAX


def query(statement: str) -> bytes:
    return message(b"Q", statement.encode() + b"\0")


def after(*data: bytes) -> Requests:
    requests = Requests()
    for chunk in data:
        requests.feed(chunk)
    return requests


EXTENDED = parse(b"", b"SELECT 1") + run(b"")
DATA, DONE = message(b"d", b"1\n"), message(b"c")


@pytest.mark.parametrize(
    ("data", "owed", "resting"),
    [
        (b"", 0, True),
        (query("SELECT 1"), 1, False),
        (query("SELECT 1") * 3, 3, False),
        (EXTENDED, 0, False),
        (EXTENDED + message(b"H"), 0, False),
        (EXTENDED + SYNC, 1, False),
        ((EXTENDED + SYNC) * 4, 4, False),
        (SYNC, 1, False),
        (message(b"H"), 0, True),
        (message(b"F", b"\0" * 10), 1, False),
        (query("SELECT 1")[:3], 0, False),
        (query("SELECT 1")[:-1], 0, False),
        (message(b"B", b"x" * 100)[:50], 0, False),
    ],
)
def test_what_the_server_owes_is_counted(data, owed, resting):
    requests = after(data)
    assert (requests.outstanding, requests.resting) == (owed, resting)


def test_a_session_rests_when_all_is_answered_and_no_transaction_is_open():
    requests = after(query("BEGIN"), EXTENDED + SYNC)
    requests.ready(1, ord("T"))
    assert not requests.resting
    requests.ready(1, ord("T"))
    assert not requests.resting
    requests.feed(query("COMMIT"))
    requests.ready(1, ord("I"))
    assert requests.resting


@given(
    st.lists(st.sampled_from([query("SELECT 1"), EXTENDED, SYNC, close(b"a"), parse(b"a", b"SELECT 2")]), max_size=12),
    st.lists(st.integers(0, 400), max_size=12),
)
def test_any_split_of_the_stream_is_understood_alike(pieces, cuts):
    data = b"".join(pieces)
    edges = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    whole, split = after(data), after(*(data[begin:end] for begin, end in itertools.pairwise(edges)))
    for name in ("outstanding", "open", "prepared", "unnamed", "resting"):
        assert getattr(whole, name) == getattr(split, name)


@pytest.mark.parametrize("describe", [b"", message(b"D", b"P\0")])
@pytest.mark.parametrize("count", [1, 2])
def test_a_buffer_that_is_known_by_its_end_counts_as_one_that_is_walked_through(describe, count):
    """The values may look like the messages behind them."""
    tail = describe + message(b"E", b"\0" * 5) + SYNC
    data = (message(b"B", b"\0s\0" + tail) + tail) * count
    before = query("SELECT 1")
    whole, split = after(before, data), after(before, data[:7], data[7:])
    for name in ("outstanding", "open", "touched", "resting", "_syncs", "_copying", "_left", "_part"):
        assert getattr(whole, name) == getattr(split, name), name
    assert whole.outstanding == 1 + count


def test_statements_that_somebody_else_keeps_are_looked_at_all_the_same():
    requests = Requests(keeps=False)
    requests.feed(parse(b"s", b"SET work_mem = '1MB'") + SYNC)
    assert requests.changed
    assert requests.prepared == {}
    assert requests.obstacle is not None
    requests.feed(parse(b"", b"SELECT 1") + parse(b"t", b"x" * (READ_BYTES_MAX + 1)))
    assert not requests.unnamed
    assert not requests.unnamed_lost
    assert not requests.overflowed


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_any_bytes_are_taken_without_a_failure(chunks):
    requests = after(*chunks)
    assert len(requests._part) <= 60 * 8


# --- COPY -----------------------------------------------------------------------------------------------------------


def test_the_sync_that_a_copying_server_ignores_is_not_waited_for():
    requests = after(SYNC + parse(b"", b"COPY t FROM STDIN") + run(b"") + SYNC)
    assert requests.outstanding == 2
    requests.copy_asked = True
    requests.feed(DATA)
    assert (requests.outstanding, requests.open) == (1, True)
    requests.feed(DATA + DONE + SYNC)
    assert (requests.outstanding, requests.open) == (2, False)


def test_a_copy_by_a_simple_query_is_owed_one_answer():
    requests = after(query("COPY t FROM STDIN"))
    requests.copy_asked = True
    requests.feed(DATA * 5 + DONE)
    assert requests.outstanding == 1
    requests.ready(1, ord("I"))
    assert requests.resting


def test_a_client_need_not_wait_to_be_asked_for_the_data_of_a_simple_query():
    requests = after(EXTENDED, query("COPY t FROM STDIN") + DATA, DATA + DONE)
    requests.ready(1, ord("I"))
    assert requests.resting


def test_data_that_nobody_asked_for_leaves_it_unclear_for_ever():
    requests = after(EXTENDED + SYNC, DATA + DONE + SYNC)
    requests.ready(2, ord("I"))
    assert requests.unclear
    assert not requests.resting


def test_a_session_rests_again_after_a_copy_that_the_server_broke_off():
    """Some drivers say nothing more once they have read the error; what is still on its way is dropped."""
    requests = after(query("COPY t FROM STDIN"))
    requests.copy_asked = True
    requests.feed(DATA)
    requests.ready(1, ord("I"))
    assert requests.resting
    requests.feed(DATA)
    assert requests.resting
    requests.feed(query("SELECT 1"))
    requests.ready(1, ord("I"))
    assert requests.resting


def test_a_copy_follows_one_by_the_extended_protocol_that_was_broken_off():
    copy = parse(b"", b"COPY t FROM STDIN") + run(b"") + SYNC
    requests = after(copy)
    requests.copy_asked = True
    requests.feed(DATA)
    requests.feed(DATA + SYNC + copy)
    assert requests.outstanding == 2
    requests.ready(1, ord("I"))
    requests.copy_asked = True
    requests.feed(DATA + DONE + SYNC)
    assert (requests.outstanding, requests.open) == (1, False)


# --- what is kept ---------------------------------------------------------------------------------------------------


def test_named_statements_are_kept_until_they_are_closed_or_replaced():
    one, other = parse(b"a", b"SELECT 1"), parse(b"a", b"SELECT 2")
    requests = after(one + parse(b"b", b"SELECT 3") + SYNC)
    assert requests.prepared == {b"a": one, b"b": parse(b"b", b"SELECT 3")}
    requests.feed(close(b"b") + other + SYNC)
    assert requests.prepared == {b"a": other}


def test_the_unnamed_statement_lasts_until_a_simple_query():
    requests = after(EXTENDED + SYNC)
    assert requests.unnamed == parse(b"", b"SELECT 1")
    requests.feed(query("SELECT 1"))
    assert requests.unnamed == b""


def test_more_statements_than_are_kept_are_known_to_be_missing():
    big = b"SELECT '" + b"x" * (READ_BYTES_MAX - 100) + b"'"
    requests = Requests()
    for number in range(KEPT_BYTES_MAX // len(big) + 1):
        requests.feed(parse(b"s%d" % number, big) + SYNC)
    assert requests.overflowed
    assert sum(map(len, requests.prepared.values())) <= KEPT_BYTES_MAX
    assert not requests.confirm({b"s0": parse(b"s0", big), b"s%d" % number: b""})
    requests.feed(close(b"s%d" % number) + SYNC)
    assert requests.confirm({b"s0": parse(b"s0", big)})
    assert requests.prepared.keys() == {b"s0"}


def test_a_statement_too_long_to_be_read_passes_and_is_not_kept():
    requests = after(parse(b"a", b"x" * READ_BYTES_MAX)[:1000], b"x" * (READ_BYTES_MAX + 1000))
    assert requests.overflowed
    assert requests.prepared == {}
    assert len(requests._part) <= READ_BYTES_MAX


def test_the_server_has_the_last_word_about_what_is_kept():
    requests = after(parse(b"failed", b"SELEC") + SYNC + parse(b"good", b"SELECT 1") + SYNC)
    assert requests.unconfirmed == {b"failed", b"good"}
    assert requests.doubtful
    assert requests.confirm({b"good": parse(b"good", b"SELECT 1")})
    assert not requests.doubtful
    assert (requests.prepared.keys(), requests.unconfirmed) == ({b"good"}, set())


def test_changes_are_seen_in_statements_of_either_protocol():
    assert after(query("SET work_mem = 1")).changed
    assert after(parse(b"", b"SET work_mem = 1")).changed
    assert after(message(b"F", b"\0" * 8)).changed
    assert not after(query("SELECT 1"), EXTENDED, SYNC).changed
    assert after(query("SET a.b = 1"), query("SET c.d = 1")).names == {b"a.b", b"c.d"}


def test_discard_all_brings_hidden_settings_to_light():
    requests = after(query("SELECT set_config($1, $2, false)"))
    assert requests.hidden
    requests.feed(query("DISCARD ALL"))
    assert not requests.hidden


def test_a_name_that_is_used_again_is_in_doubt_until_the_server_is_asked():
    """It refuses the second Parse (42P05) and keeps the first, unless a Close came through."""
    one, other = parse(b"s1", b"SELECT 1"), parse(b"s1", b"DELETE FROM t")
    for between in (b"", close(b"s1")):
        requests = after(one + SYNC)
        requests.confirm({b"s1": one})
        requests.feed(one + SYNC)
        assert (requests.changed, requests.doubtful) == (False, False)
        requests.feed(between + other + SYNC)
        assert requests.obstacle is not None
        assert requests.doubtful
        assert requests.confirm({b"s1": one})
        assert requests.prepared == {b"s1": one}
        assert requests.obstacle is None


def test_a_statement_whose_text_was_not_asked_for_is_not_confirmed():
    requests = after(parse(b"s1", b"SELECT 1") + SYNC)
    assert not requests.confirm({b"s1": b""})
    assert requests.confirm({b"s1": parse(b"s1", b"SELECT 2")})
    assert requests.confirm({b"s1": b""})
    assert not requests.confirm(None)
    assert requests.obstacle is not None


def test_the_former_unnamed_statement_does_not_stand_in_for_one_too_long_to_be_kept():
    long = parse(b"", b"x" * READ_BYTES_MAX)
    requests = after(EXTENDED + SYNC, long[:99], long[99:], SYNC)
    requests.ready(2, ord("I"))
    requests.hidden = False
    requests.confirm({})
    assert requests.unnamed == b""
    assert requests.obstacle is not None
    requests.feed(query("SELECT 1"))
    assert requests.obstacle is None


def test_names_of_settings_are_bounded():
    requests = after(*(query(f"SET myapp.v{number} = '1'") for number in range(3 * NAMES_MAX)))
    assert requests.hidden
    assert len(requests.names) <= NAMES_MAX
    requests.feed(query("SELECT set_config('more.names', '1', false)"))
    assert len(requests.names) <= NAMES_MAX


def test_names_of_statements_are_bounded():
    requests = Requests()
    for number in range(20_000):
        requests.feed(parse(b"s%d" % number, b"SELECT 1") + SYNC)
    assert requests.overflowed
    assert len(requests.prepared) <= KEPT_BYTES_MAX // 200
    assert len(requests.unconfirmed) <= KEPT_BYTES_MAX // 200
    requests.confirm({})
    for number in range(20_000):
        requests.feed(parse(b"s%d" % number, b"SELECT 1") + close(b"s%d" % number) + SYNC)
    assert len(requests._closed) < 1000


def test_all_sessions_share_a_bound():
    pool = Pool(bytes_max=10_000)
    full, late = Requests(pool), Requests(pool)
    for number in range(100):
        full.feed(parse(b"s%d" % number, b"SELECT 1") + SYNC)
    assert 10_000 <= pool.bytes < 11_000
    late.feed(parse(b"a", b"SELECT 1") + SYNC)
    assert late.obstacle is not None
    late.confirm({})
    late.feed(parse(b"", b"SELECT 1") + SYNC)
    assert late.obstacle is not None
    full.release()
    assert pool.bytes == 0
    late.feed(parse(b"", b"SELECT 1") + SYNC)
    assert late.obstacle is None
    late.release()
    assert pool.bytes == 0


def test_a_library_that_was_loaded_stays():
    requests = after(query("LOAD 'auto_explain'"), query("DISCARD ALL"))
    requests.confirm({})
    assert requests.obstacle is not None


def test_a_client_that_silences_the_server_is_remembered():
    assert after(query("BEGIN; SET LOCAL client_min_messages = error")).muted
    assert not after(query("SET client_min_messages = warning")).muted


def test_what_is_reset_in_a_transaction_may_come_back():
    requests = after(query("SET a.b = 1"), query("BEGIN"))
    requests.ready(2, ord("T"))
    requests.feed(query("RESET ALL"))
    assert requests.names == {b"a.b"}
