"""One client connection on which nothing can hang, and which says whether a failed statement may have been carried out.

A deadline shuts the socket down under libpq, so that the statement ends with a connection error by itself. Cancelling
the task instead would make psycopg send a cancel request, and a cancelled wait for a standby is a story of its own.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

CONNECT_S = 3
STATEMENT_S = 8.0
SILENT_PEER_MS = 3000
# A statement refused for these reasons has certainly not been carried out: bad data or objects, no resources, a lost
# race, a read-only or starting server. Everything else may have been.
DEFINITE = ("22", "23", "25", "40001", "40P01", "42", "53", "55", "57P03")


def spread(dsn: str, first: int, *, only: bool = False) -> str:
    """The same connection string with another host first (or alone), and a client's sensible timeouts."""
    parts: dict[str, Any] = dict(conninfo_to_dict(dsn))
    hosts, ports = str(parts["host"]).split(","), str(parts["port"]).split(",")
    ports = ports if len(ports) == len(hosts) else ports * len(hosts)
    order = [(first + step) % len(hosts) for step in range(1 if only else len(hosts))]
    parts["host"] = ",".join(hosts[n] for n in order)
    parts["port"] = ",".join(ports[n] for n in order)
    return make_conninfo(**parts, connect_timeout=CONNECT_S, tcp_user_timeout=SILENT_PEER_MS)


def certainly_not_done(error: BaseException) -> bool:
    """Whether the statement that ended so was surely not carried out."""
    state = getattr(error, "sqlstate", None) or ""
    return bool(state) and state.startswith(DEFINITE)


class NoAnswer(psycopg.OperationalError):
    """The deadline is over, and the statement may have been carried out."""


class Line:
    """Made by `open`. After any connection error or deadline it is of no use any more."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection
        self._late = False

    @staticmethod
    async def open(dsn: str) -> Line:
        connection = await psycopg.AsyncConnection.connect(dsn, autocommit=True, prepare_threshold=None)
        return Line(connection)

    async def rows(self, query: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of the answer, none for a command; psycopg.Error otherwise, at the latest after STATEMENT_S."""
        timer = asyncio.get_running_loop().call_later(STATEMENT_S, self._too_late)
        try:
            cursor = await self._connection.execute(query, parameters)
            return await cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            if self._late:
                raise NoAnswer(f"no answer within {STATEMENT_S:g} s") from error
            raise
        finally:
            timer.cancel()

    def _too_late(self) -> None:
        self._late = True
        self.shut()

    def shut(self) -> None:
        """End the connection under whatever waits for it."""
        with suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as wire:
            wire.shutdown(socket.SHUT_RDWR)

    async def close(self) -> None:
        with suppress(psycopg.Error):
            await self._connection.close()
