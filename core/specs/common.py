"""What all documents share: strictness, names, sizes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, WithJsonSchema
from pydantic_core import PydanticCustomError

from core.ids import MAX_NAME, check_name

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(Ki|Mi|Gi|Ti)?B?")
_SIZE_MAX = 1 << 60  # an exbibyte; more is a slip of the finger, and would not fit protobuf's 64 bits with sums of it
_FACTOR = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}


class Spec(BaseModel):
    """Base of all documents and their parts: unknown fields are errors, values are frozen."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, str_strip_whitespace=False, validate_default=True, allow_inf_nan=False
    )


def _name(value: object) -> str:
    if not isinstance(value, str):
        raise PydanticCustomError("name", "must be text")
    try:
        return check_name(value, "name")
    except ValueError as error:
        raise PydanticCustomError("name", "{reason}", {"reason": str(error)}) from error


def _size(value: object) -> int:
    """Bytes from an integer or from text such as 512Mi or 1.5Gi."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise PydanticCustomError("size", "must not be negative")
        return _bounded(value)
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise PydanticCustomError(
            "size", "is not a size: write bytes, or a number with Ki, Mi, Gi or Ti, such as 512Mi"
        )
    return _bounded(int(float(match[1]) * _FACTOR[match[2] or ""]))


def _bounded(value: int) -> int:
    if value > _SIZE_MAX:
        raise PydanticCustomError("size", "is too large to be a size")
    return value


def check_label(text: str) -> str:
    """Keys and values of labels: short, printable, on one line."""
    if len(text) > 100 or not (text.isprintable() or not text):
        raise PydanticCustomError("label", "must be at most 100 printable characters")
    return text


def check_unique(names: Sequence[str], what: str) -> None:
    """PydanticCustomError when a name occurs twice."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise PydanticCustomError("duplicate", "{what}: {name} occurs twice", {"what": what, "name": repr(twice[0])})


Name = Annotated[
    str,
    BeforeValidator(_name),
    WithJsonSchema({"type": "string", "pattern": "^[a-z]([a-z0-9-]*[a-z0-9])?$", "maxLength": MAX_NAME}),
]
Size = Annotated[
    int,
    BeforeValidator(_size),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": _SIZE.pattern}]}),
]
_Label = Annotated[str, AfterValidator(check_label)]
Labels = dict[_Label, _Label]
