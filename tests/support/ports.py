"""Free TCP ports that no other test takes at the same time: a port is ours while its lock file is held."""

from __future__ import annotations

import fcntl
import os
import random
import socket
from pathlib import Path
from typing import IO

_LOCKS = Path("/tmp") / f"moorage-test-ports-{os.getuid()}"
_held: list[IO[str]] = []  # held until the test process ends


def free_port(host: str = "127.0.0.1") -> int:
    """A port between 20000 and 32000 (below the ephemeral range) that nothing listens on."""
    _LOCKS.mkdir(exist_ok=True)
    for _ in range(1000):
        port = random.randrange(20000, 32000)
        lock = (_LOCKS / str(port)).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("0.0.0.0", port))
        except OSError:
            lock.close()
            continue
        _held.append(lock)
        return port
    raise RuntimeError("no free port found")
