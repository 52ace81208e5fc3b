"""Messages put together and taken apart."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.postgres.messages import MAX_MESSAGE_BYTES, Garbled, Stream, columns, error_fields, message
from proxy.postgres.refusals import error


@given(
    st.lists(st.tuples(st.sampled_from("DCZNE"), st.binary(max_size=40)), max_size=8),
    st.binary(max_size=4),
    st.lists(st.integers(0), max_size=8),
)
def test_a_stream_gives_its_messages_however_it_is_split(pairs, rest, cuts):
    data = b"".join(message(kind.encode(), body) for kind, body in pairs) + rest
    edges = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    stream = Stream()
    heard = [found for begin, end in itertools.pairwise(edges) for found in stream.feed(data[begin:end])]
    assert heard == [(ord(kind), body) for kind, body in pairs]
    assert stream.rest == rest


@pytest.mark.parametrize("length", [0, 3, MAX_MESSAGE_BYTES + 1, 0xFFFFFFFF])
def test_a_length_that_no_message_has_is_garbled(length):
    with pytest.raises(Garbled):
        list(Stream().feed(b"D" + struct.pack("!I", length)))


def test_columns_of_a_row_are_told_apart():
    row = struct.pack("!H", 3) + struct.pack("!I", 2) + b"ab" + b"\xff\xff\xff\xff" + struct.pack("!I", 0)
    assert columns(row) == [b"ab", None, b""]
    with pytest.raises(Garbled):
        columns(row[:-1])


def test_fields_of_an_error_are_read_by_their_letters():
    fields = error_fields(error("57P01", "going", "Come again.", detail="Why not.")[5:])
    assert (fields["C"], fields["M"], fields["H"], fields["D"]) == ("57P01", "going", "Come again.", "Why not.")
