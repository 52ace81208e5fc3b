"""Why members are where they are, or what stands in the way: the scheduler's own reasons, put before operators. And why
nobody leads, when that is so: the words of the members that wait."""

from __future__ import annotations

from typing import Any

from core.errors import NotFoundError, UserError
from core.ids import InstanceRef
from core.specs import InstanceSpec, parse_json
from core.status import ConditionType
from hub.etcd.mirror import Mirror
from hub.judges import placement
from hub.judges.placement import Explanation, Placement, Unplaceable

_ABOUT_LEADERSHIP = (ConditionType.PRIMARY_AVAILABLE, ConditionType.AUTOMATIC_FAILOVER)


def explain(mirror: Mirror, *, name: str, document: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Lines for people, and the same as a mapping. Give the name of an instance, or a document to place on paper."""
    if bool(name) == bool(document):
        raise UserError("give either a name or a document", object="name")
    spec = _document(document) if document else _stored(mirror, name)
    ref = InstanceRef(spec.project, spec.name)
    project = mirror.projects.get(ref.project)
    allowed = tuple(project.record.spec.get("allowed_regions") or ()) if project is not None else ()
    existing = {
        node: str(member.member)
        for (node, member), known in mirror.members.items()
        if member.instance == ref and known.record.desired != "absent"
    }
    versions = {known.record.engine_version for (_, member), known in mirror.members.items() if member.instance == ref}
    request = placement.request_for(
        spec,
        count=max(0, 1 + spec.replicas - len(existing)),
        allowed_regions=allowed,
        engine_version=max(versions, default=0) or None,
        existing=existing,
    )
    nodes = {node: known.record for node, known in mirror.nodes.items()}
    usage = placement.usage_of(known.record for known in mirror.members.values())
    explained = placement.explain(request, nodes, usage, mirror.silent)
    amiss = _leadership_amiss(mirror, ref) if name else {}
    lines = (*explained.lines, *(f"{type_}: {message}" for type_, message in amiss.items()))
    return lines, {**_plain(explained, existing), "leadership": amiss}


def _leadership_amiss(mirror: Mirror, ref: InstanceRef) -> dict[str, str]:
    """What is not as it should be with who leads, by condition: what an election waits for, a pause."""
    known = mirror.status.get(ref)
    told = known.record.conditions if known is not None else ()
    return {one.type.value: one.message for one in told if one.type in _ABOUT_LEADERSHIP and not one.status}


def _document(text: str) -> InstanceSpec:
    spec = parse_json(text)
    if not isinstance(spec, InstanceSpec):
        raise UserError(f"only instances are placed, not a {spec.kind}", object="document.kind")
    return spec


def _stored(mirror: Mirror, name: str) -> InstanceSpec:
    try:
        ref = InstanceRef.parse(name)
    except ValueError as error:
        raise UserError(str(error), object="name") from error
    known = mirror.instances.get(ref)
    if known is None:
        raise NotFoundError("instance does not exist", object=name, hint="See `moorctl instance list`.")
    return InstanceSpec.model_validate(known.record.spec)


def _plain(explained: Explanation, existing: dict[str, str]) -> dict[str, Any]:
    return {
        **_outcome(explained.outcome),
        "existing": existing,
        "refusals": {
            node: [{"reason": refused.reason.value, "message": refused.message} for refused in refusals]
            for node, refusals in explained.refusals.items()
        },
    }


def _outcome(outcome: Placement | Unplaceable) -> dict[str, Any]:
    match outcome:
        case Placement(nodes=chosen, engine_version=version):
            return {"placeable": True, "summary": "", "chosen": list(chosen), "engine_version": version}
        case Unplaceable(summary=summary):
            return {"placeable": False, "summary": summary, "chosen": [], "engine_version": None}
