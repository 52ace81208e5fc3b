"""Cancel requests, which come on connections of their own with nothing but a process id and a key.

A request for a session of this proxy goes to that session's present server, with the key that the server gave it. The
key of a session that another node's proxy holds is unknown here, so the request goes on to the proxies beside the
members of the instance. One that comes from such a proxy goes no further.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Callable

from core.log import EventLog
from proxy.gate import Gate
from proxy.postgres.startup import CANCEL_REQUEST, Cancel
from proxy.sockets import outgoing

log = EventLog("proxy.cancel")
CANCEL_TIMEOUT_S = 5.0
UNDER_WAY_MAX = 100  # a flood of cancels is dropped, as a busy server would


class Canceller:
    """Forwards cancel requests."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._under_way = 0

    def cancel(self, instance: str, client: str, request: Cancel, done: Callable[[], None]) -> None:
        """Begin; `client` is the address it came from, `done` is called when everybody has taken it, or the time is
        over."""
        if self._under_way >= UNDER_WAY_MAX:
            log.warning("cancel_dropped", instance=instance)
            done()
            return
        _ = self._gate.tasks.spawn(self._forward(instance, client, request, done), "cancel")

    async def _forward(self, instance: str, client: str, request: Cancel, done: Callable[[], None]) -> None:
        self._under_way += 1
        try:
            async with asyncio.timeout(CANCEL_TIMEOUT_S):
                await asyncio.gather(
                    *(_send(self._gate.local_address, *one) for one in self._destinations(instance, client, request))
                )
        except TimeoutError:
            log.info("cancel_not_taken", instance=instance)
        finally:
            self._under_way -= 1
            done()

    def _destinations(self, instance: str, client: str, request: Cancel) -> list[tuple[str, int, bytes]]:
        """Host, port and packet."""
        holder = self._gate.cancels.holder((request.pid, request.key))
        if holder is not None:
            server = holder.present_server()
            if server is None:
                return []  # nothing of it runs anywhere
            endpoint, pid, key = server
            return [(endpoint.host, endpoint.port, struct.pack("!III", 12 + len(key), CANCEL_REQUEST, pid) + key)]
        route = self._gate.table.route(instance)
        hosts = {one.host for one in (route.primary, *route.replicas) if one} if route is not None else set[str]()
        if route is None or client in hosts:
            return []
        return [(host, route.rw_port, request.packet) for host in sorted(hosts - {self._gate.local_address})]


async def _send(local_address: str, host: str, port: int, packet: bytes) -> None:
    with contextlib.suppress(OSError), outgoing(local_address) as sock:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, (host, port))
        await loop.sock_sendall(sock, packet)
        await loop.sock_recv(sock, 1)  # it is closed when the request was taken
