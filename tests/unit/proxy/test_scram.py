"""SCRAM-SHA-256: the vector of RFC 7677, and what is no message of it."""

from __future__ import annotations

import base64
import contextlib
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.scram import make_verifier
from proxy.postgres import scram
from proxy.postgres.scram import Login, ScramError, Verifier

SALT = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
NONCE = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
CLIENT_FIRST = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
SERVER_FIRST = f"r={NONCE},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
PROOF = "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
CLIENT_FINAL = f"c=biws,r={NONCE},p={PROOF}".encode()
SERVER_FINAL = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
SIGNED = b",".join([CLIENT_FIRST[3:], SERVER_FIRST.encode(), f"c=biws,r={NONCE}".encode()])
VERIFIER = Verifier.parse(make_verifier("pencil", salt=SALT))


def test_the_rfc_vector_comes_out_at_the_servers_end():
    key = scram.client_key_in(base64.b64decode(PROOF), VERIFIER, SIGNED)
    assert key is not None
    assert hashlib.sha256(key).digest() == VERIFIER.stored_key
    assert scram.server_signature(VERIFIER, SIGNED) == scram.read_server_final(SERVER_FINAL)
    assert scram.write_server_first(NONCE, VERIFIER) == SERVER_FIRST


def test_the_client_key_of_a_proof_makes_the_same_proof_again():
    key = scram.client_key_in(base64.b64decode(PROOF), VERIFIER, SIGNED)
    assert key is not None
    assert scram.proof_of(key, VERIFIER, SIGNED) == base64.b64decode(PROOF)


def test_the_rfc_messages_are_taken_apart():
    first = scram.read_client_first(CLIENT_FIRST)
    assert (first.gs2, first.bare, first.nonce, first.binding_flag) == (
        "n,,",
        "n=user,r=rOprNGfwEbeRWgbNEkqO",
        "rOprNGfwEbeRWgbNEkqO",
        "n",
    )
    final = scram.read_client_final(CLIENT_FINAL)
    assert (final.binding, final.nonce, final.unproved) == ("biws", NONCE, f"c=biws,r={NONCE}")
    assert scram.bound_to(first.gs2, b"") == final.binding == scram.UNBOUND
    asked = scram.read_server_first(SERVER_FIRST.encode())
    assert (asked.nonce, asked.salt, asked.iterations) == (NONCE, SALT, 4096)


def test_a_proof_of_another_password_gives_no_key():
    other = Verifier.parse(make_verifier("crayon", salt=SALT))
    assert scram.client_key_in(base64.b64decode(PROOF), other, SIGNED) is None


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"n",
        b"n,,",
        b"n,,n=user",
        b"n,,r=abc,n=user",
        b"n,,n=user,r=",
        b"n,,n=user,r=a\x7fb",
        b"n,,n=user,r=\xc3\xa4",
        b"n,,n=us\0er,r=abc",
        b"x,,n=user,r=abc",
        b"p=tls-unique,,n=user,r=abc",
        b"n,a=admin,n=user,r=abc",
        b"n,,m=x,n=user,r=abc",
    ],
)
def test_what_is_no_first_message_is_refused(raw):
    with pytest.raises(ScramError):
        scram.read_client_first(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"p=" + PROOF.encode(),
        b"c=biws,p=" + PROOF.encode(),
        b"r=abc,c=biws,p=" + PROOF.encode(),
        b"c=biws,r=abc,p=AAAA",
        b"c=biws,r=abc,p=!",
        b"c=biws,r=abc,p=\xff",
        b"c=biws,r=abc",
    ],
)
def test_what_is_no_last_message_is_refused(raw):
    with pytest.raises(ScramError):
        scram.read_client_final(raw)


@pytest.mark.parametrize(
    "raw",
    [b"", b"r=abc", b"r=abc,s=AAAA", b"r=abc,s=AAAA,i=", b"r=abc,s=AAAA,i=0", b"r=abc,s=AAAA,i=-1", b"r=abc,s=!,i=1"],
)
def test_what_is_no_question_of_a_server_is_refused(raw):
    with pytest.raises(ScramError):
        scram.read_server_first(raw)


@pytest.mark.parametrize("raw", [b"", b"v=AAAA", b"e=other-error", b"w=" + SERVER_FINAL[2:]])
def test_what_is_no_signature_of_a_server_is_refused(raw):
    with pytest.raises(ScramError):
        scram.read_server_final(raw)


def test_a_mock_verifier_is_the_same_each_time_and_anothers_for_another_user():
    one = scram.mock_verifier("nobody", b"secret")
    assert one == scram.mock_verifier("nobody", b"secret")
    assert one.salt != scram.mock_verifier("no-one", b"secret").salt
    assert one.salt != scram.mock_verifier("nobody", b"other").salt
    assert (one.iterations, len(one.salt)) == (VERIFIER.iterations, len(VERIFIER.salt))


def test_a_login_does_not_show_its_key():
    assert repr(Login("app", b"\xfe\xed", VERIFIER)) == "Login(user='app')"


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_scram_error(raw):
    for read in (
        scram.read_client_first,
        scram.read_client_final,
        scram.read_server_first,
        scram.read_server_final,
    ):
        with contextlib.suppress(ScramError):
            read(raw)
