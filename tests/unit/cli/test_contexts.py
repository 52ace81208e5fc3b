"""The file of contexts, by the verbs that change it."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import yaml

from cli.main import moorctl, run
from cli.session import Session
from cli.settings import ContextFile

TOKEN = "mo1.0badc0de.00112233445566778899aabbccddeeff"
CA = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a token and a CA; the file of contexts is inside, not there yet."""
    (tmp_path / "token").write_text(TOKEN + "\n")
    (tmp_path / "ca.crt").write_text(CA)
    monkeypatch.setenv("MOORAGE_CONFIG", str(tmp_path / "conf" / "config.yaml"))
    monkeypatch.delenv("MOORAGE_CONTEXT", raising=False)
    return tmp_path


def ctl(*arguments: str) -> int:
    return run(moorctl, arguments, program="moorctl")


def set_context(place: Path, name: str, *more: str) -> int:
    files = ("--token-file", str(place / "token"), "--ca-file", str(place / "ca.crt"))
    return ctl("context", "set", name, "--hub", "127.0.0.1:7401", *files, *more)


def test_contexts_lie_in_a_file_that_only_its_owner_reads(place: Path) -> None:
    assert set_context(place, "prod") == 0
    file = place / "conf" / "config.yaml"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert [entry.name for entry in file.parent.iterdir()] == ["config.yaml"]


def test_token_and_certificate_are_copied_so_that_the_given_files_may_go(place: Path) -> None:
    set_context(place, "prod")
    (place / "token").unlink()
    (place / "ca.crt").unlink()
    target = Session(config=str(place / "conf" / "config.yaml")).target()
    assert target.token == TOKEN
    assert target.ca_pem.decode().strip() == CA.strip()
    assert TOKEN not in repr(target)


def test_first_context_becomes_current_and_use_changes_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_context(place, "prod")
    set_context(place, "test")
    assert ctl("context", "use", "test") == 0
    capsys.readouterr()
    ctl("context", "list", "-o", "json")
    assert json.loads(capsys.readouterr().out) == [
        {"name": "prod", "current": False, "hubs": ["127.0.0.1:7401"]},
        {"name": "test", "current": True, "hubs": ["127.0.0.1:7401"]},
    ]


def test_set_keeps_what_is_not_given(place: Path) -> None:
    set_context(place, "prod")
    assert ctl("context", "set", "prod", "--hub", "10.0.0.1:7401,10.0.0.2:7401") == 0
    target = ContextFile.load(place / "conf" / "config.yaml").target()
    assert target.hubs == ("10.0.0.1:7401", "10.0.0.2:7401")
    assert target.token == TOKEN


@pytest.mark.parametrize("form", ["table", "json", "yaml"])
def test_token_is_never_shown(place: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    set_context(place, "prod")
    ctl("context", "show", "-o", form)
    ctl("context", "list", "-o", form)
    told = capsys.readouterr()
    assert TOKEN.split(".")[2] not in told.out + told.err
    assert "0badc0de" in told.out  # its id is no secret, and tells which it is


def test_delete_asks_first(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_context(place, "prod")
    assert ctl("context", "delete", "prod") == 2  # nobody is there to answer
    assert "--yes" in capsys.readouterr().err
    assert ctl("context", "delete", "prod", "--yes") == 0
    assert ctl("context", "use", "prod") == 3


def test_hand_written_file_may_point_to_files_beside_it(place: Path) -> None:
    file = place / "by-hand.yaml"
    context = {"hubs": ["127.0.0.1:1"], "token_file": "token", "ca_file": "ca.crt"}
    file.write_text(yaml.safe_dump({"current": "a", "contexts": {"a": context}}))
    file.chmod(0o600)
    assert ContextFile.load(file).target().token == TOKEN


def test_file_that_others_can_read_is_told_of(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_context(place, "prod")
    (place / "conf" / "config.yaml").chmod(0o644)
    ctl("context", "list")
    assert "chmod 600" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("current: a\ncontexts:\n  a:\n    hubs: [nonsense]\n", "config.yaml:4: contexts.a.hubs[0]"),
        ("contexts:\n  a:\n    hubs: [x:1]\n    hub: [x:1]\n", "config.yaml:4: contexts.a.hub"),
        ("[1]\n", "must be a mapping"),
        ("current: gone\n", "context 'gone' does not exist"),
    ],
)
def test_mistakes_in_the_file_are_blamed_on_line_and_field(
    place: Path, text: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "conf").mkdir()
    (place / "conf" / "config.yaml").write_text(text)
    (place / "conf" / "config.yaml").chmod(0o600)
    assert ctl("status") in {2, 3}
    assert told in capsys.readouterr().err


def test_flags_win_over_environment_and_environment_over_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_context(place, "prod")
    set_context(place, "test")
    (place / "other").write_text(TOKEN.replace("0bad", "1bad"))
    chosen = Session(
        config=str(place / "conf" / "config.yaml"), context="test", hubs=("h:1",), token_file=str(place / "other")
    ).target()
    assert (chosen.name, chosen.hubs, chosen.token) == ("test", ("h:1",), TOKEN.replace("0bad", "1bad"))
    monkeypatch.setenv("MOORAGE_CONTEXT", "nowhere")
    assert ctl("context", "show") == 3
    assert ctl("context", "show", "--context", "prod") == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("context", "set", "x"), "no hub address"),
        (("context", "set", "x", "--hub", "nowhere"), "HOST:PORT"),
        (("context", "set", "x", "--hub", "a:1"), "no operator token"),
        (("context", "set", "X!", "--hub", "a:1"), "not valid"),
        (("context", "set", "x", "--hub", "a:1", "--token-file", "/nonexistent"), "cannot be read"),
    ],
)
def test_incomplete_contexts_are_not_kept(
    place: Path, arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ctl(*arguments) == 2
    assert told in capsys.readouterr().err
    assert not (place / "conf" / "config.yaml").exists()
