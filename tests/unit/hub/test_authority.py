"""What the authority knows by itself, without asking etcd."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from core import identity
from core.errors import UnauthenticatedError
from core.identity import DAY_S, certificate_facts, make_ca
from core.records import JoinToken, OperatorRecord
from hub.authority import Authority, Operator, server_hosts, why_not_good
from hub.etcd.client import EtcdClient
from hub.etcd.mirror import Mirror, Versioned
from hub.etcd.store import Store
from tests.support.clocks import ManualClock

NOW = 1_800_000_000.0


@dataclass
class Addresses:
    """What of a hub's configuration goes into its certificate."""

    listen_agents: str = "0.0.0.0:7400"
    listen_operators: str = "127.0.0.1:7401"
    advertise_agents: str | None = "10.0.0.1:7400"
    advertise_operators: str | None = None


@dataclass
class Scene:
    authority: Authority
    mirror: Mirror
    clock: ManualClock


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    """An authority whose etcd is not there: whatever these tests ask must not need it."""
    client, clock = EtcdClient(["127.0.0.1:1"]), ManualClock(wall=NOW)
    mirror = Mirror(client)
    ca, hosts = make_ca(now=NOW), server_hosts(Addresses())
    yield Scene(Authority(ca, Store(client, mirror), mirror, hosts=hosts, clock=clock), mirror, clock)
    await client.aclose()


@pytest.mark.parametrize(
    ("addresses", "hosts"),
    [
        (Addresses(), ("10.0.0.1", "127.0.0.1")),
        (Addresses(listen_agents="[::1]:1", advertise_agents=None), ("::1", "127.0.0.1")),
        (
            Addresses(advertise_agents="hub.example:1", advertise_operators="hub.example:2"),
            ("hub.example", "127.0.0.1"),
        ),
    ],
)
def test_hub_certificate_is_for_every_address_it_can_be_reached_at(
    addresses: Addresses, hosts: tuple[str, ...]
) -> None:
    assert server_hosts(addresses) == hosts


async def test_hub_certificate_is_made_anew_in_time(scene: Scene) -> None:
    first = scene.authority.server_identity()
    facts = certificate_facts(first[0])
    assert (facts.cn, facts.hosts) == ("moorage-hub", ("moorage-hub", "10.0.0.1", "127.0.0.1"))
    scene.clock.advance(200 * DAY_S)
    assert scene.authority.server_identity() == first
    scene.clock.advance(50 * DAY_S)
    second = scene.authority.server_identity()
    assert second != first
    assert certificate_facts(second[0]).not_after > facts.not_after


async def test_operator_is_known_by_the_token_and_by_nothing_less(scene: Scene) -> None:
    token = identity.new_operator_token()
    digest = identity.secret_sha256(token.secret)
    record = OperatorRecord(id=token.id, name="ann", role="operator", secret_sha256=digest)
    scene.mirror.operators[token.id] = Versioned(record, 1, 1)
    assert scene.authority.verify(token.text()) == Operator(id=token.id, name="ann", role="operator")
    for wrong in ("", "junk", digest, f"mo1.{token.id}.{'0' * 32}", f"mo1.00000000.{token.secret}", token.text() + "0"):
        with pytest.raises(UnauthenticatedError) as refused:
            scene.authority.verify(wrong)
        assert token.secret not in str(refused.value)


async def test_newcomer_is_told_from_a_stranger_without_etcd(scene: Scene) -> None:
    token = identity.new_join_token(scene.authority.ca_pem)
    assert not scene.authority.recognises_join_token(token.text())
    record = JoinToken(id=token.id, secret_sha256=identity.secret_sha256(token.secret), expires_at=NOW + 1)
    scene.mirror.tokens[token.id] = Versioned(record, 1, 1)
    assert scene.authority.recognises_join_token(token.text())
    assert not scene.authority.recognises_join_token("junk")


@pytest.mark.parametrize(
    ("facts", "secret", "reason"),
    [
        ({}, "right", ""),
        ({"node": "n1"}, "right", ""),
        ({"node": "n2"}, "right", "made for node n2"),
        ({"expires_at": NOW}, "right", "expired"),
        ({"used_by": "n1#00"}, "right", "used by n1#00"),
        ({}, "wrong", "wrong secret"),
        ({"secret_sha256": ""}, "", "wrong secret"),
    ],
)
def test_join_token_is_refused_for_one_reason(facts: dict[str, str], secret: str, reason: str) -> None:
    known = {"id": "0", "secret_sha256": identity.secret_sha256("right"), "expires_at": NOW + 1, **facts}
    assert why_not_good(JoinToken(**known), secret, node="n1", now=NOW) == reason  # type: ignore[arg-type]
