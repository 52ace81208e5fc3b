"""Event logs: one line each, the same by the short way as by the ordinary one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SCRIPT = """
import sys
from core.log import EventLog, setup_logging
setup_logging(level="info", fmt=sys.argv[1])
log = EventLog("some.part")
log.debug("not_told")
log.info("happened", number=1, text="a b", none=None)
log.warning("looked_odd", why=ValueError("x"))
try:
    raise OSError("gone")
except OSError as error:
    log.unexpected("failed", error, member="m1")
import core.log, logging
core.log._direct = None
log.info("happened", number=1, text="a b", none=None)
"""


def lines(fmt: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", SCRIPT, fmt], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_json_has_a_line_for_each_event() -> None:
    told = [json.loads(line) for line in lines("json")]
    assert [(one["level"], one["component"], one["event"]) for one in told] == [
        ("info", "some.part", "happened"),
        ("warning", "some.part", "looked_odd"),
        ("error", "some.part", "failed"),
        ("info", "some.part", "happened"),
    ]
    assert {**told[0], "at": 0} == {**told[3], "at": 0}
    assert (told[0]["number"], told[0]["text"], told[0]["none"], told[1]["why"]) == (1, "a b", None, "x")
    assert "OSError: gone" in told[2]["traceback"]


def test_people_get_columns() -> None:
    told = lines("console")
    assert told[0][12:] == told[-1][12:] == " info    some.part        happened number=1 text=a b none=None"
    assert any("Traceback" in line for line in told)


@pytest.mark.parametrize("closed", ["sys.stderr.close()", "import os; os.close(2)"])
def test_a_log_that_cannot_be_written_ends_nothing(closed: str) -> None:
    script = SCRIPT.replace('log.info("happened"', closed + '\nlog.info("happened"', 1)
    script = script.partition("import core.log, logging")[0] + "\nprint('alive')"
    done = subprocess.run([sys.executable, "-c", script, "json"], capture_output=True, text=True, timeout=30)
    assert "alive" in done.stdout
