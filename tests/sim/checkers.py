"""What must hold in every run, checked as it happens, and at the end.

- *One writable primary*: at no instant do the proxies' routes lead to two primaries that accept writes, and no write is
  accepted in a term after one of a later term was.
- *Terms* grow by one with each new leader.
- *The record is true*: each acknowledged commit is on k of the names on record, at each acknowledgement and at each
  change of the record; and an engine acknowledges nothing that a later leader does not have (sync and quorum).
- *Nothing acknowledged is lost*: sync and quorum: never, by no election the system holds by itself. An election by the
  rule of async mode may lose the tail of what the old leader acknowledged, an operator's forced failover more.
- *Logs agree*: a replica that joins a primary has exactly the primary's log so far.
- *Progress*: some time after the last trouble the instance is whole.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from core.ids import InstanceRef
from core.records import Era, HaRecord, LeaderRecord
from hub.etcd import keys
from tests.sim.engine_model import ENTRY_BYTES
from tests.sim.etcd_model import Change, Etcd
from tests.sim.hub_model import parse
from tests.sim.world import World

if TYPE_CHECKING:
    from tests.sim.engine_model import Engine
    from tests.sim.proxy_model import Proxy

TAIL_S = 13.0  # of an async leader's term that a successor may lack: a lease's TTL, TOUCH_S, and the way of the news


class Violation(Exception):
    """What must hold did not."""


class Checkers:
    """Called by the models at the moment something happens."""

    def __init__(self, world: World, etcd: Etcd, ref: InstanceRef) -> None:
        self._late: set[str] = set()  # writes sent to an old primary after a new one had accepted some
        self.world = world
        self.label = "" if ref.instance == "orders" else f"{ref.instance}/"
        self.etcd = etcd
        self.engines: dict[str, Engine] = {}
        self.proxies: list[Proxy] = []
        self.held: dict[str, set[str]] = {}  # member -> writes in its log
        self.acked: dict[str, tuple[float, int]] = {}  # write -> when and in which term a proxy let its answer pass
        self.acked_by_engine: set[str] = set()
        self.terms: list[tuple[float, int, str]] = []  # leaders, as etcd had them
        self.by_lag: set[int] = set()  # terms that began with an election in async mode
        self.forced: set[int] = set()  # terms that began with a forced failover
        self.handed: set[int] = set()  # terms that began with a handover
        self.led: dict[str, int] = {}  # member -> its last term
        self._newest = (0, "")  # highest term that a write was accepted in, and where
        self._ha = HaRecord()
        self._leader_key, self._ha_key = keys.leader(ref), keys.ha(ref)
        etcd.on_change.append(self._changed)

    # --- as it happens ---

    def forwarded(self, write_id: str, term: int, member: str) -> None:
        """A proxy sends a client's write to `member`."""
        if self._is_past(term, member):
            self._late.add(write_id)

    def written(self, engine: Engine, write_id: str) -> None:
        """An engine has accepted a client's write. One that was in its socket while it was frozen does no harm: its
        answer passes no proxy any more."""
        self.held[engine.member].add(write_id)
        term = self.led[engine.member]
        if write_id in self._late and term < self._newest[0]:
            self.fail(f"{engine.member} is sent and accepts a write of term {term} after {self._newest}")
        self._newest = max(self._newest, (term, engine.member))

    def _is_past(self, term: int, member: str) -> bool:
        """Another member has accepted a write in a later term."""
        newest, by = self._newest
        return term < newest and member != by

    def received(self, engine: Engine, entries: list[str]) -> None:
        self.held[engine.member].update(entries)

    def wal_changed(self, engine: Engine) -> None:
        """The log was cut or replaced."""
        self.held[engine.member] = set(engine.data.wal) if engine.data is not None else set()

    def joined(self, replica: Engine, primary: Engine, length: int) -> None:
        assert replica.data is not None, "a replica that joins has data"
        assert primary.data is not None, "a primary has data"
        if replica.data.wal[:length] != primary.data.wal[:length]:
            self.fail(f"{replica.member} streams from {primary.member}, but their logs differ")

    def acknowledged(self, engine: Engine, write_id: str) -> None:
        """An engine has told its client that the commit is safe. Who was replaced by the rule of async mode, or by
        force, may go on telling so until it notices; no proxy passes that on."""
        if self._ha.leader == engine.member:
            self.acked_by_engine.add(write_id)
            self._covered(write_id)
        elif any(term > self.led[engine.member] for term in self.by_lag | self.forced):
            return
        elif write_id not in self.held[self._ha.leader]:
            self.fail(
                f"{engine.member} acknowledges {write_id}, which {self._ha.leader}, who leads since, does not have"
            )
        else:
            self.acked_by_engine.add(write_id)

    def passed(self, write_id: str, term: int, member: str) -> None:
        """A proxy tells a client that its commit is safe. After a handover a frozen proxy may do so late: the successor
        has it."""
        self.acked[write_id] = (self.world.now, term)
        if self._is_past(term, member) and write_id not in self.held[self._newest[1]]:
            self.fail(f"an answer of {member} in term {term} passes after {self._newest}")

    def look(self) -> None:
        """At most one primary can be reached for writing."""
        reached = set()
        for proxy in self.proxies:
            target = proxy.target() if proxy.process.alive and not proxy.process.paused else None
            if target is not None:
                engine = self.engines[target[1]]
                if engine.is_primary and not engine.process.paused:
                    reached.add(target)
        if len({member for _, member in reached}) > 1:
            self.fail(f"two primaries can be reached: {sorted(reached)}")

    def _changed(self, changes: list[Change]) -> None:
        for change in changes:
            if change.key == self._leader_key and change.entry is not None:
                leader = parse(LeaderRecord, change.entry.value)
                if self.terms and leader.term != self.terms[-1][1] + 1:
                    self.fail(f"term {leader.term} follows {self.terms[-1][1]}")
                self._begins(leader)
            elif change.key == self._leader_key:
                self.world.note(f"{self.label}: nobody leads")
            elif change.key == self._ha_key and change.entry is not None:
                before, self._ha = self._ha, parse(HaRecord, change.entry.value)
                if self._ha.term < before.term:
                    self.fail(f"term {self._ha.term} is on record after {before.term}")
                if before.sync != self._ha.sync:
                    self._check_record()

    def _begins(self, leader: LeaderRecord) -> None:
        """The leader's key is told before the ha record of the same transaction."""
        before = self._ha
        forced = before.forced is not None and before.forced.after_term == before.term
        if forced and before.forced is not None and before.forced.target == leader.member:
            self.forced.add(leader.term)
        elif before.sync.mode == "async" and leader.member != before.leader:
            self.by_lag.add(leader.term)
        if leader.term in self.by_lag or leader.term in self.forced:
            self.acked_by_engine &= self.held[leader.member]
        if before.released_term == before.term and before.handover == leader.member:
            self.handed.add(leader.term)
        self.terms.append((self.world.now, leader.term, leader.member))
        self.led[leader.member] = leader.term
        self.world.note(f"{self.label}{leader.member} leads term {leader.term}")

    def _check_record(self) -> None:
        sync = self._ha.sync
        eras = "; ".join(f"{era.leader}: {era.k} of {','.join(era.names) or 'nobody'}" for era in sync.eras)
        self.world.note(f"{self.label} on record: {sync.mode} {sync.k} of {','.join(sync.names) or 'nobody'} {eras}")
        for write_id in self.acked_by_engine:
            self._covered(write_id)

    def _covered(self, write_id: str) -> None:
        """By one of the eras on record."""
        if self._ha.sync.mode == "async" or any(self._is_of(write_id, era) for era in self._ha.eras):
            return
        eras = "; ".join(f"{era.leader}, {era.k} of {','.join(era.names)}" for era in self._ha.eras)
        self.fail(f"{write_id} is on {[m for m, held in self.held.items() if write_id in held]}, on record is {eras}")

    def _is_of(self, write_id: str, era: Era) -> bool:
        """A member whose data directory is being replaced cannot vote, so it misleads nobody."""
        have = [name for name in era.names if write_id in self.held[name] or not self.engines[name].has_data]
        led = write_id in self.held[era.leader] or not self.engines[era.leader].has_data
        return led and len(have) >= era.k

    # --- at the end ---

    def failovers(self) -> int:
        """How often another member took over that had not been handed the leadership."""
        pairs = itertools.pairwise(self.terms)
        return sum(later[2] != former[2] and later[1] not in self.handed for former, later in pairs)

    def check_nothing_lost(self, primary: Engine, *, max_lag_bytes: int) -> None:
        assert primary.data is not None, "a primary has data"
        lost = sorted(set(self.acked) - set(primary.data.wal))
        for term in sorted({self.acked[write_id][1] for write_id in lost}):
            those = [w for w in lost if self.acked[w][1] == term]
            if any(later > term for later in self.forced):
                continue
            if not any(later > term for later in self.by_lag):
                self.fail(f"{len(those)} acknowledged writes of term {term} are lost, such as {those[0]}")
            self._check_tail(term, those, max_lag_bytes)

    def _check_tail(self, term: int, lost: list[str], max_lag_bytes: int) -> None:
        led = {t: member for _, t, member in self.terms}
        if all(member == led[term] for t, member in led.items() if t > term):
            self.fail(f"{len(lost)} writes of term {term} are lost, and nobody else has led since")
        last = max(at for at, t in self.acked.values() if t == term)
        early = [w for w in lost if self.acked[w][0] < last - TAIL_S]
        if len(early) * ENTRY_BYTES > max_lag_bytes:
            self.fail(
                f"{len(early)} writes of term {term} are lost although they were acknowledged long before its end"
            )

    def fail(self, what: str) -> None:
        raise Violation(f"at {self.world.now:.3f} s: {self.label} {what}".replace("  ", " "))
