"""Applying documents: judge the whole batch, make the passwords it needs, write it in one etcd transaction.

The transaction compares every record that the plan rests on, so either the batch is written as it was judged, or
nothing is and it is judged anew. An instance's project is rewritten as it is beside the instance: that makes two
writers in one project exclude each other, so that neither quota nor the project's existence is judged on old figures.

Passwords are made before the transaction. One that loses leaves passwords that nothing uses; they lie sealed and are
found by the next attempt.
"""

from __future__ import annotations

from collections.abc import Sequence

from core.errors import ConflictError, MoorageError, UserError
from core.ids import InstanceRef
from core.records import InstanceRecord, NodeRecord, ProjectRecord, to_json
from core.specs import Document, parse_json
from core.specs.instance import InstanceSpec
from hub.admission import MAX_DOCUMENTS, Planned, World, plan
from hub.authority import Operator
from hub.context import Hub
from hub.etcd import keys, txns
from hub.etcd.mirror import Mirror

ATTEMPTS = (
    5  # each lost one means that somebody else has written: with operators' rates a second try nearly always wins
)


def parse_all(texts: Sequence[str]) -> tuple[Document, ...]:
    """The checked documents. One UserError tells of all that are wrong, each by its number from 1 on."""
    if len(texts) > MAX_DOCUMENTS:
        raise UserError(f"{len(texts)} documents at once, more than {MAX_DOCUMENTS}", hint="Apply them in parts.")
    documents: list[Document] = []
    errors: list[UserError] = []
    for number, text in enumerate(texts, start=1):
        try:
            documents.append(parse_json(text, where=f"document {number}"))
        except UserError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise UserError("; ".join(f"{error.object}: {error.what}" for error in errors), object="documents")
    return tuple(documents)


class Applier:
    """Plans and writes on behalf of operators."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def apply(
        self, operator: Operator, documents: Sequence[Document], *, dry_run: bool, create_only: bool
    ) -> tuple[Planned, ...]:
        """What became (dry_run: would become) of each document."""
        for _ in range(ATTEMPTS):
            world = world_of(self._hub.mirror)
            steps = plan(documents, world, wall=self._hub.clock.wall(), create_only=create_only)
            txn = _transaction(steps, self._hub.mirror)
            if not dry_run:
                await self._keep_remote_passwords(documents)
            if dry_run or not txn.then:
                return steps
            await self._ensure_passwords(steps)
            if await self._hub.audit.commit(operator, _named(steps), txn):
                await self._tell(operator, steps)
                return steps
        raise ConflictError("others keep changing the same objects", object="documents", hint="Try again.")

    async def _ensure_passwords(self, steps: Sequence[Planned]) -> None:
        for step in steps:
            if isinstance(step.record, InstanceRecord):
                ref = InstanceRef(step.record.project, step.record.name)
                await self._hub.secrets.ensure(ref, [user["name"] for user in step.record.spec["users"]])

    async def _keep_remote_passwords(self, documents: Sequence[Document]) -> None:
        """They are no part of what is stored as a document."""
        for document in documents:
            if isinstance(document, InstanceSpec) and document.standby is not None and document.standby.password:
                await self._hub.secrets.keep_remote(
                    InstanceRef(document.project, document.name), document.standby.password
                )

    async def _tell(self, operator: Operator, steps: Sequence[Planned]) -> None:
        for step in steps:
            if step.record is None:
                continue
            name = step.name if step.kind == "Instance" else f"{step.kind.lower()}/{step.name}"
            detail = "; ".join(step.changes)
            message = f"by {operator.name}: {detail}" if detail else f"by {operator.name}"
            await self._hub.events.emit(f"{step.kind.lower()}_{step.outcome}", name, message)


def _named(steps: Sequence[Planned]) -> str:
    """What is written, for the audit trail."""
    return ", ".join(f"{step.kind}/{step.name}" for step in steps if step.record is not None)


def world_of(mirror: Mirror) -> World:
    """What plans are judged against."""
    return World(
        nodes={name: known.record for name, known in mirror.nodes.items()},
        projects={name: known.record for name, known in mirror.projects.items()},
        instances={ref: known.record for ref, known in mirror.instances.items()},
        engine_versions={ref.instance: known.record.engine_version for (_, ref), known in mirror.members.items()},
        members=_members_by_instance(mirror),
    )


def _members_by_instance(mirror: Mirror) -> dict[InstanceRef, set[str]]:
    found: dict[InstanceRef, set[str]] = {}
    for _, ref in mirror.members:
        found.setdefault(ref.instance, set()).add(ref.member)
    return found


def _transaction(steps: Sequence[Planned], mirror: Mirror) -> txns.Txn:
    """All writes of the plan, with compares on every record it rests on. Each key once."""
    seen: dict[str, int] = {}
    writes: dict[str, bytes] = {}
    for step in steps:
        match step.record:
            case ProjectRecord(name=name):
                seen[keys.project(name)] = _revision(mirror.projects.get(name))
                writes[keys.project(name)] = to_json(step.record)
            case NodeRecord(name=name):
                seen[keys.node(name)] = _revision(mirror.nodes.get(name))
                writes[keys.node(name)] = to_json(step.record)
            case InstanceRecord(project=project, name=name):
                ref = InstanceRef(project, name)
                seen[keys.instance(ref)] = _revision(mirror.instances.get(ref))
                writes[keys.instance(ref)] = to_json(step.record)
                _touch_project(project, mirror, seen, writes)
            case None:
                pass
    compares = [txns.ModIs(key, revision) for key, revision in seen.items()]
    return txns.all_of(compares, [txns.Put(key, value) for key, value in writes.items()])


def _touch_project(name: str, mirror: Mirror, seen: dict[str, int], writes: dict[str, bytes]) -> None:
    """Rewrite the project as it is, unless the batch writes it anyway."""
    key = keys.project(name)
    if key in writes:
        return
    known = mirror.projects.get(name)
    if known is None:
        raise MoorageError(f"project {name!r} is neither there nor in the batch", object=name)
    seen[key] = known.mod_revision
    writes[key] = to_json(known.record)


def _revision(known: object) -> int:
    """The mod_revision of a record in the mirror; 0 = it is not there."""
    return int(getattr(known, "mod_revision", 0))
