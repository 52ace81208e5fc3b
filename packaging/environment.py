"""Finish the environment below /opt/moorage: our own metadata, the programs, compiled code. Run with its own Python.

    environment.py ENVIRONMENT VERSION

Compiled code is part of the package, of the kind that is never compared with its source: a root process then writes
nothing below /opt, and a changed time stamp does not make each start slow.
"""

from __future__ import annotations

import compileall
import py_compile
import shutil
import sys
from pathlib import Path

HOME = "/opt/moorage"
PROGRAMS = {
    "moorage-hub": ("hub.main", True),
    "moorage-agent": ("agent.main", True),
    "moorage-proxy": ("proxy.main", True),
    "moorctl": ("cli.main", False),
}
# -I: neither the working directory nor PYTHON* variables decide what a root process imports. Daemons tell the journal
# where they hung when the watchdog ends them.
PROGRAM = "#!{home}/bin/python3 {options}\nimport sys\n\nfrom {module} import main\n\nsys.exit(main())\n"
# dpkg knows which file is whose; these would name the place where the packages were built.
WRITTEN_BY_PIP = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")


def finish(environment: Path, version: str) -> None:
    site = environment / "lib/python3.11/site-packages"
    for info in site.glob("*.dist-info"):
        for name in WRITTEN_BY_PIP:
            (info / name).unlink(missing_ok=True)
    own = site / f"moorage-{version}.dist-info"
    own.mkdir()
    (own / "METADATA").write_text(f"Metadata-Version: 2.1\nName: moorage\nVersion: {version}\n")
    for name, (module, daemon) in PROGRAMS.items():
        program = environment / "bin" / name
        options = "-IXfaulthandler" if daemon else "-I"
        program.write_text(PROGRAM.format(home=HOME, options=options, module=module))
        program.chmod(0o755)
    for left in site.rglob("__pycache__"):
        shutil.rmtree(left)
    compileall.compile_dir(
        site,
        maxlevels=50,
        quiet=1,
        stripdir=str(environment),
        prependdir=HOME,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )


if __name__ == "__main__":
    finish(Path(sys.argv[1]), sys.argv[2])
