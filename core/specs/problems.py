"""What is wrong with a document, said to people: the field's path and a sentence in our words.

pydantic's own sentences speak of inputs, tuples and instances of classes, which mean nothing to who writes YAML.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from core.errors import UserError

SHOWN_PROBLEMS = 5
SHOWN_CHARS = 60  # of a value that does not fit

_SENTENCES: Mapping[str, str] = {
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "too_long": "must have at most {max_length} entries",
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be below {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "literal_error": "must be {expected}",
}


def problems_as_error(error: ValidationError, model: type[BaseModel], where: str) -> UserError:
    """One UserError with a line for each of the first problems."""
    problems = error.errors(include_url=False)
    lines = [_line(problem, model) for problem in problems[:SHOWN_PROBLEMS]]
    rest = f" (and {len(problems) - SHOWN_PROBLEMS} more)" if len(problems) > SHOWN_PROBLEMS else ""
    return UserError("; ".join(lines) + rest, object=where)


def _line(problem: ErrorDetails, model: type[BaseModel]) -> str:
    path = _path(problem["loc"])
    sentence = _sentence(problem, model)
    return f"{path}: {sentence}" if path else sentence  # a check of the whole document names its fields itself


def _path(loc: tuple[int | str, ...]) -> str:
    path = ""
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path


def _sentence(problem: ErrorDetails, model: type[BaseModel]) -> str:
    if problem["type"] == "extra_forbidden":
        return _unknown_field(problem["loc"], model)
    if problem["type"] == "missing":
        return "is required"
    template = _SENTENCES.get(problem["type"])
    if template is None:
        return problem["msg"].removeprefix("Value error, ")
    sentence = template.format_map(problem.get("ctx", {}))
    value = problem.get("input")
    return f"{sentence}, got {_shown(value)}" if isinstance(value, str | int | float) else sentence


def _shown(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..."


def _unknown_field(loc: tuple[int | str, ...], model: type[BaseModel]) -> str:
    names = list(_model_at(loc[:-1], model).model_fields)
    close = difflib.get_close_matches(str(loc[-1]), names, n=1)
    return f"is not a known field; did you mean {close[0]!r}?" if close else f"is not known; fields: {', '.join(names)}"


def _model_at(loc: tuple[int | str, ...], model: type[BaseModel]) -> type[BaseModel]:
    """The model at a path below `model`; list positions and keys of mappings lead to the element there."""
    key_follows = False
    for part in loc:
        if key_follows or isinstance(part, int):
            key_follows = False
            continue
        annotation = model.model_fields[part].annotation
        key_follows = get_origin(annotation) is dict
        model = _model_in(annotation) or model
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_in(part)) is not None), None)
