"""Packages on machines that have never seen Moorage and have no way out: installed, used, upgraded under clients, hung,
rebooted, removed, purged. Left out of plain `./dev test`; `./dev test --systemd` runs it.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packaging.machines import DISTRIBUTION, HOSTS, Machine, build, run, why_not
from tests.support.waiting import eventually_sync

pytestmark = [pytest.mark.skipif(bool(why_not()), reason=why_not() or "runs"), pytest.mark.timeout(1200)]
ALPHA, BETA = Machine("alpha", "10.92.0.11"), Machine("beta", "10.92.0.12")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build(tmp_path_factory.mktemp("first"))


@pytest.fixture
def machines() -> Iterator[tuple[Machine, Machine]]:
    run(HOSTS, "clean")
    run(HOSTS, "base", *DISTRIBUTION, within_s=900)
    ALPHA.boot()
    BETA.boot()
    yield ALPHA, BETA
    run(HOSTS, "clean")


def test_the_same_tree_gives_the_same_bytes_elsewhere(packages: dict[str, Path], tmp_path: Path) -> None:
    again = build(tmp_path / "another-name")
    assert {name: path.read_bytes() for name, path in again.items()} == {
        name: path.read_bytes() for name, path in packages.items()
    }


def test_lintian_has_no_error(packages: dict[str, Path]) -> None:
    found = run("lintian", "--fail-on", "error", *packages.values())
    assert "E: " not in found


def test_nothing_in_the_packages_names_the_place_where_they_were_built(
    packages: dict[str, Path], tmp_path: Path
) -> None:
    for name, path in packages.items():
        run("dpkg-deb", "--raw-extract", path, tmp_path / name)
    place = str(packages["moorage-common"].parents[1])
    assert subprocess.run(["grep", "-rlF", place, tmp_path], capture_output=True, text=True).stdout == ""


def test_a_life_of_two_machines(machines: tuple[Machine, Machine], packages: dict[str, Path], tmp_path: Path) -> None:
    alpha, beta = machines
    assert "default" not in alpha.sh("ip route")
    alpha.dpkg_install(*packages.values())
    beta.dpkg_install(packages["moorage-common"], packages["moorage-agent"])
    first_instance(alpha, beta)
    upgraded_under_clients(alpha, beta, build(tmp_path, version="0.1.1"))
    a_hung_agent_is_started_anew(beta)
    rebooted(alpha, beta)
    removed_and_purged(alpha, beta)


def first_instance(alpha: Machine, beta: Machine) -> None:
    """What docs/operating/installing.md tells an operator to do."""
    alpha.sh(f"sed -i 's/127.0.0.1:740/{alpha.address}:740/' /etc/moorage/hub.yaml")
    alpha.sh("systemctl start moorage-hub")
    alpha.sh(
        f"cd /var/lib/moorage-hub && moorctl --hub {alpha.address}:7401 --token-file admin.token --ca-file ca.crt"
        " context set prod"
    )
    for machine in (alpha, beta):
        who = f"s/^node: .*/node: {machine.name}/; s/^address: .*/address: {machine.address}/"
        machine.sh(f"sed -i '{who}' /etc/moorage/agent.yaml")
        token = alpha.sh(f"moorctl node token {machine.name} 2>/dev/null")
        (machine.root / "root" / "token").write_text(token)
        machine.sh(f"moorage-agent enrol --hub {alpha.address}:7401 --token-file /root/token && rm /root/token")
        machine.sh("systemctl start moorage-agent")
        assert machine.sh("systemctl is-active moorage-agent moorage-engines").split() == ["active", "active"]
    alpha.sh("moorctl instance create demo/orders --create-project --replicas 1 --timeout 90s", within_s=120)
    assert alpha.sh("moorctl instance connect demo/orders -- -Atc 'SELECT 6 * 7'").strip() == "42"
    assert "moorctl instance" in alpha.sh("man moorctl-instance | cat")
    assert (
        alpha.sh("systemd-analyze verify moorage-hub.service moorage-agent.service moorage-engines.service 2>&1") == ""
    )


class Writer:
    """A client that connects anew for each write, as scripts do."""

    def __init__(self, machine: Machine) -> None:
        self.written, self.errors, self._machine, self._ends = 0, list[str](), machine, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._ends.is_set():
            try:
                self._machine.sh("moorctl instance connect demo/orders -- -qAtc 'INSERT INTO seen DEFAULT VALUES'")
                self.written += 1
            except AssertionError as error:
                self.errors.append(str(error))

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ends.set()
        self._thread.join()


def upgraded_under_clients(alpha: Machine, beta: Machine, newer: dict[str, Path]) -> None:
    """Engines, an open session and a client that comes again and again notice nothing."""
    alpha.sh("moorctl instance connect demo/orders -- -qc 'CREATE TABLE seen (id serial PRIMARY KEY)'")
    uri = alpha.sh("moorctl instance connect demo/orders --print").strip()
    session = alpha.spawn(f"psql -XAtq '{uri}'")
    backend = asked(session, "SELECT pg_backend_pid();")
    asked(session, "CREATE TEMP TABLE mine AS SELECT 1 AS one; SELECT 0;")
    agents = {machine: machine.main_pid("moorage-agent") for machine in (alpha, beta)}
    engines = {machine: machine.postmaster() for machine in (alpha, beta)}
    with Writer(alpha) as writer:
        eventually_sync(lambda: writer.written >= 3, within=30, what="writes before the upgrade")
        beta.dpkg_install(newer["moorage-common"], newer["moorage-agent"])
        alpha.dpkg_install(*newer.values())
        for machine, old in agents.items():
            eventually_sync(
                lambda machine=machine, old=old: (
                    machine.main_pid("moorage-agent") not in {0, old}  # type: ignore[misc]
                    and machine.sh("systemctl is-active moorage-agent || true").strip() == "active"
                ),
                within=60,
                what=f"the new agent of {machine.name}",
            )
            eventually_sync(
                lambda machine=machine: "--release 0.1.1" in machine.sh("pgrep -af bin/[m]oorage-proxy"),  # type: ignore[misc]
                within=60,
                what=f"the new proxy of {machine.name}",
            )
        eventually_sync(lambda: settled(alpha), within=60, what="the instance after the upgrade")
        before = writer.written
        eventually_sync(lambda: writer.written >= before + 3, within=30, what="writes after the upgrade")
    assert asked(session, "SELECT pg_backend_pid();") == backend
    assert asked(session, "SELECT one FROM mine;") == "1"
    session.communicate("\\q\n", timeout=20)
    assert engines == {machine: machine.postmaster() for machine in (alpha, beta)}
    assert not writer.errors
    seen = int(alpha.sh("moorctl instance connect demo/orders -- -Atc 'SELECT count(*) FROM seen'"))
    assert seen == writer.written
    assert alpha.sh("dpkg-query -W -f '${Version}' moorage-hub") == "0.1.1-1"
    assert (
        alpha.sh("dpkg --verify moorage-common moorage-hub moorage-agent moorage-cli | grep -v ' /etc/' || true") == ""
    )


def asked(session: subprocess.Popen[str], statement: str) -> str:
    assert session.stdin is not None
    assert session.stdout is not None
    session.stdin.write(statement + "\n")
    session.stdin.flush()
    return session.stdout.readline().strip()


def settled(alpha: Machine) -> bool:
    """Every member runs, and replication is in step."""
    page = json.loads(alpha.sh("moorctl instance show demo/orders -o json"))
    members = page["status"]["members"]
    return page["status"]["phase"] == "Running" and len(members) == 2 and all(m["state"] == "running" for m in members)


def a_hung_agent_is_started_anew(machine: Machine) -> None:
    """By systemd's watchdog; the engine does not notice."""
    drop_in = "/run/systemd/system/moorage-agent.service.d"
    machine.sh(f"mkdir -p {drop_in} && printf '[Service]\\nWatchdogSec=2\\n' >{drop_in}/test.conf")
    machine.sh("systemctl daemon-reload && systemctl restart moorage-agent")
    engine, hung = machine.postmaster(), machine.main_pid("moorage-agent")
    machine.sh(f"kill -STOP {hung}")
    eventually_sync(
        lambda: machine.main_pid("moorage-agent") not in {0, hung}, within=30, every=0.3, what="another agent"
    )
    eventually_sync(lambda: machine.sh("systemctl is-active moorage-agent || true").strip() == "active", within=30)
    assert "watchdog" in machine.sh("journalctl -u moorage-agent --no-pager").lower()
    assert machine.postmaster() == engine != ""
    machine.sh(f"rm -r {drop_in} && systemctl daemon-reload")


def rebooted(alpha: Machine, beta: Machine) -> None:
    """Each in turn; everything comes back by itself, and engines were stopped in order."""
    for machine in (beta, alpha):
        began = time.time()
        machine.reboot()
        eventually_sync(
            lambda: settled(alpha), within=120, every=0.5, what=f"the instance after {machine.name}'s reboot"
        )
        log = machine.sh(f"cat /var/lib/moorage/members/*/log/* | tail -n 400; echo {began}")
        assert "database system is shut down" in log
    assert int(alpha.sh("moorctl instance connect demo/orders -- -Atc 'SELECT count(*) FROM seen'")) > 0


def removed_and_purged(alpha: Machine, beta: Machine) -> None:
    """Removal stops, purge forgets; data goes only when somebody says so."""
    data = "ls /var/lib/moorage/members/*/data/PG_VERSION"
    beta.sh("dpkg -r moorage-agent", within_s=200)
    assert beta.postmaster() == ""
    assert beta.sh("pgrep -f bin/[m]oorage- || true") == ""
    beta.sh(data)
    beta.sh("test -e /etc/moorage/agent.yaml")
    told = beta.sh("DEBIAN_FRONTEND=noninteractive dpkg -P moorage-agent moorage-common")
    assert "/var/lib/moorage stays" in told
    beta.sh(data)
    beta.sh("test ! -e /etc/moorage && test ! -e /opt/moorage")

    alpha.sh("echo moorage-agent moorage-agent/purge-data boolean true | debconf-set-selections")
    alpha.sh(
        "DEBIAN_FRONTEND=noninteractive dpkg -P moorage-agent moorage-hub moorage-cli moorage-common", within_s=200
    )
    alpha.sh("test ! -e /var/lib/moorage && test -s /var/lib/moorage-hub/seal.key && test ! -e /opt/moorage")
