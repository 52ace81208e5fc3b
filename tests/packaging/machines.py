"""Packages built from a copy of this tree, and booted machines to install them on."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOSTS = Path(__file__).resolve().parent / "hosts"
# What a site has before Moorage comes.
DISTRIBUTION = ("postgresql-15", "etcd-server", "etcd-client", "logrotate", "man-db", "bash-completion")


def run(*command: str | Path, within_s: float = 120, stdin: str | None = None, fails: bool = False) -> str:
    """What it printed, errors as well; AssertionError when it ends otherwise than expected."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=within_s, input=stdin
    )
    assert (done.returncode != 0) == fails, f"{command} ended with {done.returncode}: {done.stdout}"
    return done.stdout


def build(into: Path, *, version: str | None = None) -> dict[str, Path]:
    """Packages by name, built from a copy of the tree in a folder of its own."""
    tree, out = into / "tree", into / "out"
    for name in run("git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    if version is not None:
        project = tree / "pyproject.toml"
        project.write_text(project.read_text().replace('version = "0.1.0"', f'version = "{version}"'))
    when = run("git", "-C", ROOT, "log", "-1", "--format=%ct").strip()
    command = ["env", f"SOURCE_DATE_EPOCH={when}", tree / "packaging" / "build", "--out", out]
    run(*command, "--wheels", ROOT / "build" / "wheels", within_s=600)
    return {path.name.split("_")[0]: path for path in sorted(out.glob("*.deb"))}


@dataclass(frozen=True, slots=True)
class Machine:
    """A booted host."""

    name: str
    address: str

    def boot(self) -> None:
        run(HOSTS, "up", self.name, self.address)

    def reboot(self) -> None:
        run(HOSTS, "reboot", self.name, within_s=200)

    def sh(self, script: str, *, within_s: float = 120, fails: bool = False) -> str:
        return run(HOSTS, "sh", self.name, "sh", "-c", script, within_s=within_s, fails=fails)

    def spawn(self, script: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [HOSTS, "sh", self.name, "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @property
    def root(self) -> Path:
        return Path(run(HOSTS, "root", self.name).strip())

    def dpkg_install(self, *packages: Path) -> str:
        folder = self.root / "root" / "debs"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for package in packages:
            shutil.copy(package, folder)
        return self.sh("DEBIAN_FRONTEND=noninteractive dpkg -i /root/debs/*.deb", within_s=300)

    def main_pid(self, unit: str) -> int:
        return int(self.sh(f"systemctl show -P MainPID {unit}"))

    def postmaster(self) -> str:
        """Pid of Moorage's engine, empty when none runs."""
        return self.sh("pgrep -o -f '^/usr/lib/postgresql/15/bin/postgres -D /var/lib/moorage' || true").strip()


def why_not() -> str:
    """Why such machines cannot run here; empty when they can."""
    if not os.environ.get("MOORAGE_TEST_SYSTEMD"):
        return "boots machines and builds packages, some minutes: ./dev test --systemd"
    if os.geteuid() != 0:
        return "booting machines needs root"
    missing = [name for name in ("debootstrap", "systemd-nspawn", "nsenter", "lintian") if shutil.which(name) is None]
    return f"missing: {', '.join(missing)}" if missing else ""
