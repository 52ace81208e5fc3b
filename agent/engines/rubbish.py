"""Files to be deleted that may be many: out of the way by one rename, deleted afterwards.

Deleting a terabyte takes minutes, and neither a member's deletion nor its new copy should wait for that. What is thrown
away lies in `<data_root>/rubbish`, where the next agent finds what this one did not get to. A directory that cannot be
moved (it is a mount point, or on another file system) is emptied where it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

from agent.engines.files import remove_tree
from core.clock import Clock
from core.log import EventLog

log = EventLog("agent.rubbish")
RETRY_S = 60.0


class Rubbish:
    """One a node. `throw` at any time and from any thread; `run` deletes, for ever."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self._number = 0
        self._thrown = asyncio.Event()

    def throw(self, path: Path) -> None:
        """Gone from where it was when this returns. OSError when it cannot be removed at all."""
        if not path.exists() and not path.is_symlink():
            return
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._number += 1
        target = self._folder / f"{os.getpid()}-{self._clock.now():.6f}-{self._number}-{path.name}"
        try:
            path.rename(target)
        except OSError:
            _empty(path)
            return
        self._thrown.set()

    async def run(self) -> None:
        """Delete what is there, then what comes. A failure is logged and tried again after a pause."""
        while True:
            self._thrown.clear()
            failed = await self.empty()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_S if failed else None):
                    await self._thrown.wait()

    async def empty(self) -> int:
        """Delete all there is; returns how many entries could not be deleted."""
        failed = 0
        for entry in sorted(self._folder.iterdir()) if self._folder.is_dir() else []:
            try:
                await asyncio.to_thread(remove_tree, entry)
            except OSError as error:
                failed += 1
                log.warning("rubbish_not_deleted", path=str(entry), error=str(error))
            else:
                log.info("rubbish_deleted", path=str(entry))
        return failed


def _empty(path: Path) -> None:
    """In place; the directory itself stays only if it is a mount point."""
    for entry in path.iterdir() if path.is_dir() and not path.is_symlink() else []:
        if entry.is_dir() and not entry.is_symlink():
            remove_tree(entry)
        else:
            entry.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.rmdir()
