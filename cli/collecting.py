"""What goes into a bundle, from the package sources of this machine: apt looks for it in a state of its own, in which
nothing is installed, so that every dependency is found."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cli.bundle_file import Manifest, Package
from core.clock import SystemClock, iso
from core.errors import UnavailableError, UserError

EVERYTHING = ("etcd-server", "etcd-client", "postgresql-15", "mariadb-server", "pgbackrest", "openssl", "logrotate")
SCRIPT = "moorage-install.sh"  # as it lies beside our packages
APT_TIMEOUT_S = 1800
OS_RELEASE = Path("/etc/os-release")


@dataclass(frozen=True, slots=True)
class Collected:
    """`files` by their names in the bundle; they last as long as the collecting."""

    files: dict[str, Path]
    manifest: Manifest
    epoch_s: int


@contextmanager
def collect(folder: Path, roots: Sequence[str], *, say: Callable[[str], None]) -> Iterator[Collected]:
    """UserError when our packages are not whole, UnavailableError when apt cannot give the others."""
    own = own_packages(folder)
    script = folder / SCRIPT
    if not script.is_file():
        raise UserError(f"has no {SCRIPT}", object=str(folder), hint="./dev package makes it beside the packages.")
    with tempfile.TemporaryDirectory(prefix="moorage-bundle-") as name:
        apt = Apt(Path(name))
        say("reading the package sources")
        apt.update()
        say(f"collecting {', '.join(roots)} and what they depend on")
        apt.download([*roots, *(str(path.resolve()) for path in own)])
        lines, index, files = [], [], {}
        for path in sorted({*apt.archives.glob("*.deb"), *own}, key=lambda path: path.name):
            control = _control(path)
            version = control["Version"].rpartition(":")[2]  # as in the distribution's own pool
            file = f"pool/{control['Package']}_{version}_{control['Architecture']}.deb"
            files[file] = path
            lines.append(Package(name=control["Package"], version=control["Version"], file=file))
            index.append(_entry(path, file))
        (apt.root / "Packages").write_text("\n".join(index))
        files |= {"Packages": apt.root / "Packages", "install.sh": script}
        now = SystemClock().wall()
        yield Collected(files, _manifest(lines, own, roots, iso(now)), int(now))


def _manifest(lines: list[Package], own: list[Path], roots: Sequence[str], made_at: str) -> Manifest:
    ours = [_control(path) for path in own]
    return Manifest(
        moorage=ours[0]["Version"],
        release=_release(),
        architecture=ours[0]["Architecture"],
        made_at=made_at,
        roots=(*sorted(control["Package"] for control in ours), *roots),
        packages=tuple(lines),
    )


def own_packages(folder: Path) -> list[Path]:
    """UserError unless all are there, as the folder's SHA256SUMS says, and of one version."""
    if not (folder / "SHA256SUMS").is_file():
        raise UserError("has no SHA256SUMS", object=str(folder), hint="Name the folder that ./dev package has made.")
    found = []
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, _, name = line.partition("  ")
        path = folder / Path(name).name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise UserError("is not what SHA256SUMS says", object=str(path), hint="Build or fetch the packages again.")
        found += [path] if name.endswith(".deb") else []
    versions = {_control(path)["Version"] for path in found}
    if len(versions) != 1:
        raise UserError(f"packages of one version are needed, found {sorted(versions)}", object=str(folder))
    return sorted(found)


class Apt:
    """apt with lists, cache and a status of its own below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.archives = root / "archives"
        for name in ("lists/partial", "archives/partial"):
            (root / name).mkdir(parents=True)
        (root / "status").touch()
        settings = {
            "Dir::State::lists": root / "lists",
            "Dir::State::status": root / "status",
            "Dir::State::extended_states": root / "extended",
            "Dir::Cache": root,
            "Dir::Cache::archives": self.archives,
            "Debug::NoLocking": 1,
            "APT::Install-Recommends": 0,
            "APT::Sandbox::User": "root",  # which means: as whoever calls
        }
        self._options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]

    def update(self) -> None:
        self._run("update", "--error-on=any")

    def download(self, packages: Sequence[str]) -> None:
        self._run("install", "--yes", "--download-only", *packages)

    def _run(self, *arguments: str) -> None:
        command = ["apt-get", "-q", *self._options, *arguments]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=APT_TIMEOUT_S, env=_environment()
            )
        except FileNotFoundError as error:
            raise UserError("apt-get is missing: bundles are made on Debian", object="bundle") from error
        except subprocess.TimeoutExpired as error:
            raise UnavailableError(
                f"apt-get {arguments[0]} took more than {APT_TIMEOUT_S} s", object="bundle"
            ) from error
        if done.returncode:
            told = (done.stderr or done.stdout).strip()[-2000:]
            hint = "Can this machine reach its package sources?"
            raise UnavailableError(f"apt-get {arguments[0]} failed: {told}", object="bundle", hint=hint)


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}


def _control(path: Path) -> dict[str, str]:
    """Some fields of a package."""
    if shutil.which("dpkg-deb") is None:
        raise UserError("dpkg-deb is missing: bundles are made on Debian", object="bundle")
    done = subprocess.run(
        ["dpkg-deb", "--field", path, "Package", "Version", "Architecture"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if done.returncode:
        raise UserError(f"is no Debian package: {done.stderr.strip()}", object=str(path))
    return dict(line.split(": ", 1) for line in done.stdout.splitlines())


def _entry(path: Path, file: str) -> str:
    """Of apt's index."""
    done = subprocess.run(["dpkg-deb", "--field", path], capture_output=True, text=True, check=True, timeout=60)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return f"{done.stdout.rstrip()}\nFilename: {file}\nSize: {path.stat().st_size}\nSHA256: {digest}\n"


def _release() -> str:
    """Code name of the distribution."""
    for line in OS_RELEASE.read_text().splitlines():
        name, _, value = line.partition("=")
        if name == "VERSION_CODENAME":
            return value.strip('"')
    raise UserError("names no VERSION_CODENAME: bundles are made on Debian", object=str(OS_RELEASE))
