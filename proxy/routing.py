"""Pure: which server a new session may go to, at this moment, by the route in force, and whether it may stay there."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from core.routes import Endpoint, Route

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Forward:
    """Go there. `fenced`: the session can write, so it lasts no longer than the route to this primary."""

    endpoint: Endpoint
    fenced: bool


@dataclass(frozen=True, slots=True)
class Hold:
    """Wait for another route; `why` is for the message if it does not come."""

    why: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """Say no."""

    sqlstate: str
    message: str
    hint: str = ""


Verdict = Forward | Hold | Refuse


def admit(
    route: Route | None,
    *,
    read_only: bool,
    client: str,
    sessions: Mapping[str, int],
    now: float,
    avoid: Collection[str] = (),
    turn: int = 0,
) -> Verdict:
    """`sessions`: how many sessions each member has from here; `client`: IP address; `avoid`: replicas that have just
    not answered this client; `turn`: a number that grows, so that equal replicas are taken in turn."""
    if route is None:
        return Refuse("3D000", "this instance is not served here any more", "Ask moorctl for its present address.")
    if (refusal := refused(route, client)) is not None:
        return refusal
    if read_only and (replicas := [replica for replica in route.replicas if replica.member not in avoid]):
        return Forward(_least_loaded(replicas, sessions, turn), fenced=False)
    if route.paused:
        return Hold("a switchover is under way")
    if route.primary is None and route.follows:
        return Hold("no member serves reads") if read_only else _standby(route)
    if route.primary is None:
        return Hold("there is no primary")
    if now >= route.expires_at_s:
        return Hold(f"nobody vouches for {route.primary.member} as primary any more")
    return Forward(route.primary, fenced=True)


def _standby(route: Route) -> Refuse:
    """There is no primary to wait for."""
    what = f"instance {route.instance} accepts no writes: it follows {route.follows}"
    return Refuse("25006", what, f"Read at port {route.ro_port}, or have the instance promoted.")


def refused(route: Route, client: str) -> Refuse | None:
    """Where the client comes from is enough to say no."""
    if allowed(client, route.allow):
        return None
    return Refuse("28000", f"address {client} is not in the instance's allow list", "Ask for it to be added.")


def _least_loaded(replicas: list[Endpoint], sessions: Mapping[str, int], turn: int) -> Endpoint:
    """By load over weight. Short sessions leave no load behind: without the turn, in which each has its weight, all of
    them would meet on one replica."""
    replicas = sorted(replicas, key=lambda one: one.member)
    turns = [at for at, one in enumerate(replicas) for _ in range(max(1, one.weight))]
    first = turns[turn % len(turns)]
    return min(replicas[first:] + replicas[:first], key=lambda one: sessions.get(one.member, 0) / max(1, one.weight))


def still_valid(route: Route | None, endpoint: Endpoint, now: float) -> bool:
    """Whether a session that can write may stay on `endpoint`. The term does not matter: a primary that leads on in a
    newer one is the same server, with the same sessions."""
    if route is None or route.primary is None or now >= route.expires_at_s:
        return False
    return same_server(route.primary, endpoint)


def same_server(one: Endpoint, other: Endpoint) -> bool:
    return (one.member, one.host, one.port) == (other.member, other.host, other.port)


def allowed(client: str, networks: tuple[str, ...]) -> bool:
    """An empty list allows everybody; a network that cannot be read allows nobody."""
    if not networks:
        return True
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return False
    return any(address in network for network in _parsed(networks))


@functools.lru_cache(maxsize=4096)
def _parsed(networks: tuple[str, ...]) -> tuple[Network, ...]:
    """Lists repeat with every client, and are parsed once."""
    found: list[Network] = []
    for text in networks:
        try:
            found.append(ipaddress.ip_network(text, strict=False))
        except ValueError:
            continue
    return tuple(found)
