"""What the agent asks of a database engine, whatever its make.

An `Engine` is one member's engine on this node: it makes, starts, stops, promotes and observes, and decides nothing.
Every call is idempotent or says why it cannot be done (`EngineError`); a call that was cancelled or cut off by the
agent's death may simply be made again, because work whose progress cannot be observed is labelled on disk before its
first byte. The engine process outlives this object: a new one over the same paths adopts it.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from agent.engines.rubbish import Rubbish
from agent.engines.troubles import Diagnosis
from agent.ha import view
from agent.supervise.base import OsUser
from core.clock import Clock
from core.ids import MemberRef
from core.records import EngineOffer, MemberDesired, MemberSecrets, PeerMember, SyncRecord

__all__ = ["Engine", "EngineFacts", "EngineSetup", "MemberPaths", "OsUser", "TlsFiles"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """The node's identity as PEM files, readable by the agent."""

    cert: Path
    key: Path
    ca: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberPaths:
    """Where everything of one member lies. `sockets` is apart and short: a socket path has at most 107 bytes."""

    root: Path
    sockets: Path

    @staticmethod
    def below(data_root: Path, ref: MemberRef) -> MemberPaths:
        """`<data_root>/members/<project>.<instance>.<member>` and `<data_root>/run/<8 hex>`."""
        short = sha256(ref.key.encode()).hexdigest()[:8]
        return MemberPaths(root=data_root / "members" / ref.key, sockets=data_root / "run" / short)

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def incoming(self) -> Path:
        """A data directory in the making; it becomes `data` by one rename."""
        return self.root / "data.new"

    @property
    def tls(self) -> Path:
        return self.root / "tls"

    @property
    def passfile(self) -> Path:
        return self.root / "tls" / "replication.pass"

    @property
    def logs(self) -> Path:
        """The engine's own log files, one per hour of the week."""
        return self.root / "log"

    @property
    def log(self) -> Path:
        """What the engine prints before its own logging works."""
        return self.root / "engine.log"

    @property
    def label(self) -> Path:
        """What cannot be observed of the member: work begun, upstream, the process."""
        return self.root / "member.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSetup:
    """All an engine object is made from."""

    desired: MemberDesired
    secrets: MemberSecrets
    paths: MemberPaths
    offer: EngineOffer
    address: str  # IP address to listen on
    tls_files: TlsFiles | None
    run_as: OsUser | None  # None = as the agent's own user, which is not root
    clock: Clock
    rubbish: Rubbish | None = None  # where what is deleted goes first; None = it is deleted on the spot
    durable: bool = True  # False: nothing is synced to disk; for tests only
    unresponsive_after_s: float = 4.0  # a process that has not answered for longer is UNRESPONSIVE
    disk_answers_within_s: float = 6.0  # nor may its disk be silent for longer: about as long as a lease lasts


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What people want to know and no HA decision rests on, as of the last `observe`."""

    full_version: str = ""
    tls: bool = False  # the engine's own port speaks TLS
    pending_restart: tuple[str, ...] = ()  # parameters that wait for a restart
    connections: int = 0  # client connections, replication not counted
    data_bytes: int = 0  # all databases; refreshed once a minute
    lag_bytes: int = 0  # replica: what the primary has written and this one has not replayed
    problems: tuple[str, ...] = ()  # sentences: refused parameters, extensions or roles that could not be made
    fault: Diagnosis | None = None  # why the engine is not up, when that is known
    notices: tuple[Diagnosis, ...] = ()  # what is wrong or will be soon, whether or not the engine runs

    @property
    def problem(self) -> str:
        """All problems as one text; empty when there are none."""
        return "; ".join(self.problems)


class Engine(Protocol):
    """One member's engine. Errors are `EngineError` unless said otherwise."""

    setup: EngineSetup

    def update(self, desired: MemberDesired, secrets: MemberSecrets) -> None:
        """Take a new desired state; `converge` or the next start makes it so."""

    def set_peers(self, peers: tuple[PeerMember, ...]) -> None:
        """All other members: who may connect, and where a replica streams from."""

    async def observe(self) -> view.Engine:
        """What is, within about 3 s. Leftovers of an engine that died are killed before it is reported as ended."""

    def facts(self) -> EngineFacts: ...

    async def initialise(self) -> None:
        """Make a new, empty data directory. The engine is not started."""

    async def clone(self, source: PeerMember) -> None:
        """Replace the data directory by a copy of the source's, set up as a replica. The engine is not started."""

    async def rejoin(self, leader: PeerMember, *, anew: bool = False) -> str:
        """Stop the engine, make its data follow `leader` (rewind, else clone) and start it as replica.

        `anew`: clone in any case. Returns a sentence of what was done and where the un-replicated tail was saved.
        """

    async def start_primary(self) -> None:
        """Start as primary on the same timeline; data of a replica is started as one and promoted. Unless the mode is
        async, commits wait until `apply_sync` names standbys."""

    async def start_replica(self, upstream: PeerMember | None) -> None:
        """Start as a replica of `upstream`; None = of nobody, only to replay what is there. One that runs follows it.

        Unless the mode is async its sync set is that of a leader without standbys: should it be promoted, commits wait
        until `apply_sync` names some.
        """

    async def stop(self) -> None:
        """Orderly stop, then less orderly; no process is left when it returns."""

    async def fence(self, within_s: float) -> None:
        """Stop at once: half of `within_s` for the engine to obey, then SIGKILL. Returns when no process is left."""

    async def make_ready(self) -> None:
        """The running replica may be promoted soon: let the others find what they need to stream from it."""

    async def promote(self, sync: SyncRecord | None = None, *, above: int = 0) -> None:
        """Make the running replica accept writes, on a new timeline. Returns when it does. `sync`: the set that it
        opens with; None = as it would start. `above`: the number of the new timeline is higher than this."""

    async def follow(self, leader: PeerMember | None) -> None:
        """Let the running replica stream from `leader` without a restart; None: from nobody, and its position is final
        when this returns."""

    async def checkpoint(self) -> None: ...

    async def apply_sync(self, sync: SyncRecord) -> None:
        """Put the sync set in force; when it returns, every commit acknowledged from now on obeys it. A start does not
        remember it."""

    async def timeline_forks(self, leader: PeerMember) -> tuple[view.Fork, ...]:
        """The history of the leader's timeline, asked over the replication protocol; `observe` repeats it."""

    async def converge(self) -> bool:
        """Settings, access rules, certificates, slots; on the primary also roles and databases.

        True when all is as desired but for what `facts().problems` and `facts().pending_restart` say.
        """

    async def destroy(self) -> None:
        """Stop the engine and remove everything of the member: data, sockets, shared memory, saved tails."""

    async def verifiers(self, users: list[str]) -> dict[str, str | None]:
        """By what the running engine checks the password of each user; None of one that no client may log in as."""

    async def wait_died(self) -> None:
        """Return when the engine's main process has ended and its leftovers are killed; at once when none runs."""

    async def aclose(self) -> None:
        """Close connections and background work. The engine goes on."""
