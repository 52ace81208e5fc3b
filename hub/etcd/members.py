"""One channel to each etcd member, and which of them the next call goes to.

One channel with all addresses (`ipv4:a,b,c`) would be less, but cannot do mutual TLS: gRPC then checks every member's
certificate against the whole list as if it were one name, and no certificate fits (tried with grpcio 1.85). Nor can it
take several host names. With a channel each, every member's certificate is checked against its own endpoint.

- Calls go round the members that are connected.
- A member that left a call unanswered for a second is suspected and passed over for a while if another is connected: it
  may be frozen, which its connection shows only after the ping timeout. So a frozen member costs each caller one call.
- When none is connected, connecting is waited for briefly, so that a first call does not fail by a dead first member.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio

from core.clock import Clock
from core.config import split_host_port
from core.errors import UserError
from core.log import EventLog
from hub.etcd.options import CHANNEL_OPTIONS
from protos.etcd.rpc_pb2_grpc import KVStub, LeaseStub, WatchStub

log = EventLog("hub.etcd")
UNANSWERED_S = 1.0  # a healthy member answers in milliseconds, also over a slow disk
SUSPECT_FOR_S = 10.0  # by then the ping timeout has decided whether the connection is dead
CONNECT_WITHIN_S = 1.0
CONNECT_LOOK_S = 0.02
READY = grpc.ChannelConnectivity.READY
FAILED = grpc.ChannelConnectivity.TRANSIENT_FAILURE


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdTls:
    """PEM files for mutual TLS with etcd."""

    ca: Path
    cert: Path
    key: Path

    def credentials(self) -> grpc.ChannelCredentials:
        """UserError names the file that cannot be read."""
        ca, cert, key = map(_read, (self.ca, self.cert, self.key))
        return grpc.ssl_channel_credentials(ca, private_key=key, certificate_chain=cert)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", object=str(path)) from error


class EtcdMember:
    """One endpoint. Not all of etcd's members need be endpoints, and an endpoint may be a name for several."""

    def __init__(self, endpoint: str, credentials: grpc.ChannelCredentials | None) -> None:
        self.endpoint = endpoint
        self.suspected_until = 0.0
        target = target_of(endpoint)
        self._channel = (
            grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
            if credentials is None
            else grpc.aio.secure_channel(target, credentials, options=CHANNEL_OPTIONS)
        )
        self.kv = KVStub(self._channel)
        self.lease = LeaseStub(self._channel)
        self.watch = WatchStub(self._channel)

    def state(self) -> grpc.ChannelConnectivity:
        """How the connection is; one that is not there is begun."""
        return self._channel.get_state(try_to_connect=True)

    async def aclose(self) -> None:
        await self._channel.close()


class EtcdMembers:
    """Invariant: `pick` gives a suspected member only when no other is connected."""

    def __init__(self, endpoints: Sequence[str], *, tls: EtcdTls | None, clock: Clock) -> None:
        credentials = tls.credentials() if tls is not None else None
        self._members = [EtcdMember(endpoint, credentials) for endpoint in endpoints]
        self._clock = clock
        self._turn = random.randrange(len(self._members))  # not all hubs watch at the same member

    async def aclose(self) -> None:
        for member in self._members:
            await member.aclose()

    async def pick(self) -> EtcdMember:
        """The member for the next call: connected and not suspected, or the best there is."""
        for _ in range(round(CONNECT_WITHIN_S / CONNECT_LOOK_S)):
            states = [(member, member.state()) for member in self._members]
            connected = [member for member, state in states if state is READY]
            now = self._clock.now()
            trusted = [member for member in connected if member.suspected_until <= now]
            if connected:
                return self._next(trusted or connected)
            if all(state is FAILED for _, state in states):
                break
            await asyncio.sleep(CONNECT_LOOK_S)
        return self._next(self._members)

    def _next(self, members: Sequence[EtcdMember]) -> EtcdMember:
        self._turn += 1
        return members[self._turn % len(members)]

    @contextmanager
    def observed(self, member: EtcdMember) -> Iterator[None]:
        """Around a call to the member: suspects it when the call fails, or is given up, without an answer in time."""
        started = self._clock.now()
        try:
            yield
        except (grpc.aio.AioRpcError, asyncio.CancelledError, TimeoutError):
            now = self._clock.now()
            if now - started >= UNANSWERED_S:
                if member.suspected_until <= now:
                    log.warning("etcd_member_suspected", endpoint=member.endpoint, unanswered_s=round(now - started, 1))
                member.suspected_until = now + SUSPECT_FOR_S
            raise

    def suspect(self, member: EtcdMember) -> None:
        """It takes part no more, whatever its connection says: pass it over for a while."""
        member.suspected_until = self._clock.now() + SUSPECT_FOR_S


def target_of(endpoint: str) -> str:
    """gRPC's way to write the endpoint: addresses as they are, names left to DNS."""
    host, _ = split_host_port(endpoint)
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return f"dns:///{endpoint}"
    return f"ipv{version}:{endpoint}"
