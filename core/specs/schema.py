"""All kinds of documents by name, and their JSON schemas, for editors that complete and check while one writes.

`write_schemas` writes them to docs/reference/schema; a test fails when they are stale, and its message has the command.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core.specs.instance import InstanceSpec
from core.specs.node import NodeSpec
from core.specs.project import ProjectSpec

DIALECT = "https://json-schema.org/draft/2020-12/schema"

KINDS: dict[str, type[ProjectSpec] | type[NodeSpec] | type[InstanceSpec]] = {
    "Project": ProjectSpec,
    "Node": NodeSpec,
    "Instance": InstanceSpec,
}


def json_schemas() -> dict[str, dict[str, Any]]:
    """JSON schema (draft 2020-12) of each kind."""
    return {kind: model.model_json_schema(mode="validation") for kind, model in KINDS.items()}


def write_schemas(directory: Path) -> None:
    """Write `<kind>.schema.json` for each kind, in lower case."""
    directory.mkdir(parents=True, exist_ok=True)
    for kind, schema in json_schemas().items():
        text = json.dumps({"$schema": DIALECT, **schema}, indent=2) + "\n"
        (directory / f"{kind.lower()}.schema.json").write_text(text)
