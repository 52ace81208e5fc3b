"""May these documents be applied to what is there, and what would change? Pure: documents and world in, a plan out.

The whole batch is judged before anything is written, each document against the world as the ones before it leave it.
So a project and its instances may come in one file, project first. Every refusal is raised here with the object and
the figures; whoever carries a plan out need only write it, comparing that the world is still the one that was judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from core.errors import ConflictError, ExistsError, NotFoundError, UserError
from core.ids import InstanceRef
from core.records import InstanceRecord, NodeRecord, ProjectRecord
from core.specs import Document, InstanceSpec, NodeSpec, ProjectSpec
from hub.changes import describe_changes, describe_new, size_text
from hub.judges.situation import member_number

Outcome = Literal["created", "changed", "unchanged"]
KindName = Literal["Project", "Instance", "Node"]
MAX_DOCUMENTS = 50  # one etcd transaction carries them all, and takes 128 operations


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What is there. `engine_versions` are the majors that the members of an instance run, `members` their names."""

    nodes: Mapping[str, NodeRecord]
    projects: Mapping[str, ProjectRecord]
    instances: Mapping[InstanceRef, InstanceRecord]
    engine_versions: Mapping[InstanceRef, int] = field(default_factory=dict)
    members: Mapping[InstanceRef, Set[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What becomes of one document. `record` is what is to be written; None = nothing."""

    kind: KindName
    name: str
    outcome: Outcome
    changes: tuple[str, ...] = ()
    generation: int = 0
    record: ProjectRecord | NodeRecord | InstanceRecord | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What instances take together, over all their members."""

    instances: int = 0
    cpu: float = 0.0
    memory: int = 0
    disk: int = 0


def plan(documents: Sequence[Document], world: World, *, wall: float, create_only: bool = False) -> tuple[Planned, ...]:
    """What becomes of each document, in their order. Raises for the first one that cannot be applied."""
    if not documents:
        raise UserError("there is no document to apply", object="documents")
    if len(documents) > MAX_DOCUMENTS:
        raise UserError(f"{len(documents)} documents at once, more than {MAX_DOCUMENTS}", hint="Apply them in parts.")
    _refuse_repeated(documents)
    after = World(
        nodes=dict(world.nodes),
        projects=dict(world.projects),
        instances=dict(world.instances),
        engine_versions=world.engine_versions,
        members=world.members,
    )
    steps = []
    for document in documents:
        step = _plan_one(document, after, wall=wall)
        if create_only and step.outcome != "created":
            raise ExistsError(f"{step.kind.lower()} exists already", object=step.name, hint="Use apply to change it.")
        after = _with(after, step)
        steps.append(step)
    _check_quotas(before=world, after=after)
    return tuple(steps)


def document_name(document: Document) -> str:
    """`project`, `project/instance` or `node`."""
    return f"{document.project}/{document.name}" if isinstance(document, InstanceSpec) else document.name


def usage(instances: Iterable[InstanceRecord]) -> Usage:
    """What the instances take. Those being deleted do not count: their end is decided."""
    total = Usage()
    for instance in instances:
        if instance.deleting:
            continue
        members = 1 + int(instance.spec.get("replicas", 0))
        resources = instance.spec.get("resources", {})
        total = Usage(
            instances=total.instances + 1,
            cpu=total.cpu + members * float(resources.get("cpu", 0)),
            memory=total.memory + members * int(resources.get("memory", 0)),
            disk=total.disk + members * int(resources.get("disk", 0)),
        )
    return total


def _refuse_repeated(documents: Sequence[Document]) -> None:
    seen = set()
    for document in documents:
        identity = (document.kind, document_name(document))
        if identity in seen:
            raise UserError(f"{document.kind} is in the batch twice", object=identity[1], hint="Leave one out.")
        seen.add(identity)


def _with(world: World, step: Planned) -> World:
    match step.record:
        case ProjectRecord() as project:
            return replace(world, projects={**world.projects, project.name: project})
        case NodeRecord() as node:
            return replace(world, nodes={**world.nodes, node.name: node})
        case InstanceRecord() as instance:
            ref = InstanceRef(instance.project, instance.name)
            return replace(world, instances={**world.instances, ref: instance})
        case None:
            return world


def _plan_one(document: Document, world: World, *, wall: float) -> Planned:
    match document:
        case ProjectSpec():
            return _plan_project(document, world)
        case NodeSpec():
            return _plan_node(document, world)
        case InstanceSpec():
            return _plan_instance(document, world, wall=wall)


# --- projects and nodes ---------------------------------------------------------------------------------------------


def _plan_project(document: ProjectSpec, world: World) -> Planned:
    spec = document.model_dump(mode="json")
    known = world.projects.get(document.name)
    record = ProjectRecord(name=document.name, spec=spec)
    if known is None:
        changes = describe_new(spec, ProjectSpec(name=document.name).model_dump(mode="json"))
        return Planned(kind="Project", name=document.name, outcome="created", changes=changes, record=record)
    changes = describe_changes(_normalised(ProjectSpec, known.spec), spec)
    if not changes:
        return Planned(kind="Project", name=document.name, outcome="unchanged")
    return Planned(kind="Project", name=document.name, outcome="changed", changes=changes, record=record)


def _plan_node(document: NodeSpec, world: World) -> Planned:
    known = world.nodes.get(document.name)
    if known is None:
        raise NotFoundError(
            "node is not enrolled",
            object=document.name,
            hint="Nodes come by enrolment: make a token with `moorctl node token` and run `moorage-agent enrol` there.",
        )
    wanted = replace(
        known, labels=dict(document.labels), price_per_hour=document.price_per_hour, cordoned=document.cordoned
    )
    fields = ("labels", "price_per_hour", "cordoned")
    changes = describe_changes(
        {name: getattr(known, name) for name in fields}, {name: getattr(wanted, name) for name in fields}
    )
    if not changes:
        return Planned(kind="Node", name=document.name, outcome="unchanged")
    return Planned(kind="Node", name=document.name, outcome="changed", changes=changes, record=wanted)


# --- instances ------------------------------------------------------------------------------------------------------


def _plan_instance(document: InstanceSpec, world: World, *, wall: float) -> Planned:
    ref = InstanceRef(document.project, document.name)
    project = world.projects.get(ref.project)
    if project is None:
        raise NotFoundError(
            f"project {ref.project!r} does not exist",
            object=str(ref),
            hint="Create it first, or put its document before this one.",
        )
    _check_region(document, project, ref)
    spec = document.model_dump(mode="json")
    known = world.instances.get(ref)
    _check_standby(document, ref, known)
    _check_members(document, ref, there=world.members.get(ref, frozenset()), known=known)
    if known is None:
        defaults = InstanceSpec(project=document.project, name=document.name).model_dump(mode="json")
        record = InstanceRecord(project=ref.project, name=ref.instance, spec=spec, created_at=wall)
        changes = describe_new(spec, defaults)
        return Planned(kind="Instance", name=str(ref), outcome="created", changes=changes, generation=1, record=record)
    if known.deleting:
        raise ConflictError("instance is being deleted", object=str(ref), hint="Wait until it is gone.")
    before = _normalised(InstanceSpec, known.spec)
    _check_unchangeable(before, spec, ref, running=world.engine_versions.get(ref))
    changes = describe_changes(before, spec)
    if not changes:
        return Planned(kind="Instance", name=str(ref), outcome="unchanged", generation=known.generation)
    record = replace(known, spec=spec, generation=known.generation + 1)
    return Planned(
        kind="Instance",
        name=str(ref),
        outcome="changed",
        changes=changes,
        generation=record.generation,
        record=record,
    )


def _normalised(model: type[ProjectSpec] | type[InstanceSpec], spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """A stored spec with the defaults of today, so that a field that is new in this version is no change."""
    try:
        return model.model_validate(dict(spec)).model_dump(mode="json")
    except ValueError:
        return spec  # stored by a version with other rules: the comparison then shows every difference


def _check_region(document: InstanceSpec, project: ProjectRecord, ref: InstanceRef) -> None:
    allowed = project.spec.get("allowed_regions") or ()
    region = document.placement.region
    if region is not None and allowed and region not in allowed:
        raise ConflictError(
            f"region {region!r} is not allowed in project {ref.project!r} (allowed: {', '.join(allowed)})",
            object=str(ref),
            hint="Choose an allowed region, or change the project.",
        )


def _check_members(document: InstanceSpec, ref: InstanceRef, *, there: Set[str], known: InstanceRecord | None) -> None:
    """Refuse what is said about members that neither are there nor will be. What was said before is let through: its
    member may have been replaced since, and the document is still the same."""
    count = 1 + document.replicas
    first = max(count, *(member_number(name) for name in there)) if there else count
    names = {*there, *(f"m{number}" for number in range(1, first + 1))}
    before = known.spec.get("members") or {} if known is not None else {}
    for name, member in document.members.items():
        if name not in names and name not in before:
            raise _unknown_member(f"members.{name}", name, ref, there, count)
        upstream = member.upstream
        if upstream is not None and upstream not in names and (before.get(name) or {}).get("upstream") != upstream:
            raise _unknown_member(f"members.{name}.upstream", upstream, ref, there, count)


def _check_standby(document: InstanceSpec, ref: InstanceRef, known: InstanceRecord | None) -> None:
    """Only a new instance can begin to follow somebody: its data are a copy."""
    if document.standby is None:
        return
    if known is not None and not known.spec.get("standby"):
        raise ConflictError(
            "standby: cannot be added to an instance that is there: its data would be replaced by a copy",
            object=str(ref),
            hint="Make another instance with it.",
        )
    if known is None and document.standby.password is None:
        raise UserError(f"standby.password: that of {document.standby.user} is needed to begin with", object=str(ref))


def _unknown_member(path: str, name: str, ref: InstanceRef, there: Set[str], count: int) -> UserError:
    members = ", ".join(sorted(there, key=member_number)) if there else f"m1 to m{count}" if count > 1 else "m1 only"
    what = f"{path}: {name} is no member: {'there are' if there else 'there will be'} {members}"
    return UserError(what, object=str(ref), hint="See `moorctl instance show`.")


def _check_unchangeable(
    before: Mapping[str, Any], after: Mapping[str, Any], ref: InstanceRef, *, running: int | None
) -> None:
    if before.get("engine") != after.get("engine"):
        raise ConflictError(
            f"engine cannot change ({before.get('engine')} -> {after.get('engine')})",
            object=str(ref),
            hint="Create another instance and move the data.",
        )
    old, new = before.get("engine_version"), after.get("engine_version")
    if old == new or (old is None and new == running):
        return
    stays = old if old is not None else running
    if stays is not None and new is not None and new < stays:
        raise ConflictError(
            f"engine_version cannot go down ({stays} -> {new})", object=str(ref), hint=f"Write engine_version: {stays}."
        )
    raise ConflictError(
        f"engine_version cannot change yet ({_version(old)} -> {_version(new)})",
        object=str(ref),
        hint=f"Write engine_version: {'null' if old is None else old}, as it was.",
    )


def _version(version: int | None) -> str:
    return "unset" if version is None else str(version)


# --- quotas ---------------------------------------------------------------------------------------------------------


def _check_quotas(*, before: World, after: World) -> None:
    """Refuse what takes a project over its quota, or the quota below what is taken. What was over already and grows no
    further is let through: else nobody could shrink it step by step."""
    for name, project in after.projects.items():
        old = before.projects.get(name)
        used, used_before = _used(after, name), _used(before, name)
        if old is project and used == used_before:
            continue
        quota = project.spec.get("quota") or {}
        quota_before = (old.spec.get("quota") or {}) if old is not None else {}
        for what in ("instances", "cpu", "memory", "disk"):
            limit, have, had = quota.get(what), getattr(used, what), getattr(used_before, what)
            if limit is None or have <= limit or (have <= had and limit == quota_before.get(what)):
                continue
            raise _over_quota(name, what, limit=limit, have=have, had=had)


def _used(world: World, project: str) -> Usage:
    return usage(instance for ref, instance in world.instances.items() if ref.project == project)


def _over_quota(project: str, what: str, *, limit: float, have: float, had: float) -> ConflictError:
    figures = f"{_figure(what, had)} are in use, and {_figure(what, have)} would be"
    return ConflictError(
        f"quota of {what} is {_figure(what, limit)}; {figures}",
        object=f"project {project}",
        hint="Ask for less, free something, or raise the project's quota.",
    )


def _figure(what: str, value: float) -> str:
    return size_text(int(value)) if what in ("memory", "disk") else f"{value:g}"
