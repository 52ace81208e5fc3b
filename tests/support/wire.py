"""A TCP proxy in front of a gRPC server that misbehaves on request: cuts, swallows answers, mutes streams."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

CHUNK_BYTES = 64 * 1024
HEAD_BYTES = 9  # of an HTTP/2 frame: length (3), type, flags, stream (4)
DATA, HEADERS, RST_STREAM = 0, 1, 3
END_STREAM = 1


class Wire:
    """`cuts`: the next connections end after so many bytes from the server. `swallowing`: answers are lost on the way.
    `cut()` ends all connections now. `mute()`: the streams that are open now bring no more data, all others do."""

    def __init__(self, endpoint: str) -> None:
        host, _, port = endpoint.rpartition(":")
        self._upstream = (host, int(port))
        self.endpoint = ""
        self.cuts: deque[int] = deque()
        self.swallowing = False
        self.connections = 0
        self._connected: set[_Connection] = set()

    @staticmethod
    @asynccontextmanager
    async def running(endpoint: str) -> AsyncIterator[Wire]:
        wire = Wire(endpoint)
        server = await asyncio.start_server(wire._serve, "127.0.0.1", 0)
        wire.endpoint = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            yield wire
            wire.cut()

    def cut(self) -> None:
        for connection in tuple(self._connected):
            connection.cut()

    @property
    def open_streams(self) -> int:
        """Calls that are being answered: a watch that is confirmed, for one."""
        return sum(len(connection.open) for connection in self._connected)

    def mute(self) -> int:
        """How many streams fell silent."""
        for connection in self._connected:
            connection.muted |= connection.open
        return sum(len(connection.muted) for connection in self._connected)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        limit = self.cuts.popleft() if self.cuts else None
        try:
            up_reader, up_writer = await asyncio.open_connection(*self._upstream)
        except OSError:
            writer.transport.abort()
            return
        connection = _Connection(self, [writer, up_writer])
        self._connected.add(connection)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(connection.forward(reader, up_writer))
                group.create_task(connection.backward(up_reader, writer, limit))
        except* (OSError, asyncio.IncompleteReadError):
            pass  # one end has gone
        finally:
            self._connected.discard(connection)
            connection.cut()


class _Connection:
    def __init__(self, wire: Wire, writers: list[asyncio.StreamWriter]) -> None:
        self._wire = wire
        self._writers = writers
        self.open: set[int] = set()  # streams the server has begun to answer and not ended
        self.muted: set[int] = set()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
        self.cut()

    async def backward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int | None) -> None:
        """Frame by frame, so that single streams can be muted."""
        left = limit
        while True:
            head = await reader.readexactly(HEAD_BYTES)
            frame = head + await reader.readexactly(int.from_bytes(head[:3], "big"))
            if self._dropped(head) or self._wire.swallowing:
                continue
            if left is not None and len(frame) >= left:
                writer.write(frame[:left])
                await writer.drain()
                writer.close()  # what was written still arrives
                self._writers[1].transport.abort()
                return
            left = None if left is None else left - len(frame)
            writer.write(frame)
            await writer.drain()

    def _dropped(self, head: bytes) -> bool:
        kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
        if kind == HEADERS:
            self.open.add(stream)
        if kind == RST_STREAM or (kind in (DATA, HEADERS) and flags & END_STREAM):
            self.open.discard(stream)
        return kind == DATA and stream in self.muted
