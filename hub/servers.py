"""The hub's two ports.

`listen_agents` takes only callers with a certificate of the CA; `listen_operators` proves the hub to strangers and asks
them for a token. Both offer the standard health service. The certificate is fetched anew at each handshake, so its
renewal needs no restart.
"""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health

from core.errors import UserError
from core.log import EventLog
from hub.context import Hub
from hub.leadership import Leadership
from hub.options import agent_server_options, operator_server_options
from hub.pulse import Pulse
from hub.reports import Reports
from hub.rpc.agents import AgentService
from hub.rpc.enrol import EnrolService
from hub.rpc.operators import OperatorService
from protos.v1 import agent_pb2_grpc, operator_pb2_grpc

AGENT_SERVICE = "moorage.v1.AgentService"
OPERATOR_SERVICE = "moorage.v1.OperatorService"
ENROL_SERVICE = "moorage.v1.EnrolService"
_SERVICES = ("", AGENT_SERVICE, OPERATOR_SERVICE, ENROL_SERVICE)

log = EventLog("hub.servers")


class Servers:
    """Both gRPC servers and what health says of them."""

    def __init__(self, hub: Hub, pulse: Pulse) -> None:
        self._hub = hub
        self._health = health.HealthServicer()
        self._agents = grpc.aio.server(options=agent_server_options())
        self._operators = grpc.aio.server(options=operator_server_options())
        leadership = Leadership(
            clock=hub.clock,
            client=hub.client,
            mirror=hub.mirror,
            store=hub.store,
            leases=hub.leases,
            ballot_leases=hub.ballot_leases,
        )
        agents = AgentService(hub, leadership=leadership, reports=Reports(hub.mirror, hub.store), pulse=pulse)
        agent_pb2_grpc.add_AgentServiceServicer_to_server(agents, self._agents)
        agent_pb2_grpc.add_EnrolServiceServicer_to_server(EnrolService(hub), self._operators)
        operator_pb2_grpc.add_OperatorServiceServicer_to_server(OperatorService(hub), self._operators)
        for server in (self._agents, self._operators):
            health_pb2_grpc.add_HealthServicer_to_server(self._health, server)

    async def start(self) -> None:
        """Bind and serve. Everything must be in step before: a bound port is a promise."""
        config = self._hub.config
        _bind(self._agents, config.listen_agents, self._credentials(client_certificate=True))
        _bind(self._operators, config.listen_operators, self._credentials(client_certificate=False))
        await self._say(health_pb2.HealthCheckResponse.SERVING)
        await self._agents.start()
        await self._operators.start()
        log.info("ports_opened", agents=config.listen_agents, operators=config.listen_operators)

    async def drain(self, grace_s: float) -> None:
        """Send everybody elsewhere, then let calls under way finish."""
        await self._say(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._hub.board.drain()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._agents.stop(grace_s), name="stop agents' port")
            group.create_task(self._operators.stop(grace_s), name="stop operators' port")

    async def stop(self) -> None:
        """End now; does nothing after `drain`."""
        await self._agents.stop(None)
        await self._operators.stop(None)

    async def _say(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for service in _SERVICES:
            await self._health.set(service, status)

    def _credentials(self, *, client_certificate: bool) -> grpc.ServerCredentials:
        authority = self._hub.authority
        in_use = authority.server_identity()

        def configuration() -> grpc.ServerCertificateConfiguration:
            certificate, key = in_use
            return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=authority.ca_pem)

        def changed() -> grpc.ServerCertificateConfiguration | None:
            """Asked at each handshake; None = as before. A new one each time would make gRPC build a new TLS context a
            handshake, and a herd of agents would not get in."""
            nonlocal in_use
            latest = authority.server_identity()
            if latest == in_use:
                return None
            in_use = latest
            return configuration()

        # The stubs leave out the None that gRPC documents.
        return grpc.dynamic_ssl_server_credentials(configuration(), changed, client_certificate)  # type: ignore[arg-type]


def _bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials) -> None:
    try:
        bound = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        bound = 0
        log.debug("bind_failed", address=address, error=str(error))
    if not bound:
        raise UserError("cannot listen there: the port is taken or the address is not this host's", object=address)
