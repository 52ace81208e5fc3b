"""The one long operation a member may have under way, and how its failures are paced.

A failed operation is not tried again before `retry_at`; the pause doubles from one to sixty seconds, so that nothing
restarts blindly in a loop, and `failure` says what happened until something succeeds. Where the reason is known it says
how to go on (`agent.engines.troubles`): what only waits for something outside is looked at without growing pauses, for
a look costs nothing and the engine is not started by it; and an engine whose data cannot be used is not started again
after a few tries, until somebody changes something (`try_again`).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any

from agent.engines.troubles import TRIES_WITHOUT_COPY, Cure, Diagnosis, diagnosis_of
from agent.ha.view import Operation, OperationKind
from core.clock import Clock
from core.errors import MoorageError, words
from core.log import EventLog

log = EventLog("agent.operations")
RETRY_FIRST_S = 1.0
RETRY_MAX_S = 60.0
LOOK_AGAIN_MAX_S = 5.0  # for what only waits for something outside: room on a disk, a free port
_STARTS = frozenset({OperationKind.START, OperationKind.PROMOTE})


class Operations:
    """`start()` begins one; `preempt()` ends the running one and begins another."""

    def __init__(self, clock: Clock, wake: Callable[[], None]) -> None:
        self.group: asyncio.TaskGroup | None = None  # set by the keeper's run()
        self._clock = clock
        self._wake = wake
        self._task: asyncio.Task[None] | None = None
        self._operation: Operation | None = None
        self.failure = ""
        self.failed: OperationKind | None = None
        self.diagnosis: Diagnosis | None = None  # of the last failure, when its reason is known
        self.failures = 0
        self._alike = 0  # of `failures`, the last ones that were of one kind of work
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
        """End the running operation, if any, and whatever was begun meanwhile."""
        while (task := self._task) is not None and not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=0.5)
            if self._task is task:
                break
        self._task = None
        self._operation = None

    def note_failure(self, what: str, *, kind: OperationKind | None = None, diagnosis: Diagnosis | None = None) -> None:
        self.failures += 1
        self._alike = self._alike + 1 if _work(kind) == _work(self.failed) else 1
        self.failure, self.failed, self.diagnosis = what, kind, diagnosis
        pause_s = min(RETRY_MAX_S, RETRY_FIRST_S * 2.0 ** (self.failures - 1))
        if self.hindered:
            pause_s = min(pause_s, LOOK_AGAIN_MAX_S)
        if self.given_up:
            pause_s = math.inf
        self.retry_at = self._clock.now() + pause_s

    @property
    def failed_starts(self) -> int:
        """How often in a row the engine failed to start, or to stop. A copy that failed says nothing of it."""
        return self._alike if self.failed in _STARTS or self.failed is OperationKind.STOP else 0

    @property
    def broken(self) -> bool:
        """The engine did not start because its data cannot be used."""
        return self.failed in _STARTS and self.diagnosis is not None and self.diagnosis.cure is Cure.COPY

    @property
    def hindered(self) -> bool:
        """What failed waits for something outside the engine."""
        return self.diagnosis is not None and self.diagnosis.cure is Cure.LOOK

    @property
    def given_up(self) -> bool:
        """It is not started again by itself: the data stays as it is, however often it is tried."""
        return self.broken and self.failures >= TRIES_WITHOUT_COPY

    def note_success(self) -> None:
        self.failures = self._alike = 0
        self.failure, self.failed, self.diagnosis = "", None, None
        self.retry_at = 0.0

    def try_again(self) -> None:
        """Somebody has changed something: what failed before may succeed now."""
        self.retry_at = min(self.retry_at, self._clock.now())
        self.failures, self._alike = min(self.failures, 1), min(self._alike, 1)

    async def _run(self, kind: OperationKind, work: Coroutine[Any, Any, None], subject: str) -> None:
        begun = self._clock.now()
        mine = self._operation
        log.info("operation_started", kind=kind.value, member=subject)
        try:
            await work
        except (MoorageError, OSError, TimeoutError) as error:
            diagnosis = diagnosis_of(error)
            self.note_failure(f"{kind.value}: {words(error)}", kind=kind, diagnosis=diagnosis)
            reason = diagnosis.trouble.value if diagnosis is not None else ""
            log.error("operation_failed", kind=kind.value, member=subject, reason=reason, error=words(error))
        else:
            self.note_success()
            log.info("operation_done", kind=kind.value, member=subject, took_s=round(self._clock.now() - begun, 3))
        finally:
            if self._operation is mine:
                self._operation = None
                self._task = None
            self._wake()


def _work(kind: OperationKind | None) -> OperationKind | None:
    return OperationKind.START if kind in _STARTS else kind
