"""What operators ask for beside applying documents: delete, restart, cordon, tokens, credentials. What they ask about
leadership is in `hub.wishes`.

Each writes by compare-and-swap on what it judged, is judged anew when it loses, and tells who asked in an event.
Nothing here waits for an outcome: controllers and agents carry the wish out, and status shows how far they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from core.errors import ConflictError, NotFoundError, UserError
from core.identity import parse_operator_token
from core.ids import InstanceRef
from core.log import EventLog
from core.records import InstanceRecord, InstanceStatus, NodeRecord, OperatorRecord, to_json
from hub.authority import Operator, OperatorRole, create_operator
from hub.context import Hub
from hub.etcd import keys, txns
from hub.etcd.mirror import Versioned
from hub.status_page import Scene, hosts, scene

ROLES: dict[str, OperatorRole] = {"viewer": "viewer", "operator": "operator", "admin": "admin"}
ATTEMPTS = 5  # each lost one means that somebody else has written meanwhile
SHOWN_NAMES = 5  # in an error that lists what stands in the way

log = EventLog("hub.operations")


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """How to connect as one user."""

    user: str
    password: str = field(repr=False)
    database: str
    hosts: tuple[str, ...]
    rw_port: int
    ro_port: int
    client_tls: str


class Operations:
    """Carries out what operators ask, in their name."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    # --- deleting ---

    async def delete_instance(self, operator: Operator, ref: InstanceRef) -> None:
        """Mark the instance for deletion. ConflictError while it is protected; asking twice is fine."""

        def judge() -> txns.Txn | None:
            known = any_instance(self._hub, ref)
            if known.record.deleting:
                return None
            if known.record.spec.get("deletion_protection"):
                raise ConflictError(
                    "deletion protection is on", object=str(ref), hint="Apply deletion_protection: false first."
                )
            gone = replace(known.record, deleting=True)
            return txns.put_if(keys.instance(ref), to_json(gone), revision=known.mod_revision)

        if await settle(self._hub, operator, judge, str(ref)):
            await self._hub.events.emit("instance_deletion_requested", str(ref), f"by {operator.name}", "warning")

    async def delete_project(self, operator: Operator, name: str) -> None:
        """Delete an empty project. ConflictError while it has instances."""

        def judge() -> txns.Txn:
            known = self._hub.mirror.projects.get(name)
            if known is None:
                raise NotFoundError("project does not exist", object=name, hint="See `moorctl project list`.")
            left = sorted(str(ref) for ref in self._hub.mirror.instances if ref.project == name)
            if left:
                raise ConflictError(f"project still has {_some(left)}", object=name, hint="Delete them first.")
            return txns.delete_if(keys.project(name), revision=known.mod_revision)

        await settle(self._hub, operator, judge, name)
        await self._hub.events.emit("project_deleted", f"project/{name}", f"by {operator.name}")

    async def delete_node(self, operator: Operator, name: str) -> None:
        """Remove a node. Its certificate is worth nothing from then on: every call of an agent checks that its node is
        there. A node with members must be silent, a machine that is dead: the controllers then give its members up."""
        left: list[str] = []

        def judge() -> txns.Txn:
            nonlocal left
            known = self._node(name)
            left = sorted(str(ref) for node, ref in self._hub.mirror.members if node == name)
            if left and name not in self._hub.mirror.silent:
                raise ConflictError(
                    f"node is alive and has {_some(left)}",
                    object=name,
                    hint="Delete these first; a machine that is dead can be removed once it is silent.",
                )
            doomed = (
                txns.Delete(keys.node(name)),
                txns.Delete(keys.silent(name)),
                txns.DeletePrefix(f"{keys.OBSERVED}{name}/"),
            )
            return txns.all_of([txns.ModIs(keys.node(name), known.mod_revision)], doomed)

        await settle(self._hub, operator, judge, name)
        message = f"by {operator.name}, with {_some(left)} on it" if left else f"by {operator.name}"
        await self._hub.events.emit("node_removed", f"node/{name}", message, "warning")

    # --- instances ---

    async def restart(self, operator: Operator, ref: InstanceRef) -> int:
        """Ask for a rolling restart; returns its number."""
        number = 0

        def judge() -> txns.Txn:
            nonlocal number
            known = live_instance(self._hub, ref)
            number = known.record.restart_id + 1
            record = replace(known.record, restart_id=number)
            return txns.put_if(keys.instance(ref), to_json(record), revision=known.mod_revision)

        await settle(self._hub, operator, judge, str(ref))
        await self._hub.events.emit("restart_requested", str(ref), f"by {operator.name}, number {number}")
        return number

    async def promote(self, operator: Operator, ref: InstanceRef) -> int:
        """End that a standby instance follows its remote primary; returns the generation from which on that holds."""
        generation = 0

        def judge() -> txns.Txn:
            nonlocal generation
            known, ha = live_instance(self._hub, ref), self._hub.mirror.ha.get(ref)
            if not known.record.spec.get("standby"):
                raise ConflictError("is no standby instance: it follows no remote primary", object=str(ref))
            if ha is None or not ha.record.system_id:
                hint = "Wait until it is Running; or delete it, and create an ordinary instance."
                raise ConflictError("has not copied the remote primary's data yet", object=str(ref), hint=hint)
            generation = known.record.generation + 1
            record = replace(known.record, spec={**known.record.spec, "standby": None}, generation=generation)
            return txns.put_if(keys.instance(ref), to_json(record), revision=known.mod_revision)

        await settle(self._hub, operator, judge, str(ref))
        message = f"by {operator.name}: it follows its remote primary no longer"
        await self._hub.events.emit("promotion_requested", str(ref), message, "warning")
        return generation

    def credentials(self, operator: Operator, ref: InstanceRef, user: str) -> Credentials:
        """How to connect as the user (empty = the first declared one). ConflictError until the instance is placed."""
        record = live_instance(self._hub, ref).record
        declared = [entry["name"] for entry in record.spec["users"]]
        if user and user not in declared:
            raise NotFoundError(f"user {user!r} is not declared", object=str(ref), hint=f"Declared: {_some(declared)}.")
        if not declared:
            raise ConflictError("instance declares no user", object=str(ref), hint="Add one under `users` and apply.")
        chosen = user or declared[0]
        known = self._hub.mirror.status.get(ref)
        status = known.record if known is not None else InstanceStatus(project=ref.project, name=ref.instance)
        addresses = hosts(scene_of(self._hub), ref)
        if not status.rw_port or not addresses:
            raise ConflictError("instance is not placed yet", object=str(ref), hint="Wait until it is Running.")
        log.info("credentials_read", instance=str(ref), user=chosen, operator=operator.name)
        return Credentials(
            user=chosen,
            password=self._hub.secrets.password(ref, chosen),
            database=_database_of(record, chosen),
            hosts=tuple(addresses),
            rw_port=status.rw_port,
            ro_port=status.ro_port,
            client_tls=record.spec["proxy"]["tls"],
        )

    # --- nodes ---

    async def cordon(self, operator: Operator, name: str, *, cordoned: bool) -> None:
        """Close or open a node for new members; asking twice is fine."""

        def judge() -> txns.Txn | None:
            known = self._node(name)
            if known.record.cordoned == cordoned:
                return None
            record = replace(known.record, cordoned=cordoned)
            return txns.put_if(keys.node(name), to_json(record), revision=known.mod_revision)

        if await settle(self._hub, operator, judge, name):
            event = "node_cordoned" if cordoned else "node_uncordoned"
            await self._hub.events.emit(event, f"node/{name}", f"by {operator.name}")

    async def create_join_token(self, operator: Operator, *, node: str, ttl_s: int) -> str:
        token = await self._hub.authority.create_join_token(
            node=node, ttl_s=ttl_s, commit=lambda txn: self._hub.audit.commit(operator, f"node/{node or '*'}", txn)
        )
        await self._hub.events.emit("join_token_created", f"node/{node or '*'}", f"by {operator.name}")
        return token

    # --- operators ---

    async def create_operator_token(self, operator: Operator, *, name: str, role: str) -> tuple[str, str]:
        """A new operator's token, which is kept nowhere, and its id."""
        if role not in ROLES:
            raise UserError(f"role {role!r} is not known", object="role", hint=f"Use one of {', '.join(ROLES)}.")
        hub = self._hub
        text = await create_operator(
            lambda txn: hub.audit.commit(operator, f"operator/{name}", txn), name, ROLES[role], wall=hub.clock.wall()
        )
        token_id = parse_operator_token(text).id
        message = f"by {operator.name}: {role} {name}"
        await hub.events.emit("operator_token_created", f"operator/{token_id}", message, "warning")
        return text, token_id

    def operator_tokens(self) -> list[OperatorRecord]:
        """All of them by name."""
        known = [one.record for one in self._hub.mirror.operators.values()]
        return sorted(known, key=lambda one: (one.name, one.id))

    async def revoke_operator_token(self, operator: Operator, token: str) -> OperatorRecord:
        """Make a token worthless, by its id, or by the name when only one has it. ConflictError for the last admin's:
        nobody could make another one."""
        revoked: list[OperatorRecord] = []

        def judge() -> txns.Txn:
            known = self._operator_token(token)
            admins = {one.record.id for one in self._hub.mirror.operators.values() if one.record.role == "admin"}
            if admins == {known.record.id}:
                hint = "Create another admin's token first: moorctl token create NAME --role admin"
                raise ConflictError("it is the only admin's token", object=f"operator/{known.record.id}", hint=hint)
            revoked[:] = [known.record]
            return txns.delete_if(keys.OPERATORS + known.record.id, revision=known.mod_revision)

        await settle(self._hub, operator, judge, token)
        (record,) = revoked
        message = f"by {operator.name}: {record.role} {record.name}"
        await self._hub.events.emit("operator_token_revoked", f"operator/{record.id}", message, "warning")
        return record

    def _operator_token(self, token: str) -> Versioned[OperatorRecord]:
        operators = self._hub.mirror.operators
        if token in operators:
            return operators[token]
        named = [one for one in operators.values() if one.record.name == token]
        if not named:
            raise NotFoundError("no operator token has this id or name", object=token, hint="See `moorctl token list`.")
        if len(named) > 1:
            ids = _some(sorted(one.record.id for one in named))
            raise ConflictError(f"{len(named)} tokens have this name", object=token, hint=f"Name one by its id: {ids}.")
        return named[0]

    # --- the inside ---

    def _node(self, name: str) -> Versioned[NodeRecord]:
        known = self._hub.mirror.nodes.get(name)
        if known is None:
            raise NotFoundError("node does not exist", object=name, hint="See `moorctl node list`.")
        return known


async def settle(hub: Hub, operator: Operator, judge: Callable[[], txns.Txn | None], name: str) -> bool:
    """Judge and commit, in this operator's name, until it holds. False when there was nothing to do."""
    for _ in range(ATTEMPTS):
        txn = judge()
        if txn is None:
            return False
        if await hub.audit.commit(operator, name, txn):
            return True
    raise ConflictError("others keep changing it", object=name, hint="Try again.")


def any_instance(hub: Hub, ref: InstanceRef) -> Versioned[InstanceRecord]:
    """The instance, also one that is being deleted. NotFoundError when there is none."""
    known = hub.mirror.instances.get(ref)
    if known is None:
        raise NotFoundError("instance does not exist", object=str(ref), hint="See `moorctl instance list`.")
    return known


def live_instance(hub: Hub, ref: InstanceRef) -> Versioned[InstanceRecord]:
    """ConflictError when it is being deleted."""
    known = any_instance(hub, ref)
    if known.record.deleting:
        raise ConflictError("instance is being deleted", object=str(ref))
    return known


def scene_of(hub: Hub) -> Scene:
    """What this hub can show at this moment."""
    return scene(hub.mirror, hub.liveness.samples, now=hub.clock.now(), wall=hub.clock.wall())


def _database_of(record: InstanceRecord, user: str) -> str:
    """The first database that the user owns, else the first one, else the engine's own."""
    databases = record.spec["databases"]
    owned = [database["name"] for database in databases if database["owner"] == user]
    return str(owned[0] if owned else databases[0]["name"] if databases else "postgres")


def _some(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more
