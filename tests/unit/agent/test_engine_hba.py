"""Who may connect to an engine: evaluated as the server does, first line that fits."""

from __future__ import annotations

import ipaddress

import pytest

from agent.engines.postgres.hba import Neighbour, render_hba, render_ident
from core.records import Followers

N2 = Neighbour(node="n2", address="10.0.0.2", tls=True)
N3 = Neighbour(node="n3", address="10.0.0.3", tls=False)
V6 = Neighbour(node="n4", address="fd00::4", tls=True)


def verdict(hba: str, *, kind: str, database: str, user: str, source: str) -> str:
    """What the server would do: the method of the first line that fits, or `none`."""
    for line in hba.splitlines():
        if line.startswith("#"):
            continue
        type_, databases, users, *rest = line.split()
        if type_ == "local":
            if kind == "local" and users in ("all", user):
                return rest[0]
            continue
        address, method = rest[0], rest[1]
        kinds = {"host": ("ssl", "plain"), "hostssl": ("ssl",), "hostnossl": ("plain",)}[type_]
        listed = databases.split(",")
        fits_database = database in listed or ("all" in listed and database != "replication")
        fits_user = users == "all" or user in users.split(",")
        fits_source = address == "all" or ipaddress.ip_address(source) in ipaddress.ip_network(address)
        if kind in kinds and fits_database and fits_user and fits_source:
            return method
    return "none"


HBA = render_hba(own_address="10.0.0.1", neighbours=[N2, N3, V6], tls=True)
WEST = Followers(user="west", networks=("10.9.0.0/16",))
FOLLOWED = render_hba(own_address="10.0.0.1", neighbours=[N2], tls=True, followers=WEST)
STANDBY = render_hba(own_address="10.0.0.1", neighbours=[N2, N3], tls=True, user="Far")


@pytest.mark.parametrize(
    ("kind", "database", "user", "source", "method"),
    [
        pytest.param("ssl", "replication", "west", "10.9.1.1", "scram-sha-256", id="a follower"),
        pytest.param("plain", "replication", "west", "10.9.1.1", "none", id="not without TLS"),
        pytest.param("ssl", "replication", "west", "10.8.1.1", "none", id="not from elsewhere"),
        pytest.param("ssl", "replication", "app", "10.9.1.1", "none", id="no other role"),
        pytest.param("ssl", "replication", "moorage_replication", "10.9.1.1", "none", id="nor as a member"),
        pytest.param("ssl", "shop", "west", "10.9.1.1", "reject", id="nor into a database"),
    ],
)
def test_whom_an_instance_lets_follow_it(kind: str, database: str, user: str, source: str, method: str) -> None:
    assert verdict(FOLLOWED, kind=kind, database=database, user=user, source=source) == method


@pytest.mark.parametrize(
    ("kind", "database", "user", "source", "method"),
    [
        pytest.param("ssl", "replication", '"Far"', "10.0.0.2", "cert", id="a member comes as the remote's role"),
        pytest.param("plain", "replication", '"Far"', "10.0.0.3", "scram-sha-256", id="by password without TLS"),
        pytest.param("ssl", "shop", '"Far"', "10.0.0.2", "reject", id="into no database of users"),
        pytest.param("ssl", "replication", "moorage_replication", "10.0.0.2", "none", id="there is no role of ours"),
        pytest.param("ssl", "shop", "app", "10.0.0.2", "scram-sha-256", id="clients as ever"),
    ],
)
def test_members_of_a_standby_instance(kind: str, database: str, user: str, source: str, method: str) -> None:
    assert verdict(STANDBY, kind=kind, database=database, user=user, source=source) == method


@pytest.mark.parametrize(
    ("kind", "database", "user", "source", "method"),
    [
        pytest.param("local", "postgres", "postgres", "", "peer", id="the agent"),
        pytest.param("local", "shop", "app", "", "reject", id="nobody else over the socket"),
        pytest.param("ssl", "replication", "moorage_replication", "10.0.0.2", "cert", id="a member with TLS"),
        pytest.param("plain", "replication", "moorage_replication", "10.0.0.2", "none", id="not without TLS"),
        pytest.param("plain", "replication", "moorage_replication", "10.0.0.3", "scram-sha-256", id="it has no TLS"),
        pytest.param("ssl", "replication", "moorage_replication", "10.0.0.3", "cert", id="or not reported it yet"),
        pytest.param("ssl", "postgres", "moorage_replication", "10.0.0.2", "cert", id="rewind"),
        pytest.param("ssl", "replication", "moorage_replication", "10.0.0.9", "none", id="a stranger"),
        pytest.param("ssl", "shop", "moorage_replication", "10.0.0.2", "reject", id="not into databases of users"),
        pytest.param("ssl", "shop", "postgres", "10.0.0.2", "reject", id="the superuser"),
        pytest.param("ssl", "shop", "app", "10.0.0.2", "scram-sha-256", id="a client of another node's proxy"),
        pytest.param("plain", "shop", "app", "10.0.0.2", "reject", id="which has TLS, as we have"),
        pytest.param("plain", "shop", "app", "10.0.0.3", "scram-sha-256", id="a client of a proxy on a node without"),
        pytest.param("plain", "shop", "app", "10.0.0.1", "scram-sha-256", id="a client of the own node's proxy"),
        pytest.param("ssl", "shop", "app", "fd00::4", "scram-sha-256", id="IPv6"),
        pytest.param("plain", "shop", "app", "10.0.0.9", "reject", id="a client beside the proxy"),
        pytest.param("ssl", "replication", "app", "10.0.0.2", "none", id="users do not replicate"),
    ],
)
def test_access(kind: str, database: str, user: str, source: str, method: str) -> None:
    assert verdict(HBA, kind=kind, database=database, user=user, source=source) == method


def test_members_on_loopback_are_let_in_from_where_the_kernel_says_they_come() -> None:
    neighbour = Neighbour(node="n2", address="127.0.0.12", tls=False)
    hba = render_hba(own_address="127.0.0.11", neighbours=[neighbour], tls=False)
    for source in ("127.0.0.1", "127.0.0.12"):
        method = verdict(hba, kind="plain", database="replication", user="moorage_replication", source=source)
        assert method == "scram-sha-256"
    assert verdict(hba, kind="plain", database="shop", user="app", source="127.0.0.1") == "scram-sha-256"
    assert "ssl" not in hba, "an engine without TLS complains about lines that mention it"


def test_a_proxy_on_another_node_shows_a_certificate_of_the_nodes_where_there_is_tls() -> None:
    of_others = [line for line in HBA.splitlines() if line.startswith("hostssl all all ")]
    assert len(of_others) == 3
    assert all(line.endswith(" scram-sha-256 clientcert=verify-ca") for line in of_others)


def test_ident_maps_operating_system_users_and_nodes() -> None:
    ident = render_ident(os_users=["root", "postgres", "", "root"], nodes=["n2", "n3"])
    assert ident.splitlines()[1:] == [
        'moorage_local "root" postgres',
        'moorage_local "postgres" postgres',
        "moorage_nodes n2 moorage_replication",
        "moorage_nodes n3 moorage_replication",
    ]
