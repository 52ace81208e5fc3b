"""Pure: since when things are as they are. The rules ask the age of what is seen, so somebody must remember."""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.ha.hold import Hold
from agent.ha.leaseclock import Vouching
from agent.ha.syncset import Settling, settle
from agent.ha.takeover import Takeover
from agent.ha.view import Engine, EngineState, Fork
from core.positions import Lsn, WalPosition
from core.records import HaRecord, InstanceView, SyncRecord
from core.status import Role

STALLED_S = 1.5  # a standby that is behind and has flushed nothing for so long holds commits up
UPSTREAM_WITHIN_S = 3.0  # for a stream from another replica, before the leader is turned to


Flushes = dict[str, tuple[Lsn, float]]  # by standby: how far it has flushed, and since when it has that or has it all


def flushes(before: Flushes, engine: Engine, now: float) -> Flushes:
    """To be called with each look at the running primary."""
    found: Flushes = {}
    for standby in engine.standbys:
        known = before.get(standby.member)
        stands = known is not None and known[0] == standby.flushed < engine.position.lsn
        found[standby.member] = known if known is not None and stands else (standby.flushed, now)
    return found


def stalled(known: Flushes, now: float) -> frozenset[str]:
    """Standbys whose connection stands, but from which nothing has come for a while of what they lack."""
    return frozenset(member for member, (_, since) in known.items() if now - since >= STALLED_S)


@dataclass(slots=True)
class Facts:
    """What this keeper remembers between turns; all of it is lost without harm when the agent ends."""

    promised_until: float = 0.0  # to a primary over the peer port
    promised_term: int = 0  # in which that primary leads
    vouching: Vouching = field(default_factory=Vouching)  # the promises seen from the proxy's side
    all_granted: int = 0  # this primary's last question that every member granted
    asked_peers_at: float = 0.0
    leaderless_since: float = 0.0
    ballot_position: WalPosition = field(default_factory=WalPosition)
    standing_until: float = 0.0  # an Acquire may still take effect before
    upstream_failed_at: float = 0.0
    probed_at: float = 0.0
    probe_answered_at: float = 0.0
    forks: tuple[Fork, ...] = ()  # of the timeline of `forks_of`
    forks_of: str = ""
    fenced_at: float = 0.0
    streamed_at: float | None = None
    not_streaming_since: float = 0.0
    switchover_since: float = 0.0
    forced_order: str = ""
    forced_since: float = 0.0
    lease_id: int = 0  # the lease that the held term hangs on; 0 = not known. The node may have had others since
    takeover: Takeover | None = None  # of the present leadership, if this life of the agent took it
    hold: Hold | None = None  # clients here wait for a switchover
    closing: bool = False  # a handover is stopping the engine
    sync_sent: SyncRecord | None = None  # in the term `sync_sent_in`
    sync_sent_in: int = 0
    settling: Settling | None = None
    flushes: Flushes = field(default_factory=dict)

    def note(self, engine: Engine, instance: InstanceView | None, now: float, *, upstream: str) -> None:
        """After each look at the engine. `upstream`: the replica that this member is to stream from, if any."""
        if instance is not None:
            self._note_instance(instance.ha, now, leaderless=instance.leader is None)
        running = engine.state is EngineState.RUNNING
        if running:
            self.fenced_at = 0.0
        if engine.streaming:
            self.streamed_at = now
        apart = running and engine.role is Role.REPLICA and not engine.streaming
        self.not_streaming_since = (self.not_streaming_since or now) if apart else 0.0
        waits = apart and upstream != "" and engine.upstream == upstream
        if waits and now - self.not_streaming_since >= UPSTREAM_WITHIN_S:
            self.upstream_failed_at = now
        primary = running and engine.role is Role.PRIMARY
        self.settling = settle(self.settling, engine.sync, engine.position.lsn, now) if primary else None
        self.flushes = flushes(self.flushes, engine, now) if primary else {}

    def _note_instance(self, ha: HaRecord, now: float, *, leaderless: bool) -> None:
        self.leaderless_since = (self.leaderless_since or now) if leaderless else 0.0
        self.switchover_since = (self.switchover_since or now) if ha.switchover is not None else 0.0
        order = ha.forced.id if ha.forced is not None else ""
        if order != self.forced_order:
            self.forced_order, self.forced_since = order, now if order else 0.0
