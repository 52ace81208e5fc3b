"""For how long a client may stand still: who is late, who never is, and in which words it is told."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.routes import Route
from proxy.postgres.messages import HEADER_BYTES, error_fields
from proxy.standstill import LOOK_MAX_S, LOOK_MIN_S, Sight, Stance, Standstills, bound_s, farewell, look_every_s

ROUTE = Route(
    instance="demo/orders", rw_port=1, ro_port=2, client_idle_s=300.0, idle_transaction_s=60.0, client_unread_s=600.0
)


@pytest.mark.parametrize(
    ("stance", "seconds", "sqlstate", "message"),
    [
        (Stance.BUSY, 0.0, "", ""),
        (Stance.UNREAD, 600.0, "", ""),
        (Stance.IDLE, 300.0, "57P05", "terminating connection due to idle-session timeout"),
        (Stance.IN_TRANSACTION, 60.0, "25P03", "terminating connection due to idle-in-transaction timeout"),
    ],
)
def test_each_stance_has_its_bound_and_its_words(stance: Stance, seconds: float, sqlstate: str, message: str) -> None:
    assert bound_s(ROUTE, stance) == seconds
    told = farewell(ROUTE, stance)
    fields = error_fields(told[HEADER_BYTES:]) if told else {}
    assert (fields.get("C", ""), fields.get("M", "")) == (sqlstate, message)


@pytest.mark.parametrize(
    ("shortest", "expected"),
    [(0.0, LOOK_MAX_S), (0.2, LOOK_MIN_S), (5.0, 0.5), (600.0, LOOK_MAX_S)],
)
def test_looks_are_as_often_as_the_shortest_bound_needs(shortest: float, expected: float) -> None:
    assert look_every_s([ROUTE, replace(ROUTE, client_idle_s=shortest)]) == expected


def test_nobody_to_look_after() -> None:
    assert look_every_s([]) == LOOK_MAX_S


sights = st.builds(Sight, st.sampled_from(Stance), st.integers(0, 1))


@given(st.lists(st.dictionaries(st.sampled_from("abc"), sights), max_size=12))
def test_time_counts_from_the_first_of_the_looks_that_saw_the_same(rounds: list[dict[str, Sight]]) -> None:
    """A look a second; who is left out of one begins anew."""
    standstills: Standstills[str] = Standstills()
    for now, seen in enumerate(rounds):
        standstills.begin()
        for who, sight in seen.items():
            first = now
            while first and rounds[first - 1].get(who) == sight:
                first -= 1
            assert standstills.look(who, sight, float(now)) == now - first
