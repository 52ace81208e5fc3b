"""Real faults in network namespaces, the shortest form of `./dev faults`: two faults, one round each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import box

ROOT = Path(__file__).resolve().parents[2]
WITHIN_S = 150
MISSING = box.missing()


@pytest.mark.skipif(bool(MISSING), reason=f"faults cannot be played here: {MISSING}")
@pytest.mark.timeout(WITHIN_S + 30)
def test_a_killed_engine_and_a_partition_lose_no_write_and_make_no_second_primary(tmp_path: Path) -> None:
    told = tmp_path / "faults.json"
    command = [sys.executable, "-m", "tests.faults", "--only", "engine_kill,partition", "--json", str(told)]
    environment = {name: value for name, value in os.environ.items() if name != box.INSIDE}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=WITHIN_S)
    assert result.returncode == 0, result.stdout + result.stderr
    rounds = json.loads(told.read_text())["rounds"]
    assert [one["fault"] for one in rounds] == ["engine_kill", "partition"]
    for one in rounds:
        assert one["acknowledged"] > 0
        assert (one["lost"], one["doubled"], one["phantom"], one["wrong_sums"], one["split"]) == (0, 0, 0, 0, 0), one
