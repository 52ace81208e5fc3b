"""Pure: tables as messages of the protocol, in text and in binary form."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from proxy.postgres.messages import message

Value = str | int | None
_PROTOCOL_NAME = b"\0"
_DIGITS = 10_000  # of which a number is made in binary form


class Kind(Enum):
    """Type of a column: its OID, and its size (-1 = any)."""

    TEXT = (25, -1)
    INT4 = (23, 4)
    NUMERIC = (1700, -1)


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    kind: Kind = Kind.TEXT


@dataclass(frozen=True, slots=True)
class Page:
    """What a SHOW answers. `notice` is for people, and no table."""

    columns: tuple[Column, ...] = ()
    rows: Iterable[Sequence[Value]] = ()
    notice: str = field(default="", kw_only=True)


def table(spelling: str, rows: Iterable[Sequence[Value]]) -> Page:
    """`spelling`: names of columns, those that are no text with a type behind them, such as `pool_size:i`."""
    kinds = {"": Kind.TEXT, "i": Kind.INT4, "n": Kind.NUMERIC}
    words = (word.partition(":") for word in spelling.split())
    return Page(tuple(Column(name, kinds[kind]) for name, _, kind in words), rows)


def description(columns: Sequence[Column], formats: Sequence[int]) -> bytes:
    """RowDescription. `formats`: as Bind says them: none, one for all, or one for each."""
    body = struct.pack("!H", len(columns))
    for number, column in enumerate(columns):
        oid, size = column.kind.value
        form = format_of(formats, number)
        body += column.name.encode() + _PROTOCOL_NAME + struct.pack("!IHIhiH", 0, 0, oid, size, -1, form)
    return message(b"T", body)


def row(columns: Sequence[Column], values: Sequence[Value], formats: Sequence[int]) -> bytes:
    """DataRow."""
    body = struct.pack("!H", len(columns))
    for number, (column, value) in enumerate(zip(columns, values, strict=True)):
        if value is None:
            body += struct.pack("!i", -1)
            continue
        shown = _binary(column.kind, value) if format_of(formats, number) else _text(value)
        body += struct.pack("!i", len(shown)) + shown
    return message(b"D", body)


def format_of(formats: Sequence[int], number: int) -> int:
    if not formats:
        return 0
    return formats[number] if len(formats) > 1 else formats[0]


def notice(text: str, detail: str) -> bytes:
    fields = (("S", "NOTICE"), ("V", "NOTICE"), ("C", "00000"), ("M", text), ("D", detail))
    return message(b"N", b"".join(code.encode() + words.encode() + b"\0" for code, words in fields) + b"\0")


def complete(tag: str) -> bytes:
    return message(b"C", tag.encode() + b"\0")


def _text(value: str | int) -> bytes:
    return str(value).encode(errors="surrogateescape")


def _binary(kind: Kind, value: str | int) -> bytes:
    match kind:
        case Kind.TEXT:
            return _text(value)
        case Kind.INT4:
            return struct.pack("!i", int(value))
        case Kind.NUMERIC:
            return _numeric(int(value))


def _numeric(value: int) -> bytes:
    """A whole number as digits to the base of 10,000, the highest first."""
    digits, left = list[int](), abs(value)
    while left:
        left, digit = divmod(left, _DIGITS)
        digits.insert(0, digit)
    sign = 0x4000 if value < 0 else 0
    return struct.pack(f"!HhHH{len(digits)}H", len(digits), len(digits) - 1, sign, 0, *digits)
