"""Connection strings and what psql is told."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli import connect
from cli.client import Credentials


def credentials(**changes: object) -> Credentials:
    told: dict[str, object] = {
        "user": "app", "password": "s3cret", "database": "app", "hosts": ("127.0.0.11", "127.0.0.12"), "rw_port": 15001,
        "ro_port": 15002, "ca_pem": b"-----BEGIN CERTIFICATE-----\n", "client_tls": "prefer",
    }  # fmt: skip
    return Credentials(**{**told, **changes})  # type: ignore[arg-type]


def test_uri_lists_every_host_with_its_port() -> None:
    assert connect.uri(credentials()) == "postgresql://app:s3cret@127.0.0.11:15001,127.0.0.12:15001/app"
    assert connect.uri(credentials(), read_only=True).count(":15002") == 2
    assert connect.uri(credentials(hosts=("fd00::1",)), password=False) == "postgresql://app@[fd00::1]:15001/app"


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
def test_any_password_survives_the_uri(password: str) -> None:
    text = connect.uri(credentials(password=password))
    assert unquote(urlsplit(text).netloc.split("@")[0].split(":")[1]) == password
    assert psycopg.conninfo.conninfo_to_dict(text)["password"] == password


def test_libpq_understands_uri_with_tls(tmp_path: Path) -> None:
    tls = connect.checked_tls(credentials(), tmp_path / "my folder")
    told = psycopg.conninfo.conninfo_to_dict(connect.uri(credentials(), tls=tls))
    assert told["sslmode"] == "verify-full"
    assert Path(str(told["sslrootcert"])).read_bytes() == credentials().ca_pem
    assert told["host"] == "127.0.0.11,127.0.0.12"


def test_certificate_is_checked_unless_the_instance_has_no_tls(tmp_path: Path) -> None:
    assert connect.checked_tls(credentials(client_tls="require"), tmp_path).mode == "verify-full"
    assert connect.checked_tls(credentials(client_tls="off"), tmp_path).mode == "disable"


def test_ca_that_lies_in_a_file_already_is_not_copied(tmp_path: Path) -> None:
    known = tmp_path / "ca.crt"
    known.write_bytes(credentials().ca_pem + b"\n")
    assert connect.checked_tls(credentials(), tmp_path / "conf", known_ca=known).ca_file == str(known)
    known.write_bytes(b"another")
    assert connect.checked_tls(credentials(), tmp_path / "conf", known_ca=known).ca_file != str(known)


def test_password_goes_to_psql_by_environment(tmp_path: Path) -> None:
    variables = connect.environment(credentials(), connect.Tls(mode="verify-full", ca_file="/ca"), read_only=True)
    assert variables["PGPASSWORD"] == "s3cret"
    assert variables["PGPORT"] == "15002"
    assert variables["PGHOST"] == "127.0.0.11,127.0.0.12"
    assert variables["PGSSLROOTCERT"] == "/ca"


def test_psql_without_tls_is_found_out_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    psql = tmp_path / "psql"
    psql.write_text(
        "#!/bin/sh\necho 'sslmode value \"require\" invalid when SSL support is not compiled in' >&2\nexit 2\n"
    )
    psql.chmod(0o755)
    usable = connect.usable_tls(str(psql), credentials(), connect.Tls(mode="verify-full", ca_file="/ca"))
    assert usable == connect.Tls(mode="disable")
    assert "not encrypted" in capsys.readouterr().err


def test_real_psql_of_debian_does_tls() -> None:
    psql = "/usr/lib/postgresql/15/bin/psql"
    if not os.path.exists(psql):
        pytest.skip("no Debian PostgreSQL here")
    assert connect.does_tls(psql)
