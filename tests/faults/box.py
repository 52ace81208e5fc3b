"""The box that a run of faults lives in: process, network and mount namespaces of its own, so nothing stays behind.

`enter()` starts this program again inside the box by `unshare`. There it is process 1: when it ends, however that comes
about, the kernel kills every process of the box, takes its mounts away and its network apart. What can be left is a
folder below /tmp; `clean()` removes those that no living run holds locked.

Process 1 must reap whatever orphans there are (engines outlive their agents on purpose), so it only does that, and the
work is done by its child.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

INSIDE = "MOORAGE_FAULTS_INSIDE"
FOLDERS = Path("/tmp")
PREFIX = "moorage-faults-"
NAMESPACES = ("--mount", "--net", "--pid", "--propagation", "private")
PROBE_S = 10.0


def missing() -> str:
    """Why there can be no box on this machine; empty when there can."""
    if os.getuid() != 0:
        return "namespaces need root"
    for tool in ("unshare", "nsenter", "ip", "nft"):
        if shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
            return f"{tool} is not installed (apt install util-linux iproute2 nftables)"
    probe = "ip link add yard0 type bridge && ip netns add one && nft add table ip yard"
    script = f"mkdir -p /run/netns && mount -t tmpfs tmpfs /run/netns && {probe}"
    command = ["unshare", *NAMESPACES, "--fork", "--mount-proc", "sh", "-c", script]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_S)
    except subprocess.TimeoutExpired:
        return "making namespaces hangs"
    return f"namespaces cannot be made here: {result.stderr.strip()[-200:]}" if result.returncode else ""


def inside() -> bool:
    return os.environ.get(INSIDE) == "1"


def enter() -> None:
    """Return inside the box, as the child of its process 1. Outside, become the program that waits for the box."""
    if not inside():
        command = ["unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc"]
        os.environ[INSIDE] = "1"
        os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
        os.execvp("unshare", [*command, sys.executable, "-m", "tests.faults", *sys.argv[1:]])
    os.environ.pop(INSIDE)
    child = os.fork()
    if child:
        _be_process_one(child)


def _be_process_one(child: int) -> None:
    """Pass signals on, reap all, end with the child's status. Never returns."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda got, _frame: os.kill(child, got))
    while True:
        pid, status = os.wait()
        if pid == child:
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


@contextmanager
def folder() -> Iterator[Path]:
    """A short folder that engines' users may enter, locked while it is in use and removed afterwards."""
    root = FOLDERS / f"{PREFIX}{os.urandom(2).hex()}"
    root.mkdir(mode=0o755)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield root
        finally:
            shutil.rmtree(root, ignore_errors=True)


def clean() -> list[Path]:
    """Remove what earlier runs have left; a run that lives keeps its folder."""
    removed = []
    for root in sorted(FOLDERS.glob(f"{PREFIX}*")):
        with (root / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            shutil.rmtree(root, ignore_errors=True)
        removed.append(root)
    return removed
