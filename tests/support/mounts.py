"""Small file systems of a test's own: one in memory that can be filled, one on a loop device that can be frozen."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

WITHIN_S = 20


@cache
def may_mount() -> bool:
    """Whether this process may mount, and has what it takes."""
    if os.getuid() != 0 or any(shutil.which(name) is None for name in ("mount", "mkfs.ext4", "fsfreeze", "losetup")):
        return False
    with tempfile.TemporaryDirectory() as folder:
        tried = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1M", "none", folder],
            capture_output=True,
            timeout=WITHIN_S,
            check=False,
        )
        if tried.returncode != 0:
            return False
        subprocess.run(["umount", folder], timeout=WITHIN_S, check=True)
    return True


def _run(*arguments: str) -> None:
    subprocess.run(arguments, capture_output=True, timeout=WITHIN_S, check=True)


@dataclass(slots=True)
class Mount:
    """A mounted file system; `close` takes it off again."""

    at: Path
    image: Path | None = None
    frozen: bool = False

    @staticmethod
    def memory(at: Path, *, size_bytes: int) -> Mount:
        at.mkdir(parents=True, exist_ok=True)
        _run("mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=755", "none", str(at))
        return Mount(at)

    @staticmethod
    def block_device(at: Path, *, size_bytes: int, image: Path) -> Mount:
        at.mkdir(parents=True, exist_ok=True)
        with image.open("wb") as file:
            file.truncate(size_bytes)
        _run("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", str(image))
        _run("mount", "-o", "loop", str(image), str(at))
        at.chmod(0o755)
        shutil.rmtree(at / "lost+found", ignore_errors=True)
        return Mount(at, image)

    def fill(self, *, leave_bytes: int) -> Path:
        """A file that takes all room but so much. Another name each time."""
        told = os.statvfs(self.at)
        taken = told.f_bavail * told.f_frsize - leave_bytes
        ballast = self.at / f"ballast{len(list(self.at.glob('ballast*')))}"
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, taken))
        return ballast

    def freeze(self) -> None:
        """Every write waits from now on, in the kernel."""
        _run("fsfreeze", "--freeze", str(self.at))
        self.frozen = True

    def thaw(self) -> None:
        if self.frozen:
            self.frozen = False
            _run("fsfreeze", "--unfreeze", str(self.at))

    def close(self) -> None:
        self.thaw()
        with contextlib.suppress(subprocess.SubprocessError):
            _run("umount", "--lazy", str(self.at))
        if self.image is not None:
            self.image.unlink(missing_ok=True)
