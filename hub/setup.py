"""`moorage-hub init`: what must be there before the first hub can run. Safe to repeat, and to run on every hub's host.

The store id marks this life of etcd's data. The seal key is made where the first hub is set up and carried by hand to
the others: a hub without the right key cannot open the CA, and is told so rather than given a key of its own. The first
operator's token is written to a file and nowhere else.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

from core.clock import SystemClock
from core.errors import UserError
from core.log import EventLog
from core.sealing import Sealer, create_key_file
from hub.authority import Authority, create_operator
from hub.config import HubConfig
from hub.etcd import keys
from hub.etcd.client import EtcdClient
from hub.etcd.mirror import Mirror
from hub.etcd.store import Store, ensure_store_id

SYNC_WITHIN_S = 30.0

log = EventLog("hub.setup")


@dataclass(frozen=True, slots=True)
class Prepared:
    """What `init` found or made."""

    store_id: str
    made_seal_key: bool
    made_admin_token: bool


async def prepare(config: HubConfig, client: EtcdClient, *, new_admin: bool = False) -> Prepared:
    """Make what is missing. `new_admin` makes another admin's token even if there are operators."""
    config.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    store_id = await ensure_store_id(client)
    made_key = await _seal_key(config, client)
    mirror = Mirror(client)
    async with asyncio.TaskGroup() as group:
        following = group.create_task(mirror.run(), name="mirror")
        async with asyncio.timeout(SYNC_WITHIN_S):
            await mirror.synced.wait()
        store = Store(client, mirror)
        authority = await Authority.load_or_create(store, mirror, Sealer.load(config.seal_key_path), config)
        write_file(config.ca_path, authority.ca_pem, mode=0o644)
        made_token = await _admin_token(config, store, mirror, new_admin=new_admin)
        following.cancel()
    return Prepared(store_id=store_id, made_seal_key=made_key, made_admin_token=made_token)


async def _seal_key(config: HubConfig, client: EtcdClient) -> bool:
    """Make the seal key, unless there are secrets already that another key has sealed."""
    path = config.seal_key_path
    if not path.exists() and await client.get(keys.CA) is not None:
        raise UserError(
            "is not there, but etcd has secrets that were sealed by another hub's key",
            object=str(path),
            hint="Copy seal.key from a hub that runs, with mode 0600.",
        )
    made = create_key_file(path)
    if made:
        log.info("seal_key_made", path=str(path))
    return made


async def _admin_token(config: HubConfig, store: Store, mirror: Mirror, *, new_admin: bool) -> bool:
    path = config.admin_token_path
    if not new_admin and (path.exists() or mirror.operators):
        return False
    token = await create_operator(store.commit, "admin", "admin", wall=SystemClock().wall())
    write_file(path, token.encode() + b"\n", mode=0o600)
    log.info("admin_token_made", path=str(path))
    return True


def write_file(path: Path, content: bytes, *, mode: int) -> None:
    """Write a whole file atomically with this mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    scratch.rename(path)
