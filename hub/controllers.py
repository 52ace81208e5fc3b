"""The shell around the judges: on one hub at a time, what they find due is written to etcd.

One loop: take what was touched, judge it, write the steps, wait for the next change or one second. Every judgement
starts from the mirror; nothing is remembered that a successor would miss, save how long nodes have been out of
hearing, for which `hub.judges.health` grants a new judge its grace. Whatever a change did not announce is found by
looking at everything every RECHECK_S.

Only the holder of the claim `controllers` comes this far, and each transaction compares that it still is
(`hub.claims`). A step that is refused was judged from a world that has moved on: the instance is simply looked at
again. While etcd is away nothing is written and nothing is forgotten.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol

from pydantic import ValidationError

from core.clock import Clock
from core.codec import first_problem
from core.errors import MoorageError, TimedOutError, UnavailableError
from core.ids import InstanceRef
from core.log import EventLog
from core.records import Event, to_json
from core.specs.instance import InstanceSpec
from core.status import ConditionType
from hub.authority import Authority
from hub.claims import Claim, Holding
from hub.config import HubConfig
from hub.etcd import keys, txns
from hub.etcd.client import EtcdClient
from hub.etcd.mirror import Changes, Mirror
from hub.etcd.store import Store
from hub.events import MESSAGE_MAX, EventWriter
from hub.judges import health, upkeep
from hub.judges.schedule import due_at
from hub.judges.situation import Pair, gather
from hub.judges.steps import Step, next_step
from hub.liveness import Liveness
from hub.secrets import REPLICATION_USER, Secrets

WORK = "controllers"
TICK_S = 1.0  # silence and scheduled wishes are judged this often, refused steps are tried again
RECHECK_S = 30.0
TIDY_S = 600.0  # old events and used tokens
CATCH_UP_TIMEOUT_S = 10.0
# The longest chain (drop, join, status) has three steps. More in a row means that two judgements contradict each other;
# then the tick slows them down.
STEPS_MAX = 8

# Etcd does not answer, or this hub's copy of it does not keep up: nothing to do but wait.
_AWAY = (UnavailableError, TimedOutError)

log = EventLog("hub.controllers")


class Parts(Protocol):
    """What of a hub the controllers use (`hub.context.Hub` has it all)."""

    @property
    def config(self) -> HubConfig: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def client(self) -> EtcdClient: ...
    @property
    def mirror(self) -> Mirror: ...
    @property
    def store(self) -> Store: ...
    @property
    def authority(self) -> Authority: ...
    @property
    def secrets(self) -> Secrets: ...
    @property
    def liveness(self) -> Liveness: ...
    @property
    def events(self) -> EventWriter: ...


@dataclass(slots=True)
class _Due:
    """What is to be looked at, and when what comes by time is due (monotonic seconds)."""

    instances: set[InstanceRef] = field(default_factory=set)
    nodes: set[str] = field(default_factory=set)
    unplaced: bool = False  # room was made: whoever has no node may try again
    everything_at: float = 0.0
    silence_at: float = 0.0
    tidy_at: float = 0.0


@dataclass(frozen=True, slots=True)
class _ReadSpec:
    """A stored spec as parsed, or why it cannot be, for one mod_revision of its record."""

    revision: int
    spec: InstanceSpec | None
    problem: str = ""


class Controllers:
    """Runs the judges while this hub holds the claim. `run` ends only by cancellation or by a defect."""

    def __init__(self, hub: Parts) -> None:
        self._hub = hub
        self._mirror = hub.mirror
        self._due = _Due()
        self._wake = asyncio.Event()
        self._memory = health.Memory()
        self._orphans: frozenset[InstanceRef] = frozenset()
        self._specs: dict[InstanceRef, _ReadSpec] = {}
        self._pairs: dict[InstanceRef, list[Pair]] | None = None  # the mirror's members; None after each change
        self._nodes: dict[str, tuple[int, bool]] = {}  # revision and silence when last looked at
        self._etcd_away = False
        self._in_control = False
        self._mirror.subscribe(self._on_changes)

    async def run(self) -> None:
        """Claim, control, and claim again when the claim was lost."""
        hub = self._hub
        await Claim(hub.client, hub.clock, work=WORK, hub=hub.config.name).run(self._control)

    async def _control(self, holding: Holding) -> None:
        """The loop of the holder."""
        self.begin()
        try:
            while True:
                self._wake.clear()
                await self._look_if_etcd_is_there(holding)
                await self._next_change()
        finally:
            self._in_control = False

    def begin(self) -> None:
        """Start with all that the predecessor wrote, and know nothing else; listen to changes from now on."""
        self._due, self._memory, self._orphans = _Due(), health.Memory(), frozenset()
        self._pairs, self._nodes = None, {}
        self._in_control = True

    async def _look_if_etcd_is_there(self, holding: Holding) -> None:
        try:
            await self._mirror.reached(holding.created, CATCH_UP_TIMEOUT_S)
            await self.look(holding)
        except _AWAY as error:
            if not self._etcd_away:
                log.warning("control_suspended", reason=str(error))
            self._etcd_away = True
            self._due.everything_at = 0.0
        else:
            if self._etcd_away:
                log.info("control_resumed")
            self._etcd_away = False

    async def _next_change(self) -> None:
        """Wait for a change in the mirror, or for the next tick."""
        try:
            async with asyncio.timeout(TICK_S):
                await self._wake.wait()
        except TimeoutError:
            return

    def _on_changes(self, changes: Changes) -> None:
        if not self._in_control:
            return
        self._pairs = None
        self._due.instances |= changes.instances
        self._due.nodes |= changes.nodes
        if changes.everything:
            self._due.everything_at = 0.0
        self._wake.set()

    # --- one look -----------------------------------------------------------------------------------------------------

    async def look(self, holding: Holding) -> None:
        """Judge everything that is due, and write all steps that follow. Raises what etcd's absence raises."""
        now = self._hub.clock.now()
        if now >= self._due.silence_at:
            self._due.silence_at = now + TICK_S
            await self._judge_silence(holding, now)
            self._due.instances |= self._appointments()
        if now >= self._due.everything_at:
            self._due.everything_at = now + RECHECK_S
            self._due.instances |= self._mirror.instances.keys()
            await self._sweep(holding)
        for ref in sorted(self._take_due()):
            await self._settle(ref, holding)
            await asyncio.sleep(0)  # a settled instance costs 0.2 ms without an await: polls and heartbeats come first
        if now >= self._due.tidy_at:
            self._due.tidy_at = now + TIDY_S
            await self._hub.events.trim()
            await self._hub.authority.remove_stale_join_tokens()

    def _take_due(self) -> set[InstanceRef]:
        """Touched instances, those on changed nodes, and where room may have been made, those that want some."""
        due, self._due.instances = self._due.instances, set()
        touched, self._due.nodes = self._due.nodes, set()
        changed = {node for node in touched if self._has_changed(node)}
        unplaced, self._due.unplaced = self._due.unplaced or bool(changed), False
        if changed:
            due |= {member.instance for node, member in self._mirror.members if node in changed}
        if unplaced:
            due |= set(self._unplaced())
        return due & self._mirror.instances.keys()

    def _has_changed(self, node: str) -> bool:
        """Whether the node itself has, not only a member on it, since it was last looked at."""
        known = self._mirror.nodes.get(node)
        now = (known.mod_revision if known is not None else 0, node in self._mirror.silent)
        before, self._nodes[node] = self._nodes.get(node), now
        if known is None:
            del self._nodes[node]
        return now != before

    def _appointments(self) -> set[InstanceRef]:
        """Instances with a wish whose time has come."""
        wall = self._hub.clock.wall()
        return {ref for ref, known in self._mirror.ha.items() if due_at(known.record) <= wall}

    def _unplaced(self) -> Iterable[InstanceRef]:
        for ref, status in self._mirror.status.items():
            if any(c.type is ConditionType.PLACED and not c.status for c in status.record.conditions):
                yield ref

    async def _settle(self, ref: InstanceRef, holding: Holding) -> None:
        """Write steps until nothing is due to the instance. What fails for one instance does not stop the others."""
        try:
            for _ in range(STEPS_MAX):
                await self._ensure_secrets(ref)
                step = self._next(ref)
                if step is None:
                    return
                if not await self._write(step, holding):
                    break
        except _AWAY:
            raise
        except MoorageError as error:
            log.error("instance_not_settled", instance=str(ref), error=str(error))
            return
        # Refused, or unusually long: the tick brings it back.
        self._due.instances.add(ref)

    def _next(self, ref: InstanceRef) -> Step | None:
        if ref not in self._mirror.instances:
            return None
        read = self._spec(ref)
        if self._pairs is None:
            self._pairs = {}
            for pair in self._mirror.members:
                self._pairs.setdefault(pair[1].instance, []).append(pair)
        pairs = self._pairs.get(ref, [])
        situation = gather(self._mirror, ref, pairs, spec=read.spec, spec_problem=read.problem)
        now = self._hub.clock.wall()
        return next_step(self._mirror, situation, port_range=self._hub.config.port_range, now=now)

    def _spec(self, ref: InstanceRef) -> _ReadSpec:
        record = self._mirror.instances[ref]
        read = self._specs.get(ref)
        if read is None or read.revision != record.mod_revision:
            try:
                read = _ReadSpec(record.mod_revision, InstanceSpec.model_validate(record.record.spec))
            except ValidationError as error:
                read = _ReadSpec(record.mod_revision, None, first_problem(error))
                log.error("instance_spec_not_valid", instance=str(ref), problem=read.problem)
            self._specs[ref] = read
        return read

    async def _ensure_secrets(self, ref: InstanceRef) -> None:
        """A node must never be told of a user without its password being there."""
        record = self._mirror.instances.get(ref)
        if record is None or record.record.deleting:
            return
        spec = self._spec(ref).spec
        users = [user.name for user in spec.users] if spec is not None else []
        if not {REPLICATION_USER, *users} <= self._mirror.secrets.get(ref, {}).keys():
            await self._hub.secrets.ensure(ref, users)

    # --- nodes and leftovers ------------------------------------------------------------------------------------------

    async def _judge_silence(self, holding: Holding, now: float) -> None:
        config, mirror = self._hub.config, self._mirror
        heard = self._hub.liveness.heard_within(config.silent_after_s)
        verdict = health.judge_silence(
            nodes=mirror.nodes.keys(),
            silent=mirror.silent,
            heard_by=health.evidence(mirror.hubs, own=config.name, heard=heard),
            memory=self._memory,
            silent_after_s=config.silent_after_s,
            now=now,
        )
        self._memory = verdict.memory
        wall = self._hub.clock.wall()
        for node in sorted(verdict.newly_silent):
            await self._write(upkeep.node_silent(mirror, node, wall), holding)
        for node in sorted(verdict.newly_heard):
            await self._write(upkeep.node_heard(mirror, node, wall), holding)

    async def _sweep(self, holding: Holding) -> None:
        """What has been without an instance since the last time goes; a single look might see one being made."""
        found = upkeep.orphans(self._mirror)
        for ref in sorted(found & self._orphans):
            if await self._write(upkeep.sweep(self._mirror, ref), holding):
                log.warning("leftovers_removed", instance=str(ref))
        self._orphans = found
        self._specs = {ref: read for ref, read in self._specs.items() if ref in self._mirror.instances}

    # --- writing ------------------------------------------------------------------------------------------------------

    async def _write(self, step: Step, holding: Holding) -> bool:
        """Write a step in the claim's name; the mirror has it when this returns. False = the world has moved on."""
        events = [
            replace(event, source=self._hub.config.name, message=event.message[:MESSAGE_MAX]) for event in step.events
        ]
        puts = [txns.Put(_event_key(event), to_json(event)) for event in events]
        txn = txns.all_of([holding.compare, *step.compares], [*step.ops, *puts])
        if not await self._hub.store.commit(txn):
            log.debug("step_refused", compares=len(txn.compares))
            return False
        for event in events:
            log.info(event.event, object=event.object, message=event.message)
        self._due.unplaced |= step.frees
        return True


def _event_key(event: Event) -> str:
    return keys.event(int(event.at * 1000), secrets.token_hex(4))
