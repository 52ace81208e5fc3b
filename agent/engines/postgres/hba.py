"""Who may connect to an engine, and as whom: pg_hba.conf and pg_ident.conf. Pure.

- The agent, over the Unix socket, by its operating system user. Nobody else comes in there.
- Other members as the replication user, for streaming, cloning, rewinding and asking about timelines: by their node's
  certificate where both ends have TLS, by password where one has not.
- Followers (standby instances elsewhere) as the role that is declared for them, from the networks that are, by password
  and TLS where we have it; for streaming and copying only.
- Clients only through the proxies, which run on the nodes of the members, by the password that they have proved there.
  From another node a proxy comes by TLS with its node's certificate, where both have TLS. The superuser not at all.

The source address of a connection to a loopback address is always 127.0.0.1, whatever loopback address the connecting
member listens on, so members on loopback admit that address for each other.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from agent.engines.postgres.member import REPLICATION_USER, SUPERUSER
from core.records import Followers

LOCAL_MAP = "moorage_local"
NODES_MAP = "moorage_nodes"
HEADER = "# Written by Moorage, which overwrites changes."


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """Another member, as far as access goes."""

    node: str
    address: str
    tls: bool


def render_hba(
    *,
    own_address: str,
    neighbours: Iterable[Neighbour],
    tls: bool,
    user: str = REPLICATION_USER,
    followers: Followers | None = None,
) -> str:
    """pg_hba.conf; the first line that fits decides. `user`: by whom other members come in; a standby instance has only
    the remote primary's roles."""
    neighbours = tuple(neighbours)
    lines = [
        HEADER,
        f"local all {SUPERUSER} peer map={LOCAL_MAP}",
        "local all all reject",
    ]
    for neighbour in neighbours:
        lines += [line for net in _networks(neighbour.address) for line in _replication(net, neighbour, tls, user)]
    if followers is not None:
        kind = "hostssl" if tls else "host"
        lines += [f"{kind} replication {followers.user} {net} scram-sha-256" for net in followers.networks]
    barred = ",".join(dict.fromkeys([SUPERUSER, REPLICATION_USER, _quoted(user)]))
    lines.append(f"host all {barred} all reject")
    lines += [f"host all all {net} scram-sha-256" for net in _networks(own_address)]
    for neighbour in neighbours:
        lines += [line for net in _networks(neighbour.address) for line in _proxied(net, neighbour, tls)]
    lines.append("host all all all reject")
    return "\n".join(dict.fromkeys(lines)) + "\n"


def _quoted(user: str) -> str:
    """As it is written: what is all lower case needs no quotes."""
    return user if user == user.lower() and user not in ("all", "sameuser", "samerole", "replication") else f'"{user}"'


def _replication(network: str, neighbour: Neighbour, tls: bool, user: str) -> list[str]:
    # "postgres" beside "replication": pg_rewind reads files through SQL functions, which need a database.
    what = f"replication,postgres {_quoted(user)} {network}"
    if not tls:
        return [f"host {what} scram-sha-256"]
    with_certificate = f"hostssl {what} cert map={NODES_MAP}"
    # A neighbour not yet known to have TLS may be one that cannot: a password then, which it never sends in clear.
    return [with_certificate] if neighbour.tls else [with_certificate, f"hostnossl {what} scram-sha-256"]


def _proxied(network: str, neighbour: Neighbour, tls: bool) -> list[str]:
    if not tls:
        return [f"host all all {network} scram-sha-256"]
    by_tls = f"hostssl all all {network} scram-sha-256 clientcert=verify-ca"
    return [by_tls] if neighbour.tls else [by_tls, f"hostnossl all all {network} scram-sha-256"]


def render_ident(*, os_users: Iterable[str], nodes: Iterable[str], user: str = REPLICATION_USER) -> str:
    """pg_ident.conf: operating system users that are the superuser, nodes whose certificate may replicate."""
    lines = [HEADER]
    lines += [f'{LOCAL_MAP} "{name}" {SUPERUSER}' for name in dict.fromkeys(os_users) if name]
    lines += [f"{NODES_MAP} {node} {_quoted(user)}" for node in dict.fromkeys(nodes)]
    return "\n".join(lines) + "\n"


def _networks(address: str) -> list[str]:
    ip = ipaddress.ip_address(address)
    networks = [ipaddress.ip_network(ip)]
    if ip.is_loopback and ip.version == 4:
        networks.append(ipaddress.ip_network("127.0.0.1/32"))
    return [str(network) for network in networks]
