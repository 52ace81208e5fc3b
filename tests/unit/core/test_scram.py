"""SCRAM verifiers: the same as PostgreSQL makes."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest
from psycopg import pq

from core import scram

# RFC 7677 section 3: user "user", password "pencil", and the whole exchange.
SALT = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
AUTH_MESSAGE = (
    b"n=user,r=rOprNGfwEbeRWgbNEkqO,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,"
    b"i=4096,c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
)
CLIENT_PROOF = base64.b64decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
SERVER_SIGNATURE = base64.b64decode("6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")


def test_verifier_accepts_the_proof_of_the_rfc_and_signs_as_its_server() -> None:
    verifier = scram.Verifier.parse(scram.make_verifier("pencil", salt=SALT))
    signature = hmac.digest(verifier.stored_key, AUTH_MESSAGE, "sha256")
    client_key = bytes(a ^ b for a, b in zip(CLIENT_PROOF, signature, strict=True))
    assert hashlib.sha256(client_key).digest() == verifier.stored_key
    assert hmac.digest(verifier.server_key, AUTH_MESSAGE, "sha256") == SERVER_SIGNATURE


def test_verifier_is_the_one_that_postgresql_makes() -> None:
    theirs = made_by_libpq("correct horse battery staple")
    salt = scram.Verifier.parse(theirs).salt
    assert scram.make_verifier("correct horse battery staple", salt=salt) == theirs


def made_by_libpq(password: str) -> str:
    """libpq asks a connection only for the algorithm, which is named here, so one that leads nowhere will do."""
    pgconn = pq.PGconn.connect_start(b"host=/nonexistent")
    return pgconn.encrypt_password(password.encode(), b"user", b"scram-sha-256").decode()


def test_password_is_told_from_others() -> None:
    verifier = scram.make_verifier("right")
    assert scram.password_fits("right", verifier)
    assert not scram.password_fits("wrong", verifier)


def test_salt_is_fresh_each_time() -> None:
    assert scram.make_verifier("same") != scram.make_verifier("same")


def test_verifier_survives_being_taken_apart() -> None:
    text = scram.make_verifier("x", salt=SALT, iterations=5000)
    assert text.startswith("SCRAM-SHA-256$5000:W22ZaJ0SNY7soEsUEjb6gQ==$")
    assert scram.Verifier.parse(text).text() == text


@pytest.mark.parametrize("password", ["", "pässword", "two\nlines", "tab\t"])
def test_password_that_saslprep_might_change_is_refused(password: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII"):
        scram.make_verifier(password)


@pytest.mark.parametrize("text", ["", "md5abc", "SCRAM-SHA-256$4096:AAAA$AAAA:AAAA", "SCRAM-SHA-256$x:A$B:C"])
def test_text_that_is_no_verifier_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a SCRAM-SHA-256 verifier"):
        scram.Verifier.parse(text)


def test_keys_do_not_show_in_repr() -> None:
    verifier = scram.Verifier.parse(scram.make_verifier("x"))
    assert repr(verifier.server_key) not in repr(verifier)
