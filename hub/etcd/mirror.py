"""All of Moorage's etcd in memory: one list, then one watch, for every reader of this hub.

A poll, a heartbeat or a page never asks etcd: it reads these dictionaries, which change only between awaits, one watch
batch at a time, and tell subscribers what was touched.

Invariant: after `synced`, the contents are etcd's as of `revision`, and every later change arrives. When history was
compacted under the watch, everything is listed again and `Changes.everything` says so. A watch that is behind though
etcd answers is found by a check of its own and ends the process: a hub that serves the past is the worst hub.

A value that cannot be read does not end the hub, nor is it served: the last good one stays and an error is logged once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from core.codec import from_json
from core.errors import MoorageError, TimedOutError, UserError
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
from hub.etcd.client import EtcdClient, KeyValue
from hub.etcd.errors import Compacted, EtcdUnavailable
from hub.etcd.watch import WatchEvent

log = EventLog("hub.mirror")
T = TypeVar("T")
EVENTS_KEPT_MAX = 2000
CHECK_EVERY_S = 30.0
BEHIND_MAX_S = 15.0  # a watch this far behind an answering etcd is dead, whatever its stream says
LIST_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True)
class Versioned(Generic[T]):
    """A record as read, with what transactions compare."""

    record: T
    mod_revision: int
    create_revision: int


@dataclass(slots=True)
class Changes:
    """What one batch touched. `everything`: the mirror was listed anew, look at all."""

    nodes: set[str] = field(default_factory=set)
    instances: set[InstanceRef] = field(default_factory=set)
    events: tuple[Event, ...] = ()
    everything: bool = False


class StaleMirror(MoorageError):
    """The watch has stopped bringing changes."""


class Mirror:
    """The dictionaries are read by everybody and written only here."""

    def __init__(self, client: EtcdClient) -> None:
        self._client = client
        self._subscribers: list[Callable[[Changes], None]] = []
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self.synced = asyncio.Event()
        self.revision = 0
        self._clear()

    def _clear(self) -> None:
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
        self._all_ballots: dict[InstanceRef, dict[tuple[int, str], Versioned[Ballot]]] = {}

    def subscribe(self, callback: Callable[[Changes], None]) -> Callable[[], None]:
        """Call back after each batch, synchronously; returns the way to stop."""
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    async def reached(self, revision: int, timeout_s: float = 5.0) -> None:
        """Until the contents are of this revision or later; TimedOutError."""
        if self.revision >= revision:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (revision, future)
        self._waiting.append(entry)
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError as error:
            raise TimedOutError(
                f"the hub's copy of etcd did not reach revision {revision} within {timeout_s} s", object="mirror"
            ) from error
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)

    async def run(self) -> None:
        """For ever; an error ends the hub."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(), name="mirror watch")
            group.create_task(self._check(), name="mirror check")

    # --- following ------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        while True:
            await self._list()
            try:
                async with aclosing(self._client.watch(keys.ROOT, after=self.revision)) as batches:
                    async for batch in batches:
                        changes = Changes()
                        for event in batch.events:
                            self._apply(event, changes)
                        self._publish(batch.revision, changes)
            except Compacted as error:
                log.warning("watch_compacted", revision=error.revision)

    async def _list(self) -> None:
        """List until etcd answers; nothing is served from an old list meanwhile but what is there already."""
        found, revision = await self._listed()
        self._clear()
        changes = Changes(everything=True)
        for kv in found:
            self._apply(_as_event(kv), changes)
        self._publish(revision, changes)
        self.synced.set()

    async def _listed(self) -> tuple[list[KeyValue], int]:
        while True:
            try:
                return await self._client.list(keys.ROOT)
            except (EtcdUnavailable, Compacted) as error:
                log.warning("list_failed", error=str(error))
                await asyncio.sleep(LIST_PAUSE_S)

    def _publish(self, revision: int, changes: Changes) -> None:
        for ref in changes.instances:
            self._settle_ballots(ref)
        self.revision = max(self.revision, revision) if not changes.everything else revision
        if changes.everything or changes.nodes or changes.instances or changes.events:
            for subscriber in tuple(self._subscribers):
                subscriber(changes)
        for wanted, future in self._waiting:
            if wanted <= self.revision and not future.done():
                future.set_result(None)

    async def _check(self) -> None:
        """Ask etcd now and then whether something newer than the mirror lies there."""
        await self.synced.wait()
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            try:
                newest = await self._client.newest_change(keys.ROOT)
            except EtcdUnavailable:
                continue  # away, not hidden: calls and the watch say so themselves
            try:
                await self.reached(newest, BEHIND_MAX_S)
            except TimedOutError as error:
                raise StaleMirror(
                    f"etcd is at revision {newest}, the watch has brought {self.revision} only", object="mirror"
                ) from error

    # --- applying one change --------------------------------------------------------------------------------------

    def _apply(self, event: WatchEvent, changes: Changes) -> None:
        key = keys.parse(event.key)
        if key is None:
            return
        try:
            self._apply_parsed(key, event, changes)
        except (UserError, ValueError) as error:
            # Once per revision by construction: each change is applied once.
            log.error("record_undecodable", key=event.key, revision=event.mod_revision, error=str(error))

    def _apply_parsed(self, key: keys.ParsedKey, event: WatchEvent, changes: Changes) -> None:
        match key.kind, key.parts:
            case "nodes", (name,):
                _keep(self.nodes, name, event, NodeRecord)
                changes.nodes.add(name)
            case "silent", (name,):
                (self.silent.discard if event.value is None else self.silent.add)(name)
                changes.nodes.add(name)
            case ("instances" | "status") as kind, (project, instance):
                ref = InstanceRef(project, instance)
                if kind == "instances":
                    _keep(self.instances, ref, event, InstanceRecord)
                else:
                    _keep(self.status, ref, event, InstanceStatus)
                changes.instances.add(ref)
            case ("members" | "observed") as kind, (node, member):
                self._apply_member(kind, node, MemberRef.from_key(member), event, changes)
            case ("leader" | "ha" | "ballots" | "secrets") as kind, (ref_key, *rest):
                self._apply_of_instance(kind, InstanceRef.from_key(ref_key), rest, event)
                changes.instances.add(InstanceRef.from_key(ref_key))
            case "events", (_,):
                self._apply_event(event, changes)
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

    def _apply_event(self, event: WatchEvent, changes: Changes) -> None:
        if event.value is not None:
            record = from_json(Event, event.value, where=event.key)
            self.events.append(record)
            changes.events = (*changes.events, record)

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
                self.ports.pop(int(number), None)
                if event.value is not None:
                    self.ports[int(number)] = event.value.decode()
            case "meta", ("store_id",):
                self.store_id = (event.value or b"").decode()
            case "meta", ("ca",):
                self.ca = event.value or b""
            case "claims", _:
                pass  # compared in transactions, read by nobody
            case _:
                raise ValueError("no such key in the layout")

    def _settle_ballots(self, ref: InstanceRef) -> None:
        """Only the ballots of the election that is due: the one for the term after the recorded one."""
        every = self._all_ballots.get(ref, {})
        if not every:
            self._all_ballots.pop(ref, None)
        due = (self.ha[ref].record.term if ref in self.ha else 0) + 1
        current = {member: ballot for (term, member), ballot in every.items() if term == due}
        if current:
            self.ballots[ref] = current
        else:
            self.ballots.pop(ref, None)


def _keep(place: dict[Any, Versioned[Any]], name: object, event: WatchEvent, kind: type[Any]) -> None:
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
