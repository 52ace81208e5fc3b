"""Who gets which connection: by tables, and by random conversations against a few sentences that must always hold."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from core.routes import Pooling
from proxy.pool import CEILING_S, EXTRA_IDLE_S, Grant, Open, Pool, Use, share_of


@dataclass(frozen=True)
class Marked:
    variant: str
    settings: str = ""


@dataclass(eq=False)
class Link:
    signature: Marked
    opened_s: float = 0.0
    freed_s: float = 0.0


@dataclass(eq=False)
class Asking:
    signature: Marked
    since_s: float = 0.0


PLAIN, SET, OTHER = Marked("a"), Marked("a", "x"), Marked("b")


def pool_of(**bounds) -> Pool[Link, Asking]:
    return Pool(Pooling(mode="transaction", **bounds))


def opened(pool: Pool[Link, Asking], signature: Marked = PLAIN, now: float = 0.0) -> Link:
    assert isinstance(pool.ask(Asking(signature, now), now), Open)
    return Link(signature, opened_s=now)


def test_the_one_that_came_back_last_is_used_first():
    pool = pool_of()
    first, second = opened(pool), opened(pool)
    pool.give_back(first, 1.0)
    pool.give_back(second, 2.0)
    assert pool.ask(Asking(PLAIN), 3.0) == Use(second)
    assert pool.ask(Asking(PLAIN), 3.0) == Use(first)


def test_one_with_the_same_settings_is_preferred_to_one_that_must_be_made_like_new():
    pool = pool_of()
    plain, altered = opened(pool), opened(pool, SET)
    pool.give_back(altered, 1.0)
    pool.give_back(plain, 2.0)
    assert pool.ask(Asking(SET), 3.0) == Use(altered)
    assert pool.ask(Asking(SET), 3.0) == Use(plain)


def test_a_free_one_of_another_login_makes_room():
    pool = pool_of(size=1)
    link = opened(pool)
    pool.give_back(link, 1.0)
    assert pool.ask(Asking(OTHER), 2.0) == Open(link)
    assert pool.count == 1


def test_who_waits_is_served_in_order_and_a_newcomer_does_not_overtake():
    pool = pool_of(size=1)
    link = opened(pool)
    first, second = Asking(PLAIN), Asking(PLAIN)
    assert pool.ask(first, 1.0) is None
    assert pool.ask(second, 1.0) is None
    returned = pool.give_back(link, 2.0)
    assert returned is not None
    assert returned.grant == Grant(first, link)
    assert pool.ask(Asking(PLAIN), 2.0) is None
    returned = pool.give_back(link, 3.0)
    assert returned is not None
    assert returned.grant == Grant(second, link)


def test_who_waits_and_cannot_use_it_gets_its_place():
    pool = pool_of(size=1)
    link, other = opened(pool), Asking(OTHER)
    pool.ask(other, 1.0)
    returned = pool.give_back(link, 2.0)
    assert returned is not None
    assert (returned.grant, returned.closed, pool.count) == (Grant(other), True, 1)


def test_the_reserve_is_for_those_who_have_waited():
    pool = pool_of(size=1, reserve=1, reserve_after_s=3.0)
    opened(pool)
    first = Asking(PLAIN, 0.0)
    pool.ask(first, 0.0)
    assert pool.next_due_s(0.0) == 3.0
    assert pool.due(2.9).grants == []
    assert pool.due(3.0).grants == [Grant(first)]
    pool.ask(Asking(PLAIN, 3.0), 3.0)
    assert pool.due(29.0).grants == []


def test_a_connection_of_the_reserve_is_closed_when_nobody_waits():
    pool = pool_of(size=1, reserve=1, reserve_after_s=0.0)
    opened(pool)
    pool.ask(Asking(PLAIN), 0.0)
    pool.due(0.0)
    returned = pool.give_back(Link(PLAIN), 1.0)
    assert returned is not None
    assert returned.closed
    assert pool.count == 1


def test_who_has_waited_too_long_is_told():
    pool = pool_of(size=1, queue_timeout_s=30.0)
    opened(pool)
    early, late = Asking(PLAIN, 0.0), Asking(PLAIN, 20.0)
    pool.ask(early, 0.0)
    pool.ask(late, 20.0)
    assert pool.next_due_s(20.0) == 30.0
    assert pool.due(30.0).expired == [early]
    assert pool.leave(late)
    assert pool.next_due_s(30.0) == math.inf


def test_idle_and_old_ones_are_closed():
    pool = pool_of(idle_s=10.0, life_s=100.0, idle_max=1)
    links = [opened(pool) for _ in range(3)]
    for link in links[:2]:
        pool.give_back(link, 1.0)
    assert pool.next_due_s(1.0) == 1.0 + EXTRA_IDLE_S
    assert pool.due(1.0 + EXTRA_IDLE_S).closed == [links[0]]
    assert pool.next_due_s(2.0) == 11.0
    assert pool.due(11.0).closed == [links[1]]
    assert pool.count == 1
    returned = pool.give_back(links[2], 100.0)
    assert returned is not None
    assert returned.closed
    assert pool.count == 0


def test_a_server_without_room_is_not_asked_again_at_once():
    pool = pool_of()
    link = opened(pool)
    opened(pool)
    assert pool.refused(1.0)
    pool.gone(1.0)
    waits = Asking(PLAIN, 1.0)
    assert pool.ask(waits, 1.0) is None
    assert pool.next_due_s(1.0) == 1.0 + CEILING_S
    assert pool.due(1.0 + CEILING_S).grants == [Grant(waits)]
    assert pool.lost(link) is False


def test_a_server_that_refuses_the_only_one_is_full_of_others():
    pool = pool_of()
    opened(pool)
    assert not pool.refused(1.0)


def test_more_room_is_for_who_waits():
    pool = pool_of(size=1)
    opened(pool)
    waits = Asking(PLAIN)
    pool.ask(waits, 0.0)
    pool.bound(Pooling(size=2), 1)
    assert pool.due(0.0).grants == [Grant(waits)]


@pytest.mark.parametrize(
    ("size", "reserve", "processes", "share"),
    [(0, 0, 4, (0, 0)), (10, 0, 1, (10, 0)), (10, 1, 4, (3, 1)), (3, 2, 4, (1, 1)), (8, 4, 2, (4, 2))],
)
def test_processes_share_the_size(size, reserve, processes, share):
    assert share_of(Pooling(size=size, reserve=reserve), processes) == share


SIGNATURES = st.sampled_from([PLAIN, PLAIN, SET, OTHER])


class Conversation(RuleBasedStateMachine):
    """Clients come, wait, get, give back and lose connections while time passes."""

    used = Bundle("used")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.bounds = Pooling(size=3, reserve=2, reserve_after_s=2.0, queue_timeout_s=9.0, idle_max=2, idle_s=4.0)
        self.pool: Pool[Link, Asking] = Pool(self.bounds)
        self.in_use: set[Link] = set()
        self.waiting: list[Asking] = []

    def _take(self, signature: Marked, connection: Link | None) -> Link:
        link = connection or Link(signature, opened_s=self.now)
        assert link.signature.variant == signature.variant
        assert link not in self.in_use, "given to two"
        link.signature = signature
        self.in_use.add(link)
        return link

    def _granted(self, grants: list[Grant[Link, Asking]]) -> list[Link]:
        taken: list[Link] = []
        for grant in grants:
            assert grant.ticket is self.waiting.pop(0), "served out of order"
            taken.append(self._take(grant.ticket.signature, grant.connection))
        return taken

    @rule(target=used, signature=SIGNATURES)
    def ask(self, signature):
        ticket = Asking(signature, self.now)
        answer = self.pool.ask(ticket, self.now)
        if answer is None:
            self.waiting.append(ticket)
            return None
        assert not self.waiting, "overtaken"
        return self._take(signature, answer.connection if isinstance(answer, Use) else None)

    @rule(target=used, link=consumes(used))
    def give_back(self, link):
        if link not in self.in_use:
            return None
        self.in_use.discard(link)
        returned = self.pool.give_back(link, self.now)
        taken = self._granted([returned.grant] if returned is not None and returned.grant else [])
        return taken[0] if taken else None

    @rule(target=used, link=consumes(used))
    def lose(self, link):
        if link not in self.in_use:
            return None
        self.in_use.discard(link)
        grant = self.pool.gone(self.now)
        taken = self._granted([grant] if grant else [])
        return taken[0] if taken else None

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up(self, data):
        ticket = data.draw(st.sampled_from(self.waiting))
        assert self.pool.leave(ticket)
        self.waiting.remove(ticket)

    @rule(seconds=st.floats(0.1, 5.0))
    def time_passes(self, seconds):
        """To each moment at which something is due."""
        until = self.now + seconds
        while (then := self.pool.next_due_s(self.now)) <= until:
            self.now = max(self.now, then)
            self._due()
        self.now = until

    def _due(self):
        due = self.pool.due(self.now)
        for ticket in due.expired:
            assert ticket is self.waiting.pop(0)
            assert self.now - ticket.since_s >= self.bounds.queue_timeout_s - 1e-6
        for link in due.closed:
            assert link not in self.in_use
        self._granted(due.grants)

    @invariant()
    def counts_are_right(self):
        assert self.pool.count == len(self.in_use) + len(self.pool.free)
        assert list(self.pool.queue) == self.waiting
        assert not self.in_use & set(self.pool.free)

    @invariant()
    def never_more_than_size_and_reserve(self):
        assert self.pool.count <= self.bounds.size + self.bounds.reserve

    @invariant()
    def nobody_waits_beside_a_free_one(self):
        assert not (self.waiting and self.pool.free)

    @invariant()
    def nobody_waits_while_there_is_room(self):
        assert not self.waiting or self.pool.count >= self.bounds.size

    @invariant()
    def nobody_waits_longer_than_promised(self):
        assert all(self.now - ticket.since_s <= self.bounds.queue_timeout_s + 1e-6 for ticket in self.waiting)


TestConversation = Conversation.TestCase
TestConversation.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
