"""Bytes from etcd or the wire -> records, checked by pydantic against the dataclasses of `core.records`."""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from core.errors import UserError

T = TypeVar("T")


@cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(type[Any], kind))


def from_json(kind: type[T], data: bytes | str, *, where: str = "") -> T:
    """The record; UserError names the field that does not fit and `where` the bytes came from."""
    try:
        record: T = _adapter(cast(Hashable, kind)).validate_json(data)
    except ValidationError as error:
        raise UserError(f"not a valid {kind.__name__}: {first_problem(error)}", object=where) from error
    return record


def first_problem(error: ValidationError) -> str:
    """`path.to.field: what is wrong` for the first problem, and how many more there are."""
    problems = error.errors(include_url=False, include_context=False)
    first = problems[0]
    path = ".".join(str(part) for part in first["loc"]) or "document"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{path}: {first['msg']}{more}"
