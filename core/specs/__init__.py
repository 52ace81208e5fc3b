"""The documents operators write: Project, Node, Instance. Strict, with the field's path in every message.

`parse_document` is the one door: a mapping (from YAML or JSON) goes in, a checked spec comes out, or a UserError that
names the field. `json_schemas()` gives the JSON schema of each kind, which `write_schemas()` exports to
docs/reference/schema.
"""

from core.specs.documents import Document, parse_document, parse_json
from core.specs.instance import InstanceSpec
from core.specs.node import NodeSpec
from core.specs.project import ProjectSpec
from core.specs.schema import json_schemas, write_schemas

__all__ = [
    "Document",
    "InstanceSpec",
    "NodeSpec",
    "ProjectSpec",
    "json_schemas",
    "parse_document",
    "parse_json",
    "write_schemas",
]
