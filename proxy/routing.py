"""Pure: which server a new session may go to, at this moment, by the route in force."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

from core.routes import Endpoint, Route


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


def admit(route: Route | None, *, read_only: bool, client: str, sessions: Mapping[str, int], now: float) -> Verdict:
    """`sessions`: how many sessions each replica (by member) has from here; `client`: IP address."""
    if route is None:
        return Refuse("3D000", "this instance is not served here any more", "Ask moorctl for its present address.")
    if not _allowed(client, route.allow):
        return Refuse("28000", f"address {client} is not in the instance's allow list", "Ask for it to be added.")
    if read_only and route.replicas:
        chosen = min(route.replicas, key=lambda replica: (sessions.get(replica.member, 0), replica.member))
        return Forward(chosen, fenced=False)
    if route.paused:
        return Hold("a switchover is under way")
    if route.primary is None:
        return Hold("there is no primary")
    if now >= route.expires_at_s:
        return Hold(f"nobody vouches for {route.primary.member} as primary any more")
    return Forward(route.primary, fenced=True)


def still_valid(route: Route | None, endpoint: Endpoint, now: float) -> bool:
    """Whether a session that can write may stay on `endpoint`."""
    if route is None or route.primary is None or now >= route.expires_at_s:
        return False
    primary = route.primary
    return (primary.member, primary.host, primary.port) == (endpoint.member, endpoint.host, endpoint.port)


def _allowed(client: str, networks: tuple[str, ...]) -> bool:
    if not networks:
        return True
    address = ipaddress.ip_address(client)
    return any(address in ipaddress.ip_network(network) for network in networks)
