"""The question what a session carries, its answer, and the steps that make it again."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.postgres import refusals
from proxy.postgres.carried import NOTHING, TOO_MUCH, Carried, Inquiry, Restoring, Step, steps_of
from proxy.postgres.messages import READY_IDLE, Garbled, message, parse


def row(*values: str | None) -> bytes:
    fields = [b"\xff\xff\xff\xff" if v is None else struct.pack("!I", len(v)) + v.encode() for v in values]
    return message(b"D", struct.pack("!H", len(values)) + b"".join(fields))


def answer_of(*rows: bytes, user: str = "app") -> Carried:
    return inquired(*rows, user=user).answer()


def inquired(*rows: bytes, user: str = "app") -> Inquiry:
    inquiry = Inquiry(user, [])
    inquiry.feed(message(b"1") + message(b"2") + b"".join(rows) + message(b"C", b"SELECT\0") + message(b"3"))
    assert not inquiry.done
    inquiry.feed(READY_IDLE)
    assert inquiry.done
    assert not inquiry.failed
    return inquiry


NOTE = message(b"A", b"\0\0\0\1news\0\0")
STATUS = message(b"S", b"TimeZone\0UTC\0")


def test_settings_come_back_with_the_encoding_first_and_the_role_last():
    carried = answer_of(
        row("setting", "work_mem", "1024"),
        row("setting", "client_encoding", "LATIN1"),
        row("own", "a.b", "x"),
        row("role", "role", "clerk"),
        row("user", "session_authorization", "boss"),
    )
    assert [name for name, _ in carried.settings] == [
        b"client_encoding",
        b"work_mem",
        b"a.b",
        b"session_authorization",
        b"role",
    ]


def test_the_user_that_has_logged_in_is_no_setting():
    assert answer_of(row("user", "session_authorization", "app")) == NOTHING


def test_statements_channels_and_obstacles_are_told_apart():
    carried = answer_of(
        row("channel", "news", ""),
        row("sql", "p", "PREPARE p AS SELECT 1"),
        row("obstacle", "holds advisory locks", ""),
        row("obstacle", "holds advisory locks", ""),
    )
    assert carried == Carried(
        channels=(b"news",),
        by_sql=(b"PREPARE p AS SELECT 1",),
        obstacles=("holds advisory locks",),
    )


def test_statements_of_the_protocol_are_as_the_server_has_them():
    inquiry = inquired(
        row("protocol", "s1", None), row("protocol", "s2", " SELECT 1"), row("protocol", "s3", "23,25 x y")
    )
    typed = message(b"P", b"s3\0x y\0" + struct.pack("!HII", 2, 23, 25))
    assert inquiry.statements() == {b"s1": b"", b"s2": parse(b"s2", b"SELECT 1"), b"s3": typed}
    with pytest.raises(Garbled):
        inquired(row("protocol", "s1", "a,b x")).statements()


def test_more_than_can_be_told_is_an_obstacle():
    inquiry = inquired(row("obstacle", TOO_MUCH, ""))
    assert inquiry.statements() is None
    assert inquiry.answer() == Carried(obstacles=(TOO_MUCH,))


def test_what_begins_behind_the_answer_is_left_for_who_reads_on():
    inquiry, restoring = Inquiry("app", []), Restoring(STEPS[:1])
    inquiry.feed(READY_IDLE + NOTE[:4])
    restoring.feed(READY_IDLE + NOTE[:4])
    assert inquiry.done
    assert restoring.done
    assert inquiry.rest == restoring.rest == NOTE[:4]


def test_a_prepared_statement_that_is_part_of_something_else_is_an_obstacle():
    assert answer_of(row("sql", "p", "INSERT INTO t VALUES (1); PREPARE p AS SELECT 1")).obstacles


def test_what_is_for_the_client_passes_and_nothing_else_does():
    inquiry = Inquiry("app", [b"a.b"])
    assert b'{"a.b"}' in inquiry.begin()
    assert inquiry.feed(NOTE + row("setting", "a", "b") + STATUS) == NOTE + STATUS
    assert inquiry.feed(READY_IDLE + NOTE) == NOTE
    assert inquiry.done


def test_a_refused_question_and_a_server_that_ends_are_told_apart():
    refused, ending = Inquiry("app", []), Inquiry("app", [])
    assert refused.feed(refusals.error("57014", "canceled", severity="ERROR") + READY_IDLE) == b""
    assert (refused.done, refused.failed, refused.dismissal) == (True, "canceled", b"")
    words = refusals.error("57P01", "going down")
    ending.feed(words)
    assert (ending.done, ending.failed, ending.dismissal) == (False, "", words)


@pytest.mark.parametrize(
    "data", [message(b"T", b""), READY_IDLE * 2, message(b"D", b"\0\1"), b"D\xff\xff\xff\xff", b"D\0\0\0\1"]
)
def test_what_is_no_answer_is_not_taken_for_one(data):
    with pytest.raises(Garbled):
        Inquiry("app", []).feed(data)


def test_nothing_is_done_for_a_session_that_carries_nothing():
    assert steps_of(NOTHING, {}, b"", ()) == []


def test_steps_are_taken_in_order_and_the_unnamed_statement_comes_last():
    carried = Carried(settings=((b"work_mem", b"1"),), channels=(b'a"b',), by_sql=(b"PREPARE p AS SELECT 1",))
    named, unnamed = parse(b"s1", b"SELECT 1"), parse(b"", b"SELECT 2")
    steps = steps_of(carried, {b"s1": named}, unnamed, {b"s1"})
    assert [step.what for step in steps] == [
        "its settings",
        "setting work_mem",
        'channel a"b',
        "a prepared statement",
        "prepared statement s1",
        "the unnamed statement",
    ]
    assert b'LISTEN "a""b"' in steps[2].data
    assert [step.dispensable for step in steps] == [False, False, False, False, True, True]


STEPS = [Step("one", b"x"), Step("two", b"y", dispensable=True), Step("three", b"z")]
ERROR = refusals.error("42601", "bad", severity="ERROR")


@pytest.mark.parametrize(
    ("answers", "failed"),
    [
        ((READY_IDLE,) * 3, ""),
        ((READY_IDLE, ERROR + READY_IDLE, READY_IDLE), ""),
        ((READY_IDLE, READY_IDLE, ERROR + READY_IDLE), "three could not be made again: bad"),
        ((ERROR + READY_IDLE, READY_IDLE, ERROR + READY_IDLE), "one could not be made again: bad"),
    ],
)
@given(cuts=st.lists(st.integers(0, 200), max_size=6))
def test_a_step_that_fails_is_named_unless_it_can_be_dispensed_with(answers, failed, cuts):
    restoring, data = Restoring(STEPS), b"".join(answers)
    edges = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    for begin, end in itertools.pairwise(edges):
        restoring.feed(data[begin:end])
    assert (restoring.done, restoring.failed) == (True, failed)


def test_parameters_and_notifications_on_the_way_are_kept():
    restoring = Restoring(STEPS[:1])
    restoring.feed(STATUS + NOTE + READY_IDLE)
    assert (restoring.parameters, restoring.notifications) == ({"TimeZone": "UTC"}, NOTE)
    with pytest.raises(Garbled):
        restoring.feed(READY_IDLE)


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_any_bytes_are_an_answer_or_garbled(chunks):
    for listener in (Inquiry("app", []), Restoring(STEPS)):
        try:
            for chunk in chunks:
                listener.feed(chunk)
        except Garbled:
            pass
