"""Which statements are reads, by the real parser: what writes never is one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pglast.parser import parse_sql_json

from proxy.postgres.verdicts import ENTRY_BYTES, TEXT_BYTES_MAX, Kind, Verdicts, judge
from tests.support.statements import BEGINS, CALLS, OTHERS, READS


def kind(text: str) -> Kind:
    return judge(text.encode(), parse_sql_json).kind


@pytest.mark.parametrize("text", READS)
def test_what_only_reads_is_a_read_without_further_calls(text: str) -> None:
    verdict = judge(text.encode(), parse_sql_json)
    assert (verdict.kind, verdict.calls) == (Kind.READS, frozenset())


@pytest.mark.parametrize(("text", "function"), CALLS)
def test_a_call_that_is_not_known_to_be_harmless_is_named(text: str, function: str) -> None:
    verdict = judge(text.encode(), parse_sql_json)
    assert (verdict.kind, verdict.calls) == (Kind.READS, {function})


@pytest.mark.parametrize("text", BEGINS)
def test_a_transaction_that_says_it_only_reads(text: str) -> None:
    assert kind(text) is Kind.BEGINS


@pytest.mark.parametrize("text", OTHERS)
def test_everything_else_is_for_the_primary(text: str) -> None:
    assert kind(text) is Kind.OTHER


def test_what_is_not_utf8_or_too_long_or_too_deep_is_for_the_primary() -> None:
    assert judge(b"SELECT '\xe4'", parse_sql_json).kind is Kind.OTHER
    assert kind("SELECT 'ä'") is Kind.READS
    assert kind("SELECT " + "1," * (TEXT_BYTES_MAX // 2) + "1") is Kind.OTHER
    assert kind("SELECT " + "NOT " * 4000 + "true") is Kind.OTHER
    assert kind("SELECT " + "(SELECT " * 1500 + "1" + ")" * 1500) is Kind.OTHER


# --- statements put together, with and without something in them that is no read --------------------------------------

_LEAVES = ("1", "'a'", "id", "NULL", "$1", "now()", "i.id", "current_date")
_POISONS = (
    "nextval('numbers')", "touch()", "public.touch()", "pg_advisory_lock(1)", "set_config('a.b', 'c', false)",
    "(SELECT id FROM items FOR UPDATE)", "(WITH q AS (DELETE FROM items RETURNING id) SELECT * FROM q)",
    "(WITH q AS (INSERT INTO items VALUES (1) RETURNING id) TABLE q)", "(SELECT setval('numbers', 1))",
    "(SELECT relname FROM pg_class)", "pg_catalog.pg_reload_conf()", "ARRAY(SELECT touch())",
)  # fmt: skip


def _grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Expressions around others."""
    pair = st.tuples(inner, inner)
    return st.one_of(
        inner.map(lambda one: f"lower({one})"),
        inner.map(lambda one: f"(SELECT {one} FROM items AS i WHERE {one} IS NOT NULL ORDER BY {one} LIMIT 1)"),
        inner.map(lambda one: f"EXISTS (WITH w AS (SELECT {one} AS x) SELECT x FROM w GROUP BY x HAVING x = x)"),
        inner.map(lambda one: f"({one})::text"),
        inner.map(lambda one: f"sum({one}) FILTER (WHERE {one} = {one}) OVER (PARTITION BY {one} ORDER BY {one})"),
        inner.map(lambda one: f"(SELECT * FROM (SELECT {one} UNION SELECT 2) AS q (a) JOIN items ON a = {one})"),
        inner.map(lambda one: f"(SELECT a FROM generate_series({one}, 3) AS a, LATERAL (VALUES ({one})) AS v)"),
        pair.map(lambda two: f"({two[0]} = {two[1]})"),
        pair.map(lambda two: f"coalesce({two[0]}, {two[1]})"),
        pair.map(lambda two: f"CASE {two[0]} WHEN 1 THEN {two[1]} ELSE 0 END"),
        pair.map(lambda two: f"({two[0]} IN ({two[1]}, 2) AND {two[1]} BETWEEN 1 AND {two[0]})"),
        pair.map(lambda two: f"ARRAY[{two[0]}, {two[1]}]"),
        pair.map(lambda two: f"ROW({two[0]}, {two[1]})"),
    )


harmless = st.recursive(st.sampled_from(_LEAVES), _grown, max_leaves=8)
poisoned = st.recursive(
    st.sampled_from(_POISONS),
    lambda inner: st.tuples(_grown(inner), harmless).map(lambda two: f"coalesce({two[1]}, {two[0]})"),
    max_leaves=4,
)
frames = st.sampled_from(
    (
        "SELECT {}", "SELECT id FROM items AS i WHERE {} = 1", "SELECT id FROM items AS i ORDER BY {} OFFSET 1",
        "SELECT i.id, {} FROM items AS i LEFT JOIN parts ON true", "VALUES (1, {})", "SELECT DISTINCT {} FROM items",
        "WITH a AS (SELECT {}) SELECT * FROM a", "SELECT 1 UNION ALL SELECT {}", "SELECT 1 LIMIT {}",
    )
)  # fmt: skip


@given(frames, harmless)
def test_whatever_is_made_of_reads_is_a_read(frame: str, part: str) -> None:
    verdict = judge(frame.format(part).encode(), parse_sql_json)
    assert (verdict.kind, verdict.calls) == (Kind.READS, frozenset())


@given(frames, poisoned)
def test_whatever_holds_a_write_somewhere_is_none(frame: str, part: str) -> None:
    verdict = judge(frame.format(part).encode(), parse_sql_json)
    assert verdict.kind is Kind.OTHER or verdict.calls


@given(st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda text: b"SELECT " + text.encode())))
def test_no_text_makes_it_fail(text: bytes) -> None:
    assert judge(text, parse_sql_json).kind in Kind


@given(st.sampled_from([*OTHERS, *(text for text, _ in CALLS)]), st.sampled_from(READS), st.booleans())
def test_a_write_beside_a_read_is_no_read(write: str, read: str, first: bool) -> None:
    text = f"{write};\n{read}" if first else f"{read}\n;{write}"
    verdict = judge(text.encode(), parse_sql_json)
    assert verdict.kind is Kind.OTHER or not write.strip("; ")


# --- what is remembered -----------------------------------------------------------------------------------------------


def test_a_text_is_parsed_once_and_what_was_used_last_is_remembered() -> None:
    parsed: list[str] = []

    def parse(text: str) -> str:
        parsed.append(text)
        return str(parse_sql_json(text))

    verdicts = Verdicts(parse, bytes_max=3 * (ENTRY_BYTES + 10))
    for text in (b"SELECT 1", b"SELECT 2", b"SELECT 3", b"SELECT 1", b"SELECT 4", b"SELECT 1", b"SELECT 2"):
        assert verdicts.of(text).kind is Kind.READS
        assert verdicts.bytes <= 3 * (ENTRY_BYTES + 10)
    assert parsed == [f"SELECT {number}" for number in (1, 2, 3, 4, 2)]
    assert verdicts.of(b"SELECT " + b"1," * TEXT_BYTES_MAX + b"1").kind is Kind.OTHER
    assert verdicts.bytes <= 3 * (ENTRY_BYTES + 10), "what is too long is not remembered"
