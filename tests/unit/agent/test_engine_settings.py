"""Settings of a PostgreSQL member: sizes, who overrides whom, quoting, the sync set there and back."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engines.postgres.settings import (
    CHOICES,
    FLOORS,
    FORBIDDEN,
    GIB,
    MIB,
    REPLICA_FLOORS,
    Standing,
    admit,
    closed_sync,
    combine,
    derive,
    managed,
    parse_sync,
    quote,
    read_sync,
    render,
    render_sync,
    sync_setting,
)
from core.records import MemberDesired, Replication, SyncRecord

NAMES = st.lists(st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True), max_size=5, unique=True).map(tuple)


def desired(**fields: object) -> MemberDesired:
    return MemberDesired(project="demo", instance="orders", member="m1", node="n1", engine_port=15000, **fields)


def standing(**fields: object) -> Standing:
    values: dict[str, object] = {
        "address": "127.0.0.11",
        "sockets": "/s",
        "logs": "/l",
        "tls_dir": "/t",
        "major": 18,
        "primary_conninfo": "",
        "primary_slot_name": "",
        "logical": False,
        "waits_for_slots": (),
        "durable": True,
        "floors": {},
    }
    return Standing(**{**values, **fields})


def mib(text: str) -> int:
    match = re.fullmatch(r"(\d+)MB", text)
    assert match, text
    return int(match[1]) * MIB


@given(st.integers(128 * MIB, 4096 * GIB), st.integers(256 * MIB, 1 << 50), st.floats(0.1, 1024))
def test_derived_sizes_fit_into_the_member(memory: int, disk: int, cpu: float) -> None:
    values = derive(desired(memory_bytes=memory, disk_bytes=disk, cpu=cpu))
    shared, connections = mib(values["shared_buffers"]), int(values["max_connections"])
    assert 16 * MIB <= shared <= min(8 * GIB, memory // 4)
    assert 50 <= connections <= 500
    assert mib(values["min_wal_size"]) <= mib(values["max_wal_size"]) <= max(64 * MIB, disk // 8)
    assert mib(values["max_slot_wal_keep_size"]) + mib(values["wal_keep_size"]) < disk // 2
    assert mib(values["effective_cache_size"]) < memory
    for name, floor in FLOORS.items():
        assert int(values[name]) >= floor


def test_one_gibibyte_gets_the_sizes_the_story_tells() -> None:
    values = derive(desired(memory_bytes=GIB, disk_bytes=10 * GIB))
    assert values["shared_buffers"] == "256MB"
    assert values["max_connections"] == "128"
    assert values["effective_cache_size"] == "768MB"
    assert values["max_slot_wal_keep_size"] == "2560MB"


def test_users_override_what_is_derived_and_nobody_what_is_managed() -> None:
    good, problems = admit({"work_mem": "5MB", "port": "1", "max_wal_senders": "3", "max_connections": "300"})
    assert good == {"work_mem": "5MB", "max_connections": "300"}
    assert len(problems) == 2
    assert any("port is managed" in problem for problem in problems)
    assert any("max_wal_senders = 3" in problem and "at least 12" in problem for problem in problems)
    values = combine(desired(), {**good, "port": "1"}, standing())
    assert (values["work_mem"], values["max_connections"], values["port"]) == ("5MB", "300", "15000")


def test_everything_managed_is_forbidden_to_users() -> None:
    assert set(managed(desired(), standing(durable=False, logical=True))) <= FORBIDDEN | CHOICES.keys()


def test_log_level_is_the_users_choice_of_two() -> None:
    assert admit({"wal_level": "logical"}) == ({"wal_level": "logical"}, [])
    assert admit({"wal_level": "minimal"})[0] == {}
    assert combine(desired(), {"wal_level": "minimal"}, standing())["wal_level"] == "replica"


def test_logical_slots_are_carried_over_where_the_version_can() -> None:
    values = managed(desired(), standing(logical=True, major=17, waits_for_slots=("moorage_m2", "moorage_m3")))
    assert (values["wal_level"], values["sync_replication_slots"]) == ("logical", "on")
    assert values["hot_standby_feedback"] == "on"
    assert values["synchronized_standby_slots"] == "moorage_m2,moorage_m3"
    older = managed(desired(), standing(logical=True, major=16))
    assert (older["wal_level"], older["hot_standby_feedback"]) == ("logical", "off")
    assert "sync_replication_slots" not in older


def test_replica_has_at_least_what_its_primary_had() -> None:
    floors = dict.fromkeys(REPLICA_FLOORS, 77)
    values = combine(desired(memory_bytes=GIB), {"max_connections": "30"}, standing(floors=floors))
    assert {values[name] for name in REPLICA_FLOORS} == {"77"}
    values = combine(desired(memory_bytes=GIB), {"max_connections": "300"}, standing(floors=floors))
    assert values["max_connections"] == "300"


def test_engine_without_tls_gets_no_tls_settings() -> None:
    assert "ssl" not in managed(desired(), standing(tls_dir=""))
    assert managed(desired(), standing())["ssl_key_file"] == "/t/node.key"
    assert "allow_alter_system" not in managed(desired(), standing(major=15)), "15 does not know it"


@given(st.text(st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs"])))
def test_any_value_stays_on_its_line_and_comes_back(value: str) -> None:
    quoted = quote(value)
    assert quoted[0] == quoted[-1] == "'"
    inner = re.sub(r"''|\\\\", lambda m: m[0][0], quoted[1:-1])
    assert inner == value
    assert f"app.x = {quoted}\n" in render({"app.x": value})


@given(st.sampled_from(["async", "sync", "quorum"]), st.integers(0, 4), NAMES, st.integers(0, 9))
def test_sync_set_comes_back_from_the_setting_in_force(mode: str, k: int, names: tuple[str, ...], seq: int) -> None:
    sync = SyncRecord(mode=mode, k=k, names=names, seq=seq)
    assert read_sync(render_sync(sync), sync_setting(sync)) == sync


def test_setting_that_is_not_the_files_is_read_by_itself() -> None:
    stale = render_sync(SyncRecord(mode="sync", k=1, names=("m2",)))
    assert read_sync(stale, "") == SyncRecord()
    assert read_sync(stale, 'ANY 2 ("m2","m-3",m4)') == SyncRecord(mode="quorum", k=2, names=("m2", "m-3", "m4"))
    assert read_sync("garbage", 'ANY 1 ("moorage_nobody")') == SyncRecord(mode="sync", k=0)
    assert parse_sync("FIRST 1 (a)") == SyncRecord(mode="sync", k=1, names=("a",))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("mode", "setting"),
    [("async", ""), ("sync", 'ANY 1 ("moorage_nobody")'), ("quorum", 'ANY 1 ("moorage_nobody")')],
)
def test_engine_starts_with_a_sync_set_that_acknowledges_nothing_unless_async(
    mode: str, setting: str, strict: bool
) -> None:
    sync = closed_sync(desired(replication=Replication(mode=mode, strict=strict)))
    assert sync_setting(sync) == setting
