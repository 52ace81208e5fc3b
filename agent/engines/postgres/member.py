"""What all modules of this package share of one member: its setup, what is wanted now, and its label on disk.

The label holds only what cannot be seen from outside: work that was begun (written before its first byte, so that a
half-made data directory is never used), whom the replica follows, whether the engine ended as asked, and which process
it is. It is small, and written atomically.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from agent.engines.base import EngineSetup, MemberPaths
from agent.engines.postgres.session import Session
from agent.engines.tools import Toolbox
from agent.local import read_record, write_atomically
from agent.supervise.base import ProcessId
from core.errors import EngineError
from core.records import REMOTE, MemberDesired, MemberSecrets, PeerMember, remote_peer, to_json

SUPERUSER = "postgres"
REPLICATION_USER = "moorage_replication"
SLOT_PREFIX = "moorage_"
CONNECT_WITHIN_S = 5.0
CARRIED_OVER_FROM = 17  # major version from which on logical slots can be kept on replicas
SOCKET_PATH_MAX = 107  # bytes in sockaddr_un.sun_path, without the final zero


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """member.json"""

    begun: Literal["", "initialise", "clone", "rewind"] = ""  # work that leaves the data directory unusable half-way
    upstream: str = ""  # replica: the member to stream from
    asked_to_end: bool = False  # the engine was told to stop, or was killed by us
    pid: int = 0
    started: int = 0
    boot: str = ""
    proven: dict[str, str] = field(default_factory=dict)  # user parameters the engine last started with
    refused: dict[str, str] = field(default_factory=dict)  # user parameters it would not start with

    @property
    def process(self) -> ProcessId:
        return ProcessId(self.pid, self.started, self.boot)


class Member:
    """Changed by the engine object alone, which hands on what the agent tells it."""

    def __init__(self, setup: EngineSetup) -> None:
        self.setup = setup
        self.desired: MemberDesired = setup.desired
        self.secrets: MemberSecrets = setup.secrets
        self.peers: tuple[PeerMember, ...] = ()
        self.peers_told = False  # until then access rules and slots stay as they are
        self.paths: MemberPaths = setup.paths
        self.name = setup.desired.member
        self.subject = f"{setup.desired.project}/{setup.desired.instance}/{setup.desired.member}"
        self.tools = Toolbox(
            bin_dir=Path(setup.offer.bin_dir), cwd=setup.paths.root, run_as=setup.run_as, subject=self.subject
        )
        self.label = read_record(setup.paths.label, Label) or Label()

    @property
    def tls(self) -> bool:
        """Whether this member's engine and tools speak TLS."""
        return self.setup.offer.tls and self.setup.tls_files is not None

    @property
    def logical(self) -> bool:
        """The user has asked for logical decoding."""
        return self.desired.parameters.get("wal_level") == "logical"

    @property
    def carries_slots_over(self) -> bool:
        """Logical slots are kept on the replicas too."""
        return self.logical and self.setup.offer.version >= CARRIED_OVER_FROM

    @property
    def replication_user(self) -> str:
        """By whom members log in to each other. A standby instance has only the remote primary's roles: the one
        it is followed by may replicate."""
        remote = self.desired.standby
        return remote.user if remote is not None else REPLICATION_USER

    @property
    def replication_password(self) -> str:
        remote = self.desired.standby
        return self.secrets.remote_password if remote is not None else self.secrets.replication_password

    @property
    def leads_standby(self) -> bool:
        """Streams from the remote primary, and the other members from it."""
        return self.label.upstream == REMOTE and self.is_standby()

    def peer(self, member: str) -> PeerMember | None:
        if member == REMOTE:
            remote = self.desired.standby
            return remote_peer(remote) if remote is not None else None
        return next((peer for peer in self.peers if peer.member == member), None)

    def tell_peers(self, peers: tuple[PeerMember, ...]) -> None:
        """All other members."""
        self.peers, self.peers_told = peers, True

    def remember_peer(self, peer: PeerMember) -> None:
        """A peer that was named in a call is known from then on, even if the list came without it."""
        if peer.member != REMOTE and self.peer(peer.member) is None:
            self.peers = (*self.peers, peer)

    def relabel(self, *, durable: bool = True, **changes: Any) -> None:
        """Change the label, on disk first."""
        label = replace(self.label, **changes)
        if label != self.label:
            self.paths.root.mkdir(parents=True, exist_ok=True)
            write_atomically(self.paths.label, to_json(label), durable=durable and self.setup.durable)
            self.label = label

    # --- facts of the data directory --------------------------------------------------------------------------------

    def has_data(self) -> bool:
        """A data directory that is whole."""
        return not self.label.begun and (self.paths.data / "PG_VERSION").exists()

    def is_standby(self) -> bool:
        """What the data directory is set up to be."""
        return (self.paths.data / "standby.signal").exists()

    def need_data(self) -> None:
        if not self.has_data():
            raise EngineError("there is no usable data directory", object=self.subject, hint="Initialise or clone it.")

    def check_socket_path(self) -> None:
        longest = f"{self.paths.sockets}/.s.PGSQL.{self.desired.engine_port}"
        if len(os.fsencode(longest)) > SOCKET_PATH_MAX:
            raise EngineError(
                f"socket path {longest} has more than {SOCKET_PATH_MAX} bytes",
                object=self.subject,
                hint="Choose a shorter data_root for the agent.",
            )

    # --- ways in ----------------------------------------------------------------------------------------------------

    def local_conninfo(self, database: str = "postgres") -> dict[str, str]:
        """Connection parameters of the agent's own way in, over the Unix socket."""
        return {
            "host": str(self.paths.sockets),
            "port": str(self.desired.engine_port),
            "user": SUPERUSER,
            "dbname": database,
            "application_name": "moorage-agent",
        }

    @asynccontextmanager
    async def session(self, *, within_s: float, database: str = "postgres") -> AsyncIterator[Session]:
        """A connection of its own for one piece of work. Each statement may take `within_s`.

        Commits are local: in strict mode the very roles that let standbys connect could otherwise never be made, and
        whatever the agent writes it would write again on the next primary.
        """
        session = await Session.open(
            self.local_conninfo(database),
            options={"synchronous_commit": "local", "statement_timeout": f"{int(within_s * 1000)}"},
            within_s=min(within_s, CONNECT_WITHIN_S),
            subject=self.subject,
        )
        try:
            yield session
        finally:
            session.close()


def slot_name(member: str) -> str:
    """Slot of a member on its primary. Injective, for member names hold no underscore."""
    return SLOT_PREFIX + member.replace("-", "_")


def own_os_user() -> str:
    """Name of the agent's own operating system user; empty when it has none (a container's random uid)."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return ""
