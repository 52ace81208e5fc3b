"""Which statements may change what a session carries."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.postgres.statements import CACHED_BYTES_MAX, READ_BYTES_MAX, Effect, effect_of, mutes, names_mute

HARMLESS = [
    "",
    ";",
    "SELECT 1",
    "select * from offsets OFFSET 3",
    "SELECT count(*) FROM preset_templates",
    "UPDATE accounts SET balance = balance + 1 WHERE id = 7",
    "UPDATE accounts SET balance = abs(-1);",
    "INSERT INTO loads VALUES (1), (2) ON CONFLICT DO NOTHING",
    "DELETE FROM sets",
    "/* a hint */ UPDATE t SET x = 1",
    "-- reset\nSELECT 1",
    "BEGIN",
    "BEGIN; UPDATE t SET x = 1; COMMIT",
    "SET LOCAL work_mem = '1MB'",
    "SET TRANSACTION READ ONLY",
    "SET CONSTRAINTS ALL DEFERRED",
    "SELECT setval('s', 7)",
    "WITH x AS (SELECT 1) UPDATE t SET a = 1",
    "PREPARE TRANSACTION 'x'",
    "COPY t FROM STDIN",
    "EXECUTE p(1)",
    "CREATE TABLE t (n int)",
    "SELECT setting FROM pg_settings WHERE name = 'x'",
    "SELECT current_setting('client_min_messages')",
]
CHANGING = [
    "SET work_mem = '1MB'",
    "  set\nwork_mem to 1",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "RESET ALL",
    "/* why */ SET x.y = 1",
    "-- why\nSET work_mem = 1",
    "/* /* nested */ */ SET work_mem = 1",
    "BEGIN; SET work_mem = 1; COMMIT",
    "SELECT 1;SET work_mem = 1",
    "SELECT 1 /* ; */ ; /* ; */ SET work_mem = 1",
    "LISTEN news",
    "UNLISTEN *",
    "PREPARE p AS SELECT 1",
    "DEALLOCATE p",
    "DISCARD ALL",
    "DISCARD PLANS",
    "CREATE TEMP TABLE t (n int)",
    "create local temporary table t (n int)",
    "CREATE TABLE pg_temp.t (n int)",
    "SELECT 1 AS n INTO TEMP t",
    "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
    "SELECT pg_advisory_lock(1)",
    "select PG_TRY_ADVISORY_LOCK(1)",
    "SELECT set_config('work_mem', '1MB', false)",
    "LOAD 'auto_explain'",
    "DO $$ BEGIN PERFORM set_config('work_mem', '1MB', false); END $$",
    "CALL reconfigure()",
    "SELECT setseed(0.5)",
    "UPDATE pg_settings SET setting = '1MB' WHERE name = 'work_mem'",
    "EXPLAIN ANALYZE UPDATE pg_catalog.pg_settings SET setting = '1MB'",
]


@pytest.mark.parametrize("statement", HARMLESS)
def test_what_changes_nothing_is_known_as_such(statement):
    assert effect_of(statement.encode()) == Effect()


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT pg_advisory_lock(1)",
        "SELECT pg_try_advisory_lock_shared(1)",
        "SELECT 1 WHERE PG_ADVISORY_XACT_LOCK(1) IS NULL",
        "DO $$ BEGIN PERFORM pg_try_advisory_xact_lock(1); END $$",
    ],
)
def test_advisory_locks_are_seen(statement):
    assert effect_of(statement.encode()).locks


def test_one_that_ends_with_its_transaction_changes_nothing_else():
    assert effect_of(b"SELECT pg_advisory_xact_lock(1)") == Effect(locks=True)


@pytest.mark.parametrize("statement", CHANGING)
def test_what_changes_the_session_is_seen(statement):
    assert effect_of(statement.encode()).changes


@pytest.mark.parametrize(
    ("statement", "names", "hidden"),
    [
        ("SET myapp.tenant = 'acme'", {"myapp.tenant"}, False),
        ("SET SESSION MyApp.Tenant TO 'acme'", {"myapp.tenant"}, False),
        ('SET "a.b" = 1', {"a.b"}, False),
        ("SET a.b = 1; SET c.d = 2", {"a.b", "c.d"}, False),
        ("SELECT set_config('a.b', $1, false)", {"a.b"}, False),
        ("SELECT pg_catalog.set_config('a.b'::text, $1, false), set_config('c.d', 'x', false)", {"a.b", "c.d"}, False),
        ("SELECT set_config('work_mem', '1MB', false)", set(), False),
        ("SELECT set_config($1, $2, false)", set(), True),
        ("SELECT set_config($1, $2, $3)", set(), True),
        ("SELECT set_config($1, $2, true)", set(), False),
        ("SELECT set_config($1, $2, true), set_config('a.b', $3, true)", set(), False),
        ("SET work_mem = 1", set(), False),
    ],
)
def test_settings_of_an_applications_own_are_read_by_name(statement, names, hidden):
    effect = effect_of(statement.encode())
    assert (effect.names, effect.hidden) == ({name.encode() for name in names}, hidden)


@pytest.mark.parametrize("statement", ["DISCARD ALL", " reset all ;"])
def test_what_forgets_all_settings_is_seen(statement):
    assert effect_of(statement.encode()).forgets


@pytest.mark.parametrize(
    ("statement", "loads"),
    [
        ("LOAD 'auto_explain'", True),
        ("load /* it */ $$auto_explain$$", True),
        ("SELECT 1; LOAD E'x'", True),
        ("DO $x$ BEGIN LOAD 'x'; END $x$", True),
        ("SET work_mem = 1", False),
        ("SET x.load = 'y'", False),
    ],
)
def test_libraries_that_are_loaded_are_seen(statement, loads):
    assert effect_of(statement.encode()).loads is loads


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SET client_min_messages = error", True),
        ("set session client_min_messages to 'FATAL'", True),
        ("SET LOCAL client_min_messages TO panic", True),
        ("BEGIN; SET LOCAL client_min_messages = ERROR; COMMIT", True),
        ("SELECT set_config('client_min_messages', 'error', true)", True),
        ("SELECT pg_catalog.set_config('client_min_messages', $1, false)", True),
        ("UPDATE pg_settings SET setting = 'error' WHERE name = 'client_min_messages'", True),
        ("SET client_min_messages = warning", False),
        ("SET client_min_messages TO DEFAULT", False),
        ("SELECT set_config('client_min_messages', 'notice', true)", False),
        ("SHOW client_min_messages", False),
        ("RESET client_min_messages", False),
        ("SET work_mem = 1", False),
    ],
)
def test_who_silences_the_server_is_seen(statement, expected):
    assert effect_of(statement.encode()).mutes is expected


@pytest.mark.parametrize(
    ("name", "value", "silent", "named"),
    [
        ("client_min_messages", "error", True, True),
        ("Client_Min_Messages", "PANIC", True, True),
        ("options", "-c client_min_messages=error -c work_mem=1", True, True),
        ("options", "--client-min-messages=fatal", True, True),
        ("options", "-c client_min_messages=warning", False, True),
        ("application_name", "error", False, False),
    ],
)
def test_startup_parameters_that_silence_the_server_are_seen(name, value, silent, named):
    assert (mutes(name, value), names_mute(name, value)) == (silent, named)


def test_a_statement_that_is_too_long_to_be_read_may_have_done_anything():
    effect = effect_of(b"INSERT INTO t VALUES ('" + b"x" * READ_BYTES_MAX + b"')")
    assert (effect.changes, effect.hidden) == (True, True)


def test_long_statements_are_examined_as_short_ones_are():
    rest = b" " * CACHED_BYTES_MAX
    assert effect_of(b"SET work_mem = 1" + rest).changes
    assert not effect_of(b"UPDATE t SET a = f(1)" + rest).changes


@given(st.binary(max_size=300))
def test_any_bytes_have_an_effect_or_none(statement):
    assert effect_of(statement) == effect_of(bytes(statement))


@given(st.sampled_from(CHANGING), st.sampled_from(HARMLESS), st.sampled_from(HARMLESS))
def test_company_hides_nothing(changing, before, after):
    assert effect_of(f"{before}; {changing}; {after}".encode()).changes
