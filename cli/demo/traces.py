"""What a demo leaves behind: processes, open ports, files. Empty answers are good ones."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from cli.demo.layout import ADDRESSES, NODES, Layout

CONNECT_WITHIN_S = 0.5
KILLED_WITHIN_S = 5.0


def processes(root: Path) -> list[str]:
    """Processes of the folder, such as `4711 postgres -D ...`."""
    return [f"{process.pid} {' '.join(arguments)[:80]}" for process, arguments in _of_folder(root)]


def kill_all(root: Path) -> None:
    """End all processes of the folder by force."""
    found = [process for process, _ in _of_folder(root)]
    for process in found:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(found, timeout=KILLED_WITHIN_S)


def _of_folder(root: Path) -> Iterator[tuple[psutil.Process, list[str]]]:
    """Processes that work in the folder or name it in their arguments, without ourselves and those above us."""
    me = psutil.Process()
    family = {me.pid, *(parent.pid for parent in me.parents())}
    for process in psutil.process_iter():
        if process.pid in family:
            continue
        try:
            arguments, folder = process.cmdline(), process.cwd()
        except psutil.Error:
            continue  # it has ended meanwhile, or is another user's
        if _inside(folder, root) or any(str(root) in argument for argument in arguments):
            yield process, arguments


def _inside(folder: str, root: Path) -> bool:
    return folder == str(root) or folder.startswith(f"{root}/")


def listening(ports: Iterable[int]) -> list[str]:
    """Addresses of the demo at which one of the ports answers."""
    ports = list(ports)
    return [f"{host}:{port}" for host in ADDRESSES for port in ports if _answers(host, port)]


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=CONNECT_WITHIN_S):
            return True
    except OSError:
        return False


def member_files(layout: Layout) -> list[str]:
    """What is left of members on the nodes: folders and sockets."""
    found = []
    for node in NODES:
        for folder in ("members", "run"):
            place = layout.data_of(node.name) / folder
            found += [str(entry) for entry in sorted(place.iterdir())] if place.is_dir() else []
    return found


def postmaster_pid(layout: Layout, *, node: str, member: str) -> int | None:
    """Pid of a member's postmaster, by PostgreSQL's own pid file."""
    for data in (layout.data_of(node) / "members").glob(f"*.{member}/data"):
        try:
            pid = int((data / "postmaster.pid").read_text().split()[0])
            os.kill(pid, 0)
        except (OSError, ValueError, IndexError):
            continue
        return pid
    return None
