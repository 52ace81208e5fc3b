"""Cancel requests, which come on connections of their own with nothing but a process id and a key.

A request for a session of this proxy goes to that session's server. One for a session that another node's proxy holds
goes to every server of the instance whose port it came to: the key is the server's own, so the right one takes it and
for the others it is noise.
"""

from __future__ import annotations

import asyncio
import contextlib

from core.log import EventLog
from core.routes import Endpoint
from proxy.postgres.startup import Cancel
from proxy.session import Gate

log = EventLog("proxy.cancel")
CANCEL_TIMEOUT_S = 5.0
UNDER_WAY_MAX = 100  # a flood of cancels is dropped, as a busy server would


class Canceller:
    """Forwards cancel requests."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._under_way = 0

    def cancel(self, instance: str, request: Cancel) -> None:
        """Begin; nobody waits for the end."""
        known = self._gate.cancels.get((request.pid, request.key))
        route = self._gate.table.route(instance)
        everywhere = () if route is None else tuple(filter(None, (route.primary, *route.replicas)))
        for endpoint in (known,) if known else everywhere:
            if self._under_way >= UNDER_WAY_MAX:
                log.warning("cancel_dropped", instance=instance)
                return
            self._under_way += 1
            task = asyncio.get_running_loop().create_task(self._send(endpoint, request), name="cancel")
            self._gate.tasks.add(task)
            task.add_done_callback(self._gate.tasks.discard)

    async def _send(self, endpoint: Endpoint, request: Cancel) -> None:
        try:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(CANCEL_TIMEOUT_S):
                    reader, writer = await asyncio.open_connection(
                        endpoint.host, endpoint.port, local_addr=(self._gate.local_address, 0)
                    )
                    try:
                        writer.write(request.packet)
                        await reader.read()  # the server closes when it has taken the request
                    finally:
                        writer.close()
        finally:
            self._under_way -= 1
