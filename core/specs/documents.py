"""The door through which documents enter: a mapping or JSON goes in, a checked spec or a UserError comes out."""

from __future__ import annotations

import json

from pydantic import ValidationError

from core.errors import UserError
from core.specs.instance import InstanceSpec
from core.specs.node import NodeSpec
from core.specs.problems import problems_as_error
from core.specs.project import ProjectSpec
from core.specs.schema import KINDS

MAX_DOCUMENT_BYTES = 256 << 10  # a larger document is a mistake; gRPC's own limit is 4 MiB for a whole apply

Document = ProjectSpec | NodeSpec | InstanceSpec


def parse_json(text: str | bytes, *, where: str = "document") -> Document:
    """A checked spec from JSON text."""
    if len(text) > MAX_DOCUMENT_BYTES:
        raise UserError(f"document has {len(text)} bytes, more than {MAX_DOCUMENT_BYTES}", object=where)
    try:
        raw = json.loads(text, object_pairs_hook=_each_once)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not valid JSON: {error}", object=where) from error
    return parse_document(raw, where=where)


def parse_document(raw: object, *, where: str = "document") -> Document:
    """The ProjectSpec, NodeSpec or InstanceSpec that `raw` is. UserError names `where` and the field's path."""
    known = f"Use one of {', '.join(KINDS)}."
    if not isinstance(raw, dict):
        raise UserError("a document must be a mapping with `kind`", object=where)
    kind = raw.get("kind")
    if kind is None:
        raise UserError("kind is required", object=where, hint=known)
    model = KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise UserError(f"kind {kind!r} is not known", object=f"{where}.kind", hint=known)
    try:
        # As JSON, because only there strict means: lists are lists, but "2" and true are no numbers.
        return model.model_validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:
        raise problems_as_error(error, model, where) from error
    except (TypeError, RecursionError) as error:
        raise UserError(f"holds what JSON cannot carry: {error}", object=where, hint="Put it in quotes.") from error


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object in which no field occurs twice: else the last one would win in silence."""
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"field {name!r} occurs twice")
        found[name] = value
    return found
