"""The agent's own connection: whatever hangs or is cancelled, the caller goes on and the agent's process lives."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator

import pytest

from agent.engines.postgres.member import Member
from agent.engines.postgres.session import Session
from core.errors import EngineError, TimedOutError, UnavailableError
from tests.support.postgres import Site, offers

OFFERS = offers()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site(offer=OFFERS.get("system") or OFFERS["wheel"])
    await site.primary()
    yield site
    await site.close()


async def _open(site: Site) -> Session:
    member = Member(site.engines["m1"].setup)
    return await Session.open(member.local_conninfo(), options={}, within_s=5, subject="test")


async def test_call_that_outlives_its_deadline_ends_in_time_and_kills_the_session_only(site: Site) -> None:
    session = await _open(site)
    pid = (await session.row("SELECT pg_backend_pid() AS pid", within_s=5))["pid"]
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(TimedOutError, match="no answer within"):
        await session.rows("SELECT 1", within_s=0.3)
    assert time.monotonic() - began < 1
    assert session.closed
    with pytest.raises(UnavailableError):
        await session.rows("SELECT 1", within_s=1)
    os.kill(pid, signal.SIGCONT)
    again = await _open(site)
    assert await again.rows("SELECT 1 AS one", within_s=5) == [{"one": 1}]
    again.close()


async def test_cancelled_caller_does_not_wait_for_a_frozen_server(site: Site) -> None:
    session = await _open(site)
    pid = (await session.row("SELECT pg_backend_pid() AS pid", within_s=5))["pid"]
    os.kill(pid, signal.SIGSTOP)
    for _ in range(20):
        call = asyncio.create_task(session.rows("SELECT pg_sleep(60)", within_s=60))
        await asyncio.sleep(0)
        began = time.monotonic()
        call.cancel()
        with pytest.raises((asyncio.CancelledError, UnavailableError)):
            await call
        assert time.monotonic() - began < 0.5
        session.close()
        session = await _open(site)
    session.close()
    os.kill(pid, signal.SIGCONT)


async def test_session_closed_under_a_call_ends_the_call_with_an_error(site: Site) -> None:
    for pause_s in (0, 0.001, 0.05):
        session = await _open(site)
        calls = [asyncio.create_task(session.rows("SELECT pg_sleep(60)", within_s=60)) for _ in range(3)]
        await asyncio.sleep(pause_s)
        session.close()
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(error, UnavailableError) for error in ended), ended


async def test_error_of_the_server_is_told_in_its_words_and_the_session_goes_on(site: Site) -> None:
    session = await _open(site)
    with pytest.raises(EngineError, match='relation "nothing" does not exist'):
        await session.rows("SELECT * FROM nothing", within_s=5)
    assert await session.rows("SELECT 1 AS one", within_s=5) == [{"one": 1}]
    session.close()
