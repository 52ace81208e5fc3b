"""A bad cable, in user space: frames between a machine and the bridge are delayed, in order, and some are lost.

Where the kernel has netem, `tc` does this better; many kernels of containers and small virtual machines have not. The
machine's cable end leaves the bridge, a tap takes its place, and a process carries frames between the two:

    python -m tests.faults.cable PORT BRIDGE DELAY_S JITTER_S LOSS

The machine must send whole checksums and frames that fit the wire, so its offloads are off while the cable is bad.
"""

from __future__ import annotations

import asyncio
import collections
import ctypes
import fcntl
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tests.faults.machines import BRIDGE, Machine, run
from tests.support.waiting import eventually

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
SIOCETHTOOL = 0x8946
SWITCHES = {"tx checksum": 0x17, "scatter-gather segments": 0x24, "tcp segments": 0x1F}  # ETHTOOL_S*
EVERY_PROTOCOL = 0x0003
FRAME_MAX = 65535
BATCH = 64
UP_WITHIN_S = 10.0

Frames = collections.deque[tuple[float, bytes]]


@asynccontextmanager
async def bad_cable(machine: Machine, *, delay_s: float, jitter_s: float, loss: float) -> AsyncIterator[None]:
    """The machine's cable is bad inside."""
    words = ["-m", "tests.faults.cable"]
    switch = machine.inside(sys.executable, *words, "offloads", "0")
    await asyncio.to_thread(run, *switch)
    command = [sys.executable, *words, machine.port, BRIDGE, str(delay_s), str(jitter_s), str(loss)]
    process = subprocess.Popen(command)
    try:
        await eventually(lambda: _is_up(machine, process), within=UP_WITHIN_S, what=f"bad cable of {machine.name}")
        yield
    finally:
        process.terminate()
        process.wait(timeout=UP_WITHIN_S)
        run(*machine.inside(sys.executable, *words, "offloads", "1"))


async def _is_up(machine: Machine, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "the cable's process has ended"
    return _tap(machine.port) in run("ip", "-brief", "link")


def _tap(port: str) -> str:
    return f"t{port}"[:15]


def set_offloads(on: int) -> None:
    """Of eth0, in the network namespace this runs in."""
    with socket.socket() as control:
        for command in SWITCHES.values():
            value = ctypes.create_string_buffer(struct.pack("II", command, on))
            fcntl.ioctl(control, SIOCETHTOOL, struct.pack("16sP", b"eth0", ctypes.addressof(value)))


class Cable:
    """Carries frames until SIGTERM, then puts the port back on its bridge."""

    def __init__(self, delay_s: float, jitter_s: float, loss: float) -> None:
        self._delay_s = delay_s
        self._jitter_s = jitter_s
        self._loss = loss

    def run(self, port: str, bridge: str) -> None:
        tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", _tap(port).encode(), IFF_TAP | IFF_NO_PI))
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(EVERY_PROTOCOL))
        wire.setblocking(False)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        run("ip", "link", "set", port, "nomaster")
        try:
            wire.bind((port, 0))
            run("ip", "link", "set", _tap(port), "master", bridge, "up")
            run("ip", "link", "set", port, "promisc", "on", "up")
            self._carry(tap, wire)
        finally:
            run("ip", "link", "set", port, "promisc", "off")
            run("ip", "link", "set", port, "master", bridge)

    def _carry(self, tap: int, wire: socket.socket) -> None:
        to_bridge: Frames = collections.deque()
        to_machine: Frames = collections.deque()
        while True:
            due = min((queue[0][0] for queue in (to_bridge, to_machine) if queue), default=None)
            wait = None if due is None else max(0.0, due - time.monotonic())
            ready, _, _ = select.select([tap, wire.fileno()], [], [], wait)
            if wire.fileno() in ready:
                self._take(to_bridge, lambda: _received(wire))
            if tap in ready:
                self._take(to_machine, lambda: os.read(tap, FRAME_MAX))
            now = time.monotonic()
            while to_bridge and to_bridge[0][0] <= now:
                os.write(tap, to_bridge.popleft()[1])
            while to_machine and to_machine[0][0] <= now:
                wire.send(to_machine.popleft()[1])

    def _take(self, queue: Frames, receive: Callable[[], bytes]) -> None:
        for _ in range(BATCH):
            try:
                frame = receive()
            except BlockingIOError:
                return
            if frame and random.random() >= self._loss:
                at = time.monotonic() + self._delay_s + random.uniform(0, self._jitter_s)
                queue.append((max(at, queue[-1][0]) if queue else at, frame))


def _received(wire: socket.socket) -> bytes:
    """A frame from the machine; empty for one that we have sent there ourselves."""
    frame, origin = wire.recvfrom(FRAME_MAX)
    return b"" if origin[2] == socket.PACKET_OUTGOING else frame


if __name__ == "__main__":
    if sys.argv[1] == "offloads":
        set_offloads(int(sys.argv[2]))
    else:
        Cable(*map(float, sys.argv[3:6])).run(sys.argv[1], sys.argv[2])
