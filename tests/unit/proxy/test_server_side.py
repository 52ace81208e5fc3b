"""What is read of a server's words."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.postgres.refusals import error
from proxy.postgres.server_side import MAX_GREETING_BYTES, Greeting, ready_state


def message(kind: str, body: bytes = b"") -> bytes:
    return kind.encode() + struct.pack("!I", len(body) + 4) + body


AUTH_OK = message("R", b"\0\0\0\0")
PARAMETER = message("S", b"server_version\x0015.3\0")
KEY = message("K", b"\0\0\1\0" + b"abcd")
LONG_KEY = message("K", b"\0\0\1\0" + b"k" * 256)
READY = message("Z", b"I")
OLDER = message("v", b"\0\0\0\0\0\0\0\0")
ACCEPTED = AUTH_OK + PARAMETER + KEY + READY


def heard(*chunks: bytes) -> Greeting:
    greeting = Greeting()
    for chunk in chunks:
        greeting.feed(chunk)
    return greeting


def gist(greeting: Greeting) -> tuple[object, ...]:
    return greeting.answered, greeting.done, greeting.refusal, greeting.pid, greeting.key


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (ACCEPTED, (True, True, "", 256, b"abcd")),
        (OLDER + ACCEPTED, (True, True, "", 256, b"abcd")),
        (AUTH_OK + LONG_KEY + READY, (True, True, "", 256, b"k" * 256)),
        (error("57P03", "starting up"), (True, True, "57P03", 0, b"")),
        (OLDER + error("57P03", "starting up"), (True, True, "57P03", 0, b"")),
        (message("R", b"\0\0\0\x0a") + error("28P01", "no"), (True, True, "", 0, b"")),
        (OLDER, (False, False, "", 0, b"")),
        (message("N", b"SNOTICE\0\0") + error("57P03", "starting up"), (True, True, "57P03", 0, b"")),
        (AUTH_OK[:7], (False, False, "", 0, b"")),
        (b"HTTP/1.1 400", (True, True, "", 0, b"")),
        (message("R")[:1] + struct.pack("!I", MAX_GREETING_BYTES + 1), (True, True, "", 0, b"")),
        (b"R\0\0\0\3", (True, True, "", 0, b"")),
    ],
)
def test_a_greeting_is_understood(data, expected):
    assert gist(heard(data)) == expected


@given(
    st.sampled_from([ACCEPTED, OLDER + ACCEPTED, error("57P03", "starting up"), OLDER + error("53300", "full")]),
    st.lists(st.integers(0, 120), max_size=8),
)
def test_any_split_of_a_greeting_gives_the_same_result(data, cuts):
    edges = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    chunks = [data[begin:end] for begin, end in itertools.pairwise(edges)]
    assert gist(heard(*chunks)) == gist(heard(data))


@given(st.lists(st.binary(max_size=50), max_size=5))
def test_any_bytes_are_taken_without_a_failure_and_without_growing(chunks):
    greeting = heard(*chunks)
    assert len(greeting._buffer) <= MAX_GREETING_BYTES + 50


@pytest.mark.parametrize(
    ("data", "state"), [(READY, "I"), (message("Z", b"T"), "T"), (b"xx" + message("Z", b"E"), "E")]
)
def test_the_end_of_a_buffer_tells_the_state_of_the_transaction(data, state):
    assert ready_state(data) == ord(state)


@pytest.mark.parametrize("data", [b"", b"Z", READY[:-1], READY + b"x", message("C", b"SELECT 1\0"), message("Z", b"x")])
def test_any_other_end_tells_nothing(data):
    assert ready_state(data) == 0
