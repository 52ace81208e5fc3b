"""What an agent makes of a trouble: how it is paced, when it gives up, what it warns of."""

from __future__ import annotations

import asyncio
import errno
import math
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from agent.engines.deaths import LOOP_FROM, PAUSE_MAX_S, WINDOW_S, Deaths
from agent.engines.disk import (
    FULL_BELOW_BYTES,
    DiskProbe,
    Room,
    coarse_bytes,
    filling_below,
    judge_room,
)
from agent.engines.rubbish import Rubbish
from agent.engines.troubles import TRIES_WITHOUT_COPY, Diagnosis, Trouble, TroubleError, diagnosis_of
from agent.ha.operations import LOOK_AGAIN_MAX_S, RETRY_MAX_S, Operations
from agent.ha.view import OperationKind
from core.errors import EngineError
from tests.support.clocks import ManualClock
from tests.support.waiting import eventually

GIB = 1 << 30


# --- pacing -----------------------------------------------------------------------------------------------------------


async def _fails(trouble: Trouble | None) -> None:
    if trouble is None:
        raise EngineError("for no known reason")
    raise TroubleError(Diagnosis(trouble=trouble))


async def _after(operations: Operations, work: Coroutine[Any, Any, None], kind: OperationKind) -> None:
    async with asyncio.TaskGroup() as group:
        operations.group = group
        operations.start(kind, work, "demo/orders/m1")


async def _pauses(trouble: Trouble | None, kind: OperationKind, times: int) -> list[float]:
    clock = ManualClock()
    operations = Operations(clock, lambda: None)
    pauses = []
    for _ in range(times):
        await _after(operations, _fails(trouble), kind)
        pauses.append(operations.retry_at - clock.now())
    return pauses


async def test_what_may_pass_is_tried_again_after_growing_pauses() -> None:
    pauses = await _pauses(Trouble.OUT_OF_MEMORY, OperationKind.START, 9)
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (1.0, RETRY_MAX_S)
    assert await _pauses(None, OperationKind.START, 9) == pauses


async def test_what_waits_for_something_outside_is_looked_at_often() -> None:
    assert max(await _pauses(Trouble.DISK_FULL, OperationKind.START, 9)) == LOOK_AGAIN_MAX_S


async def test_data_that_cannot_be_used_is_not_started_for_ever_until_somebody_changes_something() -> None:
    clock = ManualClock()
    operations = Operations(clock, lambda: None)
    for number in range(TRIES_WITHOUT_COPY):
        assert not operations.given_up, number
        await _after(operations, _fails(Trouble.DATA_CORRUPTED), OperationKind.START)
        assert operations.broken
    assert operations.given_up
    assert operations.retry_at == math.inf
    operations.try_again()
    assert operations.retry_at <= clock.now()
    await _after(operations, asyncio.sleep(0), OperationKind.START)
    assert not operations.broken
    assert operations.failure == ""


async def test_rejoin_that_fails_is_never_given_up() -> None:
    pauses = await _pauses(Trouble.DATA_CORRUPTED, OperationKind.REJOIN, 9)
    assert pauses[-1] == RETRY_MAX_S


def test_failures_of_the_system_have_their_reason() -> None:
    assert diagnosis_of(OSError(errno.ENOSPC, "No space left on device")) == Diagnosis(
        trouble=Trouble.DISK_FULL, evidence="[Errno 28] No space left on device"
    )
    assert diagnosis_of(OSError(errno.EROFS, "x")).trouble is Trouble.DISK_READ_ONLY  # type: ignore[union-attr]
    assert diagnosis_of(OSError(errno.ENOENT, "x")) is None
    assert diagnosis_of(EngineError("x")) is None


def test_deaths_are_answered_at_once_until_they_are_a_loop() -> None:
    deaths, why = Deaths(), Diagnosis(trouble=Trouble.PROCESS_KILLED, evidence="signal 9")
    for number in range(1, 12):
        now = 100.0 + number
        deaths.note(now, why)
        if number < LOOP_FROM:
            assert (deaths.retry_at(now), deaths.loop(now)) == (0.0, None)
    loop = deaths.loop(112.0)
    assert loop is not None
    assert "ProcessKilled: signal 9" in loop.message
    assert deaths.retry_at(111.0) == 111.0 + PAUSE_MAX_S
    assert deaths.loop(112.0 + WINDOW_S) is None, "it has run for long enough"


def test_loop_is_told_in_words_that_do_not_change_with_each_death() -> None:
    deaths, why = Deaths(), Diagnosis(trouble=Trouble.ENDED_SILENTLY)
    for at in (1.0, 2.0, 3.0):
        deaths.note(at, why)
    before = deaths.loop(3.0)
    deaths.note(4.0, why)
    assert deaths.loop(4.0) == before


# --- the disk ---------------------------------------------------------------------------------------------------------


def _judged(free: int, total: int, *, warned: bool = False) -> Trouble | None:
    found = judge_room(Room(free=free, total=total, where="/d"), warned=warned)
    return found.trouble if found is not None else None


@pytest.mark.parametrize(
    ("free", "total", "warned", "trouble"),
    [
        (50 * GIB, 100 * GIB, False, None),
        (9 * GIB, 100 * GIB, False, Trouble.DISK_FILLING),
        (11 * GIB, 100 * GIB, False, None),
        (11 * GIB, 100 * GIB, True, Trouble.DISK_FILLING),  # just above: the warning stays
        (13 * GIB, 100 * GIB, True, None),
        (300 * GIB, 10_000 * GIB, False, None),  # a tenth of a large disk is no worry
        (FULL_BELOW_BYTES - 1, 100 * GIB, False, Trouble.DISK_FULL),
        (0, GIB, False, Trouble.DISK_FULL),
    ],
)
def test_room_is_judged(free: int, total: int, warned: bool, trouble: Trouble | None) -> None:
    assert _judged(free, total, warned=warned) is trouble


def test_read_only_file_system_is_named_whatever_its_room() -> None:
    found = judge_room(Room(free=GIB, total=GIB, where="/d", read_only=True), warned=False)
    assert found is not None
    assert found.trouble is Trouble.DISK_READ_ONLY


def test_warning_comes_before_the_end_on_any_disk() -> None:
    assert all(filling_below(total) > 2 * FULL_BELOW_BYTES for total in (0, GIB, 10**15))


def test_sizes_in_texts_do_not_run() -> None:
    assert coarse_bytes(9 * GIB) == coarse_bytes(15 * GIB) == "8 GiB"
    assert coarse_bytes(0) == "nothing"


async def test_disk_that_answers_owes_nothing(tmp_path: Path) -> None:
    clock = ManualClock()
    probe = DiskProbe(tmp_path, run_as=None, now=clock.now, every_s=2.0)
    probe.ask()
    clock.advance(1.0)

    async def silent_s() -> float:
        return probe.silent_s

    await eventually(silent_s, lambda seconds: seconds == 0, within=10)
    assert (tmp_path / "moorage.probe").stat().st_size == 512
    probe.ask()
    assert probe.silent_s == 0, "not due yet"
    probe.close()


async def test_disk_that_does_not_answer_is_asked_once_and_its_silence_is_measured(tmp_path: Path) -> None:
    clock = ManualClock()
    os.mkfifo(tmp_path / "moorage.probe")  # who writes to a pipe without a reader waits
    probe = DiskProbe(tmp_path, run_as=None, now=clock.now, every_s=2.0)
    for _ in range(5):
        probe.ask()
        clock.advance(2.0)
    assert probe.silent_s == 10.0
    probe.close()
    assert probe.silent_s == 0


# --- rubbish ----------------------------------------------------------------------------------------------------------


async def test_rubbish_is_gone_at_once_and_deleted_later_also_by_the_next_agent(tmp_path: Path) -> None:
    clock = ManualClock()
    for number in range(2):
        (tmp_path / f"data{number}" / "base").mkdir(parents=True)
        (tmp_path / f"data{number}" / "base" / "1").write_text("x")
    rubbish = Rubbish(tmp_path / "rubbish", clock)
    rubbish.throw(tmp_path / "data0")
    rubbish.throw(tmp_path / "data1")
    rubbish.throw(tmp_path / "never-there")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rubbish"]
    assert len(list((tmp_path / "rubbish").iterdir())) == 2
    assert await Rubbish(tmp_path / "rubbish", clock).empty() == 0
    assert list((tmp_path / "rubbish").iterdir()) == []
