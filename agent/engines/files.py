"""Files that the agent writes and the engine's user owns.

The agent may be root while the engine's user owns the directory, so nothing here follows a link the engine could have
planted: a file is written beside its name with O_EXCL and renamed over it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from pathlib import Path

from agent.supervise.base import OsUser


def write_owned(path: Path, data: bytes, owner: OsUser | None, *, mode: int = 0o600, durable: bool = True) -> bool:
    """Atomically, unless it has this content already. Returns whether it changed. `durable` survives a power cut."""
    if _content(path) == data:
        return False
    temporary = path.with_name(f"{path.name}.tmp")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as file:
        if owner:
            os.fchown(descriptor, owner.uid, owner.gid)
        os.fchmod(descriptor, mode)
        file.write(data)
        file.flush()
        if durable:
            os.fsync(descriptor)
    temporary.rename(path)
    return True


def _content(path: Path) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def make_owned_directory(path: Path, owner: OsUser | None) -> None:
    """Mode 0700; parents that are missing get 0755, for the owner must be able to enter them. One that is as it should
    be is not written to: on a disk that hangs even that would never end."""
    if _is_owned_directory(path, owner):
        return
    for missing in [parent for parent in reversed(path.parents) if not parent.exists()]:
        missing.mkdir(exist_ok=True)
        missing.chmod(0o755)
    path.mkdir(mode=0o700, exist_ok=True)
    path.chmod(0o700)
    if owner:
        os.chown(path, owner.uid, owner.gid)


def _is_owned_directory(path: Path, owner: OsUser | None) -> bool:
    try:
        told = path.lstat()
    except OSError:
        return False
    owned = owner is None or (told.st_uid, told.st_gid) == (owner.uid, owner.gid)
    return stat.S_ISDIR(told.st_mode) and stat.S_IMODE(told.st_mode) == 0o700 and owned


def remove_tree(path: Path) -> None:
    """Also when it is not there. OSError when something in it cannot be removed."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)


def tree_bytes(path: Path) -> int:
    """Bytes of all files below; files that vanish meanwhile do not count."""
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(directory, name)).st_size
    return total
