"""Reading pg_control, log file names, timeline histories and labels."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engines.postgres.control import parse_control, segment_name
from agent.engines.postgres.member import Label, slot_name
from agent.engines.postgres.replication import parse_history
from agent.ha.view import Fork
from agent.local import read_record, write_atomically
from core.positions import Lsn, WalPosition
from core.records import to_json

CONTROL = """\
pg_control version number:            1300
Database system identifier:           7711879228566806247
Database cluster state:               {state}
pg_control last modified:             Tue 24 Nov 2026 10:59:00 PM UTC
Latest checkpoint location:           0/3000060
Latest checkpoint's REDO location:    0/3000028
Latest checkpoint's TimeLineID:       2
Latest checkpoint's PrevTimeLineID:   2
Minimum recovery ending location:     0/3000148
Min recovery ending loc's timeline:   2
max_connections setting:              50
max_worker_processes setting:         8
max_wal_senders setting:              12
max_prepared_xacts setting:           0
max_locks_per_xact setting:           64
Bytes per WAL segment:                16777216
"""


@pytest.mark.parametrize(
    ("state", "clean", "standby"),
    [
        ("shut down", True, False),
        ("shut down in recovery", True, True),
        ("in production", False, False),
        ("in archive recovery", False, True),
        ("in crash recovery", False, False),
    ],
)
def test_control_data_tells_how_and_where_the_engine_ended(state: str, clean: bool, standby: bool) -> None:
    control = parse_control(CONTROL.format(state=state))
    assert (control.clean, control.standby) == (clean, standby)
    assert control.system_id == "7711879228566806247"
    assert control.position == WalPosition(2, Lsn.parse("0/3000148"))
    assert control.checkpoint == WalPosition(2, Lsn.parse("0/3000060"))
    assert control.floors == {
        "max_connections": 50,
        "max_worker_processes": 8,
        "max_wal_senders": 12,
        "max_prepared_transactions": 0,
        "max_locks_per_transaction": 64,
    }


def test_control_data_with_a_field_missing_is_an_error() -> None:
    with pytest.raises(KeyError):
        parse_control(CONTROL.format(state="shut down").replace("Bytes per WAL segment", "Bytes"))


@pytest.mark.parametrize(
    ("timeline", "lsn", "name"),
    [
        (1, "0/0", "000000010000000000000000"),
        (1, "0/1000000", "000000010000000000000001"),
        (2, "0/FFFFFFFF", "0000000200000000000000FF"),
        (31, "1/2345678", "0000001F0000000100000002"),
    ],
)
def test_log_file_names(timeline: int, lsn: str, name: str) -> None:
    assert segment_name(timeline, Lsn.parse(lsn), 16 << 20) == name


def test_timeline_history_is_read_with_its_comments() -> None:
    text = "# made by hand\n1\t0/3000148\tno recovery target specified\n\n2\t1/A\tbefore 2026-11-24 a reason of words\n"
    assert parse_history(text) == (
        Fork(timeline=1, lsn=Lsn.parse("0/3000148")),
        Fork(timeline=2, lsn=Lsn.parse("1/A")),
    )
    with pytest.raises(ValueError, match=r"invalid literal|not of the form"):
        parse_history("not a history at all\n")


@given(st.sets(st.from_regex(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", fullmatch=True), min_size=2))
def test_slots_of_different_members_have_different_valid_names(members: set[str]) -> None:
    slots = {slot_name(member) for member in members}
    assert len(slots) == len(members)
    assert all(len(slot) <= 63 and slot.replace("_", "a").isalnum() for slot in slots)


def test_label_survives_the_agent_and_an_older_one_is_understood(tmp_path: Path) -> None:
    path = tmp_path / "member.json"
    label = Label(begun="rewind", upstream="m2", pid=1, proven={"work_mem": "4MB"})
    write_atomically(path, to_json(label))
    assert read_record(path, Label) == label
    path.write_text('{"upstream":"m2","of_a_later_version":1}')
    assert read_record(path, Label) == Label(upstream="m2")
