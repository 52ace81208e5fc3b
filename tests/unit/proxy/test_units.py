"""What a client sends, taken apart for splitting."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.postgres.messages import SYNC, close, message, parse, run
from proxy.postgres.prepared import Library, Statements
from proxy.postgres.units import Cutter, Unit, unit_of

FLUSH = message(b"H")
DESCRIBE = message(b"D", b"P\0")
RUN = run(b"")


def query(text: bytes) -> bytes:
    return message(b"Q", text + b"\0")


def statements() -> Statements:
    """Of a client that has prepared `known`, and the unnamed one."""
    library = Library()
    found = Statements(library)
    found.put(b"known", library.take(b"SELECT known\0\0\0"))
    found.keep_unnamed(b"SELECT before\0\0\0")
    return found


@pytest.mark.parametrize(
    ("data", "unit"),
    [
        (query(b"SELECT 1"), Unit((b"SELECT 1",))),
        (query(b""), Unit((b"",))),
        (parse(b"", b"SELECT 1") + RUN + SYNC, Unit((b"SELECT 1",))),
        (parse(b"", b"SELECT 1") + run(b"").replace(message(b"E", b"\0\0\0\0\0"), DESCRIBE) + SYNC, None),
        (parse(b"new", b"SELECT 1") + run(b"new", [b"5"]) + SYNC, Unit((b"SELECT 1",), (b"new",))),
        (parse(b"known", b"SELECT 1") + run(b"known") + SYNC, None),
        (parse(b"new", b"A") + parse(b"new", b"B") + run(b"new") + SYNC, None),
        (run(b"known") + SYNC, Unit((b"SELECT known",))),
        (run(b"unknown") + SYNC, None),
        (RUN + SYNC, Unit((b"SELECT before",))),
        (parse(b"", b"A") + RUN + parse(b"", b"B") + RUN + SYNC, Unit((b"A", b"B"))),
        (parse(b"", b"A") + SYNC, None),
        (RUN + close(b"known") + SYNC, None),
        (RUN + FLUSH, None),
        (RUN + FLUSH + SYNC, None),
        (RUN, None),
        (RUN + SYNC + SYNC, None),
        (RUN + SYNC + RUN + SYNC, None),
        (query(b"SELECT 1") + query(b"SELECT 2"), None),
        (query(b"SELECT 1") + SYNC, None),
        (query(b"SELECT 1")[:-1], None),
        (SYNC, None),
        (b"", None),
        (b"Q", None),
        (b"B\0\0\0\x02" + SYNC, None),
        (RUN[:-2] + SYNC, None),
        (message(b"F", b"\0\0\0\x01\0\0\0\0\0\0") + SYNC, None),
    ],
)
def test_a_unit_is_read_when_it_is_whole_and_alone(data: bytes, unit: Unit | None) -> None:
    assert unit_of(data, statements()) == unit


def test_an_unnamed_statement_that_is_not_known_any_more_is_not_guessed() -> None:
    assert unit_of(RUN + SYNC, Statements(Library())) is None


@given(st.binary(max_size=80))
def test_no_bytes_make_it_fail(data: bytes) -> None:
    for text in (data, data + SYNC, b"P" + data + SYNC, b"Q" + data):
        _ = unit_of(text, statements())


units = st.sampled_from(
    [
        query(b"SELECT 1"),
        query(b"x" * 300),
        parse(b"", b"SELECT 1") + RUN + SYNC,
        RUN + FLUSH + DESCRIBE + SYNC,
        SYNC,
        message(b"d", b"Q" * 30) + SYNC,
    ]
)


@given(st.lists(units, min_size=1, max_size=4), st.lists(st.integers(1, 60), max_size=30))
def test_units_are_cut_apart_however_they_come(sent: list[bytes], sizes: list[int]) -> None:
    stream, pieces = b"".join(sent), []
    for size in sizes:
        pieces.append(stream[:size])
        stream = stream[size:]
    pieces.append(stream)
    cutter, found, present = Cutter(), [], b""
    for piece in pieces:
        rest = piece
        while rest:
            passed, rest = cutter.cut(rest)
            present += passed
            if len(found) < len(sent) and present == sent[len(found)]:
                found.append(present)
                present = b""
                assert not cutter.inside
    assert (found, present) == (sent, b"")
