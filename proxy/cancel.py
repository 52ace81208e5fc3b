"""Cancel requests, which come on connections of their own with nothing but a process id and a key.

A request for a session of this proxy goes to that session's server. One for a session that another node's proxy holds
goes to every server of the instance whose port it came to: the key is the server's own, so the right one takes it and
for the others it is noise.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from core.log import EventLog
from core.routes import Endpoint
from proxy.gate import Gate
from proxy.postgres.startup import Cancel
from proxy.sockets import outgoing

log = EventLog("proxy.cancel")
CANCEL_TIMEOUT_S = 5.0
UNDER_WAY_MAX = 100  # a flood of cancels is dropped, as a busy server would


class Canceller:
    """Forwards cancel requests."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._under_way = 0

    def cancel(self, instance: str, request: Cancel, done: Callable[[], None]) -> None:
        """Begin; `done` is called when every server has taken it, or the time is over."""
        if self._under_way >= UNDER_WAY_MAX:
            log.warning("cancel_dropped", instance=instance)
            done()
            return
        _ = self._gate.tasks.spawn(self._forward(instance, request, done), "cancel")

    async def _forward(self, instance: str, request: Cancel, done: Callable[[], None]) -> None:
        known = self._gate.cancels.get((request.pid, request.key))
        route = self._gate.table.route(instance)
        everywhere = () if route is None else tuple(filter(None, (route.primary, *route.replicas)))
        self._under_way += 1
        try:
            await asyncio.gather(
                *(self._send(endpoint, request) for endpoint in ((known,) if known else everywhere)),
            )
        finally:
            self._under_way -= 1
            done()

    async def _send(self, endpoint: Endpoint, request: Cancel) -> None:
        with contextlib.suppress(OSError, TimeoutError), outgoing(self._gate.local_address) as sock:
            async with asyncio.timeout(CANCEL_TIMEOUT_S):
                loop = asyncio.get_running_loop()
                await loop.sock_connect(sock, (endpoint.host, endpoint.port))
                await loop.sock_sendall(sock, request.packet)
                await loop.sock_recv(sock, 1)  # the server closes when it has taken the request
