"""What passes of a server's words where a commit must not be acknowledged without its standbys."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.postgres.doubt import HELD_BYTES_MAX, NOT_REPLICATED, Doubt
from proxy.postgres.messages import message

WARNING = message(
    b"N",
    b"SWARNING\0VWARNING\0C01000\0Mcanceling wait for synchronous replication due to user request\0"
    b"DThe transaction has already committed locally, but might not have been replicated to the standby.\0\0",
)
TRANSLATED = message(b"N", b"SWARNUNG\0VWARNING\0C01000\0Mgehe nicht weiter\0RSyncRepWaitForLSN\0\0")
NOTICE = message(b"N", b"SNOTICE\0VNOTICE\0C00000\0Mhello\0\0")
ROWS, ROW, DONE = message(b"T", b"\0\1n\0"), message(b"D", b"\0\1\0\0\0\0011"), message(b"C", b"INSERT 0 1\0")
BOUND, READY = message(b"2"), message(b"Z", b"I")
BIG = message(b"D", b"x" * 5000)


def passed(*chunks: bytes, awaited: bool = True) -> list[bytes]:
    doubt = Doubt()
    return [doubt.feed(chunk, awaited=awaited) for chunk in chunks]


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([DONE + READY], [DONE + READY]),
        ([ROWS + ROW, ROW + DONE, READY], [ROWS + ROW, ROW, DONE + READY]),
        ([DONE, NOTICE, READY], [b"", b"", DONE + NOTICE + READY]),
        ([DONE, BOUND + ROW], [b"", DONE + BOUND + ROW]),
        ([NOTICE], [NOTICE]),
        ([ROW + DONE[:4], DONE[4:], READY], [ROW, b"", DONE + READY]),
        ([BIG[:100], BIG[100:200], BIG[200:] + READY], [BIG[:100], BIG[100:200], BIG[200:] + READY]),
        ([message(b"G", b"\0\0\0")], [message(b"G", b"\0\0\0")]),
    ],
)
def test_an_acknowledgement_waits_for_what_follows_it(chunks, expected):
    assert passed(*chunks) == expected


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([WARNING + DONE + READY], WARNING + NOT_REPLICATED + READY),
        ([DONE + TRANSLATED + READY], TRANSLATED + NOT_REPLICATED + READY),
        ([DONE + WARNING + READY], WARNING + NOT_REPLICATED + READY),
        ([DONE, WARNING, READY], WARNING + NOT_REPLICATED + READY),
        ([ROWS + ROW + DONE, WARNING[:50], WARNING[50:] + READY], ROWS + ROW + WARNING + NOT_REPLICATED + READY),
        ([DONE + BOUND + DONE, WARNING + READY], DONE + BOUND + WARNING + NOT_REPLICATED + READY),
        ([WARNING + DONE + NOTICE + BIG[:90], BIG[90:], READY], WARNING + NOT_REPLICATED + NOTICE + READY),
        ([WARNING + DONE, READY + DONE + READY], WARNING + NOT_REPLICATED + READY + DONE + READY),
        ([WARNING + WARNING + READY], WARNING + NOT_REPLICATED + WARNING + READY),
        ([DONE + WARNING], WARNING + NOT_REPLICATED),
    ],
)
def test_an_acknowledgement_in_doubt_is_replaced_by_an_error(chunks, expected):
    assert b"".join(passed(*chunks)) == expected


def test_rows_that_end_like_a_ready_do_not_hide_a_warning():
    row = message(b"D", b"x" * 40 + READY + b"y" * 9)
    heard = b"".join(passed(ROWS + row[:-9], row[-9:] + DONE, WARNING, READY))
    assert heard == ROWS + row + WARNING + NOT_REPLICATED + READY


def test_an_acknowledgement_that_no_sync_has_asked_for_passes_at_once():
    """Its client may wait for it before it sends the Sync that commits."""
    assert passed(DONE, awaited=False) == [DONE]


@given(
    st.lists(st.sampled_from([ROWS, ROW, DONE, BOUND, NOTICE, READY, BIG]), max_size=15),
    st.lists(st.integers(0), max_size=15),
)
def test_without_a_warning_everything_arrives_as_it_came(messages, cuts):
    data = b"".join([*messages, READY])
    edges = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    assert b"".join(passed(*(data[begin:end] for begin, end in itertools.pairwise(edges)))) == data


@given(
    st.lists(st.sampled_from([ROW, DONE, BOUND, NOTICE]), max_size=8),
    st.lists(st.sampled_from([DONE, NOTICE, BIG]), max_size=8),
    st.lists(st.integers(0), max_size=10),
)
def test_however_it_is_split_nothing_is_acknowledged_behind_a_warning(before, behind, cuts):
    data = b"".join([*before, WARNING, *behind, READY])
    edges = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    heard = b"".join(passed(*(data[begin:end] for begin, end in itertools.pairwise(edges))))
    head, error, tail = heard.partition(NOT_REPLICATED)
    assert error
    assert DONE not in tail
    assert BIG not in tail
    assert tail.endswith(READY)
    assert not head.removesuffix(WARNING).endswith(DONE)


@given(st.lists(st.binary(max_size=80), max_size=10))
def test_any_bytes_are_taken_and_little_is_held(chunks):
    doubt = Doubt()
    for chunk in chunks:
        doubt.feed(chunk, awaited=True)
    assert len(doubt._held) <= HELD_BYTES_MAX + 800
