"""What is written: aligned, free of control characters, errors in at most three lines."""

from __future__ import annotations

import contextlib
import io
import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cli import output
from core.errors import NotFoundError, UserError


def test_columns_line_up_and_lines_end_without_blanks() -> None:
    lines = output.table_lines(["NAME", "PHASE"], [["demo/orders", "Running"], ["x", output.Cell("Degraded", "bad")]])
    assert lines == ["NAME         PHASE", "demo/orders  Running", "x            Degraded"]


@given(st.text())
def test_text_from_elsewhere_cannot_move_the_cursor(text: str) -> None:
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in output.plain(text))


@given(st.text(min_size=1), st.text(), st.text())
def test_an_error_is_told_in_at_most_three_lines(what: str, about: str, hint: str) -> None:
    with contextlib.redirect_stderr(io.StringIO()) as told:
        output.fail(UserError(what, object=about, hint=hint))
    lines = told.getvalue().removesuffix("\n").split("\n")
    assert 1 <= len(lines) <= 3
    assert lines[0].startswith("error: ")
    assert not any("\n" in line for line in lines)


def test_errors_go_to_standard_error_and_name_object_and_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    output.fail(NotFoundError("instance does not exist", object="demo/x", hint="See `moorctl instance list`."))
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == "error: demo/x: instance does not exist\n  See `moorctl instance list`.\n"


def test_json_and_yaml_carry_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    value = [{"name": "demo/orders", "message": "grüße", "lag_bytes": None}]
    output.dump(value, "json")
    as_json = capsys.readouterr().out
    output.dump(value, "yaml")
    assert json.loads(as_json) == yaml.safe_load(capsys.readouterr().out) == value


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (1023, "1023"), (1536, "1.5Ki"), (1 << 30, "1Gi"), (10 << 30, "10Gi"), (None, "-"), (True, "-")],
)
def test_sizes_read_as_people_write_them(value: object, shown: str) -> None:
    assert output.size(value) == shown


@pytest.mark.parametrize(
    ("at", "shown"),
    [
        ("1970-01-01T00:16:40.000Z", "0s"),
        ("1970-01-01T00:16:00.000Z", "40s"),
        ("1970-01-01T00:00:00.000Z", "16m"),
        ("2100-01-01T00:00:00Z", "0s"),
        ("yesterday", "-"),
        (None, "-"),
        (12, "-"),
    ],
)
def test_ages_are_short_and_never_fail(at: object, shown: str) -> None:
    assert output.age(at, wall=1000.0) == shown
