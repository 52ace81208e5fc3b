"""Plain processes in sessions of their own, for hosts without systemd.

A process started here keeps no tie to the agent but being its child: signals to the agent's group and the agent's
death do not reach it, and the next agent finds it by its recorded identity. As long as this agent lives it must reap
its children, or they stay zombies; the children belong to this operating system process, hence the one table.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess

from agent.supervise import processes
from agent.supervise.base import Launch, ProcessId

_children: dict[int, subprocess.Popen[bytes]] = {}  # by pid; started here and not reaped yet


def _reap() -> None:
    """Collect every child that has ended."""
    for pid, child in list(_children.items()):
        if child.poll() is not None:
            del _children[pid]


class Detached:
    """A `Supervisor`. Holds nothing: any object sees the same processes."""

    def start(self, launch: Launch) -> ProcessId:
        user = launch.run_as
        with launch.output.open("ab") as output:
            child = subprocess.Popen(
                launch.argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=launch.cwd,
                env=dict(launch.env),
                start_new_session=True,
                user=user.uid if user else None,
                group=user.gid if user else None,
                extra_groups=user.groups if user else None,
                umask=0o077,
            )
        process = processes.identify(child.pid)
        _children[child.pid] = child
        # It may have ended already; then no process has this start time, which is what the caller must learn.
        return process or ProcessId(child.pid, 0, "")

    def alive(self, process: ProcessId) -> bool:
        _reap()
        return processes.identify(process.pid) == process

    def send(self, process: ProcessId, number: signal.Signals) -> None:
        processes.send(process, number)

    async def died(self, process: ProcessId) -> None:
        try:
            descriptor = os.pidfd_open(process.pid)
        except ProcessLookupError:
            return
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        try:
            if not self.alive(process):
                return
            loop.add_reader(descriptor, ended.set)
            await ended.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
            _reap()
