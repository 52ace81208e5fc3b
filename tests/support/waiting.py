"""Waiting for a condition, bounded, with what was last seen in the error."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def eventually(
    look: Callable[[], Awaitable[T]],
    good: Callable[[T], bool] = bool,
    *,
    within: float,
    every: float = 0.05,
    what: str = "",
) -> T:
    """Look until `good`; AssertionError tells what was last seen (a value or an exception)."""
    deadline = time.monotonic() + within
    last: object = None
    while True:
        try:
            last = seen = await look()
            if good(seen):
                return seen
        except (AssertionError, OSError, LookupError, ValueError, RuntimeError) as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within} s: {what or look}; last seen: {last!r}")
        await asyncio.sleep(every)


def eventually_sync(
    look: Callable[[], T], good: Callable[[T], bool] = bool, *, within: float, every: float = 0.05, what: str = ""
) -> T:
    """The same without a loop."""
    deadline = time.monotonic() + within
    last: object = None
    while True:
        try:
            last = seen = look()
            if good(seen):
                return seen
        except (AssertionError, OSError, LookupError, ValueError, RuntimeError) as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within} s: {what or look}; last seen: {last!r}")
        time.sleep(every)
