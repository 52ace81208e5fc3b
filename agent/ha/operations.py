"""The one long operation a member may have under way, and how its failures are paced.

A failed operation is not tried again before `retry_at`; the pause doubles from one to sixty seconds, so that nothing
restarts blindly in a loop, and `failure` says what happened until something succeeds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from agent.ha.view import Operation, OperationKind
from core.clock import Clock
from core.errors import MoorageError, words
from core.log import EventLog

log = EventLog("agent.operations")
RETRY_FIRST_S = 1.0
RETRY_MAX_S = 60.0


class Operations:
    """`start()` begins one; `preempt()` ends the running one and begins another."""

    def __init__(self, clock: Clock, wake: Callable[[], None]) -> None:
        self.group: asyncio.TaskGroup | None = None  # set by the keeper's run()
        self._clock = clock
        self._wake = wake
        self._task: asyncio.Task[None] | None = None
        self._operation: Operation | None = None
        self.failure = ""
        self.failures = 0
        self.retry_at = 0.0

    @property
    def kind(self) -> OperationKind | None:
        return self._operation.kind if self._operation else None

    def current(self) -> Operation | None:
        return self._operation

    def start(self, kind: OperationKind, work: Coroutine[Any, Any, None], subject: str) -> None:
        """Begin; the caller has seen that none is under way."""
        assert self.group is not None, "operations run in the keeper's task group"
        assert self._operation is None, f"{kind} while {self._operation} is under way"
        self._operation = Operation(kind=kind, since=self._clock.now())
        self._task = self.group.create_task(self._run(kind, work, subject), name=f"{kind} {subject}")

    async def preempt(self, kind: OperationKind, work: Coroutine[Any, Any, None], subject: str) -> None:
        """End whatever runs, without waiting long for its courtesy, then begin."""
        await self.cancel()
        self.start(kind, work, subject)

    async def cancel(self) -> None:
        """End the running operation, if any."""
        task = self._task
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=0.5)
        self._task = None
        self._operation = None

    def note_failure(self, what: str) -> None:
        self.failures += 1
        self.failure = what
        self.retry_at = self._clock.now() + min(RETRY_MAX_S, RETRY_FIRST_S * 2.0 ** (self.failures - 1))

    def note_success(self) -> None:
        self.failures = 0
        self.failure = ""
        self.retry_at = 0.0

    async def _run(self, kind: OperationKind, work: Coroutine[Any, Any, None], subject: str) -> None:
        begun = self._clock.now()
        mine = self._operation
        log.info("operation_started", kind=kind.value, member=subject)
        try:
            await work
        except (MoorageError, OSError, TimeoutError) as error:
            self.note_failure(f"{kind.value}: {words(error)}")
            log.error("operation_failed", kind=kind.value, member=subject, error=words(error))
        else:
            self.note_success()
            log.info("operation_done", kind=kind.value, member=subject, took_s=round(self._clock.now() - begun, 3))
        finally:
            if self._operation is mine:
                self._operation = None
                self._task = None
            self._wake()
