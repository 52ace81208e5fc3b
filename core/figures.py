"""What a proxy has counted of the clients of one instance, in a form that adds up: over users, processes and nodes.

Counts only grow while their process lives. Times are kept as sums and as a histogram, whose buckets are the same
everywhere, for ever: a count belongs to the first of BOUNDS_S that is not below its time, or to the last bucket, which
has no bound. On the wire a figure that is zero costs next to nothing, for most are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from itertools import chain, zip_longest
from operator import add, attrgetter
from typing import Any, cast

# Three a decade, from what the proxy itself costs to the longest report that somebody waits for.
BOUNDS_S = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
BUCKETS = len(BOUNDS_S) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Of one instance, or of one user and database of it. A query is what one ReadyForQuery ends."""

    queries: int = 0
    transactions: int = 0
    bytes_in: int = 0  # from clients
    bytes_out: int = 0  # to clients
    query_us: int = 0  # from a query's first byte to its ReadyForQuery
    held_us: int = 0  # of that: until there was a server to send it to
    transaction_us: int = 0
    waits: int = 0  # clients that were given a server
    wait_us: int = 0  # until they were
    logins: int = 0  # passwords that were right
    opened: int = 0  # connections to servers
    closed: int = 0
    reused: int = 0  # given to another client than the one before
    moved: int = 0  # sessions that went on at another server
    cancels: int = 0
    slow: int = 0  # queries that the slow-query log is about
    query_counts: tuple[int, ...] = ()  # by bucket; those left out are zero
    wait_counts: tuple[int, ...] = ()
    errors: Mapping[str, int] = field(default_factory=dict)  # of servers, by the first two characters of the SQLSTATE
    refused: Mapping[str, int] = field(default_factory=dict)  # clients that were not let in, by SQLSTATE
    ended: Mapping[str, int] = field(default_factory=dict)  # what the proxy has told clients later on, by SQLSTATE

    def __add__(self, other: Figures) -> Figures:
        numbers = dict(zip(_NUMBERS, map(add, _numbers_of(self), _numbers_of(other)), strict=True))
        return Figures(
            **numbers,
            query_counts=_sum_of_counts(self.query_counts, other.query_counts),
            wait_counts=_sum_of_counts(self.wait_counts, other.wait_counts),
            errors=_sum_by_code(self.errors, other.errors),
            refused=_sum_by_code(self.refused, other.refused),
            ended=_sum_by_code(self.ended, other.ended),
        )

    def packed(self) -> dict[str, object]:
        """For one line of JSON, without what is zero."""
        numbers = list(_numbers_of(self))
        while numbers and not numbers[-1]:
            numbers.pop()
        packed: dict[str, object] = {"n": numbers} if numbers else {}
        for letter, name in _LETTERS.items():
            value = getattr(self, name)
            if any(_numbers_in(value)):
                packed[letter] = value
        return packed


def unpacked(raw: Mapping[str, Any]) -> Figures:
    """ValueError when it is not what `packed` makes."""
    known = {letter: raw[letter] for letter in raw.keys() & _LETTERS.keys()}
    numbers = raw.get("n", [])
    found = [*_numbers_in(numbers), *chain.from_iterable(map(_numbers_in, known.values()))]
    if (
        not raw.keys() <= _LETTERS.keys() | {"n"}
        or not isinstance(numbers, list)
        or len(numbers) > len(_NUMBERS)
        or not all(type(number) is int for number in found)
    ):
        raise ValueError("figures are not of the expected form")
    values: dict[str, Any] = dict(zip(_NUMBERS, numbers, strict=False))
    for letter, value in known.items():
        values[_LETTERS[letter]] = tuple(value) if isinstance(value, list) else dict(value)
    return Figures(**values)


def sum_of(figures: Iterable[Figures]) -> Figures:
    return sum(figures, start=Figures())


def sums_of(reports: Iterable[Mapping[str, Figures]]) -> dict[str, Figures]:
    """Of what several processes have counted of each instance."""
    sums: dict[str, Figures] = {}
    for report in reports:
        for instance, figures in report.items():
            sums[instance] = sums[instance] + figures if instance in sums else figures
    return sums


def bucket_labels() -> tuple[str, ...]:
    """The upper bound of each bucket, in seconds, as text."""
    return (*(f"{bound:g}" for bound in BOUNDS_S), "+Inf")


def _sum_of_counts(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    if not (one and other):
        return one or other
    return tuple(ours + theirs for ours, theirs in zip_longest(one, other, fillvalue=0))


def _sum_by_code(one: Mapping[str, int], other: Mapping[str, int]) -> Mapping[str, int]:
    if not (one and other):
        return one or other
    return {code: one.get(code, 0) + other.get(code, 0) for code in {**one, **other}}


def _numbers_in(value: object) -> Iterable[int]:
    if isinstance(value, Mapping):
        return cast(Iterable[int], value.values())
    return cast(Iterable[int], value) if isinstance(value, list | tuple) else (cast(int, value),)


_NUMBERS = tuple(one.name for one in fields(Figures) if one.type == "int")
_LETTERS = {"q": "query_counts", "w": "wait_counts", "e": "errors", "r": "refused", "x": "ended"}
_numbers_of: Callable[[Figures], tuple[int, ...]] = attrgetter(*_NUMBERS)
assert len(_NUMBERS) + len(_LETTERS) == len(fields(Figures))
