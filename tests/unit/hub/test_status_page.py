"""What operators are shown, and that it is what the reference says."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from core.ids import InstanceRef
from core.records import (
    EngineOffer,
    HubRecord,
    InstanceRecord,
    InstanceStatus,
    LeadershipChange,
    ProjectRecord,
    SwitchoverRequest,
)
from core.specs import InstanceSpec
from core.status import Condition, ConditionType, MemberState, Phase, Role
from hub.liveness import MemberSample, NodeSample
from hub.status_page import Page, Scene, hosts, instance_page, node_page, overview, scene
from tests.support.contents import ORDERS, Version, World, member_ref

REFERENCE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "status.md"
NOW, WALL = 500.0, 1_800_000_000.0


@dataclass
class WholeWorld(World):
    """The mirror with everything that pages are made of."""

    projects: dict[str, Version[ProjectRecord]] = field(default_factory=dict)
    instances: dict[InstanceRef, Version[InstanceRecord]] = field(default_factory=dict)
    status: dict[InstanceRef, Version[InstanceStatus]] = field(default_factory=dict)
    hubs: dict[str, Version[HubRecord]] = field(default_factory=dict)


@pytest.fixture
def world() -> WholeWorld:
    """demo/orders with its primary m2 on n2 and a replica m1 on n1; n3 is empty."""
    world = WholeWorld()
    offer = EngineOffer(engine="postgresql", version=15, full_version="15.12", tls=True, bin_dir="/pg/bin")
    for number in (1, 2, 3):
        world.node(
            f"n{number}", zone=f"z{number}", cpu=4.0, memory_bytes=8 << 30, disk_bytes=80 << 30, engines=(offer,)
        )
    spec = InstanceSpec(project="demo", name="orders", replicas=1).model_dump(mode="json")
    world.projects["demo"] = Version(ProjectRecord(name="demo"), 1, 1)
    world.instances[ORDERS] = Version(InstanceRecord(project="demo", name="orders", spec=spec, created_at=WALL), 1, 1)
    condition = Condition(
        type=ConditionType.PRIMARY_AVAILABLE, status=True, reason="Leading", message="m2 leads", since=WALL
    )
    status = InstanceStatus(
        project="demo", name="orders", phase=Phase.RUNNING, conditions=(condition,), observed_generation=1,
        primary="m2", rw_port=15001, ro_port=15002, engine_port=15000, since=WALL,
    )  # fmt: skip
    world.status[ORDERS] = Version(status, 1, 1)
    for number in (1, 2):
        world.member(f"n{number}", f"m{number}", cpu=1.0, memory_bytes=1 << 30, disk_bytes=10 << 30)
    world.observe("n1", "m1", streaming_from="m2", timeline=3, engine_version="15.12", generation=1)
    world.observe("n2", "m2", role=Role.PRIMARY, timeline=3)
    world.ha_record(
        term=7, leader="m2",
        history=(LeadershipChange(term=7, member="m2", reason="failover", timeline=3, lsn="0/3000000", at=WALL),),
        switchover=SwitchoverRequest(id="s1", target="m1", requested_by="admin", requested_at=WALL),
    )  # fmt: skip
    world.lead("n2", "m2", 7)
    world.hubs["hub-1"] = Version(HubRecord(hub="hub-1", agent_address="127.0.0.1:1", nodes=("n1", "n2")), 1, 1)
    return world


def sample_of(node: str, member: str, *, at: float, **facts: Any) -> NodeSample:
    figures = {"timeline": 3, "lsn": 0x3000060, "lag_bytes": 96, "connections": 2, "data_bytes": 1 << 20, **facts}
    mine = MemberSample(ref=member_ref(ORDERS, member), state=MemberState.RUNNING, role=Role.REPLICA, **figures)
    return NodeSample(
        at=at,
        boot_id="b",
        seq=1,
        cpu_used=0.25,
        memory_used_bytes=1,
        disk_used_bytes=2,
        applied_revision=0,
        members=(mine,),
    )


def at_now(world: WholeWorld, **samples: NodeSample) -> Scene:
    return scene(world, samples, now=NOW, wall=WALL)


def test_instance_tells_phase_leader_and_ways_in_with_the_leaders_host_first(world: WholeWorld) -> None:
    page = instance_page(at_now(world), ORDERS)
    assert (page["phase"], page["primary"], page["since"]) == ("Running", "m2", "2027-01-15T08:00:00.000Z")
    assert page["leader"] == {"member": "m2", "node": "n2", "term": 7}
    assert page["endpoints"]["rw"] == {"hosts": ["10.0.0.2", "10.0.0.1"], "port": 15001}
    assert page["conditions"] == [
        {
            "type": "PrimaryAvailable",
            "status": True,
            "reason": "Leading",
            "message": "m2 leads",
            "since": "2027-01-15T08:00:00.000Z",
        }
    ]
    assert page["ha"]["history"][0]["reason"] == "failover"
    assert page["ha"]["switchover"]["id"] == "s1"


def test_member_has_figures_only_while_its_node_is_heard_here(world: WholeWorld) -> None:
    heard = at_now(world, n1=sample_of("n1", "m1", at=NOW - 2))
    m1, m2 = instance_page(heard, ORDERS)["members"]
    assert (m1["lsn"], m1["lag_bytes"], m1["connections"]) == ("0/3000060", 96, 2)
    assert (m1["state"], m1["streaming_from"]) == ("running", "m2")
    assert (m2["role"], m2["lsn"], m2["lag_bytes"]) == ("primary", None, None)
    world.mark_silent("n1")
    m1 = instance_page(at_now(world, n1=sample_of("n1", "m1", at=NOW - 60)), ORDERS)["members"][0]
    assert (m1["silent"], m1["lag_bytes"]) == (True, None)


def test_instance_that_is_not_placed_yet_has_no_endpoints() -> None:
    world = WholeWorld()
    spec = InstanceSpec(project="demo", name="orders").model_dump(mode="json")
    world.instances[ORDERS] = Version(InstanceRecord(project="demo", name="orders", spec=spec), 1, 1)
    page = instance_page(at_now(world), ORDERS)
    assert (page["phase"], page["endpoints"], page["leader"], page["ha"], page["members"]) == (
        "Pending", None, None, None, [],
    )  # fmt: skip


def test_hosts_are_named_once_and_without_those_that_are_gone(world: WholeWorld) -> None:
    world.node("n1", address="10.0.0.2")
    assert hosts(at_now(world), ORDERS) == ["10.0.0.2"]
    del world.nodes["n2"]
    world.node("n1", address="10.0.0.9")
    assert hosts(at_now(world), ORDERS) == ["10.0.0.9"]


def test_node_tells_what_is_free_and_who_hears_it(world: WholeWorld) -> None:
    page = node_page(at_now(world, n1=sample_of("n1", "m1", at=NOW - 2.04)), "n1")
    assert page["free"] == {"cpu": 3.0, "memory_bytes": 7 << 30, "disk_bytes": 70 << 30}
    assert (page["last_heard_s"], page["heard_by"], page["silent"]) == (2.0, ["hub-1"], False)
    assert page["members"] == ["demo/orders/m1"]
    assert page["load"] == {"cpu_used": 0.25, "memory_used_bytes": 1, "disk_used_bytes": 2}
    assert node_page(at_now(world), "n3")["last_heard_s"] is None


def test_reference_describes_every_field_that_is_shown(world: WholeWorld) -> None:
    page = overview(at_now(world, n1=sample_of("n1", "m1", at=NOW)))
    assert json.loads(json.dumps(page)) == page
    described = set(re.findall(r"`([a-z_]+)`", REFERENCE.read_text()))
    assert field_names(page) - described == set()


def field_names(page: Page | list[Any] | Any) -> set[str]:
    if isinstance(page, dict):
        return set(page).union(*(field_names(value) for value in page.values()))
    if isinstance(page, list):
        return set().union(*(field_names(item) for item in page))
    return set()
