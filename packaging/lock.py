"""Pin every wheel that goes into the packages: `./dev package --lock` writes packaging/wheels.ARCH.lock anew.

The ranges of pyproject.toml say what the code can live with; the lock says, with sha256, what is shipped: the versions
of the environment that this runs in, which are those that the tests ran with. The same lock gives the same bytes, today
and in a year.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAD = "# Wheels inside the packages, made by `./dev package --lock` from the ranges in pyproject.toml.\n"


def pinned() -> str:
    """The lock's text for this machine's architecture and Python."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as tested:
        tested.writelines(f"{one.name}=={one.version}\n" for one in distributions() if one.name != "moorage")
        tested.flush()
        report = subprocess.run(
            [
                *(sys.executable, "-m", "pip", "--quiet", "install", "--dry-run", "--ignore-installed"),
                *("--only-binary=:all:", "--constraint", tested.name, "--report", "-", *wanted),
            ],
            check=True,
            stdout=subprocess.PIPE,
        ).stdout
    lines = []
    for item in json.loads(report)["install"]:
        name, version = item["metadata"]["name"].lower().replace("_", "-"), item["metadata"]["version"]
        digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
        lines.append(f"{name}=={version} --hash=sha256:{digest}\n")
    return HEAD + "".join(sorted(lines))


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(pinned())
