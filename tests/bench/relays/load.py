"""What clients do to a contender for the length of a slice, and what that cost the contender's processes.

pgbench takes part of its time to connect all its clients. The processor time that counts is that of the transactions
alone: it is sampled all the time, and taken between the first and the last of them, which pgbench's log tells.
"""

from __future__ import annotations

import asyncio
import secrets
import statistics
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import cast

import psycopg

from tests.bench.relays.cases import CONNECTING, Case
from tests.bench.relays.contenders import Contender
from tests.bench.relays.pgbench import arguments, read_logs, read_outcome, used_between
from tests.support.bench import percentile
from tests.support.proxy import ADDRESS, APP_PASSWORD, BIN, startup_packet
from tests.support.scram import ScramClient, scram_client

SAMPLE_S = 0.05
PATIENCE_S = 40.0  # beyond the length of a slice
SETTLE_S = 1.0  # before memory is looked at
IDLE_AT_ONCE = 50  # opened between two looks at the clock
IDLE_WITHIN_S = 90.0


async def measure(contender: Contender, case: Case, seconds: float) -> dict[str, float]:
    """One slice. ValueError or OSError when it did not go well; TimeoutError when it did not end."""
    async with asyncio.timeout(seconds + PATIENCE_S if case.kind != "idle" else IDLE_WITHIN_S):
        match case.kind:
            case "login":
                return await _log_in_and_leave(contender, seconds)
            case "idle":
                return await _stay_idle(contender, case)
            case _:
                return await _run_pgbench(contender, case, seconds)


# --- pgbench ----------------------------------------------------------------------------------------------------------


async def _run_pgbench(contender: Contender, case: Case, seconds: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="moorage-bench-") as folder:
        words = arguments(case, seconds, conninfo=contender.conninfo(case), log_prefix=f"{folder}/log")
        with _Meter(contender) as meter:
            said = await _said_by(str(BIN / "pgbench"), *words)
        outcome = read_outcome(said)
        logged = read_logs(line for file in Path(folder).iterdir() for line in file.read_text().splitlines())
    found = {"tps": outcome.tps, "p50_ms": logged.p50_ms, "p99_ms": logged.p99_ms}
    if contender.processes:
        used_s = used_between(meter.samples, logged.end - outcome.seconds, logged.end)
        found["cpu_us_per_transaction"] = 1e6 * used_s / outcome.transactions
    return found


async def _said_by(*command: str) -> str:
    """All that it prints. It does not outlive us."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return output.decode(errors="replace")


class _Meter:
    """Looks at a contender's processor time again and again."""

    def __init__(self, contender: Contender) -> None:
        self.samples: list[tuple[float, float]] = []  # time of day, seconds used so far
        self._contender = contender
        self._next: asyncio.TimerHandle | None = None

    def __enter__(self) -> _Meter:
        self._look()
        return self

    def __exit__(self, *_: object) -> None:
        if self._next is not None:
            self._next.cancel()
        self._look_once()

    def _look(self) -> None:
        self._look_once()
        self._next = asyncio.get_running_loop().call_later(SAMPLE_S, self._look)

    def _look_once(self) -> None:
        self.samples.append((time.time(), self._contender.cpu_s()))


# --- logins -----------------------------------------------------------------------------------------------------------


class _Visitor(asyncio.Protocol):
    """Logs in by SCRAM, says goodbye once the server is ready, and comes again when the connection has ended."""

    def __init__(self, port: int) -> None:
        self.took_s: list[float] = []
        self.failure = ""
        self.left = asyncio.Event()
        self._port = port
        self._began = 0.0
        self._served = False
        self._buffer = b""
        self._scram: ScramClient | None = None
        self._transport: asyncio.Transport | None = None

    async def come(self, until: float) -> None:
        loop = asyncio.get_running_loop()
        while time.monotonic() < until and not self.failure:
            self._began, self._buffer, self._served = time.monotonic(), b"", False
            self.left.clear()
            try:
                await loop.create_connection(lambda: self, ADDRESS, self._port)
            except OSError as error:
                self.failure = str(error)
            else:
                await self.left.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._scram = scram_client(APP_PASSWORD, nonce=secrets.token_urlsafe(18))
        self._transport.write(startup_packet(user="app", database="postgres"))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._served and not self.failure:
            self.failure = f"the connection ended during the login: {exc}"
        self.left.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= 5:
            length = 1 + struct.unpack_from("!I", self._buffer, 1)[0]
            if len(self._buffer) < length:
                return
            message, self._buffer = self._buffer[:length], self._buffer[length:]
            self._take(message[:1], message[5:])

    def _take(self, kind: bytes, body: bytes) -> None:
        assert self._transport is not None
        assert self._scram is not None
        if kind == b"Z":
            self._served = True
            self.took_s.append(time.monotonic() - self._began)
            self._transport.write(b"X\0\0\0\4")
            self._transport.close()
        elif kind == b"E":
            self.failure = body.decode(errors="replace").replace("\0", " ")
            self._transport.close()
        elif kind == b"R":
            (step,) = struct.unpack_from("!I", body)
            if step == 10:
                first = self._scram.first()
                self._say(b"SCRAM-SHA-256\0" + struct.pack("!I", len(first)) + first)
            elif step == 11:
                self._say(self._scram.final(body[4:]))
            elif step == 12:
                self._scram.check(body[4:])

    def _say(self, body: bytes) -> None:
        assert self._transport is not None
        self._transport.write(b"p" + struct.pack("!I", 4 + len(body)) + body)


async def _log_in_and_leave(contender: Contender, seconds: float) -> dict[str, float]:
    visitors = [_Visitor(contender.port) for _ in range(CONNECTING)]
    began, used_s = time.monotonic(), contender.cpu_s()
    async with asyncio.TaskGroup() as group:
        for visitor in visitors:
            group.create_task(visitor.come(began + seconds))
    lasted_s, used_s = time.monotonic() - began, contender.cpu_s() - used_s
    took_s = [each for visitor in visitors for each in visitor.took_s]
    failures = [visitor.failure for visitor in visitors if visitor.failure]
    if failures or not took_s:
        raise ValueError(failures[0] if failures else "nobody could log in")
    found = {
        "tps": len(took_s) / lasted_s,
        "p50_ms": 1000 * statistics.median(took_s),
        "p99_ms": 1000 * percentile(took_s, 0.99),
    }
    if contender.processes:
        found["cpu_us_per_transaction"] = 1e6 * used_s / len(took_s)
    return found


# --- idle clients -----------------------------------------------------------------------------------------------------


async def _stay_idle(contender: Contender, case: Case) -> dict[str, float]:
    """Each has asked something once, so it has a server of its own in session pooling."""
    before = contender.pss_bytes()
    with ExitStack() as stack:
        for _ in range(0, case.clients, IDLE_AT_ONCE):
            await asyncio.to_thread(_open, stack, contender.conninfo(case))
        await asyncio.sleep(SETTLE_S)
        return {"kb_an_idle_client": (contender.pss_bytes() - before) / case.clients / 1000}


def _open(stack: ExitStack, conninfo: str) -> None:
    for _ in range(IDLE_AT_ONCE):
        stack.enter_context(_asked_once(conninfo))


@contextmanager
def _asked_once(conninfo: str) -> Iterator[None]:
    try:
        with psycopg.connect(conninfo, autocommit=True) as connection:
            connection.execute("SELECT 1")
            yield
    except psycopg.OperationalError as error:
        raise OSError(str(error)) from error
