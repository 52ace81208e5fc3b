"""What a node of a special site has beside the ordinary: a small volume for its data, and a wall clock that can be set.

The volume is a file system in a sparse file, so that filling it costs no room on this machine. The clock is a library
that is loaded into the agent and all it starts, and adds what a file says to the time of day; monotonic time stays.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.faults.machines import run

VOLUME = "2G"
SOURCE = Path(__file__).with_name("clock.c")
BALLAST = "ballast"
COMMAND_S = 60.0


def mount(image: Path, at: Path) -> None:
    """A new, empty file system at this place."""
    run("truncate", "-s", VOLUME, str(image))
    run("mkfs.ext4", "-q", "-m", "0", str(image))
    at.mkdir()
    run("mount", "-o", "loop", str(image), str(at))
    at.chmod(0o755)


def unmount_below(root: Path) -> None:
    """All volumes mounted there; quick even when something still holds one."""
    for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
        place = line.split()[1]
        if place.startswith(f"{root}/"):
            run("umount", "-l", place)


def fill(at: Path) -> None:
    """Leave no room. fallocate takes what there is and then says that there is no more."""
    free = shutil.disk_usage(at).free
    for size in (free - (1 << 20), 1 << 20, 64 << 10, 4 << 10):
        for number in range(20):
            piece = at / f"{BALLAST}.{size}.{number}"
            command = ["fallocate", "-l", str(size), str(piece)]
            if subprocess.run(command, capture_output=True, timeout=COMMAND_S).returncode:
                break


def make_room(at: Path) -> None:
    for piece in at.glob(f"{BALLAST}.*"):
        piece.unlink()


def clock_environment(folder: Path, node: Path) -> dict[str, str]:
    """What a process of the node is started with so that `set_clock` reaches it; nothing without a compiler."""
    if shutil.which("cc") is None:
        return {}
    library = folder / "clock.so"
    if not library.exists():
        run("cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(SOURCE), "-ldl")
    set_clock(node, 0.0)
    return {"LD_PRELOAD": str(library), "MOORAGE_CLOCK_OFFSET": str(node / "clock")}


def set_clock(node: Path, seconds: float) -> None:
    """The node's time of day is `seconds` off from now on."""
    (node / "clock.new").write_text(f"{seconds}\n")
    (node / "clock.new").rename(node / "clock")
    (node / "clock").chmod(0o644)
