"""Programs are found, or it is said how to get them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cli.demo import tools
from core.errors import NotFoundError


def test_embedded_engine_is_found_without_importing_it() -> None:
    engine = tools.find_engine("embedded")
    assert engine.major == 18
    assert os.access(engine.bin_dir / "initdb", os.X_OK)


def test_newest_system_engine_is_taken(tmp_path: Path) -> None:
    for version in ("9.6.24", "15.12", "14.2"):
        folder = tmp_path / version.split(".")[0] / "bin"
        folder.mkdir(parents=True)
        (folder / "postgres").write_text(f"#!/bin/sh\necho 'postgres (PostgreSQL) {version} (Debian)'\n")
        (folder / "postgres").chmod(0o755)
    assert tools.find_engine("system", tmp_path).version == "15.12"


def test_missing_programs_are_told_with_the_way_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        tools.find_engine("system", tmp_path)
    assert "--engine embedded" in caught.value.hint
    with pytest.raises(NotFoundError, match="moorage-nothing"):
        tools.command("moorage-nothing")


def test_wheel_etcd_serves_where_the_machine_has_none() -> None:
    etcd = tools.find_etcd(system=())
    assert etcd.version == "3.5.1"
    assert os.access(etcd.etcdctl, os.X_OK)


def test_our_own_commands_are_those_beside_this_python() -> None:
    assert tools.command("moorage-hub").endswith("/moorage-hub")
