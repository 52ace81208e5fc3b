"""The models in docs/model hold in every state they can be in, and would not without any one of their guards."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

MODELS = Path(__file__).parents[2] / "docs" / "model"
MEMORY_MB = 1000
missing = [tool for tool in ("spin", "gcc") if shutil.which(tool) is None]
pytestmark = [
    pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}"),
    pytest.mark.timeout(600),
]
GUARDS = [
    ("lease", "NO_MARGIN"),
    ("lease", "COUNTS_FROM_ANSWER"),
    ("lease", "NO_SPENT"),
    ("lease", "KEEPALIVE_ONLY"),
    ("lease", "ONE_PROMISE"),
    ("lease", "PROMISE_FORGOTTEN"),
    ("lease", "PROMISE_IGNORED LATE_LEADER_PROMOTES"),
    ("acks", "BALLOT_WITHOUT_DETACHING"),
    ("acks", "FOLLOWS_AFTER_VOTING"),
    ("acks", "SHRINKS_SETTING_FIRST"),
    ("acks", "RECORDS_TOO_EARLY"),
    ("acks", "SETS_WHILE_RECORDING"),
    ("acks", "COVERAGE_NOT_CHECKED"),
    ("acks", "ANY_BALLOT"),
    ("acks", "LETS_GO_UNSEEN"),
]


def check(model: str, guards: str, tmp_path: Path) -> str:
    """What the checker says of the model with these guards taken out."""
    flags = [f"-D{guard}" for guard in guards.split()]
    make = ["gcc", "-w", "-O2", "-DSAFETY", "-DCOLLAPSE", f"-DMEMLIM={MEMORY_MB}", "-o", "pan", "pan.c"]
    for command in (["spin", *flags, "-a", str(MODELS / f"{model}.pml")], make):
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    done = subprocess.run(["./pan", "-m200000", "-w24"], cwd=tmp_path, capture_output=True, text=True, timeout=400)
    return done.stdout


def three_terms(guards: str, tmp_path: Path) -> str:
    """A sample: two elections in a row have more states than can be kept, so one bit stands for each."""
    flags = ["-DTERMS=3", *(f"-D{guard}" for guard in guards.split())]
    make = ["gcc", "-w", "-O2", "-DSAFETY", "-DBITSTATE", "-o", "pan", "pan.c"]
    for command in (["spin", *flags, "-a", str(MODELS / "acks.pml")], make):
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    done = subprocess.run(["./pan", "-m200000", "-w24"], cwd=tmp_path, capture_output=True, text=True, timeout=400)
    return done.stdout


def test_who_leads_after_a_leader_that_recorded_nothing_has_every_acknowledged_commit(tmp_path: Path) -> None:
    told = three_terms("", tmp_path)
    assert "errors: 0" in told, told


def test_a_leader_that_acknowledges_before_its_era_is_on_record_is_missed(tmp_path: Path) -> None:
    assert "assertion violated" in three_terms("ACKNOWLEDGES_BEFORE_ITS_ERA", tmp_path)


@pytest.mark.parametrize("model", ["lease", "acks"])
def test_the_model_holds_in_every_state(model: str, tmp_path: Path) -> None:
    told = check(model, "", tmp_path)
    assert "errors: 0" in told, told
    assert "max search depth" not in told, "not looked at to the end"
    assert "MEMLIM" not in told, "not looked at to the end"
    states = re.search(r"(\S+) states, stored", told)
    assert states is not None, told
    assert float(states[1]) > 100_000, "a model that hardly moves shows nothing"


@pytest.mark.parametrize(("model", "guards"), GUARDS, ids=lambda value: value)
def test_the_model_fails_without_the_guard(model: str, guards: str, tmp_path: Path) -> None:
    told = check(model, guards, tmp_path)
    assert "assertion violated" in told, told
