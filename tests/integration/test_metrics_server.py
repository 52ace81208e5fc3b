"""GET /metrics over real sockets: what browsers and Prometheus send, and what nobody should."""

from __future__ import annotations

import asyncio
import contextlib
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from agent.metrics import CONNECTIONS_MAX, REQUEST_BYTES_MAX, MetricsServer
from tests.support.logs import Logged, logged_by
from tests.support.ports import free_port
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(60)
PAGE = "# HELP moorage_agent_up_seconds How long.\n# TYPE moorage_agent_up_seconds gauge\nmoorage_agent_up_seconds 3\n"


@asynccontextmanager
async def served(page: Callable[[], str] = lambda: PAGE) -> AsyncIterator[int]:
    port = free_port()
    with logged_by("agent.metrics") as logged:
        task = asyncio.get_running_loop().create_task(MetricsServer(f"127.0.0.1:{port}", page).run())
        try:
            await told(logged, "metrics_listening")
            yield port
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def told(logged: Logged, name: str) -> None:
    async def look() -> bool:
        return any(event == name for event, _ in logged)

    await eventually(look, within=15, what=name)


async def say(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    async with asyncio.timeout(15):
        answer = await reader.read()
    writer.close()
    return answer


def get(port: int, path: str = "/metrics", method: str = "GET") -> tuple[int, str, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


async def test_the_page_is_read_by_an_ordinary_client() -> None:
    async with served() as port:
        assert await asyncio.to_thread(get, port) == (200, "text/plain; version=0.0.4; charset=utf-8", PAGE)
        assert (await asyncio.to_thread(get, port, "/metrics?name[]=up"))[0] == 200
        assert (await asyncio.to_thread(get, port, "/metrics", "HEAD"))[2] == ""
        assert (await asyncio.to_thread(get, port, "/"))[0] == 404
        assert (await asyncio.to_thread(get, port, "/metrics", "DELETE"))[0] == 405


async def test_what_is_no_request_is_answered_or_cut() -> None:
    async with served() as port:
        assert (await say(port, b"hello\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
        assert (await say(port, b"GET /metrics HTTP/2.0\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
        long = b"GET /metrics HTTP/1.1\r\nX: " + b"x" * (2 * REQUEST_BYTES_MAX) + b"\r\n\r\n"
        with contextlib.suppress(ConnectionResetError):  # what was not read of it may reset the connection
            assert (await say(port, long)).startswith((b"HTTP/1.1 400 ", b""))
        assert (await asyncio.to_thread(get, port))[0] == 200


async def test_those_who_hold_connections_keep_nobody_else_out_for_long() -> None:
    async with served() as port:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(CONNECTIONS_MAX)]
        await eventually(lambda: asyncio.to_thread(busy, port), within=10)
        for _, writer in held:
            writer.close()
        await eventually(lambda: asyncio.to_thread(get, port), lambda got: got[0] == 200, within=10)


def busy(port: int) -> bool:
    return get(port)[0] == 503


async def test_a_port_that_is_taken_is_told_once_and_tried_again() -> None:
    taken = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", free_port())
    port = taken.sockets[0].getsockname()[1]
    with logged_by("agent.metrics") as logged:
        task = asyncio.get_running_loop().create_task(MetricsServer(f"127.0.0.1:{port}", lambda: PAGE).run())
        await told(logged, "metrics_listen_failed")
        taken.close()
        await taken.wait_closed()
        await told(logged, "metrics_listening")
        assert (await asyncio.to_thread(get, port))[0] == 200
        assert [event for event, _ in logged].count("metrics_listen_failed") == 1
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
