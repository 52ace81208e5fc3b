"""Sealing: what was sealed opens only with its key, in its place, unchanged."""

from __future__ import annotations

import base64
import json
import threading
from pathlib import Path

import pytest

from core.errors import MoorageError, UserError
from core.sealing import Sealer, add_key, create_key_file

HERE = "/moorage/secrets/demo.orders/app"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "seal.key"
    assert create_key_file(path)
    return path


def test_what_was_sealed_opens_in_its_place(key_file: Path) -> None:
    sealer = Sealer.load(key_file)
    sealed = sealer.seal(b"secret", HERE)
    assert sealer.open(sealed, HERE) == b"secret"
    assert b"secret" not in sealed
    assert json.loads(sealed)["key"] == sealer.key_id


def test_same_text_is_sealed_differently_each_time(key_file: Path) -> None:
    sealer = Sealer.load(key_file)
    assert sealer.seal(b"secret", HERE) != sealer.seal(b"secret", HERE)


def test_envelope_moved_to_another_place_does_not_open(key_file: Path) -> None:
    sealer = Sealer.load(key_file)
    with pytest.raises(MoorageError, match="moved from another place"):
        sealer.open(sealer.seal(b"secret", HERE), "/moorage/secrets/demo.orders/other")


@pytest.mark.parametrize("field", ["nonce", "data"])
def test_changed_envelope_does_not_open(key_file: Path, field: str) -> None:
    sealer = Sealer.load(key_file)
    envelope = json.loads(sealer.seal(b"secret", HERE))
    raw = bytearray(base64.b64decode(envelope[field]))
    raw[0] ^= 1
    envelope[field] = base64.b64encode(raw).decode()
    with pytest.raises(MoorageError, match="does not open"):
        sealer.open(json.dumps(envelope).encode(), HERE)


@pytest.mark.parametrize(
    "junk", [b"", b"{}", b"[]", b"null", b'{"v": 2}', b'{"v": 1, "key": "k", "nonce": "!", "data": 5}']
)
def test_junk_is_no_envelope(key_file: Path, junk: bytes) -> None:
    with pytest.raises(MoorageError, match="not a sealed envelope"):
        Sealer.load(key_file).open(junk, HERE)


def test_envelope_of_an_unknown_key_says_which_key_is_missing(key_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.key"
    create_key_file(other)
    stranger = Sealer.load(other)
    with pytest.raises(MoorageError, match=f"{stranger.key_id}.*Give this hub the same seal key file"):
        Sealer.load(key_file).open(stranger.seal(b"secret", HERE), HERE)


def test_after_a_key_is_added_the_new_one_seals_and_both_open(key_file: Path) -> None:
    before = Sealer.load(key_file)
    old = before.seal(b"secret", HERE)
    new_id = add_key(key_file)
    after = Sealer.load(key_file)
    assert after.key_id == new_id != before.key_id
    assert after.open(old, HERE) == b"secret"
    assert after.needs_resealing(old)
    assert not after.needs_resealing(after.seal(b"secret", HERE))
    assert key_file.stat().st_mode & 0o777 == 0o600


def test_key_file_is_private_and_made_only_once(key_file: Path) -> None:
    content = key_file.read_text()
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert not create_key_file(key_file)
    assert key_file.read_text() == content
    assert [path.name for path in key_file.parent.iterdir()] == ["seal.key"]


def test_of_many_that_make_a_key_file_at_once_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "seal.key"
    made: list[bool] = []
    threads = [threading.Thread(target=lambda: made.append(create_key_file(path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [False] * 7 + [True]
    assert Sealer.load(path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_key_file_that_others_may_touch_is_refused(key_file: Path, mode: int) -> None:
    key_file.chmod(mode)
    with pytest.raises(UserError, match=f"may be read by others.*chmod 600 {key_file}"):
        Sealer.load(key_file)


def test_missing_key_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="moorage-hub init"):
        Sealer.load(tmp_path / "none")
    with pytest.raises(UserError, match="cannot be read"):
        Sealer.load(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "# only a comment\n", "k1 short\n", "K1 " + "A" * 43 + "=\n", "k1 " + "A" * 43 + "=\nk1 " + "B" * 43 + "=\n"],
)
def test_damaged_key_file_is_refused_without_showing_keys(key_file: Path, text: str) -> None:
    key_file.write_text(text)
    with pytest.raises(UserError) as refused:
        Sealer.load(key_file)
    assert "AAAA" not in str(refused.value)


def test_keys_do_not_show_in_repr(key_file: Path) -> None:
    sealer = Sealer.load(key_file)
    key = key_file.read_text().split()[1]
    assert key not in repr(sealer)
    assert key not in repr(vars(sealer))
