"""Verifiers between agent and proxy: lines that say what they are, and never show what they hold."""

from __future__ import annotations

import pytest

from core.routes import (
    Declared,
    Passwords,
    ProxyReport,
    RouteTable,
    VerifierAnswer,
    VerifierAsk,
    decode_note,
    encode,
    encode_question,
)

SECRET = "SCRAM-SHA-256$4096:c2FsdA==$c3RvcmVk:c2VydmVy"
NOTES = [
    Declared(passwords={"demo/shop": Passwords(mock_secret="00ff", verifiers={"app": SECRET})}),
    Declared(passwords={}),
    VerifierAsk(instance="demo/shop", user='odd "user"\n\udcff'),
    VerifierAnswer(instance="demo/shop", user="app", found=True, verifier=SECRET),
    VerifierAnswer(instance="demo/shop", user="app", found=False),
]


@pytest.mark.parametrize("note", NOTES)
def test_a_note_comes_through_whole_on_one_line(note):
    line = encode(note)
    assert line.count(b"\n") == 1
    assert decode_note(line) == note
    assert "SCRAM" not in repr(note)


@pytest.mark.parametrize("line", [encode(RouteTable(seq=1)), encode(ProxyReport(seq=1, pid=2)), encode_question(3)])
def test_what_is_no_note_is_left_to_others(line):
    assert decode_note(line) is None


@pytest.mark.parametrize(
    "line",
    [
        b'{"declared":7}',
        b'{"declared":{"passwords":7}}',
        b'{"declared":{"passwords":{"demo/shop":{"secret":"' + SECRET.encode() + b'"}}}}',
        b'{"ask":{}}',
        b'{"ask":{"instance":7,"user":[]}}',
        b'{"answer":{"instance":"demo/shop","user":"app"}}',
        b'{"answer":{"instance":"demo/shop","user":"app","found":true},"more":1}',
        b'{"answer":nonsense',
    ],
)
def test_a_note_that_cannot_be_read_is_a_value_error_which_shows_nothing_of_it(line):
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the message is looked at below
        decode_note(line)
    assert "SCRAM" not in str(refused.value)
