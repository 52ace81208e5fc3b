"""Admission of a node: a join token and a key made here, for a certificate; and its renewal long before it ends.

The join token carries the CA's certificate, so the very first connection is verified already. The private key never
leaves the node.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import grpc.aio

from agent.config import AgentConfig
from agent.link import HUB_SERVER_NAME, HubLink, translate
from agent.local import write_atomically
from core.clock import Clock
from core.errors import MoorageError
from core.identity import certificate_facts, make_csr, new_key_pem, parse_join_token
from core.log import EventLog
from protos.v1 import agent_pb2 as pb
from protos.v1.agent_pb2_grpc import EnrolServiceStub

log = EventLog("agent.enrol")
ENROL_TIMEOUT_S = 15.0
RENEW_CHECK_S = 3600.0
RENEW_TIMEOUT_S = 15.0


def enrolled(identity_dir: Path) -> bool:
    """Whether the node has a certificate already."""
    return all((identity_dir / name).exists() for name in ("node.key", "node.crt", "ca.crt"))


async def enrol(config: AgentConfig, *, hub: str, token: str, facts: pb.NodeFacts) -> list[str]:
    """Exchange `token` for a certificate at `hub` (host:port, operator port); returns the hubs' agent addresses.

    Nothing is written unless the hub admits the node. UserError for a token that is none; DeniedError from the hub.
    """
    parsed = parse_join_token(token)
    key_pem = new_key_pem()
    csr_pem = make_csr(key_pem, node=config.node, address=config.address)
    credentials = grpc.ssl_channel_credentials(root_certificates=parsed.ca_pem)
    options = (("grpc.ssl_target_name_override", HUB_SERVER_NAME),)
    async with grpc.aio.secure_channel(hub, credentials, options=options) as channel:
        request = pb.EnrolRequest(token=token, node_id=config.node, csr_pem=csr_pem, facts=facts)
        try:
            answer = await EnrolServiceStub(channel).Enrol(request, timeout=ENROL_TIMEOUT_S, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            raise translate(error) from error
    config.identity_dir.mkdir(parents=True, exist_ok=True)
    os.chmod(config.identity_dir, 0o700)
    _write_identity(config.identity_dir, key_pem=key_pem, cert_pem=answer.certificate_pem, ca_pem=answer.ca_pem)
    write_atomically(config.data_root / "hubs", "\n".join(answer.hub_addresses).encode() + b"\n")
    return list(answer.hub_addresses)


def hub_addresses(config: AgentConfig) -> tuple[str, ...]:
    """From the configuration, else as told at enrolment."""
    if config.hubs:
        return config.hubs
    try:
        return tuple((config.data_root / "hubs").read_text().split())
    except FileNotFoundError:
        return ()


def _write_identity(directory: Path, *, key_pem: bytes, cert_pem: bytes, ca_pem: bytes) -> None:
    """Key last but one, certificate last: a crash in between leaves a pair that does not fit, and is then enrolled or
    renewed again; `enrolled` sees the certificate only when all is there."""
    write_atomically(directory / "ca.crt", ca_pem)
    write_atomically(directory / "node.key", key_pem)
    write_atomically(directory / "node.crt", cert_pem)


async def keep_renewed(
    config: AgentConfig, link: HubLink, clock: Clock, on_renewed: Callable[[], Awaitable[None]]
) -> None:
    """For ever: renew the certificate when two thirds of its life are over."""
    certificate = config.identity_dir / "node.crt"
    while True:
        if certificate_facts(certificate.read_bytes()).renewal_due(clock.wall()):
            try:
                await _renew(config, link)
                await on_renewed()
                log.info("certificate_renewed", not_after=certificate_facts(certificate.read_bytes()).not_after)
            except MoorageError as error:
                log.warning("certificate_renewal_failed", error=str(error), next_try_s=RENEW_CHECK_S)
        await asyncio.sleep(RENEW_CHECK_S)


async def _renew(config: AgentConfig, link: HubLink) -> None:
    key_pem = new_key_pem()
    request = pb.RenewCertificateRequest(csr_pem=make_csr(key_pem, node=config.node, address=config.address))
    answer = await link.call(lambda stub: stub.RenewCertificate, request, timeout_s=RENEW_TIMEOUT_S)
    _write_identity(config.identity_dir, key_pem=key_pem, cert_pem=answer.certificate_pem, ca_pem=answer.ca_pem)
