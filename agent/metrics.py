"""GET /metrics: what Prometheus reads of this node, where `metrics_listen` of the agent's configuration says.

There is no password: whoever reaches the port may read names, counts and states, but no data and no statements. A small
HTTP/1.1 of our own, one request a connection, everything bounded. A port that is taken does not stop the agent: it is
logged, and tried again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sized
from importlib.metadata import version
from typing import Protocol

from agent.config import AgentConfig
from agent.exposition import CONTENT_TYPE, MemberFacts, NodeFacts
from agent.ha import report
from agent.ha.keeper import Keeper
from agent.heartbeat import Heartbeat
from agent.members import Members
from core.backoff import Backoff
from core.clock import Clock
from core.config import split_host_port
from core.errors import words
from core.log import EventLog
from core.routes import ProxyReport

log = EventLog("agent.metrics")
REQUEST_BYTES_MAX = 8 << 10  # its first line and all headers
REQUEST_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 10.0
CONNECTIONS_MAX = 16
RETRY_BASE_S, RETRY_CAP_S = 1.0, 30.0
HUB_SILENT_S = 12.0  # after which it is told as unreachable; the longest pause between two heartbeats is 5 s
PATH = "/metrics"
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


class ProxyProcesses(Protocol):
    """The node's proxy, as the rest of the agent sees it."""

    @property
    def report(self) -> ProxyReport | None: ...
    def pids(self) -> Sized: ...


def node_figures(
    config: AgentConfig, clock: Clock, *, members: Members, heartbeat: Heartbeat, proxy: ProxyProcesses, since: float
) -> NodeFacts:
    """As it is now. `since`: when the agent began."""
    now = clock.now()
    ago_s = now - heartbeat.answered_at if heartbeat.answered_at else None
    return NodeFacts(
        node=config.node,
        version=version("moorage"),
        up_s=now - since,
        hub_reachable=ago_s is not None and ago_s < HUB_SILENT_S,
        hub_answered_ago_s=ago_s,
        proxy_processes=len(proxy.pids()),
        report=proxy.report,
        members=[_member(keeper) for keeper in members.keepers.values() if not keeper.deleted],
    )


def _member(keeper: Keeper) -> MemberFacts:
    facts, engine = keeper.driver.facts(), keeper.engine
    return MemberFacts(
        ref=keeper.ref,
        state=report.member_state(keeper)[0],
        role=engine.role,
        position=engine.position,
        lag_bytes=facts.lag_bytes,
        connections=facts.connections,
        data_bytes=facts.data_bytes,
        term=keeper.known_term(),
    )


class MetricsServer:
    """`run()` serves `page()` for ever."""

    def __init__(self, listen: str, page: Callable[[], str]) -> None:
        self._host, self._port = split_host_port(listen)
        self._page = page
        self._connections = 0

    async def run(self) -> None:
        backoff = Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S, uniform=lambda _low, high: high)
        failed = False
        while True:
            try:
                server = await asyncio.start_server(self._serve, self._host, self._port, limit=REQUEST_BYTES_MAX)
            except OSError as error:
                if not failed:
                    log.warning("metrics_listen_failed", host=self._host, port=self._port, error=words(error))
                failed = True
                await asyncio.sleep(backoff.next_delay())
                continue
            log.info("metrics_listening", host=self._host, port=self._port)
            async with server:
                await server.serve_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            answer = await self._answer(reader)
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                writer.write(answer)
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, EOFError):
            writer.transport.abort()  # it went away, or does not take its answer
        finally:
            self._connections -= 1

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        if self._connections > CONNECTIONS_MAX:
            return answer(503, "too many requests at once; try again\n")
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return answer(400, f"a request of more than {REQUEST_BYTES_MAX} bytes\n")
        return self._reply(head)

    def _reply(self, head: bytes) -> bytes:
        line = head.partition(b"\r\n")[0].decode(errors="replace").split()
        if len(line) != 3 or not line[2].startswith("HTTP/1."):
            return answer(400, "this is an HTTP/1.1 server\n")
        method, target, _ = line
        if target.partition("?")[0] != PATH:
            return answer(404, f"there is only {PATH}\n")
        if method not in ("GET", "HEAD"):
            return answer(405, "GET and HEAD only\n")
        return answer(200, self._page(), content_type=CONTENT_TYPE, with_body=method == "GET")


def answer(status: int, body: str, *, content_type: str = "text/plain; charset=utf-8", with_body: bool = True) -> bytes:
    """One HTTP response, after which the connection ends."""
    sent = body.encode(errors="replace")
    allow = "Allow: GET, HEAD\r\n" if status == 405 else ""
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {content_type}\r\nContent-Length: {len(sent)}\r\n"
        f"{allow}Connection: close\r\n\r\n"
    )
    return head.encode() + (sent if with_body else b"")
