"""What operators ask for beside applying documents: delete, switchover, restart, cordon, tokens, credentials.

Each writes by compare-and-swap on what it judged, is judged anew when it loses, and tells who asked in an event.
Nothing here waits for an outcome: controllers and agents carry the wish out, and status shows how far they are.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from core.errors import ConflictError, NotFoundError
from core.ids import InstanceRef, MemberName, MemberRef
from core.log import EventLog
from core.records import InstanceRecord, InstanceStatus, MemberDesired, NodeRecord, SwitchoverRequest, to_json
from core.status import MemberState, Role
from hub.authority import Operator
from hub.context import Hub
from hub.etcd import keys, txns
from hub.etcd.mirror import Versioned
from hub.status_page import Scene, hosts, scene

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
            known = self._instance(ref)
            if known.record.deleting:
                return None
            if known.record.spec.get("deletion_protection"):
                raise ConflictError(
                    "deletion protection is on", object=str(ref), hint="Apply deletion_protection: false first."
                )
            gone = replace(known.record, deleting=True)
            return txns.put_if(keys.instance(ref), to_json(gone), revision=known.mod_revision)

        if await self._settle(judge, str(ref)):
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

        await self._settle(judge, name)
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

        await self._settle(judge, name)
        message = f"by {operator.name}, with {_some(left)} on it" if left else f"by {operator.name}"
        await self._hub.events.emit("node_removed", f"node/{name}", message, "warning")

    # --- instances ---

    async def switchover(self, operator: Operator, ref: InstanceRef, target: str) -> str:
        """Ask for another primary; returns the request's id. ConflictError tells why it cannot be now."""
        request = SwitchoverRequest(
            id=str(uuid.uuid4()), target=target, requested_by=operator.name, requested_at=self._hub.clock.wall()
        )

        def judge() -> txns.Txn:
            self._live_instance(ref)
            ha = self._hub.mirror.ha.get(ref)
            leader = self._hub.mirror.leaders.get(ref)
            if ha is None or leader is None:
                raise ConflictError("instance has no primary now", object=str(ref), hint="Wait until it is Running.")
            if ha.record.paused:
                raise ConflictError("leadership is paused", object=str(ref), hint="Resume it first.")
            if ha.record.switchover is not None:
                raise ConflictError(
                    f"switchover {ha.record.switchover.id} is under way", object=str(ref), hint="Wait until it is over."
                )
            self._check_target(ref, target, primary=leader.record.member)
            next_ha = replace(ha.record, switchover=request)
            return txns.request_on_ha(ref, ha_revision=ha.mod_revision, next_ha=next_ha)

        await self._settle(judge, str(ref))
        message = f"by {operator.name}, to {target or 'the best replica'}"
        await self._hub.events.emit("switchover_requested", str(ref), message)
        return request.id

    async def restart(self, operator: Operator, ref: InstanceRef) -> int:
        """Ask for a rolling restart; returns its number."""
        number = 0

        def judge() -> txns.Txn:
            nonlocal number
            known = self._live_instance(ref)
            number = known.record.restart_id + 1
            record = replace(known.record, restart_id=number)
            return txns.put_if(keys.instance(ref), to_json(record), revision=known.mod_revision)

        await self._settle(judge, str(ref))
        await self._hub.events.emit("restart_requested", str(ref), f"by {operator.name}, number {number}")
        return number

    def credentials(self, operator: Operator, ref: InstanceRef, user: str) -> Credentials:
        """How to connect as the user (empty = the first declared one). ConflictError until the instance is placed."""
        record = self._live_instance(ref).record
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

        if await self._settle(judge, name):
            event = "node_cordoned" if cordoned else "node_uncordoned"
            await self._hub.events.emit(event, f"node/{name}", f"by {operator.name}")

    async def create_join_token(self, operator: Operator, *, node: str, ttl_s: int) -> str:
        token = await self._hub.authority.create_join_token(node=node, ttl_s=ttl_s)
        await self._hub.events.emit("join_token_created", f"node/{node or '*'}", f"by {operator.name}")
        return token

    # --- the inside ---

    async def _settle(self, judge: Callable[[], txns.Txn | None], name: str) -> bool:
        """Judge and commit until it holds. False when there was nothing to do."""
        for _ in range(ATTEMPTS):
            txn = judge()
            if txn is None:
                return False
            if await self._hub.store.commit(txn):
                return True
        raise ConflictError("others keep changing it", object=name, hint="Try again.")

    def _instance(self, ref: InstanceRef) -> Versioned[InstanceRecord]:
        known = self._hub.mirror.instances.get(ref)
        if known is None:
            raise NotFoundError("instance does not exist", object=str(ref), hint="See `moorctl instance list`.")
        return known

    def _live_instance(self, ref: InstanceRef) -> Versioned[InstanceRecord]:
        known = self._instance(ref)
        if known.record.deleting:
            raise ConflictError("instance is being deleted", object=str(ref))
        return known

    def _node(self, name: str) -> Versioned[NodeRecord]:
        known = self._hub.mirror.nodes.get(name)
        if known is None:
            raise NotFoundError("node does not exist", object=name, hint="See `moorctl node list`.")
        return known

    def _check_target(self, ref: InstanceRef, target: str, *, primary: str) -> None:
        """ConflictError unless the target, or with none any replica, could become primary now."""
        others: dict[str, tuple[str, MemberDesired]] = {
            str(member.member): (node, desired.record)
            for (node, member), desired in self._hub.mirror.members.items()
            if member.instance == ref and member.member != primary
        }
        if not target:
            refusals = [self._why_not_primary(ref, node, desired) for node, desired in others.values()]
            if not others or all(refusals):
                why = f": {'; '.join(refusals)}" if refusals else ""
                raise ConflictError(f"no replica can become primary{why}", object=str(ref))
            return
        if target == primary:
            raise ConflictError(f"{target} is the primary already", object=str(ref))
        if target not in others:
            members = _some(sorted([primary, *others]))
            raise NotFoundError(f"member {target!r} does not exist", object=str(ref), hint=f"Members: {members}.")
        refusal = self._why_not_primary(ref, *others[target])
        if refusal:
            raise ConflictError(f"{refusal}, so it cannot become primary", object=str(ref))

    def _why_not_primary(self, ref: InstanceRef, node: str, desired: MemberDesired) -> str:
        """Empty when the replica could become primary, as far as the hub can see."""
        mirror = self._hub.mirror
        name = desired.member
        if desired.desired != "running":
            return f"{name} is to be {desired.desired}"
        if desired.no_failover:
            return f"{name} is marked never to become primary"
        if node in mirror.silent:
            return f"node {node} of {name} is silent"
        seen = mirror.observed.get((node, MemberRef(ref, MemberName(name))))
        if seen is None or seen.record.state is not MemberState.RUNNING or seen.record.role is not Role.REPLICA:
            state = "unknown" if seen is None else f"{seen.record.role.value}, {seen.record.state.value}"
            return f"{name} is not a running replica ({state})"
        return ""


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
