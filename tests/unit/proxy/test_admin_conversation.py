"""The proxy's own database, byte for byte: both protocols, transactions of the driver's making, and refusals."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.admin.answers import Column, Kind, Page, row, table
from proxy.admin.conversation import KEPT_MAX, MESSAGE_BYTES_MAX, ROWS_AT_ONCE, Conversation
from proxy.admin.statements import Control, Show, Unknown, read
from proxy.postgres.messages import SYNC, Garbled, Stream, columns, error_fields, message

MANY = 3 * ROWS_AT_ONCE + 7


def answer(what: str) -> Page | None:
    pages = {
        "pools": table("database cl_active:i", [("shop", 3), (None, 0)]),
        "many": table("number:i", ((number,) for number in range(MANY))),
        "help": Page(notice="all there is"),
    }
    return pages.get(what)


def told(replies: Iterator[bytes]) -> list[tuple[str, bytes]]:
    return [(chr(kind), body) for kind, body in Stream().feed(b"".join(replies))]


def kinds(replies: Iterator[bytes]) -> str:
    return "".join(kind for kind, _ in told(replies))


def query(text: str) -> bytes:
    return message(b"Q", text.encode() + b"\0")


def parse(name: str, text: str) -> bytes:
    return message(b"P", f"{name}\0{text}\0".encode() + b"\0\0")


def bind(name: str = "", *formats: int) -> bytes:
    forms = struct.pack(f"!H{len(formats)}H", len(formats), *formats)
    return message(b"B", f"\0{name}\0".encode() + b"\0\0\0\0" + forms)


def describe(what: str, name: str = "") -> bytes:
    return message(b"D", f"{what}{name}\0".encode())


def execute(rows_max: int = 0) -> bytes:
    return message(b"E", b"\0" + struct.pack("!I", rows_max))


def refusal(replies: Iterator[bytes]) -> dict[str, str]:
    return next(error_fields(body) for kind, body in told(replies) if kind == "E")


# --- what is asked ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "statements"),
    [
        ("SHOW POOLS", [Show("pools")]),
        ("show  stats_totals;", [Show("stats_totals")]),
        ("SHOW STATS TOTALS", [Show("stats_totals")]),
        ("/* from a graph */ SHOW POOLS -- now", [Show("pools")]),
        ("SHOW POOLS; SHOW STATS;", [Show("pools"), Show("stats")]),
        ("", []),
        (" ; ", []),
        ("BEGIN", [Control("BEGIN", open=True)]),
        ("START TRANSACTION READ ONLY", [Control("BEGIN", open=True)]),
        ("commit", [Control("COMMIT", open=False)]),
        ("ABORT", [Control("ROLLBACK", open=False)]),
        ("SET application_name = 'a;b'", [Control("SET")]),
        ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", [Control("SET")]),
        ("DISCARD ALL", [Control("DISCARD")]),
    ],
)
def test_statements_are_told_apart(text: str, statements: list[object]) -> None:
    assert read(text) == statements


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("PAUSE shop", "moorctl instance switchover"),
        ("RESUME", "moorctl status"),
        ("KILL shop", "proxy.allow"),
        ("KILL_CLIENT 7", "pg_terminate_backend"),
        ("RECONNECT", "moorctl instance restart"),
        ("RELOAD", "moorctl apply"),
        ("SET default_pool_size = 5", "moorctl apply"),
        ("SHUTDOWN", "moorage-agent"),
        ("SELECT 1", "SHOW HELP"),
        ("DROP DATABASE shop", "SHOW HELP"),
        ("SHOW 'x'", "SHOW HELP"),
        ("?", "SHOW HELP"),
    ],
)
def test_what_cannot_be_done_here_says_what_to_do_instead(text: str, words: str) -> None:
    (statement,) = read(text)
    assert isinstance(statement, Unknown)
    assert words in statement.hint
    fields = refusal(Conversation(answer).feed(query(text)))
    assert (fields["C"], fields["S"]) == ("0A000", "ERROR")


# --- how it is answered -----------------------------------------------------------------------------------------------


def test_a_simple_query_is_answered_by_a_table() -> None:
    replies = told(Conversation(answer).feed(query("SHOW POOLS;")))
    assert [kind for kind, _ in replies] == ["T", "D", "D", "C", "Z"]
    assert columns(replies[1][1]) == [b"shop", b"3"]
    assert columns(replies[2][1]) == [None, b"0"]
    assert replies[3][1] == b"SHOW\0"


def test_several_statements_end_at_the_first_that_fails() -> None:
    talk = Conversation(answer)
    assert kinds(talk.feed(query("SHOW HELP; SHOW POOLS; SHOW NONSENSE; SHOW POOLS"))) == "NCTDDCEZ"
    assert kinds(talk.feed(query(""))) == "IZ"


def test_long_answers_come_in_pieces() -> None:
    pieces = list(Conversation(answer).feed(query("SHOW MANY")))
    assert len(pieces) == 1 + 4 + 2  # description, rows, completion and readiness
    assert kinds(iter(pieces)) == "T" + "D" * MANY + "CZ"


def test_an_extended_query_is_answered_alike() -> None:
    talk = Conversation(answer)
    sent = parse("s", "SHOW POOLS") + describe("S", "s") + bind("s") + describe("P") + execute() + SYNC
    assert kinds(talk.feed(sent)) == "1tT2TDDCZ"
    assert kinds(talk.feed(bind("s") + execute() + SYNC)) == "2DDCZ"
    assert kinds(talk.feed(message(b"C", b"Ss\0") + bind("s") + execute() + SYNC)) == "3EZ"


def test_rows_are_fetched_as_many_as_are_wanted() -> None:
    talk = Conversation(answer)
    wanted = [4, ROWS_AT_ONCE, MANY]
    sent = parse("", "SHOW MANY") + bind() + b"".join(map(execute, wanted)) + SYNC
    rows = [kind for kind, _ in told(talk.feed(sent))]
    assert "".join(rows) == "12" + "D" * 4 + "s" + "D" * ROWS_AT_ONCE + "s" + "D" * (MANY - 4 - ROWS_AT_ONCE) + "CZ"
    exactly = parse("", "SHOW POOLS") + bind() + execute(2) + SYNC
    assert kinds(talk.feed(exactly)) == "12DDCZ"


def test_binary_columns_are_given_to_who_asks_for_them() -> None:
    talk = Conversation(answer)
    replies = told(talk.feed(parse("", "SHOW POOLS") + bind("", 1) + describe("P") + execute() + SYNC))
    assert columns(replies[3][1]) == [b"shop", struct.pack("!i", 3)]
    assert replies[2][1].endswith(struct.pack("!H", 1))
    assert refusal(talk.feed(parse("", "SHOW POOLS") + bind("", 1, 0, 1) + execute() + SYNC))["C"] == "08P01"


@given(st.integers(-(10**25), 10**25))
def test_a_binary_number_is_the_number(value: int) -> None:
    (shown,) = columns(row([Column("n", Kind.NUMERIC)], [value], [1])[5:])
    assert shown is not None
    digits, weight, sign, scale = struct.unpack_from("!HhHH", shown)
    read_back = sum(
        digit * 10_000 ** (weight - at) for at, digit in enumerate(struct.unpack_from(f"!{digits}H", shown, 8))
    )
    assert (-read_back if sign else read_back, scale) == (value, 0)


def test_after_an_error_all_is_skipped_until_sync() -> None:
    talk = Conversation(answer)
    assert kinds(talk.feed(parse("", "PAUSE") + bind() + execute())) == "E"
    assert kinds(talk.feed(parse("", "SHOW POOLS") + SYNC)) == "Z"
    assert kinds(talk.feed(parse("", "SHOW POOLS") + bind() + execute() + SYNC)) == "12DDCZ"


@pytest.mark.parametrize(
    ("sent", "sqlstate"),
    [
        (parse("", "SHOW POOLS; SHOW POOLS"), "42601"),
        (parse("s", "SHOW POOLS") + parse("s", "SHOW POOLS"), "42P05"),
        (bind("missing"), "26000"),
        (describe("S", "missing"), "26000"),
        (execute(), "34000"),
        (parse("", "SHOW POOLS") + message(b"B", b"\0\0\0\0\0\1\0\0\0\0\0\0"), "08P01"),
        (message(b"F", b"\0\0\0\1"), "0A000"),
        (parse("", "SHOW NONSENSE") + bind() + execute(), "42704"),
        (query("x" * 20_000), "54000"),
    ],
)
def test_misuse_is_told(sent: bytes, sqlstate: str) -> None:
    assert refusal(Conversation(answer).feed(sent + SYNC))["C"] == sqlstate


def test_a_transaction_of_the_drivers_own_making_goes_through_its_states() -> None:
    talk = Conversation(answer)

    def state(text: str) -> bytes:
        return told(talk.feed(query(text)))[-1][1]

    assert [state(text) for text in ("BEGIN", "SHOW POOLS", "SHOW NONSENSE", "SHOW POOLS", "COMMIT", "SHOW POOLS")] == [
        *(b"T", b"T", b"E", b"E", b"I", b"I")
    ]
    assert refusal(talk.feed(query("BEGIN; PAUSE") + query("SHOW POOLS")))["C"] == "0A000"
    assert refusal(talk.feed(query("SHOW POOLS")))["C"] == "25P02"
    assert ("C", b"ROLLBACK\0") in told(talk.feed(query("COMMIT")))


def test_a_client_cannot_keep_without_end() -> None:
    talk = Conversation(answer)
    sent = b"".join(parse(f"s{number}", "SHOW POOLS") for number in range(KEPT_MAX + 1))
    assert refusal(talk.feed(sent))["C"] == "54000"


def test_goodbye_ends_the_conversation() -> None:
    talk = Conversation(answer)
    assert kinds(talk.feed(message(b"X") + query("SHOW POOLS"))) == ""
    assert talk.ended


@given(
    st.lists(
        st.binary(max_size=30).flatmap(
            lambda body: st.sampled_from(b"QPBDECSHFfdcp").map(lambda kind: message(bytes((kind,)), body))
        ),
        max_size=20,
    ),
    st.integers(1, 40),
)
def test_nothing_a_client_sends_breaks_it(messages: list[bytes], piece: int) -> None:
    """Whole or in pieces the answers are the same, and each one is whole messages."""
    sent = b"".join(messages)

    def outcome(size: int) -> bytes:
        talk, got = Conversation(answer), b""
        try:
            for at in range(0, len(sent), size):
                for reply in talk.feed(sent[at : at + size]):
                    got += reply
        except Garbled:
            return got
        return got

    whole = outcome(len(sent) or 1)
    assert outcome(piece) == whole
    rest = Stream()
    for _ in rest.feed(whole):
        pass
    assert rest.rest == b""


def test_a_message_without_end_is_not_awaited_for_ever() -> None:
    talk = Conversation(answer)
    assert list(talk.feed(b"Q\0\x0f\xff\xff")) == []
    with pytest.raises(Garbled):
        list(talk.feed(b"x" * (MESSAGE_BYTES_MAX + 1)))
