"""What the services and controllers of one hub share. Made once in `hub.main`, handed to everybody, never changed."""

from __future__ import annotations

from dataclasses import dataclass

from core.clock import Clock
from hub.audit import AuditTrail
from hub.authority import Authority
from hub.board import Board
from hub.config import HubConfig
from hub.etcd.client import EtcdClient
from hub.etcd.mirror import Mirror
from hub.etcd.store import Store
from hub.events import EventWriter
from hub.leases import BallotLeases, LeaseBook
from hub.liveness import Liveness
from hub.secrets import Secrets


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """One hub process: its etcd, its copy of it, and what it knows beside it."""

    config: HubConfig
    clock: Clock
    client: EtcdClient
    mirror: Mirror
    store: Store
    audit: AuditTrail
    authority: Authority
    secrets: Secrets
    liveness: Liveness
    events: EventWriter
    board: Board
    leases: LeaseBook
    ballot_leases: BallotLeases
