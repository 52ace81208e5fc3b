"""Bundles: what was signed is read back, and whatever was changed on the way is found."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from cli.bundle_file import Manifest, Package, parse_sums, private_key, public_key, verify, write
from core.errors import UserError

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
MANIFEST = Manifest(
    moorage="0.1.0-1",
    release="bookworm",
    architecture="amd64",
    made_at="2026-11-25T10:00:00Z",
    roots=("moorage-hub",),
    packages=(Package(name="moorage-hub", version="0.1.0-1", file="pool/moorage-hub_0.1.0-1_amd64.deb"),),
)
Content = list[tuple[tarfile.TarInfo, bytes]]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    for name in ("hub.deb", "install.sh", "Packages"):
        (tmp_path / name).write_text(f"content of {name}")
    files = {
        MANIFEST.packages[0].file: tmp_path / "hub.deb",
        "install.sh": tmp_path / "install.sh",
        "Packages": tmp_path / "Packages",
    }
    write(tmp_path / "made.tar", files, MANIFEST, KEY, 1_700_000_000)
    return tmp_path / "made.tar"


def test_what_was_written_is_read_and_the_same_input_gives_the_same_bytes(made: Path, tmp_path: Path) -> None:
    assert verify(made, KEY.public_key()) == MANIFEST
    first = made.read_bytes()
    files = {name: tmp_path / name for name in ("install.sh", "Packages")}
    write(made, files | {MANIFEST.packages[0].file: tmp_path / "hub.deb"}, MANIFEST, KEY, 1_700_000_000)
    assert made.read_bytes() == first
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_the_programs_that_every_machine_has_find_it_whole_too(made: Path, tmp_path: Path) -> None:
    place = tmp_path / "unpacked"
    place.mkdir()
    subprocess.run(["tar", "-xf", made, "-C", place], check=True)
    assert subprocess.run(["sha256sum", "--quiet", "--strict", "-c", "SHA256SUMS"], cwd=place).returncode == 0
    (tmp_path / "pub").write_bytes(KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed here")
    command = "openssl pkeyutl -verify -pubin -inkey ../pub -rawin -in SHA256SUMS -sigfile SHA256SUMS.sig"
    assert subprocess.run(command.split(), cwd=place, capture_output=True).returncode == 0
    assert (place / "install.sh").stat().st_mode & 0o111


def rewritten(path: Path, change: Callable[[Content], Content]) -> None:
    with tarfile.open(path) as tar:
        content = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    with tarfile.open(path, "w") as tar:
        for member, data in change(content):
            member.size = len(data) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(data))


def replaced(name: str, data: bytes) -> Callable[[Content], Content]:
    return lambda content: [(member, data if member.name == name else old) for member, old in content]


def added(name: str, data: bytes = b"x", kind: bytes = tarfile.REGTYPE) -> Callable[[Content], Content]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    return lambda content: [*content, (member, data)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (replaced("pool/moorage-hub_0.1.0-1_amd64.deb", b"worm"), "hub_0.1.0-1_amd64.deb is not what was signed"),
        (replaced("install.sh", b"rm -rf /"), "install.sh is not what was signed"),
        (replaced("manifest.json", b"{}"), "manifest.json is not what was signed"),
        (replaced("SHA256SUMS", b""), "is not signed by the key"),
        (replaced("SHA256SUMS.sig", bytes(64)), "is not signed by the key"),
        (replaced("SHA256SUMS.sig", b""), "is not signed by the key"),
        (added("pool/more.deb"), "holds pool/more.deb twice, or unsigned"),
        (added("install.sh"), "holds install.sh twice, or unsigned"),
        (added("../../etc/passwd"), "which no bundle has"),
        (added("pool/../../x.deb"), "which no bundle has"),
        (added("/pool/x.deb"), "which no bundle has"),
        (added("pool/x.deb", b"", tarfile.SYMTYPE), "holds pool/x.deb, which is no plain file"),
        (added("pool/x.deb", b"", tarfile.LNKTYPE), "holds pool/x.deb"),
        (lambda content: content[:-1], "lacks pool/moorage-hub_0.1.0-1_amd64.deb"),
        (lambda content: [content[1], content[0], *content[2:]], "SHA256SUMS is not where it should be"),
        (lambda content: content[3:], "is no bundle"),
        (lambda content: [], "is no bundle"),
    ],
)  # fmt: skip
def test_what_was_changed_is_found(made: Path, change: Callable[[Content], Content], words: str) -> None:
    rewritten(made, change)
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        verify(made, KEY.public_key())


@pytest.mark.parametrize("at", [0, 600, 3000, 4000])
def test_a_file_that_was_cut_or_is_none_is_refused(made: Path, tmp_path: Path, at: int) -> None:
    made.write_bytes(made.read_bytes()[:at])
    with pytest.raises(UserError):
        verify(made, KEY.public_key())
    with pytest.raises(UserError, match="cannot be read"):
        verify(tmp_path / "nowhere", KEY.public_key())


def test_another_key_is_not_believed(made: Path) -> None:
    with pytest.raises(UserError, match="is not signed by the key"):
        verify(made, Ed25519PrivateKey.generate().public_key())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"format": 2}', "format 2 is not known"),
        (b"[]", "cannot be read"),
        (b'{"format": 1}', "cannot be read"),
        (b"\xff", "cannot be read"),
    ],
)
def test_a_manifest_of_another_time_is_refused(text: bytes, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Manifest.of(text, "b.tar")


@pytest.mark.parametrize(
    "line", [b"abc  install.sh", b"0" * 64 + b" install.sh", b"0" * 64 + b"  ../install.sh", b"\xff"]
)
def test_odd_sums_are_refused(line: bytes) -> None:
    with pytest.raises(UserError):
        parse_sums(line + b"\n", "b.tar")


def test_keys_are_read_and_others_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    assert private_key(path).public_key() == KEY.public_key()
    with pytest.raises(UserError, match="no public key"):
        public_key(path)
    path.write_bytes(KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    assert public_key(path) == KEY.public_key()
    for reads in (private_key, public_key):
        path.write_text("nothing")
        with pytest.raises(UserError, match=str(path)):
            reads(path)
