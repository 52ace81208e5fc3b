"""The database engine as the simulator has it: a log of write ids on timelines, streaming, sync commits, rewind, clone.

One entry of the log is ENTRY_BYTES long. What is not flushed yet is lost when the process or the host ends. A replica
joins a primary by PostgreSQL's rule: the primary's timeline history must contain the replica's position. Whether the
logs agree then is checked by the simulator itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from agent.ha.view import Engine as Seen
from agent.ha.view import EngineState, Fork, Standby
from core.positions import Lsn, WalPosition
from core.records import SyncRecord
from core.status import Role
from tests.sim.network import Network, Reply
from tests.sim.world import Failure, Host, Process, Work, World

if TYPE_CHECKING:
    from tests.sim.checkers import Checkers

ENTRY_BYTES = 100
UNRESPONSIVE_AFTER_S = 2.0
RELOAD_S = 0.1  # for so long after a change of the sync setting commits may still be released by the old one
RECONNECT_S = 0.3
LONG_START = 0.01  # share of the starts that take longer than is waited for, and succeed after all


@dataclass(slots=True)
class Data:
    """A data directory."""

    system_id: str
    wal: list[str] = field(default_factory=list)
    timeline: int = 1
    history: tuple[tuple[int, int], ...] = ()  # (timeline, number of entries where it was left)
    standby: bool = False
    flushed: int = 0  # entries that survive a crash

    def copy(self) -> Data:
        return replace(self, wal=self.wal[: self.flushed])

    def contains(self, timeline: int, length: int) -> bool:
        """Whether that position is on the way to this one, as far as timelines tell."""
        if timeline == self.timeline:
            return length <= len(self.wal)
        return any(timeline == left and length <= end for left, end in self.history)


@dataclass(slots=True)
class Stream:
    """A replica's connection to a primary; both ends hold it."""

    primary: Engine
    replica: Engine
    sent: int
    flushed: int
    until: float = 0.0  # true time of the last delivery: messages of a connection stay in order
    open: bool = True
    begun: bool = False  # the replica listens

    def close(self) -> None:
        if self.open:
            self.open = False
            self.replica.lost(self)


@dataclass(slots=True)
class Commit:
    length: int
    reply: Reply


class Engine:
    """One member's engine. Requests come as messages to its process; the agent beside it calls the other methods."""

    def __init__(self, world: World, host: Host, member: str, network: Network, checkers: Checkers) -> None:
        self.label = f"{checkers.label}{member}"
        self.world = world
        self.host = host
        self.member = member
        self.network = network
        self.checkers = checkers
        self.process = Process(host, f"engine {member}")
        self.data: Data | None = None
        self.usable = True  # False while a clone or rewind is half done
        self.crashed = False
        self.accepting_at = 0.0  # true time from which it answers
        self.upstream = ""
        self.peers: dict[str, Engine] = {}  # who may connect, and where
        self.setting = SyncRecord()
        self.on_death: Callable[[], None] = lambda: None
        self._reset()

    def _reset(self) -> None:
        self._streams: dict[str, Stream] = {}
        self._commits: list[Commit] = []
        self._old_setting: tuple[SyncRecord, float] = (SyncRecord(), 0.0)
        self._source: Stream | None = None
        self._leader_length = 0
        self._forks: tuple[Fork, ...] = ()
        self._connecting = False

    # --- what the agent sees ---

    @property
    def has_data(self) -> bool:
        return self.data is not None and self.usable

    @property
    def running(self) -> bool:
        return self.process.alive and self.world.now >= self.accepting_at

    @property
    def is_primary(self) -> bool:
        return self.running and self.data is not None and not self.data.standby

    def state(self) -> EngineState:
        if not self.process.alive:
            if not self.has_data:
                return EngineState.ABSENT
            return EngineState.CRASHED if self.crashed else EngineState.STOPPED
        if self.process.paused and self.world.now - self.process.paused_at > UNRESPONSIVE_AFTER_S:
            return EngineState.UNRESPONSIVE
        return EngineState.RUNNING if self.running else EngineState.STARTING

    def observe(self) -> Seen:
        data = self.data if self.has_data else None
        if data is None:
            return Seen(state=self.state())
        lsn = Lsn(len(data.wal) * ENTRY_BYTES)
        standbys = (
            ()
            if data.standby
            else tuple(
                Standby(member=member, flushed=Lsn(s.flushed * ENTRY_BYTES), streaming=s.open)
                for member, s in self._streams.items()
            )
        )
        return Seen(
            state=self.state(),
            role=Role.REPLICA if data.standby else Role.PRIMARY,
            position=WalPosition(data.timeline, lsn),
            leader_lsn=Lsn(self._leader_length * ENTRY_BYTES),
            system_id=data.system_id,
            upstream=self.upstream,
            streaming=self._source is not None and self._source.open,
            standbys=standbys,
            sync=self.setting,
            leader_forks=self._forks,
        )

    # --- what the agent does ---

    def initialise(self, system_id: str) -> Work:
        yield self.process_of_agent.sleep(self.world.rng.uniform(0.3, 1.0))
        # As in life, a log is never empty: what made the data is in it.
        self.data, self.usable, self.crashed = Data(system_id, wal=["initdb"], flushed=1), True, False

    def start(self) -> Work:
        """As whatever the data directory is set up to be."""
        if not self.has_data:
            raise Failure("no data")
        if self.process.alive:
            if self.process.paused:
                raise Failure("the engine does not answer")
            return
        self._reset()
        self.process.start()
        self.crashed = False
        took = self.world.rng.uniform(0.05, 0.5)
        self.accepting_at = self.world.now + took
        self.process.later(took, self._reconnect)
        yield self.process_of_agent.sleep(took + 0.02)
        if not self.process.alive or self.world.rng.random() < LONG_START:
            raise Failure("the engine does not come up in time")

    def start_replica(self, upstream: str) -> Work:
        if self.data is not None:
            self.data.standby = True
        self.upstream = upstream
        yield from self.start()

    def start_primary(self) -> Work:
        assert self.data is not None, "started as primary without data"
        assert not self.data.standby, "started as primary with a replica's data"
        yield from self.start()

    def stop(self) -> Work:
        """Orderly: connected replicas get everything that is flushed, if they take it in time."""
        if self.process.paused:
            yield self.process_of_agent.sleep(1.0)
            raise Failure("the engine does not answer")
        if self.process.alive and self.data is not None and not self.data.standby:
            self.data.flushed = len(self.data.wal)
            self._commits = []
            self._ship()
            for _ in range(10):
                yield self.process_of_agent.sleep(0.05)
                if all(s.flushed >= len(self.data.wal) for s in self._streams.values() if s.open):
                    break
        self.end(crashed=False)

    def end(self, *, crashed: bool) -> None:
        """The process is gone at once."""
        if not self.process.alive:
            return
        self.process.kill()
        self.crashed = crashed
        if self.data is not None:
            del self.data.wal[self.data.flushed :]
            self.checkers.wal_changed(self)
        self._close()
        self.on_death()

    def lose_data(self) -> None:
        """The disk is gone, or was emptied."""
        self.end(crashed=False)
        self.data, self.usable, self.crashed = None, True, False
        self.checkers.wal_changed(self)

    def promote(self, *, above: int = 0) -> Work:
        yield self.process_of_agent.sleep(self.world.rng.uniform(0.05, 0.3))
        if not self.running or self.data is None or self.process.paused:
            raise Failure("the engine does not promote")
        data = self.data
        if data.standby:
            self._leave()
            data.history = (*data.history, (data.timeline, len(data.wal)))
            data.timeline = max(data.timeline, above) + 1
            data.standby = False
            data.flushed = len(data.wal)
            self._ship()  # who streams from here goes on, on the new timeline
            self.world.note(f"{self.label} is primary on timeline {data.timeline} at {len(data.wal)}")

    def follow(self, upstream: str) -> None:
        if self.upstream != upstream:
            self._leave()
            self.upstream = upstream
        if self.process.alive:
            self.process.soon(self._reconnect)

    def apply_sync(self, sync: SyncRecord) -> None:
        if sync != self.setting:
            self._old_setting = (self.setting, self.world.now + RELOAD_S)
            self.setting = sync
            if self.process.alive:
                self.process.soon(self._release)

    def clone(self, source: Engine, *, by_replica: bool = False) -> Work:
        self._admitted(source, by_replica=by_replica)
        self.usable = False
        yield self.process_of_agent.sleep(self.world.rng.uniform(0.5, 2.0))
        data = self._admitted(source, by_replica=by_replica)
        self.data = data.copy()
        self.data.standby, self.usable, self.crashed = True, True, False
        self.checkers.wal_changed(self)

    def rejoin(self, leader: Engine) -> Work:
        """Rewind: back to where the histories part, then the leader's. PostgreSQL compares timelines, not contents."""
        if self.process.alive:
            yield from self.stop()
        data = self._admitted(leader)
        mine = self.data
        assert mine is not None, "rejoined without data"
        if not data.contains(mine.timeline, len(mine.wal)):
            self.usable = False
            yield self.process_of_agent.sleep(self.world.rng.uniform(0.3, 1.5))
            data = self._admitted(leader)
            self.data = data.copy()
            self.checkers.wal_changed(self)
        assert self.data is not None, "it was there before"
        self.data.standby, self.usable, self.crashed = True, True, False

    def forks_of(self, leader: Engine) -> Work:
        data = yield self.network.call(
            self.process_of_agent, leader.process, lambda reply: reply(leader.data), timeout_s=1.0
        )
        if data is not None:
            self._forks = tuple(Fork(timeline=t, lsn=Lsn(end * ENTRY_BYTES)) for t, end in data.history)

    process_of_agent: Process

    def _admitted(self, source: Engine, *, by_replica: bool = False) -> Data:
        """The source's data, if it is a primary in reach that knows this member."""
        reachable = self.network.passes(self.host.name, source.host.name)
        serves = source.running if by_replica else source.is_primary
        if not reachable or not serves or source.process.paused or self.member not in source.peers:
            raise Failure(f"{source.member} does not let {self.member} copy its data")
        assert source.data is not None, "it has data"
        return source.data

    def ask_leave(self, leader: Engine) -> Work:
        """Of the leader, to copy from another member: it lets in whom it knows."""
        self._admitted(leader)
        yield self.process_of_agent.sleep(0.01)
        self._admitted(leader)

    # --- writes ---

    def write(self, write_id: str, reply: Reply) -> None:
        """A commit. The answer is True once it is acknowledged; none when it never is."""
        data = self.data
        if not self.is_primary or data is None:
            reply(Failure("not a primary"))
            return
        data.wal.append(write_id)
        length = len(data.wal)
        self.checkers.written(self, write_id)
        self._commits.append(Commit(length, reply))

        def flushed() -> None:
            if self.data is data and len(data.wal) >= length:
                data.flushed = max(data.flushed, length)
                self._ship()
                self._release()

        self.process.later(self.world.rng.uniform(0.0005, 0.002), flushed)

    def _release(self) -> None:
        """Acknowledge what the setting in force, or one that was until a moment ago, allows."""
        if self.data is None:
            return
        waiting: list[Commit] = []
        for commit in self._commits:
            if commit.length <= self.data.flushed and self._satisfied(commit.length):
                self.checkers.acknowledged(self, self.data.wal[commit.length - 1])
                commit.reply(True)
            else:
                waiting.append(commit)
        self._commits = waiting

    def _satisfied(self, length: int) -> bool:
        old, until = self._old_setting
        settings = [self.setting] + ([old] if self.world.now < until else [])
        return any(self._allows(setting, length) for setting in settings)

    def _allows(self, setting: SyncRecord, length: int) -> bool:
        if setting.mode == "async":
            return True
        if not setting.names:
            return False
        have = sum(
            1 for member, s in self._streams.items() if s.open and member in setting.names and s.flushed >= length
        )
        return have >= setting.k

    # --- streaming, the primary's side ---

    def _accept(self, replica: Engine, timeline: int, length: int, reply: Reply) -> None:
        data = self.data
        if not self.running or data is None or replica.member not in self.peers:
            reply(Failure("does not run, or knows nobody of this name"))
            return
        if not data.contains(timeline, length) or length > data.flushed:
            reply(Failure("the requested position is not in this history"))
            return
        before = self._streams.get(replica.member)
        if before is not None:
            before.close()
        stream = Stream(self, replica, sent=length, flushed=length)
        self._streams[replica.member] = stream
        reply(stream)

    def _ship(self) -> None:
        for stream in self._streams.values():
            if stream.open and stream.begun:
                self._send(stream)

    def _send(self, stream: Stream) -> None:
        data = self.data
        assert data is not None, "a primary has data"
        replica = stream.replica
        if not self.network.passes(self.host.name, replica.host.name):
            self._break(stream)
            return
        entries, start = data.wal[stream.sent : data.flushed], stream.sent
        stream.sent = max(stream.sent, data.flushed)
        timeline, history, written = data.timeline, data.history, len(data.wal)
        stream.until = max(stream.until + 1e-6, self.world.now + self.network.delay())
        self.world.push(
            stream.until - self.world.now,
            replica.process,
            lambda: replica.receive(stream, start, entries, timeline, history, written),
        )

    def begin(self, stream: Stream) -> None:
        if stream.open and self.running:
            stream.begun = True
            self._send(stream)

    def _break(self, stream: Stream) -> None:
        """A connection over a cut network is noticed after a while."""
        self.world.at(self.world.rng.uniform(0.2, 3.0), stream.close)

    def confirm(self, stream: Stream, length: int) -> None:
        """A replica has flushed so much."""
        if stream.open and self.data is not None:
            stream.flushed = max(stream.flushed, length)
            self._release()

    # --- streaming, the replica's side ---

    def _reconnect(self) -> None:
        """The walreceiver connects until it is connected, or has nobody to connect to."""
        standby = self.data is not None and self.data.standby
        connected = self._source is not None and self._source.open
        if self._connecting or connected or not standby or not self.upstream:
            return
        if self.running:
            self._connecting = True
            self.process.spawn(self._connect(self.upstream), self._connected)
        else:
            self.process.later(RECONNECT_S, self._reconnect)

    def _connect(self, upstream: str) -> Work:
        source, data = self.peers.get(upstream), self.data
        if source is None or data is None:
            return None
        timeline, length = data.timeline, len(data.wal)

        def ask(reply: Reply) -> None:
            source._accept(self, timeline, length, reply)

        answer = yield self.network.call(self.process, source.process, ask, timeout_s=1.0)
        if isinstance(answer, Failure):
            return None
        if upstream != self.upstream or not data.standby:
            answer.close()
            return None
        self.checkers.joined(self, source, length)
        self._source = answer
        if not self.network.stream(self.host.name, source.process, lambda: source.begin(answer)):
            self._break(answer)
        return None

    def _connected(self, _result: Any) -> None:
        self._connecting = False
        if self._source is None or not self._source.open:
            self.process.later(RECONNECT_S, self._reconnect)

    def receive(
        self,
        stream: Stream,
        start: int,
        entries: list[str],
        timeline: int,
        history: tuple[tuple[int, int], ...],
        written: int,
    ) -> None:
        data = self.data
        if not stream.open or self._source is not stream or data is None or start != len(data.wal):
            return
        data.wal.extend(entries)
        data.flushed = len(data.wal)
        data.timeline, data.history = timeline, history
        self._leader_length = max(self._leader_length, written)
        if entries:
            self.checkers.received(self, entries)
            source, length = stream.primary, len(data.wal)
            if not self.network.stream(self.host.name, source.process, lambda: source.confirm(stream, length)):
                self._break(stream)
        self._ship()  # to those that stream from here

    def _leave(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            source.close()

    def lost(self, stream: Stream) -> None:
        """The connection to the primary has ended; the walreceiver tries again after a while."""
        if stream is self._source:
            self.process.later(RECONNECT_S, self._reconnect)

    def _close(self) -> None:
        for stream in list(self._streams.values()):
            stream.close()
        self._leave()
        self._commits = []
