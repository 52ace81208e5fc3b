"""Objects as operators see them: the document as applied, and the state beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.errors import NotFoundError, UserError
from core.ids import InstanceRef
from hub.status_page import Scene, instance_page, node_page, node_spec, project_page


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectPage:
    """One object. `kind` is Project, Instance or Node."""

    kind: str
    name: str
    spec: Mapping[str, Any]
    status: Mapping[str, Any]


def get(scene: Scene, kind: str, name: str) -> ObjectPage:
    """The object; NotFoundError when it is not there, UserError when the name cannot be one."""
    match kind:
        case "Instance":
            try:
                ref = InstanceRef.parse(name)
            except ValueError as error:
                raise UserError(str(error), object="name") from error
            there = ref in scene.contents.instances
        case "Project":
            there = name in scene.contents.projects
        case _:
            there = name in scene.contents.nodes
    if not there:
        raise NotFoundError(f"{kind.lower()} does not exist", object=name, hint=f"See `moorctl {kind.lower()} list`.")
    return _page(scene, kind, name)


def list_all(scene: Scene, kind: str, *, project: str = "") -> list[ObjectPage]:
    """All objects of the kind by name; `project` leaves only its instances (or the project itself)."""
    contents = scene.contents
    match kind:
        case "Instance":
            names = [str(ref) for ref in sorted(contents.instances) if project in ("", ref.project)]
        case "Project":
            names = [name for name in sorted(contents.projects) if project in ("", name)]
        case _:
            names = sorted(contents.nodes)
    return [_page(scene, kind, name) for name in names]


def _page(scene: Scene, kind: str, name: str) -> ObjectPage:
    contents = scene.contents
    match kind:
        case "Instance":
            ref = InstanceRef.parse(name)
            spec, status = contents.instances[ref].record.spec, instance_page(scene, ref)
        case "Project":
            spec, status = contents.projects[name].record.spec, project_page(scene, name)
        case _:
            spec, status = node_spec(contents.nodes[name].record), node_page(scene, name)
    return ObjectPage(kind=kind, name=name, spec=spec, status=status)
