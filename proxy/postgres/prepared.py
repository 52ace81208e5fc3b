"""Which prepared statements a client has, and which its server connection of the moment has.

In transaction pooling both change independently of each other: a client keeps its statements, by names of its own,
while its transactions go over many connections; a connection keeps statements of many clients. So each text that a
client prepares has one name at all servers (`Prepared`), a client's names stand for such texts (`Statements`), and a
connection has some of them (`Held`). `renaming` makes the two meet.

Everything here is what it *will be* once all that was sent is done: changes are made when the client's message is
sent, wait for their answer in a queue (`Awaited`), and are undone when the server skips them after an error.
Whatever needs to know more than that waits for the answers (`conflicts`): it stands in a later batch than the change.

Bounds: a client may have CLIENT_BYTES_MAX of statements, all clients of a process share a `Pool`, in which a text that
many clients prepare counts once. A client that prepares more is told so: 53200.
"""

from __future__ import annotations

import re
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from weakref import WeakValueDictionary

from proxy.postgres.requests import ENTRY_BYTES, Pool

CLIENT_BYTES_MAX = 4 << 20
NAME_PREFIX = b"moorage_"
NAME_BYTES_MAX = 63  # by which servers tell names apart
READY, PARSED, CLOSED, COMPLETE = b"Z13C"
EVERYTHING = "*"  # a key: DEALLOCATE ALL touches each statement
UNNAMED = b""


class Prepared:
    """A statement, whatever its clients call it. Lives as long as a client or a connection has it."""

    __slots__ = ("__weakref__", "_pool", "body", "name")

    def __init__(self, number: int, body: bytes, pool: Pool) -> None:
        self.name = NAME_PREFIX + str(number).encode()  # at every server
        self.body = body  # of its Parse message, behind the name: text and types of parameters
        self._pool = pool
        pool.bytes += len(body) + ENTRY_BYTES

    def __del__(self) -> None:
        self._pool.bytes -= len(self.body) + ENTRY_BYTES


class Library:
    """Each statement that clients of this process have prepared, once."""

    def __init__(self, pool: Pool | None = None) -> None:
        self.pool = pool or Pool()
        self._known: WeakValueDictionary[bytes, Prepared] = WeakValueDictionary()
        self._count = 0

    def take(self, body: bytes) -> Prepared:
        found = self._known.get(body)
        if found is None:
            self._count += 1
            found = self._known[body] = Prepared(self._count, body, self.pool)
        return found


Key = bytes | Prepared | str


@dataclass(slots=True)
class Awaited:
    """One answer that the server owes. `answer`: the type of message that it is; COMPLETE stands for any number of
    CommandComplete messages, of a statement that may deallocate."""

    answer: int
    shown: bool = True  # else it is the answer to a message of the proxy's own
    keys: tuple[Key, ...] = ()
    make: Callable[[], None] | None = None  # what the answer tells; made beforehand if it can be undone
    undo: Callable[[], None] | None = None
    mirrors: bool = False  # once it is there, the connection's unnamed statement is this client's
    refusal: bytes = b""  # the error that is shown in place of the server's
    certain: bool = True  # READY: it comes even if the batch before it fails
    name: bytes | None = None  # COMPLETE: what is deallocated by name

    @property
    def matters(self) -> bool:
        return self.answer != READY or self.make is not None


@dataclass(frozen=True, slots=True)
class Deallocation:
    """What a statement may deallocate: one of the client's names, or all, or what is not known."""

    name: bytes | None
    everything: bool


class Held:
    """What one connection's server has. True: as it was prepared; False: it must be prepared anew before its use."""

    __slots__ = ("limit", "names", "unnamed")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.names: OrderedDict[Prepared, bool] = OrderedDict()  # the one used last stands last
        # Whose unnamed statement the server has (see `Statements.at_home`).
        self.unnamed: Statements | None = None

    def put(self, prepared: Prepared, held: bool | None) -> None:
        if held is None:
            self.names.pop(prepared, None)
        else:
            self.names[prepared] = held

    def clear(self) -> None:
        """The server has no statements any more, for the proxy has said DISCARD ALL."""
        self.names.clear()
        self.unnamed = None

    def vanished(self, name: bytes) -> None:
        """The server does not know it."""
        for prepared in [one for one in self.names if one.name == name]:
            del self.names[prepared]


class Statements:
    """What one client has, the answers it waits for, and the parts of messages that are on their way."""

    __slots__ = (
        "_bytes",
        "_matter",
        "_readies",
        "at_risk",
        "current",
        "dropping",
        "following",
        "held_back",
        "home",
        "kept",
        "left",
        "library",
        "lost",
        "names",
        "opened",
        "part",
        "pending",
        "queue",
        "skip",
        "slow",
        "unnamed",
        "watched",
    )

    def __init__(self, library: Library) -> None:
        self.library = library
        self.names: dict[bytes, Prepared] = {}
        self.unnamed: bytes | None = None  # the body of its Parse, as far as it is answered (but see `at_risk`)
        self.home: Held | None = None  # the connection where the unnamed one was used last
        self.at_risk = False  # the Parse of the unnamed one is the first thing that the server has to answer
        self.watched: dict[bytes, Deallocation] = {}  # statements that may deallocate
        self.queue: deque[Awaited] = deque()
        self.pending: dict[Key, int] = {}  # what awaited answers change
        self.current: set[Key] = set()  # those of the batch that no Sync has ended yet
        self.lost = False  # it cannot be told any more what the server has done
        self.slow = False  # the next message of the client needs a closer look
        # From the client: a message that has come in part, bytes of one that passes or is dropped, what must wait.
        self.part, self.left, self.dropping, self.held_back = b"", 0, False, b""
        # From the server: whether every header is looked at, a message that has come in part, bytes of one that passes.
        self.following, self.kept, self.skip = False, b"", 0
        self._bytes = 0
        self._matter = 0  # entries of the queue that matter
        self._readies = 0  # those that are ReadyForQuery
        self.opened = False  # what is held back stands in a batch that has begun

    # --- what it has --------------------------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        return self._bytes >= CLIENT_BYTES_MAX or self.library.pool.full

    def put(self, name: bytes, prepared: Prepared | None) -> None:
        former = self.names.pop(name, None)
        change = 0 if former is None else -len(former.body) - ENTRY_BYTES
        if prepared is not None:
            self.names[name] = prepared
            change += len(prepared.body) + ENTRY_BYTES
        self._bytes += change
        self.library.pool.bytes += ((prepared is not None) - (former is not None)) * ENTRY_BYTES

    def keep_unnamed(self, body: bytes | None) -> None:
        pool = self.library.pool
        if self.unnamed is not None:
            pool.bytes -= len(self.unnamed)
        self.unnamed = None if pool.full else body
        if self.unnamed is not None:
            pool.bytes += len(self.unnamed)

    def at_home(self, held: Held) -> bool:
        """The unnamed statement of that server is what this client's own server would have, be it none."""
        return held.unnamed is self and self.home is held

    def settle_at(self, held: Held) -> None:
        held.unnamed = self
        self.home = held

    def clear(self) -> None:
        """All those with names."""
        for name in list(self.names):
            self.put(name, None)

    def release(self) -> None:
        """The client has gone."""
        self.clear()
        self.keep_unnamed(None)
        self.queue.clear()

    # --- what is not answered yet -------------------------------------------------------------------------------------

    @property
    def waits(self) -> bool:
        """Something is held back until earlier batches are answered: the client should not be read."""
        return bool(self.held_back)

    @property
    def may_go_on(self) -> bool:
        """Something is held back, and need not be any longer. Of a batch without a Sync the server may keep its answers
        to itself."""
        return bool(self.held_back) and not self._readies

    @property
    def all_answered(self) -> bool:
        return not self.queue and not self.kept

    def conflicts(self, key: Key) -> bool:
        """An earlier batch changes it, and it is not known yet whether it will have done so."""
        pending, current = self.pending, self.current
        if not pending:
            return False
        return (key in pending and key not in current) or (EVERYTHING in pending and EVERYTHING not in current)

    @property
    def unsure(self) -> bool:
        """Of anything that an earlier batch changes."""
        return not self.pending.keys() <= self.current

    def owe(self, item: Awaited, owed: int = 0) -> None:
        """`owed`: ReadyForQuery messages before it, if nothing else is awaited."""
        if not self.queue:
            self._track_risk()
            self.queue.extend(Awaited(READY) for _ in range(owed))
            self._readies += owed
        self.queue.append(item)
        self._matter += item.matters
        self._readies += item.answer == READY
        for key in item.keys:
            self.pending[key] = self.pending.get(key, 0) + 1
            self.current.add(key)
        if item.make is not None and item.undo is not None:
            item.make()

    def _track_risk(self) -> None:
        if self.at_risk:
            self.at_risk = False
            self.queue.append(Awaited(PARSED, keys=(UNNAMED,), undo=partial(self.keep_unnamed, None)))
            self._matter += 1
            self.pending[UNNAMED] = self.pending.get(UNNAMED, 0) + 1

    def done(self, held: Held) -> Awaited:
        """The first answer has come."""
        item = self.take_first()
        if item.make is not None and item.undo is None:
            item.make()
        if item.mirrors:
            self.settle_at(held)
        return item

    def drop(self) -> None:
        """The server skips what is awaited before the next ReadyForQuery."""
        dropped: list[Awaited] = []
        while self.queue and self.queue[0].answer != READY:
            dropped.append(self.take_first())
        for item in reversed(dropped):
            if item.undo is not None:
                item.undo()

    def cleared(self, held: Held) -> None:
        """The server has deallocated all statements; what is still awaited comes after that."""
        self.clear()
        held.names.clear()
        for item in self.queue:
            if item.make is not None and item.undo is not None:
                item.make()

    def take_first(self) -> Awaited:
        item = self.queue.popleft()
        self._matter -= item.matters
        self._readies -= item.answer == READY
        for key in item.keys:
            self.pending[key] -= 1
            if not self.pending[key]:
                del self.pending[key]
        return item

    def risked(self, *, well: bool) -> None:
        """The unnamed statement's Parse is answered."""
        self.at_risk = False
        if not well:
            self.keep_unnamed(None)

    def settle(self) -> None:
        """Nothing that is still awaited matters: no need to look at every message."""
        if not self._matter and not self.held_back:
            self.queue.clear()
            self.current.clear()
            self._readies = 0
        self.slow = bool(self.queue or self.part or self.left or self.held_back or self.watched)


# --- statements about statements --------------------------------------------------------------------------------------

_TALKS = re.compile(
    rb"\s*deallocate\s+(?:prepare\s+)?(?:\"((?:[^\"]|\"\")+)\"|([a-z_\x80-\xff][\w$\x80-\xff]*))\s*;?\s*", re.I
)
_ALL = re.compile(rb"\s*(?:deallocate\s+(?:prepare\s+)?all|discard\s+all)\s*(?:/\*[^*]*\*/\s*)?;?\s*", re.I)


def may_deallocate(text: bytes) -> bool:
    lowered = text.lower()
    return lowered.find(b"alloc") >= 0 or lowered.find(b"disca") >= 0


def deallocated(text: bytes) -> bytes | None:
    """The name in a DEALLOCATE, as the server reads it."""
    found = _TALKS.fullmatch(text)
    if found is None:
        return None
    quoted, plain = found.groups()
    if quoted is not None:
        return bytes(quoted).replace(b'""', b'"')[:NAME_BYTES_MAX]
    return None if plain.lower() == b"all" else bytes(plain).lower()[:NAME_BYTES_MAX]


def deallocates_all(text: bytes) -> bool:
    return _ALL.fullmatch(text) is not None
