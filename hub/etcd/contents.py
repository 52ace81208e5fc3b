"""What lies below Moorage's prefix, as typed dictionaries that change one etcd event at a time. No I/O.

Invariant: applied in etcd's order, the dictionaries are etcd's contents as of the last event, but for values that
cannot be read. Such a value neither ends the hub nor is served: the last good one stays, and an error is logged, once
for each revision of the key. `_revisions` holds every key's mod_revision, readable or not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from core.codec import from_json
from core.errors import UserError
from core.ids import InstanceRef, MemberRef
from core.log import EventLog
from core.records import (
    Ballot,
    Event,
    HaRecord,
    HubRecord,
    InstanceRecord,
    InstanceStatus,
    JoinToken,
    LeaderRecord,
    MemberDesired,
    NodeRecord,
    ObservedMember,
    OperatorRecord,
    ProjectRecord,
)
from hub.etcd import keys
from hub.etcd.messages import KeyValue
from hub.etcd.watch import WatchEvent

log = EventLog("hub.mirror")
T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
EVENTS_KEPT_MAX = 2000


@dataclass(frozen=True, slots=True)
class Versioned(Generic[T]):
    """A record as read, with what transactions compare."""

    record: T
    mod_revision: int
    create_revision: int


@dataclass(slots=True)
class Changes:
    """What one batch touched. `everything`: all was listed anew, look at all; `events` is empty then."""

    nodes: set[str] = field(default_factory=set)
    instances: set[InstanceRef] = field(default_factory=set)
    events: tuple[Event, ...] = ()
    everything: bool = False


class Contents:
    """The dictionaries are read by everybody and written only here."""

    def __init__(self) -> None:
        self.store_id = ""
        self.ca = b""
        self.nodes: dict[str, Versioned[NodeRecord]] = {}
        self.projects: dict[str, Versioned[ProjectRecord]] = {}
        self.instances: dict[InstanceRef, Versioned[InstanceRecord]] = {}
        self.status: dict[InstanceRef, Versioned[InstanceStatus]] = {}
        self.members: dict[tuple[str, MemberRef], Versioned[MemberDesired]] = {}
        self.observed: dict[tuple[str, MemberRef], Versioned[ObservedMember]] = {}
        self.leaders: dict[InstanceRef, Versioned[LeaderRecord]] = {}
        self.ha: dict[InstanceRef, Versioned[HaRecord]] = {}
        self.ballots: dict[InstanceRef, dict[str, Versioned[Ballot]]] = {}  # of the election under way, by member
        self.silent: set[str] = set()
        self.ports: dict[int, str] = {}
        self.tokens: dict[str, Versioned[JoinToken]] = {}
        self.hubs: dict[str, Versioned[HubRecord]] = {}
        self.operators: dict[str, Versioned[OperatorRecord]] = {}
        self.secrets: dict[InstanceRef, dict[str, bytes]] = {}
        self.events: deque[Event] = deque(maxlen=EVENTS_KEPT_MAX)
        self._revisions: dict[str, int] = {}
        self._all_ballots: dict[InstanceRef, dict[tuple[int, str], Versioned[Ballot]]] = {}

    def apply_all(self, events: Iterable[WatchEvent]) -> Changes:
        """Apply a batch; what it touched."""
        changes = Changes()
        told: list[Event] = []
        for event in events:
            self._apply(event, changes, told)
        changes.events = tuple(told)
        self._settle_ballots(changes.instances)
        return changes

    def replace_all(self, found: Iterable[KeyValue], revision: int) -> Changes:
        """Become what a list at `revision` has found. Keys it lacks are deleted; unreadable ones keep their last good
        value here too, which is why nothing is cleared first."""
        listed = {kv.key: _as_event(kv) for kv in found}
        gone = [_deletion(key, revision) for key in self._revisions if key not in listed]
        self.events.clear()
        changes = self.apply_all([*gone, *listed.values()])
        changes.everything, changes.events = True, ()
        return changes

    # --- applying one change --------------------------------------------------------------------------------------

    def _apply(self, event: WatchEvent, changes: Changes, told: list[Event]) -> None:
        key = keys.parse(event.key)
        if key is None:
            return
        known = self._revisions.pop(event.key, 0)
        if event.value is not None:
            self._revisions[event.key] = event.mod_revision
        try:
            if key.kind == "events":
                self._apply_event(event, told)
            else:
                self._apply_parsed(key, event, changes)
        except (UserError, ValueError) as error:
            if event.value is not None and known != event.mod_revision:
                log.error("record_undecodable", key=event.key, revision=event.mod_revision, error=str(error))

    def _apply_event(self, event: WatchEvent, told: list[Event]) -> None:
        if event.value is not None:
            record = from_json(Event, event.value, where=event.key)
            self.events.append(record)
            told.append(record)

    def _apply_parsed(self, key: keys.ParsedKey, event: WatchEvent, changes: Changes) -> None:
        match key.kind, key.parts:
            case "nodes", (name,):
                _keep(self.nodes, name, event, NodeRecord)
                changes.nodes.add(name)
            case "silent", (name,):
                (self.silent.discard if event.value is None else self.silent.add)(name)
                changes.nodes.add(name)
            case ("instances" | "status") as kind, (project, instance):
                ref = InstanceRef.from_key(f"{project}.{instance}")
                if kind == "instances":
                    _keep(self.instances, ref, event, InstanceRecord)
                else:
                    _keep(self.status, ref, event, InstanceStatus)
                changes.instances.add(ref)
            case ("members" | "observed") as kind, (node, member):
                self._apply_member(kind, node, MemberRef.from_key(member), event, changes)
            case ("leader" | "ha" | "ballots" | "secrets") as kind, (ref_key, *rest):
                ref = InstanceRef.from_key(ref_key)
                self._apply_of_instance(kind, ref, rest, event)
                changes.instances.add(ref)
            case _:
                self._apply_other(key, event)

    def _apply_member(self, kind: str, node: str, ref: MemberRef, event: WatchEvent, changes: Changes) -> None:
        if kind == "members":
            _keep(self.members, (node, ref), event, MemberDesired)
        else:
            _keep(self.observed, (node, ref), event, ObservedMember)
        changes.nodes.add(node)
        changes.instances.add(ref.instance)

    def _apply_of_instance(self, kind: str, ref: InstanceRef, rest: list[str], event: WatchEvent) -> None:
        match kind, rest:
            case "leader", []:
                _keep(self.leaders, ref, event, LeaderRecord)
            case "ha", []:
                _keep(self.ha, ref, event, HaRecord)
            case "ballots", [term, member]:
                _keep(self._all_ballots.setdefault(ref, {}), (int(term), member), event, Ballot)
            case "secrets", [user]:
                of_instance = self.secrets.setdefault(ref, {})
                of_instance.pop(user, None)
                if event.value is not None:
                    of_instance[user] = event.value
                elif not of_instance:
                    del self.secrets[ref]
            case _:
                raise ValueError("no such key in the layout")

    def _apply_other(self, key: keys.ParsedKey, event: WatchEvent) -> None:
        match key.kind, key.parts:
            case "projects", (name,):
                _keep(self.projects, name, event, ProjectRecord)
            case "tokens", (name,):
                _keep(self.tokens, name, event, JoinToken)
            case "operators", (name,):
                _keep(self.operators, name, event, OperatorRecord)
            case "hubs", (name,):
                _keep(self.hubs, name, event, HubRecord)
            case "ports", (number,):
                if event.value is None:
                    self.ports.pop(int(number), None)
                else:
                    self.ports[int(number)] = event.value.decode()
            case "meta", ("store_id",):
                self.store_id = (event.value or b"").decode()
            case "meta", ("ca",):
                self.ca = event.value or b""
            case "claims", _:
                pass  # compared in transactions, read by nobody
            case _:
                raise ValueError("no such key in the layout")

    def _settle_ballots(self, touched: Iterable[InstanceRef]) -> None:
        """Show only the ballots of the election that is due: the one for the term after the recorded one."""
        for ref in touched:
            every = self._all_ballots.get(ref, {})
            if not every:
                self._all_ballots.pop(ref, None)
            due = (self.ha[ref].record.term if ref in self.ha else 0) + 1
            current = {member: ballot for (term, member), ballot in every.items() if term == due}
            if current:
                self.ballots[ref] = current
            else:
                self.ballots.pop(ref, None)


def _keep(place: dict[K, Versioned[T]], name: K, event: WatchEvent, kind: type[T]) -> None:
    if event.value is None:
        place.pop(name, None)
        return
    record = from_json(kind, event.value, where=event.key)
    place[name] = Versioned(record, event.mod_revision, event.create_revision)


def _as_event(kv: KeyValue) -> WatchEvent:
    return WatchEvent(
        key=kv.key,
        value=kv.value,
        mod_revision=kv.mod_revision,
        create_revision=kv.create_revision,
        lease_id=kv.lease_id,
    )


def _deletion(key: str, revision: int) -> WatchEvent:
    return WatchEvent(key=key, value=None, mod_revision=revision, create_revision=0, lease_id=0)
