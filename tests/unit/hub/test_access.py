"""Who may call what."""

from __future__ import annotations

from itertools import pairwise

import pytest

from core.errors import DeniedError
from hub.authority import Operator, OperatorRole
from hub.rpc.access import RANK, REQUIRED, may
from hub.rpc.limits import TokenBucket
from protos.v1 import operator_pb2

VIEWER, OPERATOR, ADMIN = (Operator(id="00000000", name=f"a {role}", role=role) for role in RANK)
METHODS = [method.name for method in operator_pb2.DESCRIPTOR.services_by_name["OperatorService"].methods]


def test_every_method_of_the_service_has_a_line_in_the_table() -> None:
    assert {verb for verb in REQUIRED if " " not in verb} == set(METHODS)


def test_methods_that_serve_several_kinds_have_a_line_for_each() -> None:
    for method in ("Apply", "Delete"):
        kinds = {verb.removeprefix(f"{method} ") for verb in REQUIRED if verb.startswith(f"{method} ")}
        assert kinds == {"Instance", "Project", "Node"}
        assert all(RANK[REQUIRED[method]] <= RANK[REQUIRED[f"{method} {kind}"]] for kind in kinds)


@pytest.mark.parametrize("verb", [verb for verb, role in REQUIRED.items() if role != "viewer"])
def test_viewer_changes_nothing_and_sees_no_password(verb: str) -> None:
    with pytest.raises(DeniedError, match=rf"{verb} needs the role \w+, and operator 'a viewer' is viewer"):
        may(VIEWER, verb)


@pytest.mark.parametrize("verb", [verb for verb, role in REQUIRED.items() if role == "admin"])
def test_operator_does_not_decide_who_takes_part(verb: str) -> None:
    with pytest.raises(DeniedError, match="needs the role admin"):
        may(OPERATOR, verb)


def test_roles_contain_each_other() -> None:
    roles: list[OperatorRole] = sorted(RANK, key=lambda role: RANK[role])
    allowed = [{verb for verb, needed in REQUIRED.items() if RANK[role] >= RANK[needed]} for role in roles]
    assert all(less < more for less, more in pairwise(allowed))
    assert allowed[-1] == set(REQUIRED)
    for verb in REQUIRED:
        may(ADMIN, verb)


def test_bucket_gives_a_burst_and_then_a_rate() -> None:
    bucket = TokenBucket(burst=2, per_s=0.5)
    assert [bucket.take(now) for now in (100.0, 100.0, 100.0, 101.0, 102.1, 102.2)] == [
        True, True, False, False, True, False,
    ]  # fmt: skip


def test_bucket_never_holds_more_than_its_burst() -> None:
    bucket = TokenBucket(burst=2, per_s=1)
    assert bucket.take(0.0)
    assert [bucket.take(1e6) for _ in range(3)] == [True, True, False]
