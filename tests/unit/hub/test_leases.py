"""A lease is never said to last longer than etcd, asked before the answer was given, would honour it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from hub.etcd.client import KeptAlive
from hub.etcd.errors import EtcdUnavailable, LeaseGone
from hub.etcd.txns import CreatedIs
from hub.leases import ASK_EVERY_S, BallotLeases, LeaseBook, Renewal
from tests.support.clocks import ManualClock

LEADER_KEY = CreatedIs("/moorage/leader/demo.orders", 5)
TTL_S = 6


@dataclass(frozen=True, slots=True)
class Answer:
    succeeded: bool
    revision: int = 1
    raft_term: int = 2


@dataclass
class ModelEtcd:
    """Leases and key lives of one etcd, each call taking `takes_s` half before and half after its effect."""

    clock: ManualClock
    takes_s: float = 0.0
    expiry: dict[int, float] = field(default_factory=dict)
    created: dict[str, int] = field(default_factory=lambda: {LEADER_KEY.key: 5})
    calls: list[str] = field(default_factory=list)
    away: bool = False
    keepalive_term: int = 2  # raft term of whoever confirms keepalives

    async def _effect(self, call: str) -> None:
        self.calls.append(call)
        self.clock.advance(self.takes_s / 2)
        await asyncio.sleep(0)
        if self.away:
            raise EtcdUnavailable("no answer")

    async def grant(self, ttl_s: int) -> int:
        await self._effect("grant")
        lease_id = len(self.expiry) + 1
        self.expiry[lease_id] = self.clock.now() + ttl_s
        return lease_id

    async def renew(self, lease_id: int) -> KeptAlive:
        await self._effect("keepalive")
        if self.expiry.get(lease_id, 0.0) <= self.clock.now():
            raise LeaseGone("gone")
        self.expiry[lease_id] = self.clock.now() + TTL_S
        self.clock.advance(self.takes_s / 2)
        return KeptAlive(ttl_s=TTL_S, raft_term=self.keepalive_term)

    async def time_to_live(self, lease_id: int) -> float:
        await self._effect("time_to_live")
        left_s = max(0.0, self.expiry.get(lease_id, 0.0) - self.clock.now())
        self.clock.advance(self.takes_s / 2)
        return left_s

    async def commit(self, txn) -> Answer:
        await self._effect("read")
        return Answer(all(self.created.get(c.key) == c.revision for c in txn.compares))


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1000.0)


@pytest.fixture
def etcd(clock) -> ModelEtcd:
    return ModelEtcd(clock)


@pytest.fixture
def book(etcd, clock) -> LeaseBook:
    return LeaseBook(etcd, clock, ttl_s=TTL_S)


async def remaining_s(book: LeaseBook, lease_id: int) -> float:
    await book.look_up(lease_id, LEADER_KEY)
    return book.remaining_s(lease_id)


async def test_a_renewal_is_confirmed_by_a_read_that_starts_after_the_keepalive_was_answered(etcd, book):
    lease_id = await book.grant()
    assert await book.renew(lease_id, [LEADER_KEY]) is Renewal.CONFIRMED
    assert etcd.calls == ["grant", "keepalive", "read"]


@pytest.mark.parametrize("created", [None, 6], ids=["key gone", "key of another life"])
async def test_a_renewal_is_not_confirmed_when_the_leader_key_is_not_the_one(etcd, book, created):
    lease_id = await book.grant()
    etcd.created[LEADER_KEY.key] = created
    assert await book.renew(lease_id, [LEADER_KEY]) is Renewal.UNCONFIRMED
    assert book.remaining_s(lease_id) == 0.0


async def test_a_lease_that_has_expired_is_gone(etcd, book, clock):
    lease_id = await book.grant()
    clock.advance(TTL_S)
    assert await book.renew(lease_id, [LEADER_KEY]) is Renewal.GONE


async def test_a_lease_that_carries_no_leader_key_is_neither_confirmed_nor_kept_alive(etcd, book, clock):
    lease_id = await book.grant()
    clock.advance(TTL_S - 1)
    assert await book.renew(lease_id, []) is Renewal.UNCONFIRMED
    clock.advance(1)
    assert await book.renew(lease_id, []) is Renewal.GONE
    assert "keepalive" not in etcd.calls


async def test_what_remains_is_counted_from_before_the_renewal_was_sent(etcd, book, clock):
    etcd.takes_s = 1.0
    lease_id = await book.grant()
    started = clock.now()
    await book.renew(lease_id, [LEADER_KEY])
    calls = len(etcd.calls)
    left_s = await remaining_s(book, lease_id)
    assert left_s == started + TTL_S - clock.now()
    assert clock.now() + left_s <= etcd.expiry[lease_id]
    assert len(etcd.calls) == calls


async def test_of_a_lease_renewed_elsewhere_etcd_is_asked_and_counted_from_before_the_question(etcd, book, clock):
    etcd.takes_s = 0.4
    etcd.expiry[9] = clock.now() + 5.0
    started = clock.now()
    left_s = await remaining_s(book, 9)
    assert etcd.calls == ["time_to_live", "read"]
    assert 0 < left_s <= etcd.expiry[9] - clock.now()
    assert started + 4.8 - clock.now() == pytest.approx(left_s)


async def test_etcd_is_asked_about_one_lease_at_most_once_a_second_by_however_many_heartbeats(etcd, book, clock):
    etcd.expiry[9] = clock.now() + 5.0
    await asyncio.gather(*(remaining_s(book, 9) for _ in range(20)))
    assert etcd.calls.count("time_to_live") == 1
    clock.advance(ASK_EVERY_S)
    etcd.expiry[9] = clock.now() + 6.0
    assert await remaining_s(book, 9) == 6.0
    assert etcd.calls.count("time_to_live") == 2


async def test_a_lease_whose_leader_key_is_gone_lends_nothing(etcd, book, clock):
    etcd.expiry[9] = clock.now() + 5.0
    etcd.created[LEADER_KEY.key] = 0
    assert await remaining_s(book, 9) == 0.0


async def test_when_etcd_is_away_what_was_known_runs_out_by_itself(etcd, book, clock):
    etcd.expiry[9] = clock.now() + 5.0
    assert await remaining_s(book, 9) == 5.0
    etcd.away = True
    clock.advance(2.0)
    assert await remaining_s(book, 9) == 3.0
    clock.advance(4.0)
    assert await remaining_s(book, 9) == 0.0
    assert await remaining_s(book, 10) == 0.0


async def test_leases_long_over_are_dropped(etcd, book, clock):
    etcd.expiry[9] = clock.now() + 5.0
    await remaining_s(book, 9)
    book.forget_old()
    assert book.known == 1
    clock.advance(3600.0)
    book.forget_old()
    assert book.known == 0


async def test_a_nodes_ballots_share_a_lease_while_more_than_half_of_its_life_remains(etcd, clock):
    leases = BallotLeases(etcd, clock, ttl_s=12)
    first = await leases.lease_for("n1")
    clock.advance(5.9)
    assert await leases.lease_for("n1") == first
    assert await leases.lease_for("n2") != first
    clock.advance(0.1)
    assert await leases.lease_for("n1") != first


async def test_a_ballot_lease_that_turned_out_gone_is_granted_anew(etcd, clock):
    leases = BallotLeases(etcd, clock, ttl_s=12)
    first = await leases.lease_for("n1")
    leases.forget("n1")
    assert await leases.lease_for("n1") != first


async def test_a_keepalive_confirmed_by_a_leader_of_another_raft_term_confirms_nothing(etcd, book):
    lease_id = await book.grant()
    etcd.keepalive_term = 1  # a hung old leader goes on confirming, the read is answered by its successor
    assert await book.renew(lease_id, [LEADER_KEY]) is Renewal.UNCONFIRMED
