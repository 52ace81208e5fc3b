"""Cancel requests, which come on connections of their own with nothing but a process id and a key.

A request for a session of this process goes to that session's present server, with the key that the server gave it. A
key that is unknown here may be one of a sibling (`proxy.family`), which is asked to do the same, those that take no new
clients included. What no process of this node knows goes on to the proxies beside the other members of the instance;
one that comes from such a proxy goes no further.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Callable

from core.log import EventLog
from proxy.family import Family
from proxy.gate import Gate
from proxy.keys import Key
from proxy.postgres.startup import CANCEL_REQUEST, Cancel
from proxy.sockets import outgoing

log = EventLog("proxy.cancel")
CANCEL_TIMEOUT_S = 5.0
UNDER_WAY_MAX = 100  # a flood of cancels is dropped, as a busy server would


class Canceller:
    """Forwards cancel requests."""

    def __init__(self, gate: Gate, family: Family | None = None) -> None:
        self._gate = gate
        self._family = family
        self._under_way = 0

    def cancel(self, instance: str, client: str, request: Cancel, done: Callable[[], None]) -> None:
        """Begin; `client` is the address it came from, `done` is called when everybody has taken it, or the time is
        over."""
        if self._gate.table.route(instance) is not None:
            self._gate.meters.inflow(instance).cancels += 1
        if self._under_way >= UNDER_WAY_MAX:
            log.warning("cancel_dropped", instance=instance)
            done()
            return
        _ = self._gate.tasks.spawn(self._forward(instance, client, request, done), "cancel")

    async def _forward(self, instance: str, client: str, request: Cancel, done: Callable[[], None]) -> None:
        self._under_way += 1
        try:
            async with asyncio.timeout(CANCEL_TIMEOUT_S):
                if await self.cancel_here((request.pid, request.key)) or await self._cancel_at_siblings(request):
                    return
                others = self._other_proxies(instance, client)
                await asyncio.gather(*(_send(self._gate.local_address, *one, request.packet) for one in others))
        except TimeoutError:
            log.info("cancel_not_taken", instance=instance)
        finally:
            self._under_way -= 1
            done()

    async def cancel_here(self, key: Key) -> bool:
        """Whether the key is one of this process; then its server has been told, if it has one."""
        holder = self._gate.cancels.holder(key)
        if holder is None:
            return False
        server = holder.present_server()
        if server is not None:  # else nothing of it runs anywhere
            endpoint, pid, secret = server
            packet = struct.pack("!III", 12 + len(secret), CANCEL_REQUEST, pid) + secret
            ended, taken = holder.cancelling(), False
            try:
                await _send(self._gate.local_address, endpoint.host, endpoint.port, packet)
                taken = True
            finally:
                ended(taken)
        return True

    async def _cancel_at_siblings(self, request: Cancel) -> bool:
        if self._family is None:
            return False
        asked = {"ask": "cancel", "pid": request.pid, "key": request.key.hex()}
        return any(answer.fields.get("held") for answer in await self._family.ask_all(asked))

    def _other_proxies(self, instance: str, client: str) -> list[tuple[str, int]]:
        """Host and port."""
        route = self._gate.table.route(instance)
        hosts = {one.host for one in (route.primary, *route.replicas) if one} if route is not None else set[str]()
        if route is None or client in hosts:
            return []
        return [(host, route.rw_port) for host in sorted(hosts - {self._gate.local_address})]


async def _send(local_address: str, host: str, port: int, packet: bytes) -> None:
    with contextlib.suppress(OSError), outgoing(local_address) as sock:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, (host, port))
        await loop.sock_sendall(sock, packet)
        await loop.sock_recv(sock, 1)  # it is closed when the request was taken
