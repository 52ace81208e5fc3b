"""What the node is: size of the machine and installed engines, for the scheduler."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib.metadata import version

import psutil

from agent.config import AgentConfig
from core.records import EngineOffer
from protos.v1 import agent_pb2 as pb


def node_facts(config: AgentConfig, offers: Iterable[EngineOffer]) -> pb.NodeFacts:
    """As of now."""
    return pb.NodeFacts(
        address=config.address,
        peer_port=config.peer_port,
        zone=config.zone,
        region=config.region,
        cpu=float(len(os.sched_getaffinity(0))),
        memory_bytes=psutil.virtual_memory().total,
        disk_bytes=psutil.disk_usage(str(config.data_root)).total,
        engines=[
            pb.EngineOffer(
                engine=offer.engine,
                version=offer.version,
                full_version=offer.full_version,
                tls=offer.tls,
                bin_dir=offer.bin_dir,
            )
            for offer in offers
        ],
        agent_version=version("moorage"),
    )
