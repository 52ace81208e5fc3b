"""The supervisor hears what a process says, and only what that process says."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SPEAK = (
    "from core.notify import tell; import os; tell('READY=1', 'STATUS=serving'); print('NOTIFY_SOCKET' in os.environ)"
)
LIVE = "import asyncio; from core.notify import keep_alive; asyncio.run(keep_alive())"
ROOT = Path(__file__).resolve().parents[3]


def started(program: str, **settings: str) -> subprocess.Popen[str]:
    environment = {**os.environ, **settings}
    return subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )


@pytest.fixture
def supervisor(tmp_path: Path) -> socket.socket:
    ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    ear.bind(str(tmp_path / "notify"))
    ear.settimeout(20)
    yield ear  # type: ignore[misc]
    ear.close()


def test_words_arrive_as_one_datagram_and_children_do_not_inherit_the_socket(supervisor: socket.socket) -> None:
    process = started(SPEAK, NOTIFY_SOCKET=supervisor.getsockname())
    assert supervisor.recv(4096) == b"READY=1\nSTATUS=serving"
    assert process.communicate(timeout=20)[0] == "False\n"


def test_an_abstract_socket_is_reached_as_well() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.settimeout(20)
        ear.bind("")
        process = started(SPEAK, NOTIFY_SOCKET="@" + ear.getsockname()[1:].decode())
        assert ear.recv(4096).startswith(b"READY=1")
        process.communicate(timeout=20)


@pytest.mark.parametrize("address", ["", "/nobody/listens/here"])
def test_without_a_supervisor_nothing_fails(address: str) -> None:
    process = started(SPEAK, NOTIFY_SOCKET=address)
    assert process.communicate(timeout=20)[0] == "False\n"
    assert process.returncode == 0


def test_signs_of_life_come_again_and_again(supervisor: socket.socket) -> None:
    process = started(LIVE, NOTIFY_SOCKET=supervisor.getsockname(), WATCHDOG_USEC="100000")
    try:
        assert [supervisor.recv(4096) for _ in range(3)] == [b"WATCHDOG=1"] * 3
    finally:
        process.kill()
        process.communicate(timeout=20)


def test_the_watchdog_of_another_process_is_not_ours(supervisor: socket.socket) -> None:
    program = LIVE.replace("asyncio.run(keep_alive())", "asyncio.run(asyncio.wait_for(keep_alive(), 0.3))")
    process = started(program, NOTIFY_SOCKET=supervisor.getsockname(), WATCHDOG_USEC="100000", WATCHDOG_PID="1")
    process.communicate(timeout=20)
    supervisor.setblocking(False)
    with pytest.raises(BlockingIOError):
        supervisor.recv(4096)
