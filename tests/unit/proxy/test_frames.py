"""Where messages end in the stream from server to client."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.postgres.frames import READY_BYTES, Boundary


def message(kind: str, body: bytes = b"") -> bytes:
    return kind.encode() + struct.pack("!I", len(body) + 4) + body


IDLE = message("Z", b"I")
LARGE = message("D", b"r" * (3000))
STREAM = st.lists(
    st.tuples(st.sampled_from("RSKZTDCENAGHsn1"), st.binary(max_size=60) | st.just(b"x" * (3000))).map(
        lambda pair: message(*pair)
    ),
    max_size=25,
)


def after(*chunks: bytes) -> Boundary:
    boundary = Boundary()
    for chunk in chunks:
        boundary.feed(chunk)
    return boundary


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[begin:end] for begin, end in itertools.pairwise(edges)]


def naive(data: bytes) -> bool:
    """Whether the bytes are whole messages."""
    at = 0
    while at + 5 <= len(data):
        at += 1 + struct.unpack_from("!I", data, at + 1)[0]
    return at == len(data)


ERROR = message("E", b"SERROR\0VERROR\0C23505\0Mduplicate\0Cnot this one\0\0")


@pytest.mark.parametrize(
    ("chunks", "sqlstates"),
    [
        ([IDLE], []),
        ([ERROR + IDLE], ["23505"]),
        ([message("D", b"x\0C99999\0") + ERROR + message("N", b"C01000\0") + ERROR + IDLE], ["23505", "23505"]),
        ([ERROR[:3], ERROR[3:]], ["23505"]),
        ([ERROR[:12], ERROR[12:]], [""]),
        ([message("E", b"\0")], [""]),
        ([message("E", b"\0C1")], [""]),
    ],
)
def test_what_errors_tell_is_kept_for_who_counts_them(chunks: list[bytes], sqlstates: list[str]) -> None:
    assert after(*chunks).sqlstates == sqlstates


@pytest.mark.parametrize(
    ("chunks", "between"),
    [
        ([], True),
        ([IDLE], True),
        ([message("R", b"\0\0\0\x0a")], True),
        ([message("G", b"\0\0\0")], True),
        ([message("1") + message("t", b"\0\0")], True),
        ([IDLE[:3]], False),
        ([IDLE[:3], IDLE[3:]], True),
        ([message("D", b"abc")[:-1]], False),
        ([LARGE[:100], LARGE[100:-1]], False),
        ([LARGE[:100], LARGE[100:]], True),
        ([LARGE], True),
        ([LARGE + LARGE[:1000]], False),
        ([LARGE, message("C", b"SELECT 1\0") + IDLE], True),
        ([LARGE, IDLE[:2], IDLE[2:]], True),
        ([message("D", b"x" * 50 + IDLE)[:-1]], False),
        ([message("D", b"x" * 50 + IDLE + b"rest")[:-4]], False),
        ([LARGE[:-1] + IDLE[:-1]], False),
        ([b"Z\0\0\0\3"], False),
    ],
)
def test_the_place_is_known_or_said_to_be_lost(chunks, between):
    assert after(*chunks).between is between


@given(STREAM, st.lists(st.integers(0), max_size=30))
def test_the_place_is_followed_exactly(messages, cuts):
    data = b"".join(messages)
    boundary, seen = Boundary(), b""
    for chunk in split(data, cuts):
        boundary.feed(chunk)
        seen += chunk
        assert boundary.between is naive(seen)


@given(STREAM, st.lists(st.integers(0), max_size=30))
def test_every_ready_is_counted_and_only_those(messages, cuts):
    pairs = list(zip((piece for piece in messages if piece[:1] != b"Z"), itertools.cycle([1, 0, 2]), strict=False))
    pairs = [(message("D", IDLE) + piece, count) for piece, count in pairs]
    data, expected = b"".join(piece + IDLE * count for piece, count in pairs), sum(count for _, count in pairs)
    boundary, counted = Boundary(), 0
    for chunk in split(data, cuts):
        boundary.feed(chunk)
        counted += boundary.readies
    assert counted == expected
    assert boundary.between
    assert not expected or boundary.state == ord("I")


def test_data_that_ends_like_a_ready_is_not_one():
    row = message("D", b"\0\1\0\0\1\0" + b"x" * 200 + IDLE + b"y" * 50)
    boundary = after(IDLE, message("T", b"\0\1") + row[:-50])
    assert (boundary.readies, boundary.between) == (0, False)
    boundary.feed(row[-50:] + message("C", b"SELECT 1\0") + IDLE)
    assert (boundary.readies, boundary.between) == (1, True)


def test_what_is_no_such_stream_is_lost_for_ever():
    boundary = after(IDLE, b"Z\0\0\0\3" + IDLE, IDLE)
    assert boundary.lost
    assert not boundary.between


def test_a_request_for_copy_data_is_remembered_until_the_server_is_ready():
    asked = after(message("G", b"\0\0\0"), message("N", b"SNOTICE\0\0"))
    assert asked.copy_asked
    asked.feed(message("C", b"COPY 1\0") + IDLE)
    assert not asked.copy_asked


def test_an_error_is_the_last_word_until_something_follows_it():
    refused = message("E", b"SFATAL\0\0")
    assert after(IDLE, refused).after_error
    assert after(IDLE, refused[:4], refused[4:]).after_error
    assert not after(IDLE, refused[:9]).after_error
    assert not after(IDLE, refused, IDLE).after_error
    assert not after(refused, LARGE, IDLE).after_error


@given(st.lists(st.binary(max_size=40), max_size=10))
def test_any_bytes_are_followed_without_growing(chunks):
    assert len(after(*chunks)._head) < READY_BYTES
