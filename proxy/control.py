"""The agent's way in: a Unix socket, a line in, a report a line back.

A line is a route table, or `{"seq": N}` alone, which only asks for a report. The agent may go and come back at any
time; the table in force stays until its routes end by themselves. A line that is neither, or a table with a value that
no route can have, is answered by closing the connection, and changes nothing.

Beside them go notes, which are not reported on: that the process has to leave (`proxy.leaving`), and verifiers, both
ways. The agent tells those of declared users, and from then on may be asked for others. Whoever told last is asked.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import socket
from pathlib import Path
from typing import cast

from core.log import EventLog
from core.routes import (
    MAX_LINE_BYTES,
    Declared,
    Drain,
    Endpoint,
    Note,
    Pooling,
    PoolRule,
    ProxyReport,
    Route,
    RouteTable,
    VerifierAnswer,
    VerifierAsk,
    decode_note,
    decode_table,
    encode,
)
from proxy.gate import Gate
from proxy.leaving import Leaving, Standing
from proxy.splitting import verdicts_of

log = EventLog("proxy.control")
WRITE_TIMEOUT_S = 5.0
QUESTION_BYTES_MAX = 64
BOUNDS = ("clients_max", "clients_per_user_max", "client_idle_s", "idle_transaction_s", "client_unread_s")
CLIENT_TLS = ("off", "prefer", "require")


class Control:
    """Serves the socket; one agent at a time is expected, more do no harm."""

    def __init__(self, gate: Gate, path: Path, standing: Standing | None = None) -> None:
        self._gate = gate
        self._standing = standing or Standing(leaving=Leaving(gate))
        self._path = path
        self._server: asyncio.Server | None = None
        self._inode = 0  # of our socket: a successor's is not ours to remove
        self._answering: asyncio.StreamWriter | None = None  # the agent that knows verifiers

        gate.verifiers.ask = self._ask

    async def start(self) -> None:
        """OSError when the socket cannot be made. It appears under its name when it takes connections, not before."""
        unready = self._path.with_name(f"{self._path.name}.new")
        unready.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            sock.bind(str(unready))
            self._server = await asyncio.start_unix_server(self._serve, sock=sock, limit=MAX_LINE_BYTES)
            self._inode = unready.stat().st_ino
            unready.rename(self._path)
        except BaseException:
            sock.close()
            raise
        finally:
            os.umask(mask)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._path.exists() and self._path.stat().st_ino == self._inode:
            self._path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                note = decode_note(line)
                if note is not None:
                    self._note(note, writer)
                    continue
                writer.write(encode(self._report(self._take(line))))
                async with asyncio.timeout(WRITE_TIMEOUT_S):
                    await writer.drain()
        except ValueError as error:  # also a line longer than the limit
            log.error("table_refused", error=str(error)[:300])
        except (OSError, TimeoutError) as error:
            log.info("agent_disconnected", error=str(error) or repr(error))
        finally:
            writer.close()
            if self._answering is writer:
                self._answering = None
                self._gate.verifiers.agent_gone()

    def _note(self, note: Note, writer: asyncio.StreamWriter) -> None:
        match note:
            case Declared():
                self._gate.verifiers.declare(note)
                self._answering = writer
            case Drain():
                self._standing.leaving.begin(note.within_s)
            case VerifierAnswer():
                self._gate.verifiers.answered(note)
            case VerifierAsk():
                raise ValueError("the agent asks for what only it can know")

    def _ask(self, ask: VerifierAsk) -> bool:
        """False when there is no agent that could answer. What is on its way is bounded by who asks."""
        writer = self._answering
        if writer is None or writer.is_closing():
            return False
        writer.write(encode(ask))
        return True

    def _take(self, line: bytes) -> int:
        """Put the line's table in force if it has one; its `seq`."""
        asked = question(line)
        if asked is not None:
            return asked
        table = read_table(line)
        self._gate.table.replace(table)
        if any(route.splits for route in table.routes):
            _ = verdicts_of(self._gate)  # a parser that is missing is told now, not when the first client comes
        self._gate.meters.wish({route.instance: route.slow_query_ms / 1000 for route in table.routes})
        return table.seq

    def _report(self, seq: int) -> ProxyReport:
        table = self._gate.table
        self._gate.settle()
        self._gate.meters.roll(self._gate.clock.now())
        bytes_in, bytes_out = self._gate.moved_bytes()
        return ProxyReport(
            seq=seq,
            pid=os.getpid(),
            sessions=table.counts(),
            busy=table.busy(),
            bytes_in=bytes_in,
            bytes_out=bytes_out,
            refused=self._gate.refused,
            figures=self._gate.meters.figures(),
            release=self._standing.release,
            generation=self._standing.place.generation,
            draining=self._standing.leaving.begun,
            unopened=self._standing.unopened(),
        )


def question(line: bytes) -> int | None:
    """The number of a line that has nothing else. ValueError when a short line is no JSON."""
    if len(line) > QUESTION_BYTES_MAX:
        return None
    raw = json.loads(line)
    if isinstance(raw, dict) and raw.keys() == {"seq"} and type(raw["seq"]) is int:
        return int(raw["seq"])
    return None


def read_table(line: bytes) -> RouteTable:
    """ValueError, and nothing else, when the line is not a table that can be put in force."""
    try:
        table = decode_table(line)
        for route in table.routes:
            _examine(route)
    except (AttributeError, TypeError, RecursionError, OverflowError) as error:
        raise ValueError(f"route table is not of the expected form: {error!r}") from error
    if len({route.instance for route in table.routes}) != len(table.routes):
        raise ValueError("two routes of one instance")
    return table


def _examine(route: Route) -> None:
    """JSON knows no types: a number where text belongs would surface in the middle of a client's session, and an
    expiry that is not a number would never come."""
    problems = [
        *(name for name in ("instance", "client_tls") if not _is_text(getattr(route, name))),
        *(name for name in ("rw_port", "ro_port") if not _is_port(getattr(route, name))),
        *(name for name in ("expires_at_s", "hold_s") if not _is_number(getattr(route, name))),
        *(["client_tls"] if route.client_tls not in CLIENT_TLS else []),
        *(name for name in ("allow", "observers", "split_functions") if not all(map(_is_text, getattr(route, name)))),
        *(name for name in BOUNDS if not _is_bound(getattr(route, name))),
        *(["slow_query_ms"] if not _is_number(route.slow_query_ms) else []),
        *(["pooling"] if not _is_pooling(route.pooling) else []),
        *(f"pools[{number}]" for number, rule in enumerate(route.pools) if not _is_rule(rule)),
        *(f"endpoint of {one.member}" for one in (route.primary, *route.replicas) if one and not _is_endpoint(one)),
    ]
    if problems:
        raise ValueError(f"route of {route.instance}: unusable {', '.join(problems)}")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_port(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 16


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _is_bound(value: object) -> bool:
    return _is_number(value) and cast(float, value) >= 0


def _is_pooling(one: Pooling) -> bool:
    numbers = (
        *(one.size, one.reserve, one.reserve_after_s, one.queue_timeout_s),
        *(one.idle_max, one.idle_s, one.life_s, one.statements_max),
    )
    known = one.mode in ("session", "transaction") and one.reset in ("changed", "always")
    return known and all(_is_number(number) and number >= 0 for number in numbers)


def _is_rule(rule: PoolRule) -> bool:
    return _is_text(rule.user) and _is_text(rule.database) and _is_pooling(rule.pooling)


def _is_endpoint(one: Endpoint) -> bool:
    texts = _is_text(one.member) and _is_text(one.host) and _is_text(one.node)
    return texts and _is_port(one.port) and isinstance(one.tls, bool)
