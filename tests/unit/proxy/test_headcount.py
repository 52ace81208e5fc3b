"""How many clients there may be: who is let in, who is told what."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.routes import Route
from proxy.headcount import RESERVED, Count, Headcount, Seat, bounded, no_room


def route(clients: int = 0, per_user: int = 0) -> Route:
    return Route(
        instance="demo/orders",
        rw_port=1,
        ro_port=2,
        clients_max=clients,
        clients_per_user_max=per_user,
        observers=("watcher",),
    )


ALL = "sorry, too many clients already: demo/orders may have 5 at this node's proxy"
OWN = 'too many connections for role "{}": it may have 2 to demo/orders at this node\'s proxy'


@pytest.mark.parametrize(
    ("bounds", "user", "counts", "told"),
    [
        (route(), "app", [Count(900, 900)], ""),
        (route(5), "app", [Count(5, 5)], ""),
        (route(5), "app", [Count(6, 1)], ALL),
        (route(5), "app", [Count(3, 3), Count(3, 0)], ALL),
        (route(5), "app", [Count(3, 3), Count(2, 2)], ""),
        (route(5), "watcher", [Count(5 + RESERVED, 1)], ""),
        (route(5), "watcher", [Count(6 + RESERVED, 1)], ALL),
        (route(0, 2), "app", [Count(9, 2)], ""),
        (route(0, 2), "app", [Count(9, 2), Count(1, 1)], OWN.format("app")),
        (route(0, 2), "watcher", [Count(9, 9)], ""),
        (route(5, 2), "app", [Count(6, 3)], ALL),
        (None, "app", [Count(9, 9)], ""),
    ],
)
def test_who_is_told_that_there_is_no_room(bounds: Route | None, user: str, counts: list[Count], told: str) -> None:
    no = no_room(bounds, user, counts)
    assert (no.message if no is not None else "") == told
    assert no is None or (no.sqlstate == "53300" and "proxy.limits.clients" in no.hint)


@pytest.mark.parametrize(
    ("bounds", "expected"), [(None, False), (route(), False), (route(1), True), (route(0, 1), True)]
)
def test_others_are_asked_only_where_there_is_a_bound(bounds: Route | None, expected: bool) -> None:
    assert bounded(bounds) is expected


names = st.tuples(st.sampled_from(["a/b", "c/d"]), st.sampled_from(["app", "other"]))


@given(st.lists(st.one_of(names, st.integers(0, 30)), max_size=60))
def test_the_count_is_that_of_those_who_came_and_have_not_left(story: list[tuple[str, str] | int]) -> None:
    """A name comes, a number leaves: some of them more than once."""
    headcount, seats, gone = Headcount(), list[Seat](), set[int]()
    for step in story:
        if isinstance(step, tuple):
            seats.append(headcount.enter(*step))
        elif step < len(seats):
            seats[step].leave()
            gone.add(step)
    there = [(seat.instance, seat.user) for at, seat in enumerate(seats) if at not in gone]
    for instance, user in {("a/b", "app"), ("a/b", "other"), ("c/d", "app"), ("c/d", "other")}:
        expected = Count(sum(one == instance for one, _ in there), there.count((instance, user)))
        assert headcount.of(instance, user) == expected
