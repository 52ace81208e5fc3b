"""Waiting for an engine to come to something, bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from core.errors import TimedOutError


async def until(
    look: Callable[[], Awaitable[bool]], *, within_s: float, what: str, subject: str, every_s: float = 0.01
) -> None:
    """Look until it is so. TimedOutError says `what` did not come to be; errors of `look` are passed on."""
    try:
        async with asyncio.timeout(within_s):
            while True:
                if await look():
                    return
                await asyncio.sleep(every_s)
    except TimeoutError as error:
        raise TimedOutError(f"{what} within {within_s:g} s", object=subject) from error
