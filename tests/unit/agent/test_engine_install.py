"""Finding PostgreSQL installations: usable ones are offered, others are left out without harm."""

from __future__ import annotations

from pathlib import Path

from agent.engines.postgres.install import NEEDED, examine, find_engines


def _installation(folder: Path, *, says: str, library: bytes = b"") -> Path:
    folder.mkdir()
    for name in NEEDED:
        program = folder / name
        program.write_bytes(f"#!/bin/sh\necho '{says}'\nexit 0\n".encode() + b"# " + library + b"\n")
        program.chmod(0o755)
    return folder


def test_version_and_tls_are_told(tmp_path: Path) -> None:
    offer = examine(_installation(tmp_path / "a", says="postgres (PostgreSQL) 99.7 (Debian)", library=b"libssl.so.3"))
    assert offer is not None
    assert (offer.engine, offer.version, offer.full_version, offer.tls) == ("postgresql", 99, "99.7", True)
    plain = examine(_installation(tmp_path / "b", says="postgres (PostgreSQL) 99devel"))
    assert plain is not None
    assert (plain.full_version, plain.tls) == ("99", False)


def test_what_is_not_usable_is_left_out(tmp_path: Path) -> None:
    assert examine(tmp_path / "nothing") is None
    assert examine(_installation(tmp_path / "old", says="postgres (PostgreSQL) 12.9")) is None
    assert examine(_installation(tmp_path / "other", says="mariadbd 10.11")) is None
    broken = _installation(tmp_path / "broken", says="postgres (PostgreSQL) 99.7")
    (broken / "postgres").chmod(0o644)
    assert examine(broken) is None
    (broken / "pg_rewind").unlink()
    assert examine(broken) is None


def test_given_directories_come_first_and_majors_are_offered_newest_first(tmp_path: Path) -> None:
    mine = _installation(tmp_path / "mine", says="postgres (PostgreSQL) 98.1")
    other = _installation(tmp_path / "other", says="postgres (PostgreSQL) 98.2")
    newer = _installation(tmp_path / "newer", says="postgres (PostgreSQL) 99.0")
    offers = [offer for offer in find_engines([mine, other, newer, tmp_path / "none"]) if offer.version >= 98]
    assert [(offer.full_version, offer.bin_dir) for offer in offers] == [("99.0", str(newer)), ("98.1", str(mine))]
