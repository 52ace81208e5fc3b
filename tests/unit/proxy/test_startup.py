"""A client's first bytes, in every shape."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.postgres import refusals
from proxy.postgres.server_side import sqlstate_of
from proxy.postgres.startup import (
    CANCEL_REQUEST,
    GSSENC_REQUEST,
    MAX_STARTUP_BYTES,
    SSL_REQUEST,
    Cancel,
    DirectTls,
    Malformed,
    Startup,
    Wish,
    read_first,
)

V3 = 3 << 16


def packet(code: int, body: bytes = b"") -> bytes:
    return struct.pack("!II", 8 + len(body), code) + body


def startup(*words: str, version: int = V3) -> bytes:
    return packet(version, b"".join(word.encode() + b"\0" for word in words) + b"\0")


ALICE = startup("user", "alice", "database", "shop")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (packet(SSL_REQUEST), Wish.TLS),
        (packet(GSSENC_REQUEST), Wish.GSSENC),
        (ALICE, Startup({"user": "alice", "database": "shop"}, ALICE)),
        (packet(CANCEL_REQUEST, b"\0\0\0\7abcd"), Cancel(7, b"abcd", packet(CANCEL_REQUEST, b"\0\0\0\7abcd"))),
    ],
)
def test_a_whole_first_packet_is_understood(data, expected):
    assert read_first(data) == (expected, len(data))


def test_a_cancel_key_of_protocol_3_2_is_understood():
    data = packet(CANCEL_REQUEST, struct.pack("!I", 9) + b"k" * 256)
    first, _ = read_first(data)
    assert isinstance(first, Cancel)
    assert (first.pid, len(first.key)) == (9, 256)


def test_protocol_3_2_is_the_servers_to_judge():
    first, _ = read_first(startup("user", "alice", version=V3 + 2))
    assert isinstance(first, Startup)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (struct.pack("!II", 7, V3), "length"),
        (struct.pack("!II", MAX_STARTUP_BYTES + 1, V3), "length"),
        (b"GET / HTTP/1.1\r\n\r\n", "length"),
        (packet(SSL_REQUEST, b"x"), "8 bytes"),
        (packet(2 << 16, b"user\0"), "2.0"),
        (packet(0), "0.0"),
        (packet(CANCEL_REQUEST, b"\0\0\0\7abc"), "key"),
        (packet(CANCEL_REQUEST, b"\0\0\0\7" + b"k" * 257), "key"),
        (packet(V3, b""), "layout"),
        (packet(V3, b"user\0alice\0"), "layout"),
        (packet(V3, b"user\0alice"), "value"),
        (packet(V3, b"user\0"), "value"),
        (packet(V3, b"user\0alice\0\0x"), "layout"),
        (startup("database", "shop"), "user"),
        (startup("user", ""), "user"),
        (startup(), "user"),
    ],
)
def test_what_is_not_this_protocol_is_malformed(data, why):
    first, used = read_first(data)
    assert isinstance(first, Malformed)
    assert why in first.why
    assert used == len(data)


def test_direct_tls_is_recognised_by_its_first_byte():
    found = read_first(b"\x16\x03\x01")
    assert found is not None
    assert isinstance(found[0], DirectTls)
    assert (found[0].hello, found[1]) == (b"\x16\x03\x01", 3)


def test_an_empty_value_is_a_value():
    first, _ = read_first(startup("options", "", "user", "alice"))
    assert isinstance(first, Startup)
    assert first.parameters == {"options": "", "user": "alice"}
    assert first.database == "alice"


def test_names_that_are_no_utf8_are_the_servers_to_judge():
    data = packet(V3, b"user\0j\xfcrgen\0\0")
    first, _ = read_first(data)
    assert isinstance(first, Startup)
    assert first.packet == data
    assert first.user.encode(errors="surrogateescape") == b"j\xfcrgen"


def test_a_name_that_is_too_long_is_cut_as_the_server_cuts_it():
    first, _ = read_first(startup("user", "é" * 40))
    assert isinstance(first, Startup)
    assert first.user.encode(errors="surrogateescape") == ("é" * 40).encode()[:63]


def test_a_first_packet_and_what_lies_behind_it_are_kept_apart():
    assert read_first(packet(SSL_REQUEST) + ALICE) == (Wish.TLS, 8)


@given(st.binary(max_size=200))
def test_any_bytes_give_an_answer(data):
    found = read_first(data)
    assert found is None or 0 < found[1] <= len(data)


@given(st.binary(min_size=0, max_size=300).map(lambda body: packet(V3, body)))
def test_any_parameters_give_the_same_answer_as_a_naive_reading(data):
    first, _ = read_first(data)
    words = data[8:].split(b"\0")
    naive = naive_parameters(words)
    assert isinstance(first, Startup) == (naive is not None and bool(naive.get(b"user")))


def naive_parameters(words: list[bytes]) -> dict[bytes, bytes] | None:
    """Pairs up to an empty name, which must be the last thing of all."""
    found = {}
    while len(words) >= 3 and words[0]:
        found[words[0]] = words[1]
        words = words[2:]
    return found if words == [b"", b""] else None


@given(
    st.sampled_from([ALICE, packet(SSL_REQUEST), packet(CANCEL_REQUEST, b"\0\0\0\7abcd"), packet(2 << 16, b"hello")]),
    st.lists(st.integers(0, 60), max_size=6),
)
def test_any_split_gives_the_same_result(data, cuts):
    buffer = bytearray()
    found = None
    edges = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    for begin, end in itertools.pairwise(edges):
        assert found is None, "an answer came before the packet was whole"
        buffer += data[begin:end]
        found = read_first(buffer)
    assert found == read_first(data)


@given(st.text(st.characters(exclude_characters="\0", codec="utf-8")), st.text("abc"))
def test_an_error_of_our_own_reads_as_one(message, hint):
    said = refusals.error("57P03", message, hint)
    assert said[:1] == b"E"
    assert struct.unpack_from("!I", said, 1)[0] == len(said) - 1
    assert sqlstate_of(said[5:]) == "57P03"
