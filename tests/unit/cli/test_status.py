"""What the overview calls a problem."""

from __future__ import annotations

from typing import Any

import pytest

from cli import status

HUB = {"name": "h1", "operator_address": "127.0.0.1:7401", "nodes": ["n1"]}
NODE: dict[str, Any] = {"name": "n1", "silent": False, "address": "127.0.0.11", "members": [], "engines": []}


def instance(phase: str, message: str = "") -> dict[str, Any]:
    conditions = [{"type": "NodesReachable", "status": not message, "reason": "X", "message": message}]
    return {"name": "demo/orders", "phase": phase, "conditions": conditions, "members": [], "primary": ""}


def test_healthy_whole_has_no_problem() -> None:
    assert status.problems({"hubs": [HUB], "nodes": [NODE], "instances": [instance("Running")]}) == []
    assert status.problems({"hubs": [HUB], "nodes": [], "instances": [instance("Creating")]}) == []


def test_silent_nodes_and_degraded_instances_are_told_with_the_reason() -> None:
    page = {"hubs": [HUB], "nodes": [{**NODE, "silent": True}], "instances": [instance("Degraded", "n1 is silent")]}
    assert status.problems(page) == ["node n1 is silent", "instance demo/orders is Degraded: n1 is silent"]


@pytest.mark.parametrize("page", [{}, {"hubs": None, "nodes": 3, "instances": [7, {}]}])
def test_pages_of_another_version_are_shown_as_far_as_they_go(
    page: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    status.show(page, 0.0)
    assert "no hub has registered itself" in capsys.readouterr().out


def test_what_needs_a_look_stands_first(capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [NODE, {**NODE, "name": "n2", "cordoned": True}, {**NODE, "name": "n3", "silent": True}]
    instances = [instance("Running"), {**instance("Degraded", "m2 is down"), "name": "demo/zoo"}]
    status.show({"hubs": [HUB], "nodes": nodes, "instances": instances}, 0.0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "! node n3 is silent"
    assert lines[1] == "! instance demo/zoo is Degraded: m2 is down"
    assert [line.split()[0] for line in lines if line.startswith("n")] == ["n3", "n2", "n1"]
    assert [line.split()[0] for line in lines if line.startswith("demo/")] == ["demo/zoo", "demo/orders"]


def test_what_was_asked_for_and_is_easily_forgotten_is_told_without_alarm(capsys: pytest.CaptureFixture[str]) -> None:
    condition = {"type": "AutomaticFailover", "status": False, "message": "automatic failover is paused by ada ..."}
    at = "2026-11-25T01:02:03.000Z"
    ha = {
        "paused": True, "paused_by": "ada", "paused_at": at, "pause_reason": "disks",
        "scheduled": {"target": "m2", "at": at, "requested_by": "bob"},
    }  # fmt: skip
    page = {"hubs": [HUB], "nodes": [NODE], "instances": [{**instance("Running"), "conditions": [condition], "ha": ha}]}
    assert status.problems(page) == []
    status.show(page, 0.0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "all is well",
        "- instance demo/orders: automatic failover is paused by ada since 2026-11-25 01:02:03 UTC (disks)",
        "- instance demo/orders: switchover to m2 at 2026-11-25 01:02:03 UTC, by bob",
    ]
    assert lines[-1].split() == ["demo/orders", "Running", "-", "0/0", "-", "-"]
