"""Documents in files: what is accepted, and that every mistake is blamed on its file, line and document."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from cli.apply import MAX_FILE_BYTES, parse_sources, read_sources
from core.errors import UserError

GOOD = """\
# a project and its database
kind: Project
name: demo
---
kind: Instance
project: demo
name: orders
replicas: 2
replication:
  mode: sync
parameters:
  work_mem: 64MB
"""


def refused(text: str | bytes) -> UserError:
    with pytest.raises(UserError) as caught:
        list(parse_sources(text.encode() if isinstance(text, str) else text, "a.yaml"))
    return caught.value


def test_documents_come_in_order_as_they_were_written() -> None:
    sources = list(parse_sources(GOOD.encode(), "a.yaml"))
    assert [source.document["kind"] for source in sources] == ["Project", "Instance"]
    assert sources[0].document == {"kind": "Project", "name": "demo"}  # defaults are the hub's to fill in
    assert sources[1].where == "a.yaml:5: document 2"


def test_json_is_yaml_and_empty_documents_are_skipped() -> None:
    sources = list(parse_sources(b'---\n---\n{"kind": "Project", "name": "a"}\n---\n', "a.yaml"))
    assert [source.document["name"] for source in sources] == ["a"]


@pytest.mark.parametrize(
    ("wrong", "place", "told"),
    [
        (GOOD.replace("replicas: 2", "replicas: many"), "a.yaml:8: document 2", "replicas"),
        (GOOD.replace("mode: sync", "mood: sync"), "a.yaml:10: document 2", "replication.mood: is not a known field"),
        (GOOD.replace("  work_mem: 64MB", "  port: 1"), "a.yaml:11: document 2", "port is managed by Moorage"),
        (GOOD.replace("replicas: 2", "replicas: 0"), "a.yaml:5: document 2", "sync replication needs at least 1"),
        (GOOD.replace("name: demo", "name: Demo"), "a.yaml:3: document 1", "'Demo' is not valid"),
        (GOOD.replace("kind: Instance", "kind: Instanze"), "a.yaml:5: document 2.kind", "'Instanze' is not known"),
        ("- 1\n", "a.yaml:1: document 1", "must be a mapping"),
        (GOOD.replace("name: orders", "name: orders\nname: other"), "a.yaml:8", "given twice"),
        (GOOD + "  x: [1\n", "a.yaml:14", "not valid YAML"),
        (GOOD + "users:\n- name: a\n- name: b\n  super: true\n", "a.yaml:16: document 2", "users[1].super"),
    ],
)
def test_mistake_is_blamed_on_its_line(wrong: str, place: str, told: str) -> None:
    error = refused(wrong)
    assert error.object == place
    assert told in error.what


@pytest.mark.parametrize(
    "hostile",
    [
        b"\xff\xfe\x00",
        b"a: \x07",
        b"!!python/object/apply:os.system ['true']",
        b"kind: Project\nname: 2026-01-01\n",
        b"&a [*a]",
        b"? {a: b}\n: c\n",
        b"{" * 3000,
        b"kind: !!binary aGVsbG8=\n",
        b"{[1]: 2}",
        b"x: 1e999999\nkind: Project\nname: a",
    ],
    ids=lambda data: repr(data[:20]),
)
def test_bytes_that_are_no_document_are_refused_and_nothing_else_happens(hostile: bytes) -> None:
    assert refused(hostile).object.startswith("a.yaml")


def test_folder_means_its_yaml_files_by_name(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("kind: Project\nname: b\n")
    (tmp_path / "a.yml").write_text("kind: Project\nname: a\n")
    (tmp_path / "readme.txt").write_text("not a document")
    assert [source.document["name"] for source in read_sources([str(tmp_path)])] == ["a", "b"]


def test_standard_input_is_read_for_a_dash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"kind: Projekt\n")))
    with pytest.raises(UserError) as caught:
        read_sources(["-"])
    assert caught.value.object == "standard input:1: document 1.kind"


def test_missing_empty_and_huge_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    (tmp_path / "huge.yaml").write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    for name, told in (("none.yaml", "No such file"), ("empty.yaml", "no document"), ("huge.yaml", "larger than")):
        with pytest.raises(UserError) as caught:
            read_sources([str(tmp_path / name)])
        assert name in caught.value.object
        assert told in caught.value.what
