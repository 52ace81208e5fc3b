"""The proxies of one node among each other: who holds a port, who knows a cancel key, and listening sockets that go
from a process to the one that takes its place.

All processes of a node keep a Unix socket in one folder, named by their *place*: the generation, which grows with each
restart, and the index within it. Whoever lies in that folder is family. A conversation is one packet of JSON each way;
file descriptors travel with the answer. A sibling that is dead or does not answer in time is as good as none.

Each process listens on its own socket of each port (SO_REUSEPORT: the kernel spreads clients over them), but nobody
else gets in: the first of the family binds a port alone, and only then lets the others in, who ask before they bind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.log import EventLog

log = EventLog("proxy.family")
PACKET_BYTES_MAX = 64 << 10
SOCKETS_IN_A_PACKET = 100  # the kernel takes 253; their names must fit as well
UNDER_WAY_MAX = 256
ASK_TIMEOUT_S = 2.0
SERVE_TIMEOUT_S = 10.0
BACKLOG = 128
_NAME = re.compile(r"family-(\d+)-(\d+)\.sock")
Request = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a sibling said, and what it gave: sockets belong to who asked."""

    fields: dict[str, Any] = field(default_factory=dict)
    sockets: tuple[socket.socket, ...] = ()


Answering = Callable[[Request], Awaitable[Answer]]


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Place:
    """Of a process among its siblings."""

    generation: int = 0
    index: int = 0

    def path(self, folder: Path) -> Path:
        return folder / f"family-{self.generation}-{self.index}.sock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """As one of its `processes` sees it."""

    folder: Path
    place: Place
    processes: int

    def siblings(self) -> dict[Place, Path]:
        """All others that have a socket, dead ones perhaps included."""
        found: dict[Place, Path] = {}
        for path in self.folder.iterdir():
            match = _NAME.fullmatch(path.name)
            if match is not None:
                found[Place(generation=int(match[1]), index=int(match[2]))] = path
        found.pop(self.place, None)
        return found

    def predecessors(self) -> dict[Place, Path]:
        """Those of older generations whose place this process takes."""
        return {
            place: path
            for place, path in sorted(self.siblings().items())
            if place.generation < self.place.generation and place.index % self.processes == self.place.index
        }

    async def ask_all(self, request: Request, within_s: float = ASK_TIMEOUT_S) -> list[Answer]:
        """What those say who answer."""
        answers = await asyncio.gather(
            *(ask(path, request, within_s) for path in self.siblings().values()), return_exceptions=True
        )
        return [answer for answer in answers if isinstance(answer, Answer)]


async def ask(path: Path, request: Request, within_s: float = ASK_TIMEOUT_S) -> Answer:
    """OSError, of which TimeoutError is one, when nobody answers."""
    loop = asyncio.get_running_loop()
    with contextlib.closing(_new()) as sock:
        sock.connect(str(path))  # a Unix socket connects at once or not at all
        sock.send(json.dumps(request, separators=(",", ":")).encode())
        readable: asyncio.Future[None] = loop.create_future()
        loop.add_reader(sock.fileno(), _done, readable)
        try:
            async with asyncio.timeout(within_s):
                await readable
        finally:
            loop.remove_reader(sock.fileno())
        data, descriptors, flags, _ = socket.recv_fds(sock, PACKET_BYTES_MAX, SOCKETS_IN_A_PACKET)
    sockets = tuple(socket.socket(fileno=descriptor) for descriptor in descriptors)
    try:
        if not data or flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
            raise ConnectionAbortedError(f"{path.name} gave no whole answer")
        fields = _object(data, path)
    except BaseException:
        close_all(sockets)
        raise
    for one in sockets:
        one.setblocking(False)
    return Answer(fields=fields, sockets=sockets)


def _object(data: bytes, path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(data)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise ConnectionAbortedError(f"{path.name} answered something else")
    return fields


def close_all(sockets: Iterable[socket.socket]) -> None:
    for one in sockets:
        one.close()


def _new() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.setblocking(False)
    return sock


def _done(readable: asyncio.Future[None]) -> None:
    if not readable.done():
        readable.set_result(None)


class FamilySocket:
    """Where the siblings ask. `answering` may raise ValueError, KeyError and TypeError for what makes no sense."""

    def __init__(self, path: Path, answering: Answering) -> None:
        self._path = path
        self._answering = answering
        self._sock: socket.socket | None = None
        self._under_way: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """OSError when it cannot be made. Whatever a dead predecessor of this very place has left is removed."""
        unready = self._path.with_name(f"{self._path.name}.new")
        unready.unlink(missing_ok=True)
        sock, mask = _new(), os.umask(0o177)
        try:
            sock.bind(str(unready))
            sock.listen(BACKLOG)
            unready.rename(self._path)
        except BaseException:
            sock.close()
            raise
        finally:
            os.umask(mask)
        self._sock = sock
        asyncio.get_running_loop().add_reader(sock.fileno(), self._accept)

    def close(self) -> None:
        if self._sock is not None:
            asyncio.get_running_loop().remove_reader(self._sock.fileno())
            self._sock.close()
            self._sock = None
            self._path.unlink(missing_ok=True)
        for task in tuple(self._under_way):
            task.cancel()

    def _accept(self) -> None:
        assert self._sock is not None
        try:
            connection, _ = self._sock.accept()
        except OSError:
            return
        connection.setblocking(False)
        if len(self._under_way) >= UNDER_WAY_MAX:
            connection.close()
            return
        task = asyncio.get_running_loop().create_task(self._serve(connection), name="sibling")
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _serve(self, connection: socket.socket) -> None:
        with contextlib.closing(connection):
            try:
                async with asyncio.timeout(SERVE_TIMEOUT_S):
                    data = await asyncio.get_running_loop().sock_recv(connection, PACKET_BYTES_MAX)
                    answer = await self._answering(json.loads(data))
                    packet = json.dumps(answer.fields, separators=(",", ":")).encode()
                    socket.send_fds(connection, [packet], [one.fileno() for one in answer.sockets])
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.info("sibling_not_answered", error=str(error) or repr(error))
