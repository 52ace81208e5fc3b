"""What the agent keeps on its own disk, written atomically, so that a node goes on running what it ran without a hub.

`desired.json`: the last desired state pulled, with secrets (mode 0600). `lease.json`: the node's etcd lease.
`keepers/<member>.json`: one member's leadership and fence deadline. Deadlines are monotonic and mean something only in
the same boot of the host, whose id lies beside them: after a reboot no engine runs and no deadline counts.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from core.codec import from_json
from core.errors import UserError
from core.log import EventLog
from core.records import NodeState, to_json

log = EventLog("agent.local")
T = TypeVar("T")


def boot_id() -> str:
    """The kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def write_atomically(path: Path, data: bytes, *, durable: bool = True) -> None:
    """All or nothing, mode 0600. `durable` survives a power cut; without, only the death of this process."""
    temporary = path.with_name(path.name + ".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, data)
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.rename(path)
    if durable:
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def read_record(path: Path, kind: type[T]) -> T | None:
    """None when the file is missing or unreadable; the latter is logged, the hub will send the truth again."""
    try:
        return from_json(kind, path.read_bytes(), where=str(path))
    except FileNotFoundError:
        return None
    except UserError as error:
        log.warning("local_file_unreadable", path=str(path), error=str(error))
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """desired.json"""

    store_id: str = ""
    revision: int = 0
    state: NodeState = field(default_factory=NodeState)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldLease:
    """lease.json"""

    boot: str = ""
    lease_id: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """keepers/<member>.json: what one member's keeper must not forget when the agent dies."""

    boot: str = ""
    term: int = 0  # led or leads, in this boot
    spent: int = 0  # no term up to this one is ever led again
    renewed_at: float = 0.0  # monotonic, of this boot
    fence_at: float = 0.0  # monotonic, of this boot
    ballot_term: int = 0  # the last election it has voted in, or may have
    ballot_store: str = ""  # of which life of etcd's data
    followed_term: int | None = None  # the last term whose log the data is of: led, streamed or copied
    restart_id: int = 0  # carried out
    prepared: bool = False  # settings, roles and slots were complete once: the others may copy from here


class LocalFiles:
    """The files of one node."""

    def __init__(self, data_root: Path) -> None:
        self._root = data_root
        self._boot = boot_id()
        data_root.mkdir(parents=True, exist_ok=True)

    def pulled(self) -> Pulled:
        return read_record(self._root / "desired.json", Pulled) or Pulled()

    def keep_pulled(self, pulled: Pulled) -> None:
        write_atomically(self._root / "desired.json", to_json(pulled))

    def lease_id(self) -> int:
        held = read_record(self._root / "lease.json", HeldLease)
        return held.lease_id if held else 0

    def keep_lease_id(self, lease_id: int) -> None:
        """Not durable: nothing that hangs on a lease outlives a power cut."""
        held = HeldLease(boot=self._boot, lease_id=lease_id)
        write_atomically(self._root / "lease.json", to_json(held), durable=False)

    def memory(self, member_dir: Path) -> Memory | None:
        """None when there is none. Leadership and deadlines of another boot are dropped, all else is kept."""
        memory = read_record(self._memory_file(member_dir), Memory)
        if memory is None or memory.boot == self._boot:
            return memory
        return replace(memory, boot=self._boot, term=0, renewed_at=0.0, fence_at=0.0)

    def keep_memory(self, member_dir: Path, memory: Memory, *, durable: bool = False) -> None:
        """Deadlines need not be durable: they are written at every renewal, and a power cut ends the engine as well."""
        file = self._memory_file(member_dir)
        file.parent.mkdir(exist_ok=True)
        write_atomically(file, to_json(replace(memory, boot=self._boot)), durable=durable)

    def forget_memory(self, member_dir: Path) -> None:
        """The member is deleted."""
        self._memory_file(member_dir).unlink(missing_ok=True)

    def _memory_file(self, member_dir: Path) -> Path:
        """Apart from the member's own files: those may lie on a disk that hangs, and the agent must go on."""
        return self._root / "keepers" / f"{member_dir.name}.json"
