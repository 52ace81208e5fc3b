"""Times as people write them, and questions before what cannot be undone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.instance_leadership import parse_time
from cli.main import moorctl, run
from core.errors import UserError

NOW = datetime(2026, 11, 25, 1, 30, tzinfo=UTC).timestamp()


@pytest.fixture(autouse=True)
def _berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")  # one hour ahead of UTC in winter
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "delay_s", "wall"),
    [
        ("+10m", 600, None),
        ("+1.5h", 5400, None),
        ("+90", 90, None),
        ("2026-11-25T02:30Z", 0, "2026-11-25T02:30+00:00"),
        ("2026-11-25 02:30", 0, "2026-11-25T01:30+00:00"),
        ("2026-11-26T02:30:15+05:00", 0, "2026-11-25T21:30:15+00:00"),
        ("03:15", 0, "2026-11-25T02:15+00:00"),
        ("2:30", 0, "2026-11-26T01:30+00:00"),  # it is half past two in Berlin: the next one is tomorrow
        ("00:05", 0, "2026-11-25T23:05+00:00"),
    ],
)
def test_a_time_is_taken_as_it_is_meant(text: str, delay_s: float, wall: str | None) -> None:
    expected = datetime.fromisoformat(wall).timestamp() if wall else 0.0
    assert parse_time(text, NOW) == (delay_s, expected)


@pytest.mark.parametrize("text", ["", "soon", "+", "+soon", "25:00", "24:00", "2026-13-01", "-5m", "99999-01-01"])
def test_what_is_no_time_is_told_with_examples(text: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_time(text, NOW)
    assert "is not a time" in refused.value.what
    assert "+10m" in refused.value.hint


@given(st.text(max_size=24))
def test_no_text_is_more_than_refused(text: str) -> None:
    try:
        delay_s, wall = parse_time(text, NOW)
    except UserError:
        return
    assert delay_s == 0.0 or wall == 0.0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("switchover", "demo/x", "--cancel", "--to", "m2"), "--cancel goes with neither --to nor --at"),
        (("switchover", "demo/x", "--at", "soon"), "'soon' is not a time"),
        (("switchover", "x"), "write PROJECT/INSTANCE"),
        (("history", "demo/x", "--limit", "0"), "--limit"),
        (("create", "demo/x", "--quorum", "2", "--mode", "async"), "does not go with --mode async"),
    ],
)
def test_wrong_wishes_are_refused_before_a_hub_is_asked(
    arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOORAGE_CONFIG", "/nonexistent/config.yaml")
    assert run(moorctl, ["instance", *arguments], program="moorctl") == 2
    assert told in capsys.readouterr().err
