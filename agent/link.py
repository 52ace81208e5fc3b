"""The agent's connection to whichever hub answers: one at a time, kept while it works, another one when it does not.

Every call has a deadline. Errors come out as MoorageError: UnavailableError (retry), DeniedError (this node is not
allowed; retry slowly), ConflictError and so on by the hub's `moorage-code`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import grpc
import grpc.aio

from core.errors import BY_CODE, ConflictError, DeniedError, MoorageError, NotFoundError, UnavailableError, UserError
from core.log import EventLog
from protos.v1.agent_pb2_grpc import AgentServiceStub

log = EventLog("agent.link")
Req = TypeVar("Req")
Res = TypeVar("Res")
HUB_SERVER_NAME = "moorage-hub"

OPTIONS: tuple[tuple[str, int | str], ...] = (
    # A dead hub or a NAT entry that went away is found while a poll is held. keepalive_timeout_ms alone does nothing in
    # grpcio 1.85: http2.ping_timeout_ms is the one that is read.
    ("grpc.keepalive_time_ms", 15_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # gRPC's own maximum of 120 s would leave a node without hub long after the hub is back.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # The time one connection attempt may take, not a pause: 200 ms made a herd of TLS handshakes collapse.
    ("grpc.min_reconnect_backoff_ms", 10_000),
    ("grpc.enable_retries", 0),  # the loops retry, knowing what is safe to repeat
    ("grpc.ssl_target_name_override", HUB_SERVER_NAME),
    ("grpc.use_local_subchannel_pool", 1),  # a new channel after certificate renewal must not reuse the old connection
)

_BY_STATUS: dict[grpc.StatusCode, type[MoorageError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: UserError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.FAILED_PRECONDITION: ConflictError,
    grpc.StatusCode.ABORTED: ConflictError,
    grpc.StatusCode.PERMISSION_DENIED: DeniedError,
    grpc.StatusCode.UNAUTHENTICATED: DeniedError,
}


class HubLink:
    """Calls to the AgentService of one of `hubs` (host:port, agent ports)."""

    def __init__(self, hubs: Sequence[str], identity_dir: Path) -> None:
        self._hubs = list(hubs)
        random.shuffle(self._hubs)  # agents spread over equal hubs, and stay where they are
        self._identity_dir = identity_dir
        self._channel: grpc.aio.Channel | None = None
        self._stub: AgentServiceStub | None = None
        self._successes = 0

    @property
    def hub(self) -> str:
        return self._hubs[0]

    async def call(
        self,
        method: Callable[[AgentServiceStub], grpc.aio.UnaryUnaryMultiCallable[Req, Res]],
        request: Req,
        *,
        timeout_s: float,
    ) -> Res:
        """The answer, within `timeout_s`; after a failure to reach this hub the next call goes to another."""
        stub = self._connected()
        try:
            response = await answer_of(method(stub)(request, timeout=timeout_s))
        except grpc.aio.AioRpcError as error:
            if error.code() in _BY_STATUS:
                raise translate(error) from error
            await self._leave(stub)
            raise translate(error) from error
        return response

    async def rotate(self) -> None:
        """Use another hub from now on (this one drains)."""
        if self._stub is not None:
            await self._leave(self._stub)

    async def reconnect(self) -> None:
        """Open a new connection, with whatever certificate lies on disk now."""
        channel, self._channel, self._stub = self._channel, None, None
        if channel is not None:
            await channel.close(grace=5)

    async def close(self) -> None:
        await self.reconnect()

    def _connected(self) -> AgentServiceStub:
        if self._stub is None:
            credentials = grpc.ssl_channel_credentials(
                root_certificates=(self._identity_dir / "ca.crt").read_bytes(),
                private_key=(self._identity_dir / "node.key").read_bytes(),
                certificate_chain=(self._identity_dir / "node.crt").read_bytes(),
            )
            self._channel = grpc.aio.secure_channel(self._hubs[0], credentials, options=OPTIONS)
            self._stub = AgentServiceStub(self._channel)
        return self._stub

    async def _leave(self, stub: AgentServiceStub) -> None:
        """Rotate once, however many calls failed on the same connection."""
        if stub is not self._stub or len(self._hubs) == 1:
            return
        self._hubs.append(self._hubs.pop(0))
        log.info("hub_changed", hub=self._hubs[0])
        await self.reconnect()


async def answer_of(call: Awaitable[Res]) -> Res:
    """The call's answer. Calls that are under way when their channel is closed end as cancelled: for us that is a
    broken connection, and must not be mistaken for being cancelled ourselves."""
    try:
        return await call
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise UnavailableError("the connection was closed", object="hub") from None


def translate(error: grpc.aio.AioRpcError) -> MoorageError:
    """The MoorageError a hub's refusal or silence means."""
    code = next((str(value) for key, value in error.trailing_metadata() or () if key == "moorage-code"), "")
    kind = BY_CODE.get(code) or _BY_STATUS.get(error.code(), UnavailableError)
    return kind(error.details() or error.code().name.lower(), object="hub")
