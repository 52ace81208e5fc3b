"""What it costs the proxy to tell whether a statement only reads (`proxy.splitting`), against the parser alone.

./dev bench verdicts [--json FILE]
"""

from __future__ import annotations

import timeit

from pglast.parser import parse_sql_json

from proxy.postgres.verdicts import TEXT_BYTES_MAX, Kind, Verdicts, judge
from tests.support.bench import Rows, parser

COLUMNS = ", ".join(f"a.c{number}" for number in range(30))
CASES = {
    "simple": b"SELECT abalance FROM pgbench_accounts WHERE aid = 1",
    "join_of_30_columns": f"SELECT {COLUMNS} FROM a JOIN b ON a.id = b.id WHERE b.n > 3 ORDER BY a.c1".encode(),
    "longest": b"SELECT 1 WHERE " + b" AND ".join([b"x = 'y'"] * (TEXT_BYTES_MAX // 13)),
}
REPEATS = 7


def cost_us(work: object, number: int) -> float:
    """The best of some rounds."""
    return min(timeit.repeat(work, number=number, repeat=REPEATS)) / number * 1e6  # type: ignore[arg-type]


def main() -> None:
    options = parser(__doc__ or "").parse_args()
    rows = Rows(options.json)
    for case, text in CASES.items():
        verdicts, words = Verdicts(parse_sql_json), text.decode()
        assert len(text) <= TEXT_BYTES_MAX
        kind = verdicts.of(text).kind
        number = 20 if case == "longest" else 2000
        rows.add(case, "parser", "cpu", "us", cost_us(lambda words=words: parse_sql_json(words), number))
        rows.add(
            case,
            "moorage",
            f"verdict_{kind.name.lower()}",
            "us",
            cost_us(lambda text=text: judge(text, parse_sql_json), number),
        )
        rows.add(
            case, "moorage", "verdict_remembered", "us", cost_us(lambda text=text, one=verdicts: one.of(text), 2000)
        )
        assert kind is Kind.READS or case == "longest"
    rows.finish()


if __name__ == "__main__":
    main()
