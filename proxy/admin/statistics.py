"""Pure: SHOW STATS and its parts, in PgBouncer's meanings.

There a query's time begins when it is sent to a server; here it begins with its client, and what it waited is told
apart, so the one is the other less the waiting. Averages are of the last whole period: per second for counts and bytes,
per query, transaction or wait for times.
"""

from __future__ import annotations

from collections.abc import Callable

from core.figures import Figures, sum_of
from proxy.admin.answers import Page, Value, table
from proxy.admin.facts import DATABASES, Facts, Metered

_Count = Callable[[Figures], int]
_COUNTS: dict[str, _Count] = {
    "server_assignment_count": lambda one: one.waits,
    "xact_count": lambda one: one.transactions,
    "query_count": lambda one: one.queries,
    "received": lambda one: one.bytes_in,
    "sent": lambda one: one.bytes_out,
}
_TIMES: dict[str, tuple[_Count, _Count]] = {  # the time, and by what it is divided
    "xact_time": (lambda one: one.transaction_us, lambda one: one.transactions),
    "query_time": (lambda one: max(0, one.query_us - one.held_us), lambda one: one.queries),
    "wait_time": (lambda one: one.wait_us, lambda one: one.waits),
}
_UNCOUNTED = ("client_parse_count", "server_parse_count", "bind_count")
_NAMES = (*_COUNTS, *_TIMES, *_UNCOUNTED)
_SHORT = {"received": "recv"}  # in averages
_LONG = {"received": "bytes_received", "sent": "bytes_sent"}  # in totals
_BYTES = {"received": "client_bytes", "sent": "server_bytes"}  # in SHOW TOTALS
_TOTAL = " ".join(f"total_{name}:n" for name in _NAMES)
_AVERAGE = " ".join(f"avg_{_SHORT.get(name, name)}:n" for name in _NAMES)


def stats(facts: Facts) -> Page:
    rows = [(name, *_totals_of(parts), *_averages_of(parts)) for name, parts in _by_database(facts)]
    return table(f"database {_TOTAL} {_AVERAGE}", rows)


def stats_totals(facts: Facts) -> Page:
    names = " ".join(f"{_LONG.get(name, name)}:n" for name in _NAMES)
    return table(f"database {names}", [(name, *_totals_of(parts)) for name, parts in _by_database(facts)])


def stats_averages(facts: Facts) -> Page:
    names = " ".join(f"{_LONG.get(name, name)}:n" for name in _NAMES)
    return table(f"database {names}", [(name, *_averages_of(parts)) for name, parts in _by_database(facts)])


def totals(facts: Facts) -> Page:
    names = [f"{kind}_{_BYTES.get(name, name)}" for kind in ("total", "avg") for name in _NAMES]
    parts = list(facts.metered)
    return table("name value:n", list(zip(names, (*_totals_of(parts), *_averages_of(parts)), strict=True)))


def _by_database(facts: Facts) -> list[tuple[str, list[Metered]]]:
    """The proxy's own one is always there: exporters take a table without rows for a failure."""
    names = sorted({DATABASES[0], *(one.database for one in facts.metered)})
    return [(name, [one for one in facts.metered if one.database == name]) for name in names]


def _totals_of(parts: list[Metered]) -> tuple[Value, ...]:
    figures = sum_of(one.figures for one in parts)
    times = (time(figures) for time, _ in _TIMES.values())
    return (*(count(figures) for count in _COUNTS.values()), *times, *(0 for _ in _UNCOUNTED))


def _averages_of(parts: list[Metered]) -> tuple[Value, ...]:
    before = sum_of(one.stretch.before for one in parts)
    after = sum_of(one.stretch.after for one in parts)
    seconds = max((one.stretch.seconds for one in parts), default=1.0)

    def grown(count: _Count) -> int:
        return max(0, count(after) - count(before))

    rates = (int(grown(count) / seconds) for count in _COUNTS.values())
    times = (grown(time) // max(1, grown(by)) for time, by in _TIMES.values())
    return (*rates, *times, *(0 for _ in _UNCOUNTED))
