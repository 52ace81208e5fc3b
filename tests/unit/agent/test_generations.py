"""Which proxy processes are started and which leave; and what several report as one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.fleet import merged
from agent.generations import Place, Plan, Seen, plan
from core.routes import ProxyReport, SessionCounts

A1, B1, A2, B2, A3 = Place(1, 0), Place(1, 1), Place(2, 0), Place(2, 1), Place(3, 0)


@pytest.mark.parametrize(
    ("seen", "todo"),
    [
        ([], Plan(start=(A1, B1))),
        ([Seen(place=A1), Seen(place=B1)], Plan()),
        ([Seen(place=B1)], Plan(start=(A1,))),
        ([Seen(place=A1, fits=False), Seen(place=B1)], Plan(start=(A2, B2))),
        ([Seen(place=A1), Seen(place=B1), Seen(place=A2)], Plan(start=(B2,))),
        ([Seen(place=A1), Seen(place=B1), Seen(place=A2), Seen(place=B2, ready=False)], Plan()),
        ([Seen(place=A1), Seen(place=B1), Seen(place=A2), Seen(place=B2)], Plan(leave=(A1, B1))),
        ([Seen(place=A1, draining=True), Seen(place=B1, draining=True)], Plan(start=(A2, B2))),
        ([Seen(place=A1, draining=True), Seen(place=A2)], Plan(start=(B2,))),
    ],
)
def test_what_remains_to_be_done(seen: list[Seen], todo: Plan) -> None:
    assert plan(seen, processes=2) == todo


def test_an_operators_wish_is_fulfilled_once() -> None:
    assert plan([Seen(place=A1)], processes=1, at_least=3) == Plan(start=(A3,))
    assert plan([Seen(place=A3)], processes=1, at_least=3) == Plan()


@given(
    st.lists(st.builds(Place, st.integers(1, 3), st.integers(0, 2)), unique=True),
    st.integers(1, 3),
    st.integers(1, 4),
)
def test_once_all_is_done_nothing_remains(places: list[Place], processes: int, at_least: int) -> None:
    living = {place: Seen(place=place) for place in places}
    for _ in range(3):
        todo = plan(living.values(), processes=processes, at_least=at_least)
        assert not set(todo.leave) & set(todo.start)
        living = {place: one for place, one in living.items() if place not in todo.leave}
        living |= {place: Seen(place=place) for place in todo.start}
    assert plan(living.values(), processes=processes, at_least=at_least) == Plan()


def test_several_report_as_one() -> None:
    old = ProxyReport(
        seq=9,
        pid=1,
        sessions={"a/b": SessionCounts(read_write=1, waiting=2), "a/c": SessionCounts(read_only=1)},
        busy={"a/b": 1},
        bytes_in=1,
        refused=2,
        generation=1,
        draining=True,
    )
    new = ProxyReport(
        seq=3, pid=2, sessions={"a/b": SessionCounts(read_write=5)}, busy={"a/b": 0}, generation=2, bytes_in=2
    )
    assert merged([old, new]) == ProxyReport(
        seq=9,
        pid=2,
        sessions={"a/b": SessionCounts(read_write=6, waiting=2), "a/c": SessionCounts(read_only=1)},
        busy={"a/b": 1},
        bytes_in=3,
        refused=2,
        generation=2,
    )
    assert merged([old]) == old
