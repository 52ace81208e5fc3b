"""The agent's way in: a Unix socket, a table a line, a report a line back.

The agent may go and come back at any time; the table in force stays until its routes end by themselves. A line that is
not a table is answered by closing the connection, and changes nothing.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from core.log import EventLog
from core.routes import MAX_LINE_BYTES, ProxyReport, decode_table, encode
from proxy.session import Gate

log = EventLog("proxy.control")
WRITE_TIMEOUT_S = 5.0


class Control:
    """Serves the socket; one agent at a time is expected, more do no harm."""

    def __init__(self, gate: Gate, path: Path) -> None:
        self._gate = gate
        self._path = path
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """OSError when the socket cannot be made."""
        self._path.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._serve, str(self._path), limit=MAX_LINE_BYTES)
        finally:
            os.umask(mask)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                self._gate.table.replace(decode_table(line))
                writer.write(encode(self._report()))
                async with asyncio.timeout(WRITE_TIMEOUT_S):
                    await writer.drain()
        except ValueError as error:  # also a line longer than the limit
            log.error("table_refused", error=str(error)[:300])
        except (OSError, TimeoutError) as error:
            log.info("agent_disconnected", error=str(error) or repr(error))
        finally:
            writer.close()

    def _report(self) -> ProxyReport:
        table = self._gate.table
        return ProxyReport(
            seq=table.seq,
            pid=os.getpid(),
            sessions=table.counts(),
            bytes_in=self._gate.bytes_in,
            bytes_out=self._gate.bytes_out,
            refused=table.refused,
        )
