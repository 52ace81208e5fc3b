"""All kinds of documents by name, and their JSON schemas."""

from __future__ import annotations

from typing import Any

from core.specs.instance import InstanceSpec
from core.specs.node import NodeSpec
from core.specs.project import ProjectSpec

KINDS: dict[str, type[ProjectSpec] | type[NodeSpec] | type[InstanceSpec]] = {
    "Project": ProjectSpec,
    "Node": NodeSpec,
    "Instance": InstanceSpec,
}


def json_schemas() -> dict[str, dict[str, Any]]:
    """JSON schema (draft 2020-12) of each kind."""
    return {kind: model.model_json_schema(mode="validation") for kind, model in KINDS.items()}
