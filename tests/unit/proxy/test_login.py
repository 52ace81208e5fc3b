"""The proxy logs in to an engine as a user that has proved its password to it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.scram import make_verifier
from proxy.postgres.authentication import AUTHENTICATION_OK, Accepted, ClientAuthentication
from proxy.postgres.login import LoggedIn, LoginProgress, LoginRefused, ServerLogin, negotiation
from proxy.postgres.refusals import error
from proxy.postgres.scram import Login, Verifier
from proxy.postgres.startup import Startup, read_first
from tests.support.scram import client_key

VERIFIER = Verifier.parse(make_verifier("pencil"))
LOGIN = Login("app", client_key("pencil", VERIFIER), VERIFIER)
PARAMETERS = (("user", "app"), ("database", "shop"), ("application_name", "té\udcff"), ("_pq_.x", "1"))
READY = b"Z\0\0\0\x05I"


def message(kind: str, body: bytes) -> bytes:
    return kind.encode() + struct.pack("!I", 4 + len(body)) + body


def status(name: str, value: str) -> bytes:
    return message("S", name.encode() + b"\0" + value.encode() + b"\0")


def request(code: int, body: bytes = b"") -> bytes:
    return message("R", struct.pack("!I", code) + body)


GREETING = (
    AUTHENTICATION_OK
    + status("server_version", "15.9")
    + status("TimeZone", "Etc/UTC")
    + message("K", struct.pack("!I", 4711) + b"key!")
)


def server(verifier: Verifier = VERIFIER) -> ClientAuthentication:
    """An engine that keeps this verifier: the other pure end of the same exchange, which drivers try as well."""
    return ClientAuthentication("app", verifier, nonce="srv", channel_binding=None, mock_secret=b"")


def login() -> ServerLogin:
    return ServerLogin(LOGIN, PARAMETERS, "cli")


def refused(progress: LoginProgress) -> LoginRefused:
    assert isinstance(progress.outcome, LoginRefused)
    return progress.outcome


def test_the_startup_packet_has_the_clients_parameters_and_no_protocol_options():
    packet = login().begin()
    first, used = read_first(packet) or (None, 0)
    assert isinstance(first, Startup)
    assert used == len(packet)
    assert list(first.parameters) == ["user", "database", "application_name"]
    assert struct.unpack_from("!I", packet, 4) == (3 << 16,)
    assert "té".encode() + b"\xff" in packet, "bytes that are no UTF-8 go through"


def test_logs_in_where_the_verifier_is_kept():
    engine, client = server(), login()
    first = client.feed(engine.begin())
    second = client.feed(engine.feed(first.send).reply)
    ended = engine.feed(second.send)
    assert isinstance(ended.outcome, Accepted)
    assert client.feed(ended.reply) == LoginProgress()
    progress = client.feed(GREETING + READY + b"N\0\0\0\x05\0")
    assert progress.send == b""
    assert progress.outcome == LoggedIn(
        {"server_version": "15.9", "TimeZone": "Etc/UTC"}, 4711, b"key!", b"N\0\0\0\x05\0"
    )


def test_bytes_may_come_one_by_one():
    engine, client = server(), login()
    to_client, outcome = engine.begin(), None
    while outcome is None:
        to_engine = b""
        for at in range(len(to_client)):
            progress = client.feed(to_client[at : at + 1])
            to_engine += progress.send
            outcome = progress.outcome
        answer = engine.feed(to_engine)
        to_client = answer.reply + (GREETING + READY if answer.outcome else b"")
    assert isinstance(outcome, LoggedIn)


def test_an_engine_that_trusts_us_needs_no_proof():
    notice = message("N", b"SWARNING\0Mcollation version mismatch\0\0")
    progress = login().feed(notice + GREETING + READY)
    assert isinstance(progress.outcome, LoggedIn)
    assert progress.outcome.notices == notice


def test_a_changed_password_is_told_before_anything_is_proved():
    engine = server(Verifier.parse(make_verifier("another")))
    client = login()
    progress = client.feed(engine.feed(client.feed(engine.begin()).send).reply)
    assert progress.send == b""
    assert (refused(progress).sqlstate, refused(progress).stale) == ("28P01", True)


def test_an_engine_that_does_not_know_the_verifier_is_not_believed():
    knows = server()
    client = login()
    first = client.feed(knows.begin())
    asked = knows.feed(first.send).reply
    client.feed(asked)
    for pretence in (request(12, b"v=" + b"A" * 43 + b"="), AUTHENTICATION_OK, request(12, b"e=invalid-proof")):
        other = login()
        other.feed(knows.begin())
        other.feed(asked)
        assert refused(other.feed(pretence + READY)).sqlstate == "28P01"


@pytest.mark.parametrize("code", [2, 3, 5, 7, 9, 99])
def test_another_method_than_scram_is_refused_with_a_clear_message(code):
    progress = login().feed(request(code, b"salt"))
    assert (refused(progress).sqlstate, progress.send) == ("28000", b"")
    assert "only SCRAM-SHA-256" in refused(progress).message


def test_the_engines_own_refusal_is_handed_on_as_it_is():
    packet = error("3D000", 'database "shop" does not exist')
    progress = login().feed(AUTHENTICATION_OK + packet)
    assert refused(progress) == LoginRefused("3D000", 'database "shop" does not exist', packet)


@pytest.mark.parametrize("sqlstate", ["57P03", "53300", "28000"])
def test_a_refusal_before_authentication_is_handed_on(sqlstate):
    assert refused(login().feed(error(sqlstate, "no"))).sqlstate == sqlstate


@pytest.mark.parametrize(
    "data",
    [
        READY,
        status("server_version", "15.9"),
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"R\0\0\0\x03",
        b"S\x7f\xff\xff\xff",
        message("R", b""),
        AUTHENTICATION_OK + message("D", b""),
        AUTHENTICATION_OK + status("x", "y" * 300_000),
        request(10, b"SCRAM-SHA-256-PLUS\0\0"),
        request(11, b"r=cliabc,s=AAAA"),
        request(12, b"v="),
    ],
)
def test_what_is_no_server_is_refused(data):
    assert "cannot log in to the engine" in refused(login().feed(data)).message


def test_a_nonce_that_does_not_continue_ours_is_refused():
    for nonce in ("cli", "other"):
        client = login()
        client.feed(server().begin())
        assert refused(client.feed(request(11, f"r={nonce},s=AAAA,i=4096".encode()))).sqlstate == "08P01"


@given(st.lists(st.binary(max_size=80), max_size=6))
def test_no_bytes_log_in_by_chance_or_raise(chunks):
    client = login()
    client.begin()
    for chunk in chunks:
        if client.feed(chunk).outcome is not None:
            break


# --- what a client may ask for beyond 3.0 ---------------------------------------------------------------------------


def startup(minor: int, **parameters: str) -> bytes:
    body = b"".join(f"{name}\0{value}\0".encode() for name, value in parameters.items()) + b"\0"
    return struct.pack("!II", 8 + len(body), (3 << 16) + minor) + body


def test_a_client_that_asks_for_3_0_is_told_nothing():
    assert negotiation(startup(0, user="app"), {"user": "app"}) == b""
    assert negotiation(startup(2, user="app"), {"user": "app"}) == b""


@pytest.mark.parametrize(("asked", "offered"), [(0, 0), (1, 0), (2, 2), (9999, 2)])
def test_a_client_that_asks_for_more_is_offered_what_there_is_and_told_which_options_are_not_known(asked, offered):
    options = {"user": "app", "_pq_.fast": "1"}
    told = struct.pack("!II", 3 << 16 | offered, 1) + b"_pq_.fast\0"
    assert negotiation(startup(asked, **options), options) == message("v", told)
    if asked != offered:
        assert negotiation(startup(asked), {}) == message("v", struct.pack("!II", 3 << 16 | offered, 0))
