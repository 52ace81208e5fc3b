"""Clients that share connections to a model server see what each would see on a server of its own."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.conversations import converse


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 40))
def test_each_client_sees_what_it_would_see_on_a_server_of_its_own(seed):
    converse(seed)
