"""The ports of all routes: opened and closed as tables come, tried again when somebody else holds one.

A process that takes another one's place takes its listening sockets over: nobody is refused, and who is in their queues
is not lost. Both accept until the successor has said that it has all; then the predecessor closes its own. A port that
nobody hands over is bound alone, or beside siblings that hold it (`proxy.family`).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from pathlib import Path

from core.backoff import Backoff
from core.log import EventLog
from core.routes import Route
from proxy.family import SOCKETS_IN_A_PACKET, Answer, Family, ask
from proxy.gate import Gate
from proxy.reception import Cancelling, Reception
from proxy.sockets import BACKLOG, let_others_in, listener

log = EventLog("proxy.listeners")
RETRY_BASE_S, RETRY_CAP_S = 0.2, 5.0
Port = tuple[str, int, bool]  # instance, port, read-only
Listening = tuple[asyncio.Server, socket.socket]


class Listeners:
    """`run()` makes what listens equal to what the routes want."""

    def __init__(self, gate: Gate, cancelling: Cancelling, family: Family | None = None) -> None:
        self._gate = gate
        self._cancelling = cancelling
        self._family = family
        self._open: dict[Port, list[Listening]] = {}  # more than one where fewer processes follow on more
        self._opening: dict[int, socket.socket] = {}  # by number: bound, and on its way into `_open`
        self._backoff = Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S, uniform=random.uniform)
        self._failing: set[Port] = set()
        self._look = asyncio.Event()
        self._closed = False

    def changed(self) -> None:
        """What no route wants any more is closed when this returns."""
        wanted = _wanted(self._gate.table.routes())
        for port, listening in tuple(self._open.items()):
            # The loop closes a listening socket without a word when accepting fails for want of kernel memory.
            if port not in wanted or any(sock.fileno() == -1 for _, sock in listening):
                self._shut(port)
        self._look.set()

    def unopened(self) -> int:
        """Ports of the present routes on which this process does not listen."""
        return 0 if self._closed else len(_wanted(self._gate.table.routes()) - self._open.keys())

    async def run(self) -> None:
        """For ever."""
        while True:
            self._look.clear()
            await self._make_so(_wanted(self._gate.table.routes()))
            if not self._failing:
                self._backoff.reset()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._backoff.next_delay() if self._failing else None):
                    await self._look.wait()

    async def _make_so(self, wanted: set[Port]) -> None:
        """Closing came first: a port may have moved from one instance to another."""
        if self._closed:
            return
        self._failing &= wanted
        if self._family is not None and wanted - self._open.keys():
            await self._take_over(self._family, wanted)
        missing = sorted(wanted - self._open.keys())
        shared = await self._held_by_siblings(missing)
        for port in missing:
            error = await self._listen(port, shared=port[1] in shared)
            if error is not None and await self._held_by_siblings([port]):  # a sibling was quicker
                error = await self._listen(port, shared=True)
            if error is not None and port not in self._failing:
                log.error("listen_failed", instance=port[0], port=port[1], error=str(error))
                self._failing.add(port)

    async def _listen(self, port: Port, *, shared: bool) -> OSError | None:
        number = port[1]
        try:
            sock = self._opening[number] = listener(self._gate.local_address, number, shared=shared)
            await self._serve(port, sock)
        except OSError as error:
            return error
        finally:
            self._opening.pop(number, None)
        return None

    async def _serve(self, port: Port, sock: socket.socket) -> None:
        """The socket is closed on failure."""
        instance, number, read_only = port
        try:
            server = await asyncio.get_running_loop().create_server(
                lambda: Reception(self._gate, self._cancelling, instance, read_only=read_only),
                sock=sock,
                backlog=BACKLOG,
            )
        except BaseException:
            sock.close()
            raise
        if self._closed or port not in _wanted(self._gate.table.routes()):
            server.close()
            return
        self._open.setdefault(port, []).append((server, sock))
        self._failing.discard(port)
        log.info("listening", instance=instance, address=self._gate.local_address, port=number, read_only=read_only)

    def _shut(self, port: Port) -> None:
        for server, _ in self._open.pop(port):
            server.close()
        log.info("listening_ended", instance=port[0], port=port[1], read_only=port[2])

    def close(self) -> None:
        """Accept nobody any more, for ever; sessions go on."""
        self._closed = True
        for listening in self._open.values():
            for server, _ in listening:
                server.close()
        self._open.clear()

    # --- among siblings -------------------------------------------------------------------------------------------

    async def _take_over(self, family: Family, wanted: set[Port]) -> None:
        ours = frozenset(self._open)
        for place, path in family.predecessors().items():
            try:
                taken = await self._take_all(path, wanted - ours)
                if taken:
                    await ask(path, {"ask": "leave"})
                    log.info("listeners_taken_over", generation=place.generation, index=place.index, sockets=taken)
            except ConnectionRefusedError:
                pass  # it is dead
            except OSError as error:
                log.warning("predecessor_not_heard", path=path.name, error=str(error) or repr(error))

    async def _take_all(self, path: Path, wanted: set[Port]) -> int:
        """How many sockets it has; those that are wanted are ours as well now."""
        taken = 0
        while True:
            answer = await ask(path, {"ask": "sockets", "from": taken})
            ports: list[Port] = [(str(name), int(number), bool(kind)) for name, number, kind in answer.fields["ports"]]
            for port, sock in zip(ports, answer.sockets, strict=True):
                if port in wanted and sock.getsockname()[0] == self._gate.local_address:
                    await self._serve(port, sock)
                else:
                    sock.close()
            taken += len(ports)
            if len(ports) < SOCKETS_IN_A_PACKET:
                return taken

    async def _held_by_siblings(self, missing: list[Port]) -> set[int]:
        """Those ports that belong to the family, and into which it has now let us."""
        if self._family is None or not missing:
            return set()
        answers = await self._family.ask_all({"ask": "share", "ports": [number for _, number, _ in missing]})
        return {int(number) for answer in answers for number in answer.fields["ports"]}

    def give(self, skip: int) -> Answer:
        """Our sockets, for who takes this process' place: as many as fit behind the first `skip`."""
        everything = [(port, sock) for port, listening in self._open.items() for _, sock in listening]
        page = everything[skip : skip + SOCKETS_IN_A_PACKET]
        return Answer(fields={"ports": [port for port, _ in page]}, sockets=tuple(sock for _, sock in page))

    def share(self, numbers: list[int]) -> Answer:
        """Let siblings in at those of these ports that are ours."""
        held = [(port[1], sock) for port, listening in self._open.items() for _, sock in listening]
        ours = [(number, sock) for number, sock in (*held, *self._opening.items()) if number in numbers]
        for _, sock in ours:
            let_others_in(sock)
        return Answer(fields={"ports": sorted({number for number, _ in ours})})


def _wanted(routes: tuple[Route, ...]) -> set[Port]:
    ports: set[Port] = set()
    for route in routes:
        ports |= {(route.instance, route.rw_port, False), (route.instance, route.ro_port, True)}
    return ports
