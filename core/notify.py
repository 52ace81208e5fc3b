"""What a process tells its supervisor, as systemd's sd_notify(3) asks for: it serves, it ends, its main loop turns.

Without NOTIFY_SOCKET in the environment, as on a terminal or in tests, nothing is told and nothing fails. The variables
are taken out of the environment at the first look, so that no child of ours speaks for us.
"""

from __future__ import annotations

import asyncio
import os
import socket
from functools import cache

READY = "READY=1"
STOPPING = "STOPPING=1"
ALIVE = "WATCHDOG=1"


@cache
def _heard() -> tuple[str, float]:
    """Address of the supervisor's socket ("" = nobody listens), and within how many seconds it wants a sign of life
    (0 = it does not)."""
    address = os.environ.pop("NOTIFY_SOCKET", "")
    within_us, pid = os.environ.pop("WATCHDOG_USEC", "0"), os.environ.pop("WATCHDOG_PID", "")
    ours = pid in {"", str(os.getpid())} and within_us.isdecimal()
    return address.replace("@", "\0", 1) if address.startswith("@") else address, int(within_us) / 1e6 if ours else 0.0


def tell(*words: str) -> None:
    """One datagram. A supervisor that does not listen is no reason to fail."""
    address, _ = _heard()
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.setblocking(False)
            channel.sendto("\n".join(words).encode(), address)
    except OSError:
        return


async def keep_alive() -> None:
    """For ever: a sign of life at half the interval. It comes from the event loop, so a loop that hangs gives none."""
    _, within_s = _heard()
    while within_s > 0 and _heard()[0]:
        tell(ALIVE)
        await asyncio.sleep(within_s / 2)
    await asyncio.Event().wait()
