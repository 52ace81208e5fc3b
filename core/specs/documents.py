"""The door through which documents enter: a mapping or JSON goes in, a checked spec or a UserError comes out."""

from __future__ import annotations

import json

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from core.errors import UserError
from core.specs.instance import InstanceSpec
from core.specs.node import NodeSpec
from core.specs.project import ProjectSpec
from core.specs.schema import KINDS

MAX_DOCUMENT_BYTES = 256 << 10  # a larger document is a mistake; gRPC's own limit is 4 MiB for a whole apply

Document = ProjectSpec | NodeSpec | InstanceSpec


def parse_json(text: str | bytes, *, where: str = "document") -> Document:
    """A checked spec from JSON text."""
    if len(text) > MAX_DOCUMENT_BYTES:
        raise UserError(f"document has {len(text)} bytes, more than {MAX_DOCUMENT_BYTES}", object=where)
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise UserError(f"not valid JSON: {error}", object=where) from error
    return parse_document(raw, where=where)


def parse_document(raw: object, *, where: str = "document") -> Document:
    """The ProjectSpec, NodeSpec or InstanceSpec that `raw` is. UserError names `where` and the field's path."""
    if not isinstance(raw, dict):
        raise UserError("a document must be a mapping with `kind`", object=where)
    kind = raw.get("kind")
    model = KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise UserError(f"kind {kind!r} is not known", object=f"{where}.kind", hint=f"Use one of {', '.join(KINDS)}.")
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise _user_error(error, where) from error


def _user_error(error: ValidationError, where: str) -> UserError:
    problems = error.errors(include_url=False)
    lines = [f"{_path(problem)}: {_sentence(problem)}" for problem in problems[:5]]
    rest = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
    return UserError("; ".join(lines) + rest, object=where)


def _path(problem: ErrorDetails) -> str:
    path = ""
    for part in problem["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path or "document"


def _sentence(problem: ErrorDetails) -> str:
    if problem["type"] == "extra_forbidden":
        return "is not a known field; check the spelling"
    if problem["type"] == "missing":
        return "is required"
    message = problem["msg"].removeprefix("Value error, ")
    shown = problem.get("input")
    if isinstance(shown, str | int | float) and problem["type"] not in {"name", "size"}:
        return f"{message[0].lower()}{message[1:]}, got {shown!r}"
    return message
