"""The audit trail: who changed what, when and from where, in etcd, each entry chained to the one before.

An entry is written by the very transaction that makes the change: no change by an operator without its entry, no entry
of a change that was not made. An entry names the SHA-256 of the former one's text, and `HEAD` that of the last, so
whoever alters, removes or inserts one breaks the chain from there on; who has noted a head elsewhere sees also that the
end was cut off (`moorctl audit verify`).

The trail lies beside `/moorage/`, because no hub needs it in memory. Secrets never get into it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from core.clock import Clock, iso
from core.errors import ConflictError, NotFoundError, words
from core.log import EventLog
from hub.authority import Operator
from hub.etcd import keys, txns
from hub.etcd.client import EtcdClient, KeyValue
from hub.etcd.errors import EtcdUnavailable
from hub.etcd.store import Store

log = EventLog("hub.audit")
NOTE_S = 3.0
ATTEMPTS = 10  # each lost one means that another operator's change came first
FIRST = "0" * 64  # what the first entry names as its forerunner
VALUE_CHARS_MAX = 4096  # of one value that is shown; a longer one is named by its digest
CHANGES_MAX = 200
ENTRIES_MAX = 100  # of one answer
PAGE_BYTES = 1 << 20  # after which an answer takes no more entries
# Of other keys it is only told that they changed.
SHOWN: Final = (keys.PROJECTS, keys.INSTANCES, keys.NODES, keys.OPERATORS, keys.TOKENS, keys.HA)
HIDDEN: Final = frozenset({"secret_sha256"})


@dataclass(frozen=True, slots=True)
class Head:
    """The last entry: its number, and the SHA-256 of its text. `revision` 0 = there is none yet."""

    seq: int = 0
    sha256: str = FIRST
    revision: int = 0


class AuditTrail:
    """Writes and reads it."""

    def __init__(self, client: EtcdClient, store: Store, clock: Clock) -> None:
        self._client = client
        self._store = store
        self._clock = clock
        self._turn = asyncio.Lock()  # those of one hub need not race each other for the head

    async def commit(self, operator: Operator, object: str, txn: txns.Txn) -> bool:
        """The transaction together with its entry. False when its own compares do not hold. ConflictError when other
        operators' changes come first again and again."""
        touched = [op.key for op in txn.then if not isinstance(op, txns.DeletePrefix)]
        for _ in range(ATTEMPTS):
            async with self._turn:
                head = await self._head()
                before, _ = await self._client.read(touched)
                changes = list(changes_of(before, txn))
                if await self._store.commit(self._with_entry(txn, head, operator, object, changes)):
                    return True
                if (await self._head()).revision == head.revision:
                    return False
        raise ConflictError("other operators' changes come first all the time", object=object, hint="Try again.")

    async def note(self, operator: Operator, object: str, what: str) -> None:
        """Something that was read and is worth an entry. While etcd is away the log has to do: in an outage people must
        get at their databases."""
        try:
            async with asyncio.timeout(NOTE_S):
                while True:
                    head = await self._head()
                    entry = self._with_entry(txns.all_of([], []), head, operator, object, [{"read": what}])
                    if (await self._client.commit(entry)).succeeded:
                        return
        except (EtcdUnavailable, TimeoutError) as error:
            log.warning("audit_entry_missing", object=object, operator=operator.name, read=what, error=words(error))

    async def read(self, *, after: int, limit: int) -> tuple[list[str], Head]:
        """Texts of entries numbered above `after`, oldest first, at most `limit` (0 = as many as one answer takes), and
        the head. NotFoundError when one of them is missing."""
        head = await self._head()
        last = min(head.seq, after + min(limit or ENTRIES_MAX, ENTRIES_MAX))
        wanted = [keys.audit(number) for number in range(after + 1, last + 1)]
        found, _ = await self._client.read(wanted)
        for key in wanted:
            if key not in found:
                raise NotFoundError("the entry is missing from the audit trail", object=key, hint="It was removed.")
        texts: list[str] = []
        size = 0
        for key in wanted:
            texts.append(found[key].value.decode())
            size += len(texts[-1])
            if size > PAGE_BYTES:
                break
        return texts, head

    async def _head(self) -> Head:
        known = await self._client.get(keys.AUDIT_HEAD)
        if known is None:
            return Head()
        told = json.loads(known.value)
        return Head(int(told["seq"]), str(told["sha256"]), known.mod_revision)

    def _with_entry(
        self, txn: txns.Txn, head: Head, operator: Operator, object: str, changes: list[dict[str, Any]]
    ) -> txns.Txn:
        entry = {
            "seq": head.seq + 1,
            "at": iso(self._clock.wall()),
            "operator": operator.name,
            "token": operator.id,
            "role": operator.role,
            "from": operator.peer,
            "verb": operator.verb,
            "object": object,
            "changes": changes,
            "nonce": secrets.token_hex(8),  # no two entries are the same: a repeated transaction knows its own
            "previous": head.sha256,
        }
        text = json.dumps(entry, separators=(",", ":")).encode()
        next_head = json.dumps({"seq": head.seq + 1, "sha256": hashlib.sha256(text).hexdigest()}).encode()
        return txns.all_of(
            [*txn.compares, txns.ModIs(keys.AUDIT_HEAD, head.revision)],
            [*txn.then, txns.Put(keys.audit(head.seq + 1), text), txns.Put(keys.AUDIT_HEAD, next_head)],
        )


# --- what a transaction changes ---------------------------------------------------------------------------------------


def changes_of(before: Mapping[str, KeyValue], txn: txns.Txn) -> Iterator[dict[str, Any]]:
    """Key by key, and field by field where the key is one that may be shown. The last line says how many are left
    out."""
    count = 0
    for op in txn.then:
        for change in _changes_of(before, op):
            count += 1
            if count <= CHANGES_MAX:
                yield change
    if count > CHANGES_MAX:
        yield {"left_out": count - CHANGES_MAX}


def _changes_of(before: Mapping[str, KeyValue], op: txns.Op) -> Iterator[dict[str, Any]]:
    if isinstance(op, txns.DeletePrefix):
        yield {"key": op.prefix, "deleted": "all below"}
        return
    if not op.key.startswith(SHOWN):
        yield {"key": op.key, "deleted": True} if isinstance(op, txns.Delete) else {"key": op.key, "written": True}
        return
    old = _record(before[op.key].value) if op.key in before else None
    new = _record(op.value) if isinstance(op, txns.Put) else None
    for field, was, becomes in differences(old, new):
        yield {"key": op.key, "field": field, "before": _shown(was), "after": _shown(becomes)}


def _record(value: bytes) -> object:
    try:
        return json.loads(value)
    except ValueError:
        return f"sha256:{hashlib.sha256(value).hexdigest()}"


def differences(old: object, new: object, path: str = "") -> Iterator[tuple[str, object, object]]:
    """Path, former and new value of whatever differs; None = not there. Lists are compared as a whole."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted({*old, *new}):
            if name not in HIDDEN:
                yield from differences(old.get(name), new.get(name), f"{path}.{name}" if path else str(name))
    elif old != new:
        yield path, _without_secrets(old), _without_secrets(new)


def _without_secrets(value: object) -> object:
    if isinstance(value, dict):
        return {name: inner for name, inner in value.items() if name not in HIDDEN}
    return value


def _shown(value: object) -> object:
    text = json.dumps(value, sort_keys=True)
    return value if len(text) <= VALUE_CHARS_MAX else f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
