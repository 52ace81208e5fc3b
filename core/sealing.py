"""Sealing secrets before they go to etcd: AES-256-GCM under a key that is never in etcd.

An envelope is one line of JSON, `{"v": 1, "key": <id>, "nonce": ..., "data": ...}`, so that `etcdctl get` shows what it
is and by which key. The context, the etcd key it is stored at, is authenticated with it: an envelope copied to another
place does not open there.

The key file holds one key a line, `<id> <base64 of 32 bytes>`. The first one seals, all of them open: to rotate, put a
new key in front (`add_key`), give the file to every hub, let the hubs seal anew, then take the old key out. Whoever can
read the file can open everything, so a file that group or others may read is refused.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from core.errors import MoorageError, UserError

KEY_BYTES = 32
NONCE_BYTES = 12  # what GCM is made for; random ones are safe for 2^32 envelopes of one key
_LINE = re.compile(r"([a-z0-9-]{1,40}) ([A-Za-z0-9+/]{43}=)")


@dataclass(frozen=True, slots=True)
class _Key:
    id: str
    bytes: bytes = field(repr=False)


class Sealer:
    """Seals with its first key, opens with any. Invariant: there is at least one key, and ids are unique."""

    def __init__(self, keys: tuple[_Key, ...]) -> None:
        if not keys or len({key.id for key in keys}) != len(keys):
            raise UserError("a key file needs at least one key, and each id once", object="seal key file")
        self._sealing = keys[0]
        self._ciphers = {key.id: AESGCM(key.bytes) for key in keys}

    def __repr__(self) -> str:
        return f"Sealer(key={self._sealing.id!r})"

    @property
    def key_id(self) -> str:
        """Id of the key that seals."""
        return self._sealing.id

    @staticmethod
    def load(path: Path) -> Sealer:
        """From a key file. UserError when it is missing, damaged, or readable for others than its owner."""
        return Sealer(_parse(_read_private(path), path))

    def seal(self, plain: bytes, context: str) -> bytes:
        """The envelope. `context` is where it will lie; the same text must be given to open it."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        data = self._ciphers[self._sealing.id].encrypt(nonce, plain, context.encode())
        envelope = {"v": 1, "key": self._sealing.id, "nonce": _text(nonce), "data": _text(data)}
        return json.dumps(envelope, separators=(",", ":")).encode()

    def open(self, sealed: bytes, context: str) -> bytes:
        """What was sealed. MoorageError names the context and the key id when it cannot be opened."""
        key_id, nonce, data = _envelope(sealed, context)
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise MoorageError(
                f"sealed with key {key_id!r}, which the seal key file does not have",
                object=context,
                hint="Give this hub the same seal key file as the others.",
            )
        try:
            return cipher.decrypt(nonce, data, context.encode())
        except InvalidTag as error:
            raise MoorageError(
                f"does not open with key {key_id!r}: it was changed, or moved from another place", object=context
            ) from error

    def needs_resealing(self, sealed: bytes) -> bool:
        """Whether another key than the first one sealed it."""
        return _envelope(sealed, "")[0] != self._sealing.id


def _envelope(sealed: bytes, context: str) -> tuple[str, bytes, bytes]:
    try:
        raw = json.loads(sealed)
        if raw["v"] != 1:
            raise ValueError(f"version {raw['v']!r}")
        return str(raw["key"]), base64.b64decode(raw["nonce"]), base64.b64decode(raw["data"])
    except (ValueError, KeyError, TypeError) as error:
        raise MoorageError(f"not a sealed envelope: {error!r}", object=context) from error


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


# --- the key file ---------------------------------------------------------------------------------------------------


def create_key_file(path: Path) -> bool:
    """Make a key file with one fresh key, mode 0600. False when there is one already, which is then left alone."""
    scratch = _write_scratch(path, [_fresh_line()])
    try:
        os.link(scratch, path)  # fails when the file exists; a reader never sees half a file
    except FileExistsError:
        return False
    finally:
        scratch.unlink()
    _sync_directory(path.parent)
    return True


def add_key(path: Path) -> str:
    """Put a fresh key in front of the others, from now on the one that seals. Returns its id."""
    line = _fresh_line()
    old = _read_private(path)
    _parse(old, path)
    scratch = _write_scratch(path, [line, *old.splitlines()])
    scratch.rename(path)
    _sync_directory(path.parent)
    return line.split()[0]


def _fresh_line() -> str:
    return f"k{secrets.token_hex(4)} {_text(secrets.token_bytes(KEY_BYTES))}"


def _write_scratch(path: Path, lines: list[str]) -> Path:
    """A complete, synced file of mode 0600 beside `path`."""
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write("".join(f"{line}\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())
    return scratch


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read_private(path: Path) -> str:
    try:
        with path.open() as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise UserError("seal key file is not a regular file", object=str(path))
            if facts.st_mode & 0o077:
                raise UserError(
                    f"seal key file may be read by others (mode {stat.S_IMODE(facts.st_mode):04o})",
                    object=str(path),
                    hint=f"Run: chmod 600 {path}",
                )
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"seal key file cannot be read: {error}",
            object=str(path),
            hint="Run `moorage-hub init`, or copy the file from another hub.",
        ) from error


def _parse(text: str, path: Path) -> tuple[_Key, ...]:
    keys = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise UserError("a line must be `<id> <base64 of 32 bytes>`", object=f"{path}:{number}")
        keys.append(_Key(match[1], base64.b64decode(match[2])))
    if not keys:
        raise UserError("seal key file holds no key", object=str(path))
    return tuple(keys)
