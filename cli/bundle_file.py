"""A bundle: all that machines without a network need, in one tar that says what it holds and who made it.

    SHA256SUMS        of every other file, in the form that `sha256sum -c` reads
    SHA256SUMS.sig    its Ed25519 signature by the operator's key, 64 bytes
    manifest.json     what the bundle is for, and its packages
    install.sh        sets up machines from it
    Packages          the index by which apt finds its way in `pool`
    pool/*.deb

The first three come first, so that a reader knows whom to trust before it takes anything else. `sha256sum` and
`openssl` can check it as well as this module: a machine that is being set up has nothing else.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from core.errors import UserError

FORMAT = 1
SUMS, SIGNATURE, MANIFEST = "SHA256SUMS", "SHA256SUMS.sig", "manifest.json"
HEAD = (SUMS, SIGNATURE, MANIFEST)
HEAD_BYTES_MAX = 4 << 20
FILES_MAX = 10_000
CHUNK_BYTES = 1 << 20
_NAME = re.compile(r"SHA256SUMS(?:\.sig)?|manifest\.json|install\.sh|Packages|pool/[A-Za-z0-9][A-Za-z0-9.+~_-]*\.deb")
_SUM_LINE = re.compile(r"([0-9a-f]{64})  (\S+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One Debian package. `file`: its name in the bundle."""

    name: str
    version: str
    file: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a bundle is for. `roots`: the packages that were asked for; the others are there for their sake."""

    moorage: str  # version of our own packages
    release: str  # of Debian, by its code name
    architecture: str
    made_at: str  # ISO 8601, UTC
    roots: tuple[str, ...]
    packages: tuple[Package, ...]

    def text(self) -> bytes:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1).encode() + b"\n"

    @classmethod
    def of(cls, text: bytes, path: str) -> Manifest:
        """UserError when it is none, or one of another time."""
        try:
            told = json.loads(text)
            if told["format"] != FORMAT:
                raise UserError(
                    f"format {told['format']} is not known; this program reads {FORMAT}",
                    object=path,
                    hint="Use the moorctl that the bundle was made with.",
                )
            packages = tuple(Package(**package) for package in told["packages"])
            plain = {name: str(told[name]) for name in ("moorage", "release", "architecture", "made_at")}
            return cls(**plain, roots=tuple(map(str, told["roots"])), packages=packages)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{MANIFEST} cannot be read: {error}", object=path) from error


# --- keys ---------------------------------------------------------------------------------------------------------


def private_key(path: Path) -> Ed25519PrivateKey:
    """UserError when the file holds no such key."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"no private key: {error}", object=str(path), hint="moorctl bundle key makes one.") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError("is no Ed25519 key", object=str(path), hint="moorctl bundle key makes one.")
    return key


def public_key(path: Path) -> Ed25519PublicKey:
    """UserError when the file holds no such key."""
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"no public key: {error}", object=str(path)) from error
    if not isinstance(key, Ed25519PublicKey):
        raise UserError("is no Ed25519 key", object=str(path))
    return key


def fingerprint(key: Ed25519PublicKey) -> str:
    """For people to compare: SHA-256 of its DER form, in hex by twos of bytes."""
    raw = hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
    return ":".join(raw[at : at + 4] for at in range(0, 32, 4))


# --- writing ------------------------------------------------------------------------------------------------------


def write(path: Path, files: Mapping[str, Path], manifest: Manifest, key: Ed25519PrivateKey, epoch_s: int) -> None:
    """All at once: `path` is there whole or not at all. `files`: beside the head, by their names in the bundle."""
    sums = {MANIFEST: hashlib.sha256(manifest.text()).hexdigest()}
    for name, source in sorted(files.items()):
        _check_name(name, str(path))
        with source.open("rb") as file:
            sums[name] = hashlib.file_digest(file, "sha256").hexdigest()
    text = "".join(f"{digest}  {name}\n" for name, digest in sums.items()).encode()
    unready = path.with_name(f".{path.name}.new")
    try:
        with tarfile.open(unready, "w", format=tarfile.USTAR_FORMAT) as tar:
            for name, content in ((SUMS, text), (SIGNATURE, key.sign(text)), (MANIFEST, manifest.text())):
                tar.addfile(_member(name, len(content), epoch_s), io.BytesIO(content))
            for name, source in sorted(files.items()):
                with source.open("rb") as file:
                    tar.addfile(_member(name, source.stat().st_size, epoch_s), file)
        unready.rename(path)
    finally:
        unready.unlink(missing_ok=True)


def _member(name: str, size: int, epoch_s: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mtime = size, epoch_s
    member.mode = 0o755 if name.endswith(".sh") else 0o644
    return member


# --- reading ------------------------------------------------------------------------------------------------------


def verify(path: Path, key: Ed25519PublicKey) -> Manifest:
    """Read all of it. UserError unless it is signed by this key, and holds what was signed and nothing else."""
    try:
        with tarfile.open(path, "r:") as tar:
            members = _members(tar, str(path))
            manifest, sums = _head(members, key, str(path))
            for name, content in members:
                if name not in sums:
                    raise UserError(f"holds {name} twice, or unsigned", object=str(path), hint=_DISTRUST)
                if _digest(content) != sums.pop(name):
                    raise UserError(f"{name} is not what was signed", object=str(path), hint=_DISTRUST)
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"cannot be read: {error}", object=str(path)) from error
    if sums:
        raise UserError(f"lacks {min(sums)} and {len(sums) - 1} more", object=str(path), hint="Copy it again.")
    return manifest


_DISTRUST = "Do not use it; copy it again from where it was made."


def _head(
    members: Iterator[tuple[str, IO[bytes]]], key: Ed25519PublicKey, path: str
) -> tuple[Manifest, dict[str, str]]:
    """The sums, believed because they are signed, and the manifest, believed because it is among them."""
    texts: dict[str, bytes] = {}
    for expected in HEAD:
        name, content = next(members, ("", io.BytesIO()))
        if name != expected:
            raise UserError(f"is no bundle: {expected} is not where it should be", object=path)
        texts[name] = content.read(HEAD_BYTES_MAX + 1)
        if len(texts[name]) > HEAD_BYTES_MAX:
            raise UserError(f"is no bundle: its {name} is longer than {HEAD_BYTES_MAX} bytes", object=path)
    try:
        key.verify(texts[SIGNATURE], texts[SUMS])
    except InvalidSignature as error:
        raise UserError(
            f"is not signed by the key {fingerprint(key)}", object=path, hint="Is that the key of who made it?"
        ) from error
    sums = parse_sums(texts[SUMS], path)
    if sums.pop(MANIFEST, "") != hashlib.sha256(texts[MANIFEST]).hexdigest():
        raise UserError(f"{MANIFEST} is not what was signed", object=path, hint=_DISTRUST)
    return Manifest.of(texts[MANIFEST], path), sums


def parse_sums(text: bytes, path: str) -> dict[str, str]:
    """Digests by name. UserError when a line is none, or a name one that no bundle has."""
    sums: dict[str, str] = {}
    for line in text.decode("ascii", errors="replace").splitlines():
        match = _SUM_LINE.fullmatch(line)
        if match is None:
            raise UserError(f"{SUMS} cannot be read: {line[:100]!r}", object=path)
        _check_name(match[2], path)
        sums[match[2]] = match[1]
    return sums


def _check_name(name: str, path: str) -> None:
    if _NAME.fullmatch(name) is None:
        raise UserError(f"holds {name[:200]!r}, which no bundle has", object=path, hint=_DISTRUST)


def _members(tar: tarfile.TarFile, path: str) -> Iterator[tuple[str, IO[bytes]]]:
    """Regular files with allowed names, one after the other, each to be read before the next."""
    for number, member in enumerate(tar):
        _check_name(member.name, path)
        content = tar.extractfile(member) if member.isreg() else None
        if content is None or number > FILES_MAX:
            raise UserError(f"holds {member.name}, which is no plain file", object=path, hint=_DISTRUST)
        yield member.name, content


def _digest(content: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := content.read(CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()
