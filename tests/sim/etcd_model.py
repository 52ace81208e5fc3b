"""A model of etcd that evaluates the very transactions of `hub.etcd.txns`: revisions, leases, watches, and its
troubles.

Troubles that matter here: it is away for a while; its leader changes, which gives every lease its full time again; it
ends a lease later than it must; and an old leader that hangs on its disk goes on confirming keepalives that its
successor does not honour (etcd #15247), which only shows in the raft term of its answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hub.etcd import txns
from tests.sim.world import Host, Process, World


@dataclass(frozen=True, slots=True)
class Entry:
    value: bytes
    mod_revision: int
    create_revision: int
    lease_id: int


@dataclass(frozen=True, slots=True)
class Change:
    """What a watch tells: the key's new entry, or None when it was deleted."""

    key: str
    entry: Entry | None


class Store:
    """Keys and leases, without time: what one etcd transaction does."""

    def __init__(self) -> None:
        self.revision = 1
        self.entries: dict[str, Entry] = {}

    def commit(self, txn: txns.Txn) -> tuple[bool, list[Change]]:
        """Whether the compares held, and what changed."""
        if not all(self._holds(compare) for compare in txn.compares):
            return False, []
        changes: list[Change] = []
        revision = self.revision + 1
        for op in txn.then:
            match op:
                case txns.Put(key=key, value=value, lease_id=lease_id):
                    before = self.entries.get(key)
                    created = before.create_revision if before else revision
                    self.entries[key] = Entry(value, revision, created, lease_id)
                    changes.append(Change(key, self.entries[key]))
                case txns.Delete(key=key):
                    changes += self._deleted([key])
                case txns.DeletePrefix(prefix=prefix):
                    changes += self._deleted([key for key in self.entries if key.startswith(prefix)])
        if changes:
            self.revision = revision
        return True, changes

    def expire(self, lease_id: int) -> list[Change]:
        changes = self._deleted([key for key, entry in self.entries.items() if entry.lease_id == lease_id])
        if changes:
            self.revision += 1
        return changes

    def _deleted(self, keys: list[str]) -> list[Change]:
        return [Change(key, None) for key in sorted(keys) if self.entries.pop(key, None) is not None]

    def _holds(self, compare: txns.Compare) -> bool:
        entry = self.entries.get(compare.key)
        match compare:
            case txns.ModIs(revision=revision):
                return (entry.mod_revision if entry else 0) == revision
            case txns.CreatedIs(revision=revision):
                return (entry.create_revision if entry else 0) == revision


class LeaseGoneError(Exception):
    """The lease does not exist."""


class Etcd:
    """The store with time: leases on the leader's clock, watches, outages."""

    def __init__(self, world: World, host: Host) -> None:
        self.world = world
        self.process = Process(host, "etcd")
        self.process.start()
        self.store = Store()
        self.raft_term = 1
        self.hung_leader = False  # keepalives are answered by an old leader
        self.watchers: list[Callable[[list[Change]], None]] = []
        self.on_change: list[Callable[[list[Change]], None]] = []  # the checkers', at once and of everything
        self.assembled: dict[Any, tuple[int, Any]] = {}  # what hubs made of it: (revision, view)
        self._leases: dict[int, tuple[float, float]] = {}  # id -> ttl, end on the etcd leader's clock
        self._next_lease = 1000

    # --- requests: each is atomic ---

    def commit(self, txn: txns.Txn) -> bool:
        for op in txn.then:
            if isinstance(op, txns.Put) and op.lease_id and op.lease_id not in self._leases:
                raise LeaseGoneError
        succeeded, changes = self.store.commit(txn)
        self._tell(changes)
        return succeeded

    def grant(self, ttl_s: float) -> int:
        self._next_lease += 1
        self._set_end(self._next_lease, ttl_s)
        return self._next_lease

    def keepalive(self, lease_id: int) -> int:
        """The raft term of whoever answered."""
        if lease_id not in self._leases:
            raise LeaseGoneError
        if self.hung_leader:
            return self.raft_term - 1
        self._set_end(lease_id, self._leases[lease_id][0])
        return self.raft_term

    def time_to_live(self, lease_id: int) -> float:
        _, end = self._leases.get(lease_id, (0.0, 0.0))
        return max(0.0, end - self.process.host.now())

    # --- troubles ---

    def change_leader(self, *, hung: bool = False) -> None:
        """All leases start again with their full time; `hung`: the old leader goes on answering keepalives."""
        self.raft_term += 1
        self.hung_leader = hung
        for lease_id, (ttl_s, _) in list(self._leases.items()):
            self._set_end(lease_id, ttl_s)

    def stop(self) -> None:
        self.process.kill()

    def start(self) -> None:
        self.process.start()
        self.change_leader()
        for lease_id, (ttl_s, _) in self._leases.items():
            self._look_later(lease_id, ttl_s)

    # --- inside ---

    def _set_end(self, lease_id: int, ttl_s: float) -> None:
        known = lease_id in self._leases
        self._leases[lease_id] = (ttl_s, self.process.host.now() + ttl_s)
        if not known:
            self._look_later(lease_id, ttl_s)

    def _look_later(self, lease_id: int, delay_s: float) -> None:
        late_s = self.world.rng.uniform(0.0, 0.5)  # etcd looks twice a second
        self.process.later(delay_s + late_s, lambda: self._look(lease_id))

    def _look(self, lease_id: int) -> None:
        _, end = self._leases[lease_id]
        left_s = end - self.process.host.now()
        if left_s > 0.0:
            self._look_later(lease_id, left_s)
            return
        del self._leases[lease_id]
        self._tell(self.store.expire(lease_id))

    def _tell(self, changes: list[Change]) -> None:
        if not changes:
            return
        for told in (*self.on_change, *self.watchers):
            told(changes)
