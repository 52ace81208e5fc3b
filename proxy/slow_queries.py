"""The slow-query log: one line for each query that took longer than its instance says, at most so many a second.

Only where it is wanted does a session keep the beginning of what its client asked last, and only when the query was
slow is that read. Parameters of prepared statements are not told; a simple query is told as it came, literals included.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from core.clock import Clock
from core.log import EventLog
from proxy.postgres.messages import HEADER_BYTES

log = EventLog("proxy.slow_queries")
LOGGED_PER_S = 10  # of all instances: a database that is slow as a whole must not fill the disk
STATEMENT_BYTES_MAX = 1000  # of a statement, in the log
KEPT_BYTES_MAX = 4096  # of what a client asked: a Parse or Query as long as that shows the most of its statement
_QUERY, _PARSE, _BIND = b"QPB"
_header = struct.Struct("!BI").unpack_from


class SlowQueries:
    """One a process."""

    def __init__(self, clock: Clock) -> None:
        self._now = clock.now
        self._second = -1.0  # when the present second of lines began
        self._then = 0

    def note(
        self,
        statement: str,
        *,
        client: str,
        user: str,
        database: str,
        instance: str,
        server: str,
        duration_s: float,
        waited_s: float,
    ) -> None:
        """`server`: the member that has answered."""
        now = self._now()
        if now - self._second >= 1.0:
            if self._then > LOGGED_PER_S:
                log.info("slow_queries_left_out", count=self._then - LOGGED_PER_S)
            self._second, self._then = now, 0
        self._then += 1
        if self._then <= LOGGED_PER_S:
            log.info(
                "query_slow",
                client=client,
                user=user,
                database=database,
                instance=instance,
                server=server,
                duration_ms=round(duration_s * 1000, 1),
                waited_ms=round(waited_s * 1000, 1),
                statement=statement,
            )


def beginning(data: bytes) -> bytes:
    """As much of what a client asks as is worth keeping."""
    return data if len(data) <= KEPT_BYTES_MAX else data[:KEPT_BYTES_MAX]


def statement_of(data: bytes, prepared: Callable[[bytes], bytes]) -> str:
    """The statement that these messages of a client begin with, shortened; empty when they show none. `prepared`: by
    name the text of a statement that the client has prepared before; empty when it is not known."""
    at = 0
    while at + HEADER_BYTES <= len(data):
        kind, length = _header(data, at)
        body = data[at + HEADER_BYTES : at + 1 + length]
        if kind == _QUERY:
            return _shown(body)
        if kind == _PARSE:
            return _shown(body.partition(b"\0")[2])
        if kind == _BIND:
            return _shown(prepared(body.partition(b"\0")[2].partition(b"\0")[0]))
        at += 1 + length
    return ""


def _shown(text: bytes) -> str:
    text = text.partition(b"\0")[0].strip()
    short = text[:STATEMENT_BYTES_MAX].decode(errors="ignore")
    return short if len(text) <= STATEMENT_BYTES_MAX else f"{short}…"
