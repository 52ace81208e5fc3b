"""Who waits for what, and who must be woken: the long-polls of all agents.

A poll is answered at once when the node's state differs from what the agent knows, else it waits here. There is at most
one waiter a node: a newer poll answers the older one with SUPERSEDED, so a half-dead connection holds no slot, and two
agents with one identity notice each other. A poll reads memory only, never etcd.

A change in the mirror touches nodes: the named ones, and all that share an instance with them or with a named instance.
Only these are looked at again, and only those whose state did change are answered, so a write wakes exactly whom it
concerns. The few nodes of one instance are answered in the same turn of the event loop. A change that touches the fleet
is worked off in slices: each answer brings a new poll (about 0.4 ms of this process together), and answering all at
once would starve everybody's heartbeats.

The core is synchronous: one future a waiting poll, one timer a waiting poll, one timer for the slices. States are
assembled when first asked for and kept until touched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from core.errors import MoorageError
from core.ids import InstanceRef
from core.log import EventLog
from core.records import MemberDesired, MemberSecrets, to_json
from hub.judges.assemble import Contents, Places, assemble, fingerprint, places

# A hub answers about 2,500 polls a second at most; 75 in 50 ms = 1,500/s leaves room for heartbeats.
SLICE_NODES = 75
SLICE_EVERY_S = 0.05
# A draining hub tells agents to come back within this time, so that its twin is not run over.
DRAIN_SPREAD_S = 5.0

log = EventLog("hub.board")


class Source(Contents, Protocol):
    """The mirror, as the board uses it."""

    @property
    def store_id(self) -> str: ...


class Touched(Protocol):
    """What a batch of changes touched."""

    @property
    def nodes(self) -> Iterable[str]: ...
    @property
    def instances(self) -> Iterable[InstanceRef]: ...
    @property
    def everything(self) -> bool: ...


class Outcome(Enum):
    """What a poll is answered with."""

    FULL = "the whole state"
    UNCHANGED = "nothing new"
    SUPERSEDED = "a newer poll of the same node took its place"


@dataclass(frozen=True, slots=True)
class Answer:
    """`state_json` only with FULL. `retry_after_s` > 0 and `draining` when the hub is going away."""

    outcome: Outcome
    store_id: str
    revision: int
    state_json: bytes = b""
    draining: bool = False
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _State:
    revision: int
    json: bytes


@dataclass(frozen=True, slots=True)
class _Waiter:
    future: asyncio.Future[Answer]
    unchanged: Answer  # what the agent knows, and the answer if that stays so
    timer: asyncio.TimerHandle


class Board:
    """Invariant: a node waits here only while the state it knows is the present one, or while it is in `_due`."""

    def __init__(
        self,
        source: Source,
        secrets_of: Callable[[MemberDesired], MemberSecrets],
        *,
        hold_s: tuple[float, float],
        uniform: Callable[[float, float], float],
    ) -> None:
        self._source = source
        self._secrets_of = secrets_of
        self._hold_s = hold_s
        self._uniform = uniform
        self._waiters: dict[str, _Waiter] = {}
        self._states: dict[str, _State] = {}
        self._due: dict[str, None] = {}  # touched nodes to look at, in order; never more than there are nodes
        self._slice_timer: asyncio.TimerHandle | None = None
        self._draining = False
        self.where: Places = places(source.members)

    @property
    def waiting(self) -> int:
        """How many polls are held."""
        return len(self._waiters)

    async def poll(self, node: str, *, store_id: str, known_revision: int, max_hold_s: float = 0.0) -> Answer:
        """Comes back at once or when there is something to say, at the latest after a hold drawn from `hold_s`."""
        self._supersede(node)
        if self._draining:
            return self._leaving(known_revision)
        state = self._state(node)
        if store_id != self._source.store_id or known_revision != state.revision:
            return Answer(Outcome.FULL, self._source.store_id, state.revision, state.json)
        hold_s = self._uniform(*self._hold_s)
        waiter = self._enter(node, known_revision, min(hold_s, max_hold_s) if max_hold_s > 0 else hold_s)
        try:
            return await waiter.future  # ends by the timer at the latest
        finally:
            self._leave(node, waiter)

    def changed(self, touched: Touched) -> None:
        """The mirror has applied a batch: look again at everybody it concerns. Subscribe this to the mirror."""
        nodes = set(touched.nodes)
        instances = set(touched.instances)
        concerned = self._concerned(nodes, instances)
        if touched.everything or (nodes and instances):  # members come and go only in batches that name both
            self.where = places(self._source.members)
            concerned |= self._concerned(nodes, instances)
        if touched.everything:
            self._states.clear()
            concerned = set(self._waiters)
        for node in concerned:
            self._states.pop(node, None)
        self._wake(concerned & self._waiters.keys())

    async def drain(self) -> None:
        """Answer every held poll, in slices, and every later one at once: the hub is going away."""
        self._draining = True
        while self._waiters:
            for node in list(self._waiters)[:SLICE_NODES]:
                self._answer(node, self._leaving(self._waiters[node].unchanged.revision))
            await asyncio.sleep(SLICE_EVERY_S)

    def _wake(self, nodes: set[str]) -> None:
        """Few are looked at now, even while the fleet is being worked off: a failover waits for no rollout."""
        if len(nodes) <= SLICE_NODES:
            for node in nodes:
                self._look(node)
            return
        self._due.update(dict.fromkeys(nodes))
        if self._slice_timer is None:
            self._work_off()

    def _concerned(self, nodes: set[str], instances: set[InstanceRef]) -> set[str]:
        concerned: set[str] = set()
        return concerned.union(
            *(self.where.neighbours(node) for node in nodes),
            *(self.where.nodes_of(instance) for instance in instances),
        )

    def _work_off(self) -> None:
        """Look at one slice of the due nodes; come back for the rest."""
        self._slice_timer = None
        for node in list(self._due)[:SLICE_NODES]:
            del self._due[node]
            self._look(node)
        if self._due:
            self._slice_timer = asyncio.get_running_loop().call_later(SLICE_EVERY_S, self._work_off)

    def _look(self, node: str) -> None:
        """Answer the node's waiter if its state is not the one it knows."""
        waiter = self._waiters.get(node)
        if waiter is None:
            return
        if node not in self._source.nodes:  # it was removed; its next poll is told so
            self._answer(node, waiter.unchanged)
            return
        try:
            state = self._state(node)
        except MoorageError as error:
            log.error("node_state_failed", node=node, error=str(error))
            return  # the agent goes on with what it has; its next poll is told why
        if state.revision != waiter.unchanged.revision or self._source.store_id != waiter.unchanged.store_id:
            self._answer(node, Answer(Outcome.FULL, self._source.store_id, state.revision, state.json))

    def _state(self, node: str) -> _State:
        state = self._states.get(node)
        if state is None:
            state = self._states[node] = self._assemble(node)
        return state

    def _assemble(self, node: str) -> _State:
        secrets = {
            ref.key: self._secrets_of(self._source.members[node, ref].record)
            for ref in self.where.on_node.get(node, ())
        }
        state_json = to_json(assemble(self._source, self.where, node, secrets))
        return _State(fingerprint(state_json), state_json)

    def _enter(self, node: str, known_revision: int, hold_s: float) -> _Waiter:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        unchanged = Answer(Outcome.UNCHANGED, self._source.store_id, known_revision)
        timer = loop.call_later(hold_s, _settle, future, unchanged)
        waiter = self._waiters[node] = _Waiter(future, unchanged, timer)
        return waiter

    def _leave(self, node: str, waiter: _Waiter) -> None:
        waiter.timer.cancel()
        if self._waiters.get(node) is waiter:  # not when a newer poll has taken the place
            del self._waiters[node]

    def _supersede(self, node: str) -> None:
        waiter = self._waiters.get(node)
        if waiter is not None:
            self._answer(node, Answer(Outcome.SUPERSEDED, self._source.store_id, waiter.unchanged.revision))

    def _answer(self, node: str, answer: Answer) -> None:
        _settle(self._waiters.pop(node).future, answer)

    def _leaving(self, known_revision: int) -> Answer:
        retry_after_s = self._uniform(0.0, DRAIN_SPREAD_S)
        return Answer(
            Outcome.UNCHANGED, self._source.store_id, known_revision, draining=True, retry_after_s=retry_after_s
        )


def _settle(future: asyncio.Future[Answer], answer: Answer) -> None:
    """The call may have been cancelled by the agent in the same moment."""
    if not future.done():
        future.set_result(answer)
