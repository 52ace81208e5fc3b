"""A standby instance as people see it, and what they are told before they promote it."""

from __future__ import annotations

from typing import Any

import pytest

from cli.instance_leadership import promotion_lines
from cli.instance_page import standby_text

WELL = {"hosts": ["far:5432", "off:5432"], "member": "m1", "streaming": True, "lag_bytes": 2048}


@pytest.mark.parametrize(
    ("standby", "text"),
    [
        (WELL, "of far:5432, off:5432, lag 2Ki"),
        ({**WELL, "lag_bytes": None}, "of far:5432, off:5432, lag -"),
        ({**WELL, "streaming": False}, "of far:5432, off:5432, not streaming"),
        ({}, "of a remote primary, not streaming"),
        (None, ""),
    ],
)
def test_whom_it_follows_and_how_far_behind(standby: dict[str, Any] | None, text: str) -> None:
    assert standby_text({"standby": standby}) == text


@pytest.mark.parametrize(
    ("standby", "behind"),
    [
        (WELL, "has yet to replay 2Ki"),
        ({**WELL, "lag_bytes": None}, "is not known at this moment"),
        ({**WELL, "streaming": False}, "nobody knows how much it lacks"),
    ],
)
def test_before_a_promotion_it_is_said_what_may_be_lost_and_that_nobody_is_fenced(
    standby: dict[str, Any], behind: str
) -> None:
    lacks, fencing = promotion_lines("demo/copy", standby)
    assert behind in lacks
    assert "far:5432, off:5432 is not stopped or fenced by Moorage" in fencing
