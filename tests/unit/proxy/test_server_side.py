"""What is read of a server's refusals."""

from __future__ import annotations

import pytest

from proxy.postgres.refusals import error
from proxy.postgres.server_side import sqlstate_of


@pytest.mark.parametrize(
    ("body", "sqlstate"),
    [(error("57P03", "starting up")[5:], "57P03"), (b"SFATAL\0\0", ""), (b"", ""), (b"C\xff\0", "\ufffd")],
)
def test_the_sqlstate_of_an_error_is_found_where_there_is_one(body, sqlstate):
    assert sqlstate_of(body) == sqlstate
