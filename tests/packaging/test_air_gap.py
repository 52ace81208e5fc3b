"""From a bundle to a highly available database on machines that have nothing but a minimal Debian and no way out."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packaging.machines import HOSTS, Machine, build, run, why_not
from tests.support.waiting import eventually_sync

pytestmark = [pytest.mark.skipif(bool(why_not()), reason=why_not() or "runs"), pytest.mark.timeout(1800)]
MACHINES = tuple(Machine(name, f"10.94.0.{at}") for at, name in enumerate(("alpha", "beta", "gamma"), start=11))
MEMBERS = ",".join(f"{machine.name}={machine.address}" for machine in MACHINES)
MOORCTL = Path(sys.executable).parent / "moorctl"


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HOSTS_DIR", "/var/cache/moorage-bare-hosts")
    monkeypatch.setenv("HOSTS_BRIDGE", "moobare")
    monkeypatch.setenv("HOSTS_GATEWAY", "10.94.0.1/24")
    run(HOSTS, "clean")
    run(HOSTS, "base", within_s=900)
    for machine in MACHINES:
        machine.boot()
    yield
    run(HOSTS, "clean")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    packages = build(folder / "packages")
    run(MOORCTL, "bundle", "key", folder / "operator")
    command = [MOORCTL, "bundle", "create", "--key", folder / "operator"]
    run(*command, "--packages", packages["moorage-common"].parent, folder / "all.tar", within_s=900)
    return folder / "all.tar"


def test_a_site_is_made_from_the_bundle_alone(bare: None, bundle: Path, tmp_path: Path) -> None:
    key = bundle.parent / "operator.pub"
    told = run(MOORCTL, "bundle", "verify", "--key", key, bundle)
    for name in ("moorage-agent 0.", "postgresql-15 15.", "mariadb-server ", "pgbackrest ", "etcd-server "):
        assert f"\n  {name}" in told
    for machine in MACHINES:
        assert "default" not in machine.sh("ip route")
        assert machine.sh("ls /usr/lib/postgresql /opt/moorage 2>/dev/null || true") == ""
        (machine.root / "root" / "bundle").mkdir()
        shutil.copy(bundle, machine.root / "root")
        shutil.copy(key, machine.root / "root")
        machine.sh("tar -xf /root/all.tar -C /root/bundle && rm /root/all.tar")
    alpha, beta, gamma = MACHINES
    what_is_not_genuine_is_refused(alpha, tmp_path)
    install(alpha, f"etcd --member alpha --members {MEMBERS}")
    for machine in (beta, gamma):
        tar = f"moorage-etcd-{machine.name}.tar"
        shutil.copy(alpha.root / "root" / tar, machine.root / "root")
        install(machine, f"etcd --from /root/{tar}")
    told = install(alpha, f"hub --name hub-1 --address {alpha.address}")
    assert "KEEP A COPY of /var/lib/moorage-hub/seal.key" in told
    etcd_lets_in_whom_it_should(alpha, beta)
    for machine in MACHINES:
        token = alpha.sh(f"moorctl node token {machine.name} 2>/dev/null")
        (machine.root / "root" / "token").write_text(token)
        node = (
            f"node --name {machine.name} --address {machine.address} --hub {alpha.address}:7401 --zone z{machine.name}"
        )
        install(machine, f"{node} --token-file /root/token")
    alpha.sh(
        "moorctl instance create demo/orders --create-project --replicas 2 --mode sync --timeout 120s", within_s=150
    )
    alpha.sh("moorctl instance connect demo/orders -- -qc 'CREATE TABLE t AS SELECT generate_series(1, 100) AS n'")
    a_machine_that_falls_silent_is_followed(alpha)


def install(machine: Machine, what: str, *, fails: bool = False) -> str:
    return machine.sh(f"cd /root/bundle && ./install.sh --key /root/operator.pub {what}", within_s=600, fails=fails)


def what_is_not_genuine_is_refused(machine: Machine, tmp_path: Path) -> None:
    run(MOORCTL, "bundle", "key", tmp_path / "foreign")
    shutil.copy(tmp_path / "foreign.pub", machine.root / "root")
    told = machine.sh("/root/bundle/install.sh --key /root/foreign.pub packages", fails=True)
    assert "is not signed by the key in /root/foreign.pub" in told
    machine.sh("cp /root/bundle/Packages /root/Packages; echo >>/root/bundle/Packages")
    assert "the bundle is not whole" in install(machine, "packages", fails=True)
    machine.sh("mv /root/Packages /root/bundle/Packages")
    assert "--name: 'X' is no name" in install(machine, "node --name X --address 10.94.0.11 --hub h:7401", fails=True)
    assert machine.sh("ls /opt/moorage 2>/dev/null || true") == ""


def etcd_lets_in_whom_it_should(alpha: Machine, beta: Machine) -> None:
    """Those with a certificate of its CA, and those only as far as their name goes."""
    ask = "ETCDCTL_API=3 timeout 10 etcdctl --dial-timeout 2s --command-timeout 3s"
    beta.sh(f"{ask} --endpoints http://{alpha.address}:2379 get /moorage --prefix --keys-only", fails=True)
    place = f"--endpoints https://{alpha.address}:2379 --cacert /etc/moorage/etcd/ca.crt"
    beta.sh(f"{ask} {place} get /moorage --prefix --keys-only", fails=True)
    hub = f"{place} --cert /etc/moorage/etcd/hub.crt --key /etc/moorage/etcd/hub.key"
    assert "/moorage/" in beta.sh(f"{ask} {hub} get /moorage/ --prefix --keys-only")
    assert "permission denied" in beta.sh(f"{ask} {hub} put /other x 2>&1", fails=True)
    peer = f"{place} --cert /etc/moorage/etcd/member-beta.crt --key /etc/moorage/etcd/member-beta.key"
    beta.sh(f"{ask} {peer} get /moorage --prefix --keys-only", fails=True)
    status = json.loads(beta.sh(f"{ask} {hub} --cluster endpoint status -w json 2>/dev/null || echo []"))
    assert len(status) in {0, 3}


def a_machine_that_falls_silent_is_followed(alpha: Machine) -> None:
    """The plug of the node that leads is pulled, unless the hub lives there: then it moves away first."""

    def leaders() -> set[str]:
        """By what was heard last: a node that is silent still shows what it was."""
        page = json.loads(alpha.sh("moorctl instance show demo/orders -o json"))
        members = page["status"]["members"]
        return {str(one["node"]) for one in members if one["role"] == "primary" and one["state"] == "running"}

    if leaders() == {"alpha"}:
        alpha.sh("moorctl instance switchover demo/orders", within_s=120)
    eventually_sync(lambda: len(leaders() & {"beta", "gamma"}) == 1, within=30, what="a primary on another machine")
    (old,) = leaders()
    run(HOSTS, "kill", old)
    eventually_sync(lambda: leaders() - {old}, within=60, every=0.5, what="another primary")
    eventually_sync(
        lambda: alpha.sh("moorctl instance connect demo/orders -- -Atc 'DELETE FROM t'").strip() == "DELETE 100",
        within=30,
        what="all rows, and leave to change them",
    )
