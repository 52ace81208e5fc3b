"""A client proves its password to the proxy, or does not."""

from __future__ import annotations

import base64
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.scram import make_verifier
from proxy.postgres import scram
from proxy.postgres.authentication import Accepted, ClientAuthentication, Progress, Rejected
from proxy.postgres.scram import Login, Verifier
from proxy.postgres.server_side import sqlstate_of
from tests.support.scram import client_key, scram_client

SALT = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
VERIFIER = Verifier.parse(make_verifier("pencil", salt=SALT))
CHANNEL = b"c" * 32
SERVER_NONCE = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
RFC_FIRST = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
RFC_NONCE = f"rOprNGfwEbeRWgbNEkqO{SERVER_NONCE}"
RFC_FINAL = f"c=biws,r={RFC_NONCE},p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=".encode()


def exchange(verifier: Verifier | None = VERIFIER, *, channel: bytes | None = None) -> ClientAuthentication:
    return ClientAuthentication(
        "user", verifier, nonce=SERVER_NONCE, channel_binding=channel, mock_secret=b"of the instance"
    )


def password(body: bytes) -> bytes:
    return b"p" + struct.pack("!I", 4 + len(body)) + body


def initial(first: bytes, mechanism: bytes = b"SCRAM-SHA-256") -> bytes:
    return password(mechanism + b"\0" + struct.pack("!I", len(first)) + first)


def refusal(progress: Progress) -> Rejected:
    assert isinstance(progress.outcome, Rejected)
    return progress.outcome


def code(progress: Progress) -> str:
    return sqlstate_of(refusal(progress).reply_error[5:])


def test_the_rfc_vector_is_accepted_and_gives_a_login():
    asked = exchange()
    assert asked.begin() == b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0"
    progress = asked.feed(initial(RFC_FIRST))
    assert progress.outcome is None
    assert progress.reply[9:].decode() == f"r={RFC_NONCE},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    progress = asked.feed(password(RFC_FINAL))
    assert progress.reply == b"R\0\0\0\x36\0\0\0\x0cv=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
    assert progress.outcome == Accepted(Login("user", client_key("pencil", VERIFIER), VERIFIER))


def test_bytes_may_come_one_by_one():
    asked, replies = exchange(), bytearray()
    outcome = None
    for stream in (initial(RFC_FIRST), password(RFC_FINAL)):
        for at in range(len(stream)):
            progress = asked.feed(stream[at : at + 1])
            replies += progress.reply
            outcome = progress.outcome
    assert isinstance(outcome, Accepted)
    assert replies.count(b"R") >= 2


def test_what_comes_behind_the_proof_is_handed_back():
    asked = exchange()
    asked.feed(initial(RFC_FIRST))
    assert asked.feed(password(RFC_FINAL) + b"Q\0\0\0\x05\0").rest == b"Q\0\0\0\x05\0"


def test_tls_offers_channel_binding_first():
    assert exchange(channel=CHANNEL).begin()[9:] == b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"


@pytest.mark.parametrize(
    ("channel", "flag", "bound", "mechanism", "expected"),
    [
        (None, "n", b"", scram.PLAIN, "accepted"),
        (None, "y", b"", scram.PLAIN, "accepted"),  # it could, and we did not offer
        (CHANNEL, "n", b"", scram.PLAIN, "accepted"),  # it cannot
        (CHANNEL, "p=tls-server-end-point", CHANNEL, scram.PLUS, "accepted"),
        (CHANNEL, "p=tls-server-end-point", b"d" * 32, scram.PLUS, "28000"),  # somebody between us
        (CHANNEL, "p=tls-server-end-point", b"", scram.PLUS, "28000"),
        (CHANNEL, "y", b"", scram.PLAIN, "28000"),  # somebody took the offer out
        (CHANNEL, "n", b"", scram.PLUS, "08P01"),
        (CHANNEL, "p=tls-server-end-point", CHANNEL, scram.PLAIN, "08P01"),
        (CHANNEL, "p=tls-unique", CHANNEL, scram.PLUS, "08P01"),
        (None, "p=tls-server-end-point", CHANNEL, scram.PLUS, "08P01"),
        (None, "n", b"", "SCRAM-SHA-512", "08P01"),
    ],
)
def test_channel_binding_is_as_strict_as_the_servers(channel, flag, bound, mechanism, expected):
    asked = exchange(channel=channel)
    client = scram_client("pencil", gs2=f"{flag},,", channel=bound)
    progress = asked.feed(initial(client.first(), mechanism.encode()))
    if progress.outcome is None:
        progress = asked.feed(password(client.final(progress.reply[9:])))
    if expected == "accepted":
        assert isinstance(progress.outcome, Accepted)
        client.check(progress.reply[9:])
    else:
        assert code(progress) == expected
        assert not refusal(progress).wrong_password


@pytest.mark.parametrize("verifier", [VERIFIER, None])
def test_an_unknown_user_is_refused_in_the_words_of_a_wrong_password(verifier):
    asked = exchange(verifier)
    client = scram_client("crayon")
    progress = asked.feed(initial(client.first()))
    assert (progress.reply[:1], progress.outcome) == (b"R", None)
    progress = asked.feed(password(client.final(progress.reply[9:])))
    assert progress.reply == b""
    assert code(progress) == "28P01"
    assert refusal(progress).wrong_password
    assert refusal(progress).why == 'password authentication failed for user "user"'


def test_an_unknown_user_is_asked_with_the_same_salt_each_time():
    salts = {exchange(None).feed(initial(scram_client("x", nonce="abc").first())).reply for _ in range(2)}
    assert len(salts) == 1


def test_a_proof_for_another_exchange_is_refused():
    asked = exchange()
    asked.feed(initial(b"n,,n=user,r=another"))
    assert code(asked.feed(password(RFC_FINAL))) == "08P01"


@pytest.mark.parametrize(
    "data",
    [
        b"Q\0\0\0\x05\0",
        password(b""),
        password(b"SCRAM-SHA-256"),
        password(b"SCRAM-SHA-256\0\0\0\0\x7fn,,"),
        password(b"SCRAM-SHA-256\0\xff\xff\xff\xff"),
        password(b"x" * 1025),
        b"p\0\0\0\x03",
        initial(b"n,,n=user"),
        password(b"my password in clear\0"),
    ],
)
def test_what_is_no_answer_to_the_question_is_refused(data):
    assert code(exchange().feed(data)) == "08P01"


def test_a_client_that_says_goodbye_instead_is_not_told_anything():
    progress = exchange().feed(b"X\0\0\0\x04")
    assert refusal(progress).reply_error == b""


def test_nothing_is_taken_after_the_end():
    asked = exchange()
    asked.feed(b"Q\0\0\0\x05\0")
    assert asked.feed(initial(RFC_FIRST)) == Progress()


@given(st.lists(st.binary(max_size=80), max_size=6))
def test_no_bytes_get_in_or_raise(chunks):
    asked = exchange()
    for chunk in chunks:
        assert not isinstance(asked.feed(chunk).outcome, Accepted)
