"""One SQL connection, used by the agent, in which nothing can hang.

psycopg answers a cancelled query by asking the server to cancel it, over a second connection, and waits for both: an
engine that is frozen answers neither. So each call runs in a task of its own, and when the deadline passes or the
caller is cancelled the socket is shut down under it. The task then ends by itself with a connection error that nobody
waits for; the session is dead from then on.

libpq's connection object is freed only when no call is under way: psycopg's compiled code keeps a pointer to it across
the wait, and would crash the whole agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

from core.errors import EngineError, TimedOutError, UnavailableError

T = TypeVar("T")
Row = dict[str, Any]
Query = str | sql.Composable


class Session:
    """Made by `open`. One call at a time; after any connection error or deadline it is `closed`."""

    def __init__(self, connection: psycopg.AsyncConnection[Row], subject: str) -> None:
        self._connection = connection
        self._subject = subject
        self._calls: set[asyncio.Task[Any]] = set()  # under way, also those that nobody waits for any more
        self._dead = False

    @staticmethod
    async def open(
        conninfo: Mapping[str, str], *, options: Mapping[str, str], within_s: float, subject: str
    ) -> Session:
        """UnavailableError when the server does not let us in, TimedOutError when it does not answer."""
        settings = " ".join(f"-c {name}={value}" for name, value in options.items())
        text = make_conninfo(**conninfo, **({"options": settings} if settings else {}))
        try:
            async with asyncio.timeout(within_s):
                connection = await psycopg.AsyncConnection.connect(
                    text, autocommit=True, prepare_threshold=None, row_factory=dict_row
                )
        except TimeoutError as error:
            raise TimedOutError(f"no connection to the engine within {within_s} s", object=subject) from error
        except psycopg.Error as error:
            raise refused(error, subject) from error
        return Session(connection, subject)

    @property
    def closed(self) -> bool:
        return self._dead or bool(self._connection.closed)

    async def rows(self, query: Query, parameters: Sequence[object] | None = None, *, within_s: float) -> list[Row]:
        """All rows of the answer, none for a command. EngineError with the server's message when it fails."""

        async def work() -> list[Row]:
            cursor = await self._connection.execute(query, parameters)  # type: ignore[arg-type]
            return await cursor.fetchall() if cursor.description else []

        try:
            return await self._bounded(work(), within_s=within_s, what=_short(query))
        except psycopg.OperationalError as error:
            if self.closed:
                raise UnavailableError(
                    f"the connection to the engine broke: {words(error)}", object=self._subject
                ) from error
            raise EngineError(words(error), object=self._subject) from error
        except psycopg.Error as error:
            raise EngineError(words(error), object=self._subject) from error

    async def row(self, query: Query, parameters: Sequence[object] | None = None, *, within_s: float) -> Row:
        """The one row of the answer."""
        rows = await self.rows(query, parameters, within_s=within_s)
        if len(rows) != 1:
            raise EngineError(f"{len(rows)} rows instead of one for: {_short(query)}", object=self._subject)
        return rows[0]

    async def _bounded(self, work: Coroutine[Any, Any, T], *, within_s: float, what: str) -> T:
        if self._dead:
            work.close()
            raise UnavailableError("the connection to the engine was closed", object=self._subject)
        task = asyncio.get_running_loop().create_task(work, name=f"sql {self._subject}")
        self._calls.add(task)
        task.add_done_callback(self._call_ended)
        try:
            await asyncio.wait({task}, timeout=within_s)
        finally:
            if not task.done():
                self.close()
        if not task.done():
            raise TimedOutError(f"no answer within {within_s} s to: {what}", object=self._subject)
        return task.result()

    def _call_ended(self, task: asyncio.Task[Any]) -> None:
        self._calls.discard(task)
        if self._dead:
            if not task.cancelled():
                task.exception()  # looked at: it is the connection error we caused
            self._free()

    def close(self) -> None:
        """At once, without a farewell that a frozen server would not hear. Calls under way end with an error."""
        if self._dead:
            return
        self._dead = True
        if self._calls:
            with (
                contextlib.suppress(OSError, psycopg.Error),
                socket.socket(fileno=os.dup(self._connection.pgconn.socket)) as twin,
            ):
                twin.shutdown(socket.SHUT_RDWR)
        self._free()

    def _free(self) -> None:
        if not self._calls:
            self._connection.pgconn.finish()


def words(error: psycopg.Error) -> str:
    """The server's message with detail and hint, or libpq's text, on one line."""
    diag = error.diag
    parts = [part for part in (diag.message_primary, diag.message_detail, diag.message_hint) if part]
    text = ": ".join(parts) if parts else str(error)
    return " ".join(text.split())


def refused(error: psycopg.Error, subject: str) -> UnavailableError:
    """Not let in, in the words of the server or of libpq."""
    return UnavailableError(f"cannot connect to the engine: {words(error)}", object=subject)


def _short(query: Query) -> str:
    text = query if isinstance(query, str) else query.as_string(None)
    first = " ".join(text.split())
    return first if len(first) <= 100 else f"{first[:97]}..."
