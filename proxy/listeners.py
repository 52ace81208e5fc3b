"""The ports of all routes: opened and closed as tables come, tried again when somebody else holds one."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket

from core.backoff import Backoff
from core.log import EventLog
from core.routes import Route
from proxy.gate import Gate
from proxy.reception import Cancelling, Reception
from proxy.sockets import BACKLOG, listener

log = EventLog("proxy.listeners")
RETRY_BASE_S, RETRY_CAP_S = 0.2, 5.0
Port = tuple[str, int, bool]  # instance, port, read-only


class Listeners:
    """`run()` makes what listens equal to what the routes want."""

    def __init__(self, gate: Gate, cancelling: Cancelling) -> None:
        self._gate = gate
        self._cancelling = cancelling
        self._open: dict[Port, tuple[asyncio.Server, socket.socket]] = {}
        self._backoff = Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S, uniform=random.uniform)
        self._failing: set[Port] = set()
        self._look = asyncio.Event()

    def changed(self) -> None:
        self._look.set()

    async def run(self) -> None:
        """For ever."""
        while True:
            self._look.clear()
            await self._make_so(self._gate.table.routes())
            if not self._failing:
                self._backoff.reset()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._backoff.next_delay() if self._failing else None):
                    await self._look.wait()

    async def _make_so(self, routes: tuple[Route, ...]) -> None:
        """Closing comes first: a port may have moved from one instance to another."""
        wanted: set[Port] = set()
        for route in routes:
            wanted |= {(route.instance, route.rw_port, False), (route.instance, route.ro_port, True)}
        for port, (_, sock) in tuple(self._open.items()):
            # The loop closes a listening socket without a word when accepting fails for want of kernel memory.
            if port not in wanted or sock.fileno() == -1:
                self._open.pop(port)[0].close()
                log.info("listening_ended", instance=port[0], port=port[1], read_only=port[2])
        self._failing &= wanted
        for port in sorted(wanted - self._open.keys()):
            await self._listen(port)

    async def _listen(self, port: Port) -> None:
        instance, number, read_only = port
        address = self._gate.local_address
        try:
            sock = listener(address, number)
            try:
                server = await asyncio.get_running_loop().create_server(
                    lambda: Reception(self._gate, self._cancelling, instance, read_only=read_only),
                    sock=sock,
                    backlog=BACKLOG,
                )
            except BaseException:
                sock.close()
                raise
        except OSError as error:
            if port not in self._failing:
                log.error("listen_failed", instance=instance, port=number, error=str(error))
            self._failing.add(port)
            return
        self._open[port] = (server, sock)
        self._failing.discard(port)
        log.info("listening", instance=instance, address=address, port=number, read_only=read_only)

    def close(self) -> None:
        """Accept nobody any more; sessions go on."""
        for server, _ in self._open.values():
            server.close()
        self._open.clear()
