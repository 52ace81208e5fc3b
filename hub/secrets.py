"""Database passwords: made here, sealed in etcd, shown to operators, sent to nodes as verifiers only.

Each user of an instance, and the internal replication user, has one key `secrets/<instance>/<user>`: the sealed JSON
`{"password", "verifier"}`. The verifier is made once, with the password: were it made anew each time, its salt would
differ and every agent would set it again for ever.

`ensure` never changes a password that exists, so it may be repeated and two hubs may run it at once. It must have
returned before the instance that needs the passwords is written: whoever sees the instance then finds the secrets.
"""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Sequence

from core import scram
from core.errors import NotFoundError
from core.ids import InstanceRef
from core.records import MemberSecrets
from core.sealing import Sealer
from hub.etcd import keys, txns
from hub.etcd.mirror import Mirror
from hub.etcd.store import Store

REPLICATION_USER = "moorage_replication"
REMOTE_SECRET = "remote-primary"  # noqa: S105 - a name; no user can be called so
_ALPHABET = string.ascii_letters + string.digits  # no quoting in any shell, URL or connection string
_PASSWORD_CHARS = 24  # 142 bits


class Secrets:
    """The passwords of all instances, as the mirror has them sealed."""

    def __init__(self, sealer: Sealer, store: Store, mirror: Mirror) -> None:
        self._sealer = sealer
        self._store = store
        self._mirror = mirror

    async def ensure(self, ref: InstanceRef, users: Sequence[str]) -> tuple[str, ...]:
        """Make the passwords that are missing, the replication user's included. Returns whose were made."""
        known = self._mirror.secrets.get(ref, {})
        made = []
        for user in dict.fromkeys([REPLICATION_USER, *users]):
            if user in known:
                continue
            key = keys.secret(ref, user)
            # Losing the compare means that somebody else has made it meanwhile, which is as good.
            if await self._store.commit(txns.put_if(key, self._new_sealed(key), revision=0)):
                made.append(user)
        return tuple(made)

    def password(self, ref: InstanceRef, user: str) -> str:
        """The password of a user; NotFoundError when there is none."""
        return self._opened(ref, user)["password"]

    def member_secrets(self, ref: InstanceRef, users: Sequence[str], *, standby: bool = False) -> MemberSecrets:
        """What a member's node gets. A user without a secret yet is left out, and comes with the next change."""
        known = self._mirror.secrets.get(ref, {})
        replication = self._opened(ref, REPLICATION_USER)["password"] if REPLICATION_USER in known else ""
        verifiers = {user: self._opened(ref, user)["verifier"] for user in users if user in known}
        remote = self._opened(ref, REMOTE_SECRET)["password"] if standby and REMOTE_SECRET in known else ""
        return MemberSecrets(replication_password=replication, verifiers=verifiers, remote_password=remote)

    async def keep_remote(self, ref: InstanceRef, password: str) -> None:
        """The password at the remote primary of a standby instance, which the operator has given."""
        if REMOTE_SECRET in self._mirror.secrets.get(ref, {}) and self.password(ref, REMOTE_SECRET) == password:
            return
        key = keys.secret(ref, REMOTE_SECRET)
        sealed = self._sealer.seal(json.dumps({"password": password, "verifier": ""}).encode(), key)
        await self._store.commit(txns.all_of([], [txns.Put(key, sealed)]))

    def _new_sealed(self, key: str) -> bytes:
        password = "".join(secrets.choice(_ALPHABET) for _ in range(_PASSWORD_CHARS))
        plain = json.dumps({"password": password, "verifier": scram.make_verifier(password)})
        return self._sealer.seal(plain.encode(), key)

    def _opened(self, ref: InstanceRef, user: str) -> dict[str, str]:
        sealed = self._mirror.secrets.get(ref, {}).get(user)
        if sealed is None:
            raise NotFoundError(f"there is no password for user {user!r}", object=str(ref))
        opened: dict[str, str] = json.loads(self._sealer.open(sealed, keys.secret(ref, user)))
        return opened
