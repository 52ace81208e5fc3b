"""Who may do what in Moorage rests on this: the CA that signs nodes, join tokens, operators' tokens.

The CA's key lies sealed in etcd and in the memory of every hub. It is made once: `load_or_create` writes it only where
none is, so two hubs that start at once agree on one.

A join token is good for one node, once. `consume_join_token` marks it used by a compare-and-swap *before* anything is
signed, so of two machines that hold the same token one is refused, whichever hubs they ask. It reads etcd and not the
mirror: a token made at another hub a moment ago is known at once.

Strangers hear only that a token is not good; why not goes to the log.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from core import identity
from core.clock import Clock, SystemClock
from core.codec import from_json
from core.errors import MoorageError, UnauthenticatedError, UserError
from core.identity import CertificateFacts, Identity, Signed
from core.log import EventLog
from core.records import JoinToken, OperatorRecord, to_json
from core.sealing import Sealer
from hub.etcd import keys, txns
from hub.etcd.mirror import Mirror
from hub.etcd.store import Store

OperatorRole = Literal["viewer", "operator", "admin"]
JOIN_TOKEN_TTL_S = 3600
JOIN_TOKEN_TTL_MAX_S = 30 * 86400

log = EventLog("hub.authority")


class AdvertisedHosts(Protocol):
    """What of the hub's configuration goes into its server certificate: `host:port` texts."""

    @property
    def listen_agents(self) -> str: ...
    @property
    def listen_operators(self) -> str: ...
    @property
    def advertise_agents(self) -> str | None: ...
    @property
    def advertise_operators(self) -> str | None: ...


Commit = Callable[[txns.Txn], Awaitable[bool]]  # as `Store.commit`


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """Somebody who has proved to be an operator."""

    id: str
    name: str
    role: OperatorRole
    verb: str = ""  # what it asks for
    peer: str = ""  # where it comes from


class Authority:
    """Signs, admits, recognises. Holds the CA's key: no repr of it."""

    def __init__(self, ca: Identity, store: Store, mirror: Mirror, *, hosts: tuple[str, ...], clock: Clock) -> None:
        self._ca = ca
        self._store = store
        self._mirror = mirror
        self._hosts = hosts
        self._clock = clock
        self._server: Identity | None = None
        self._renew_server_at = 0.0  # wall seconds

    @staticmethod
    async def load_or_create(
        store: Store, mirror: Mirror, sealer: Sealer, config: AdvertisedHosts, *, clock: Clock | None = None
    ) -> Authority:
        """The authority of this etcd, made now if there is none. MoorageError when the seal key does not open it."""
        clock = clock or SystemClock()
        found = await store.client.get(keys.CA)
        if found is None:
            fresh = _seal_ca(identity.make_ca(now=clock.wall()), sealer)
            if await store.commit(txns.put_if(keys.CA, fresh, revision=0)):
                log.info("ca_created", key_id=sealer.key_id)
            found = await store.client.get(keys.CA)
            if found is None:
                raise MoorageError("the CA has vanished from etcd right after it was written", object=keys.CA)
        ca = _open_ca(found.value, sealer)
        return Authority(ca, store, mirror, hosts=server_hosts(config), clock=clock)

    # --- certificates ---

    @property
    def ca_pem(self) -> bytes:
        """The CA's certificate, for everybody."""
        return self._ca.cert_pem

    def server_identity(self) -> tuple[bytes, bytes]:
        """Certificate and key of this hub's two ports, PEM. Made at the first call, and again at two thirds of its
        life, so ask for each handshake rather than keeping it."""
        now = self._clock.wall()
        if self._server is None or now >= self._renew_server_at:
            self._server = identity.issue_hub_identity(self._ca, hosts=self._hosts, now=now)
            self._renew_server_at = identity.certificate_facts(self._server.cert_pem).renew_at
        return self._server.cert_pem, self._server.key_pem

    def sign_node(self, csr_pem: bytes, *, node: str, address: str) -> tuple[bytes, str]:
        """A node certificate and its serial. UserError when the request does not fit the node."""
        signed: Signed = identity.sign_node_csr(self._ca, csr_pem, node=node, address=address, now=self._clock.wall())
        return signed.cert_pem, signed.serial

    def ca_facts(self) -> CertificateFacts:
        return identity.certificate_facts(self._ca.cert_pem)

    # --- join tokens ---

    async def create_join_token(self, *, node: str = "", ttl_s: int = 0, commit: Commit | None = None) -> str:
        """The token's text, which is kept nowhere. `node` empty = good for any name; ttl_s 0 = an hour."""
        if node:
            identity.check_node_name(node)
        if ttl_s < 0 or ttl_s > JOIN_TOKEN_TTL_MAX_S:
            raise UserError(f"ttl_s must be 0 to {JOIN_TOKEN_TTL_MAX_S}, got {ttl_s}", object="ttl_s")
        token = identity.new_join_token(self._ca.cert_pem)
        record = JoinToken(
            id=token.id,
            secret_sha256=identity.secret_sha256(token.secret),
            node=node,
            expires_at=self._clock.wall() + (ttl_s or JOIN_TOKEN_TTL_S),
        )
        if not await (commit or self._store.commit)(txns.put_if(keys.token(token.id), to_json(record), revision=0)):
            raise MoorageError("a join token of this id is there already", hint="Try again.")
        return token.text()

    def recognises_join_token(self, text: str) -> bool:
        """Whether the mirror has a token of this secret: cheap, and enough to tell newcomers from a flood."""
        try:
            token = identity.parse_join_token(text)
        except UserError:
            return False
        known = self._mirror.tokens.get(token.id)
        return known is not None and identity.secret_fits(token.secret, known.record.secret_sha256)

    async def consume_join_token(self, text: str, node: str) -> None:
        """Use the token up for `node`. UnauthenticatedError, the same for every reason, when it is not good."""
        token_id, reason = "", "malformed"
        try:
            token = identity.parse_join_token(text)
        except UserError as error:
            raise _refused(token_id, node, reason) from error
        found = await self._store.client.get(keys.token(token.id))
        if found is None:
            raise _refused(token.id, node, "unknown")
        record = from_json(JoinToken, found.value, where=keys.token(token.id))
        reason = why_not_good(record, token.secret, node=node, now=self._clock.wall())
        if reason:
            raise _refused(token.id, node, reason)
        # The random part makes this use unlike any other: when an answer of etcd is lost and the transaction is sent
        # again, nobody takes another machine's use, even under the same name, for its own.
        used = to_json(replace(record, used_by=f"{node}#{secrets.token_hex(4)}"))
        if not await self._store.commit(txns.put_if(keys.token(token.id), used, revision=found.mod_revision)):
            raise _refused(token.id, node, "used at the same moment")

    async def remove_stale_join_tokens(self) -> int:
        """Delete tokens that were used or have expired. Returns how many; for whoever holds the controllers' claim."""
        now = self._clock.wall()
        stale = [
            known for known in self._mirror.tokens.values() if known.record.used_by or known.record.expires_at < now
        ]
        for known in stale:
            await self._store.commit(txns.delete_if(keys.token(known.record.id), revision=known.mod_revision))
        return len(stale)

    # --- operators ---

    def verify(self, text: str) -> Operator:
        """Whose token this is. UnauthenticatedError when it is nobody's."""
        try:
            token = identity.parse_operator_token(text)
        except UserError as error:
            raise _unknown_operator() from error
        known = self._mirror.operators.get(token.id)
        if known is None or not identity.secret_fits(token.secret, known.record.secret_sha256):
            raise _unknown_operator()
        return Operator(id=known.record.id, name=known.record.name, role=known.record.role)


async def create_operator(commit: Commit, name: str, role: OperatorRole, *, wall: float = 0.0) -> str:
    """A new operator's token, which is kept nowhere."""
    if not name or len(name) > 80 or not name.isprintable():
        raise UserError("an operator's name must be 1 to 80 printable characters", object="name")
    token = identity.new_operator_token()
    secret_sha256 = identity.secret_sha256(token.secret)
    record = OperatorRecord(id=token.id, name=name, role=role, secret_sha256=secret_sha256, created_at=wall)
    if not await commit(txns.put_if(keys.OPERATORS + token.id, to_json(record), revision=0)):
        raise MoorageError("an operator token of this id is there already", hint="Try again.")
    log.info("operator_created", name=name, role=role, id=token.id)
    return token.text()


# --- the inside -----------------------------------------------------------------------------------------------------


def why_not_good(record: JoinToken, secret: str, *, node: str, now: float) -> str:
    """Why the token is not good for this node now; empty = it is."""
    if not identity.secret_fits(secret, record.secret_sha256):
        return "wrong secret"
    if record.used_by:
        return f"used by {record.used_by}"
    if record.expires_at <= now:
        return "expired"
    if record.node not in ("", node):
        return f"made for node {record.node}"
    return ""


def _refused(token_id: str, node: str, reason: str) -> UnauthenticatedError:
    log.warning("join_token_refused", id=token_id, node=node, reason=reason)
    return UnauthenticatedError(
        "the join token is not good (unknown, used, expired, or made for another node)",
        object=f"node/{node}",
        hint="Make a new one with `moorctl node token`.",
    )


def _unknown_operator() -> UnauthenticatedError:
    return UnauthenticatedError(
        "the operator token is not known here", hint="Check the context's token with `moorctl context show`."
    )


def _seal_ca(ca: Identity, sealer: Sealer) -> bytes:
    plain = json.dumps({"cert_pem": ca.cert_pem.decode(), "key_pem": ca.key_pem.decode()})
    return sealer.seal(plain.encode(), keys.CA)


def _open_ca(sealed: bytes, sealer: Sealer) -> Identity:
    raw = json.loads(sealer.open(sealed, keys.CA))
    return Identity(cert_pem=raw["cert_pem"].encode(), key_pem=raw["key_pem"].encode())


def server_hosts(config: AdvertisedHosts) -> tuple[str, ...]:
    """Hosts of the addresses, each once; a wildcard address names no host."""
    addresses = (config.advertise_agents, config.advertise_operators, config.listen_agents, config.listen_operators)
    hosts = [address.rpartition(":")[0].strip("[]") for address in addresses if address]
    return tuple(dict.fromkeys(host for host in hosts if host not in ("", "0.0.0.0", "::", "*")))  # noqa: S104
