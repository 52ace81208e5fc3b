"""Controllers on a real etcd: what operators ask for comes about, whatever dies in between, and nothing is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from core.clock import SystemClock
from core.ids import InstanceRef, MemberName, MemberRef
from core.records import ForcedFailover, HaRecord, InstanceRecord, MemberDesired, ScheduledSwitchover, to_json
from core.status import ConditionType, MemberState, Phase
from hub.claims import Claim
from hub.controllers import Controllers
from hub.etcd import keys, txns
from hub.etcd.client import EtcdClient
from hub.judges.situation import gather
from hub.judges.steps import next_step
from tests.support.controlled import ORDERS, ControlledHub, Killed, Stage, ha_of
from tests.support.etcd import EtcdProcess
from tests.support.situations import spec
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdProcess]:
    """One etcd for all tests here that do not harm it: starting one takes a second."""
    process = EtcdProcess(tmp_path_factory.mktemp("etcd"))
    asyncio.run(process.start())
    try:
        yield process
    finally:
        process.kill()


@pytest.fixture
async def stage(etcd: EtcdProcess, tmp_path: Path) -> AsyncIterator[Stage]:
    """An empty etcd with three nodes and project demo."""
    client = EtcdClient([etcd.endpoint])
    await client.delete_prefix(keys.ROOT)
    await client.aclose()
    async with Stage.on(etcd.endpoint, tmp_path) as stage:
        await stage.add_nodes("n1", "n2", "n3")
        await stage.add_project()
        yield stage


@pytest.fixture
async def hub(stage: Stage) -> ControlledHub:
    return await stage.hub()


# --- coming into being ------------------------------------------------------------------------------------------------


async def test_an_instance_is_created_in_one_transaction_and_runs_when_its_members_do(
    stage: Stage, hub: ControlledHub
) -> None:
    await stage.apply()
    await hub.look()
    revisions = {known.mod_revision for known in stage.mirror.members.values()}
    revisions |= {stage.mirror.ha[ORDERS].mod_revision, stage.mirror.status[ORDERS].mod_revision}
    assert len(revisions) == 1
    assert stage.status().phase is Phase.CREATING
    assert stage.mirror.ports == {15000: "demo.orders", 15001: "demo.orders", 15002: "demo.orders"}
    assert ha_of(stage) == HaRecord(bootstrap="m1")
    assert stage.mirror.secrets[ORDERS].keys() == {"app", "moorage_replication"}

    await hub.settle()
    status = stage.status()
    assert (status.phase, status.primary, status.observed_generation) == (Phase.RUNNING, "m1", 1)
    assert [(place.member, place.node) for place in status.members] == [("m1", "n1"), ("m2", "n2"), ("m3", "n3")]
    assert (status.engine_port, status.rw_port, status.ro_port) == (15000, 15001, 15002)
    assert stage.events() == ["instance_creating", "instance_running"]
    running = stage.mirror.events[-1]
    assert running.source == "hub1"
    assert running.message == "m1 on n1 leads in term 1; m2, m3 stream(s) from m1"


async def test_what_cannot_be_placed_is_pending_with_reasons_until_there_is_room(
    stage: Stage, hub: ControlledHub
) -> None:
    await stage.apply(replicas=3)
    await hub.settle()
    assert stage.status().phase is Phase.PENDING
    placed = stage.condition(ConditionType.PLACED)
    assert placed.reason == "Unplaceable"
    assert "3 of 3 fit" in placed.message
    before = stage.mirror.revision
    await hub.recheck()
    assert stage.mirror.revision == before, "nothing has changed, so nothing is written"

    await stage.add_nodes("n4")
    await hub.settle()
    assert stage.status().phase is Phase.RUNNING
    assert stage.events() == ["instance_pending", "instance_creating", "instance_running"]


async def test_room_that_a_deleted_instance_leaves_is_taken_at_once(stage: Stage, hub: ControlledHub) -> None:
    big = {"resources": {"memory": "8Gi"}}
    second = InstanceRef("demo", "second")
    await stage.apply(**big)
    await hub.settle()
    await stage.apply(second, **big)
    await hub.settle()
    assert stage.status(second).phase is Phase.PENDING
    await stage.ask(deleting=True)
    await hub.settle()
    assert stage.status(second).phase is Phase.RUNNING


async def test_two_instances_share_no_port_and_a_used_up_range_is_told(stage: Stage) -> None:
    hub = await stage.hub(port_range=(15000, 15006))
    refs = [InstanceRef("demo", name) for name in ("a", "b", "c")]
    for ref in refs:
        await stage.apply(ref, replicas=0)
    await hub.settle()
    ports = [
        (member.engine_port, member.rw_port, member.ro_port) for ref in refs for member in stage.members(ref).values()
    ]
    assert ports == [(15000, 15001, 15002), (15003, 15004, 15005)]
    assert "port_range" in stage.condition(ConditionType.PLACED, refs[2]).message


async def test_the_projects_regions_bind(stage: Stage, hub: ControlledHub) -> None:
    await stage.add_project("demo", allowed_regions=["south"])
    await stage.apply()
    await hub.settle()
    assert "region north; the project allows south" in stage.condition(ConditionType.PLACED).message


async def test_a_stored_spec_that_is_not_valid_is_told_and_the_instance_can_still_be_deleted(
    stage: Stage, hub: ControlledHub
) -> None:
    bad = InstanceRecord(project="demo", name="orders", spec={"project": "demo", "name": "orders", "replicas": -1})
    await stage.write(txns.Put(keys.instance(ORDERS), to_json(bad)))
    await hub.settle()
    assert "replicas" in stage.condition(ConditionType.CONVERGED).message
    await stage.ask(deleting=True)
    await hub.settle()
    assert await stage.keys_of() == []


async def test_the_right_to_initialise_leaves_a_node_that_falls_silent(stage: Stage, hub: ControlledHub) -> None:
    await stage.apply()
    await hub.look()
    stage.dead_nodes.add("n1")
    await hub.look()
    hub.clock.advance(28)  # the window and the spread that a new judge grants
    await hub.look()
    assert ha_of(stage).bootstrap == "m2"
    await hub.settle()
    assert stage.status().primary == "m2"
    stage.dead_nodes.clear()
    await hub.recheck()
    await hub.settle()
    assert stage.status().phase is Phase.RUNNING


# --- trouble ----------------------------------------------------------------------------------------------------------


async def test_a_silent_node_degrades_its_instances_and_a_heard_one_heals_them(
    stage: Stage, hub: ControlledHub
) -> None:
    await stage.apply()
    await hub.settle()
    stage.dead_nodes.add("n2")
    hub.clock.advance(11)
    await hub.settle()
    assert stage.mirror.silent == set(), "within the window nobody is silent"
    hub.clock.advance(31)
    await hub.settle()
    assert stage.mirror.silent == {"n2"}
    assert stage.status().phase is Phase.DEGRADED
    assert "n2 with m2 is silent" in stage.condition(ConditionType.NODES_REACHABLE).message

    stage.dead_nodes.clear()
    hub.clock.advance(1)
    await hub.settle()
    assert stage.mirror.silent == set()
    assert stage.status().phase is Phase.RUNNING
    assert stage.events()[-2:] == ["instance_degraded", "instance_running"]
    assert stage.events("node/n2") == ["node_silent", "node_heard"]


async def test_a_lost_primary_is_told_until_another_one_leads(stage: Stage, hub: ControlledHub) -> None:
    await stage.apply()
    await hub.settle()
    await stage.write(txns.Delete(keys.leader(ORDERS)))
    await hub.look()
    assert (stage.status().phase, stage.status().primary) == (Phase.DEGRADED, "")
    assert stage.mirror.events[-1].severity == "error"
    assert stage.mirror.events[-1].message.startswith("NoPrimary: nobody leads since term 1 of m1 on n1")
    stage.down["m1"] = MemberState.CRASHED
    await hub.settle()
    assert (stage.status().phase, stage.status().primary) == (Phase.DEGRADED, "m2")
    assert stage.condition(ConditionType.REPLICAS_AVAILABLE).reason == "MemberCrashed"
    stage.down.clear()
    await hub.settle()
    assert stage.status().phase is Phase.RUNNING


async def test_a_member_of_a_removed_node_is_replaced(stage: Stage, hub: ControlledHub) -> None:
    await stage.apply()
    await hub.settle()
    await stage.add_nodes("n4")
    await stage.write(txns.Delete(keys.node("n2")))
    await hub.settle()
    assert {name: member.node for name, member in stage.members().items()} == {"m1": "n1", "m2": "n4", "m3": "n3"}
    assert stage.status().phase is Phase.RUNNING
    assert "member_removed" in stage.events()


# --- changing ---------------------------------------------------------------------------------------------------------


async def test_a_changed_spec_reaches_all_members_and_counts_when_they_have_converged(
    stage: Stage, hub: ControlledHub
) -> None:
    await stage.apply()
    await hub.settle()
    await stage.apply(parameters={"work_mem": "8MB"}, users=[{"name": "app"}, {"name": "report"}])
    await hub.look()
    assert {member.generation for member in stage.members().values()} == {2}
    assert len({known.mod_revision for known in stage.mirror.members.values()}) == 1
    assert "report" in stage.mirror.secrets[ORDERS]
    assert (stage.status().phase, stage.status().observed_generation) == (Phase.MODIFYING, 1)
    await hub.settle()
    assert (stage.status().phase, stage.status().observed_generation) == (Phase.RUNNING, 2)


async def test_an_instance_grows_and_shrinks(stage: Stage, hub: ControlledHub) -> None:
    await stage.add_nodes("n4", "n5")
    await stage.apply(replicas=1)
    await hub.settle()
    await stage.apply(replicas=4)
    await hub.settle()
    assert list(stage.members()) == ["m1", "m2", "m3", "m4", "m5"]
    assert (stage.status().phase, stage.status().observed_generation) == (Phase.RUNNING, 2)
    await stage.apply(replicas=1)
    await hub.settle()
    assert list(stage.members()) == ["m1", "m2"]
    assert len(stage.mirror.observed) == 2
    assert (stage.status().phase, stage.status().observed_generation) == (Phase.RUNNING, 3)


async def test_the_member_with_the_last_acknowledged_commits_leaves_only_when_another_has_them(
    stage: Stage, hub: ControlledHub
) -> None:
    sync = {"replication": {"mode": "sync"}}
    await stage.apply(**sync)
    await hub.settle()
    assert ha_of(stage).sync.names == ("m3",)
    await stage.apply(replicas=1, **sync)
    await hub.look()
    retiring = stage.members()["m3"]
    assert (retiring.desired, retiring.no_failover) == ("running", True)
    assert stage.condition(ConditionType.CONVERGED).reason == "Applying"
    await hub.settle()
    assert ha_of(stage).sync.names == ("m2",)
    assert list(stage.members()) == ["m1", "m2"]


async def test_a_restart_goes_through_the_members_one_by_one(stage: Stage, hub: ControlledHub) -> None:
    await stage.apply()
    await hub.settle()
    await stage.ask(restart_id=1)
    seen = []
    for _ in range(10):
        await hub.look()
        asked = [name for name, member in stage.members().items() if member.restart_id == 1]
        if asked not in seen:
            seen.append(asked)
        await stage.agents()
    assert seen == [["m2"], ["m2", "m3"], ["m1", "m2", "m3"]]
    assert stage.status().phase is Phase.RUNNING
    assert stage.events().count("member_restart_requested") == 3
    assert "instance_degraded" not in stage.events()


# --- going ------------------------------------------------------------------------------------------------------------


async def test_deletion_leaves_nothing_in_etcd(stage: Stage, hub: ControlledHub) -> None:
    await stage.apply()
    await hub.settle()
    await stage.write(txns.Put(keys.ballot(ORDERS, 2, "m2"), b"{}"))
    await stage.ask(deleting=True)
    await hub.look()
    assert stage.status().phase is Phase.DELETING
    assert {member.desired for member in stage.members().values()} == {"absent"}
    await hub.settle()
    assert await stage.keys_of() == []
    assert stage.events()[-5:] == ["instance_deleting", *["member_removed"] * 3, "instance_deleted"]


async def test_what_was_never_placed_is_deleted_at_once(stage: Stage, hub: ControlledHub) -> None:
    await stage.apply(replicas=8)
    await hub.settle()
    await stage.ask(deleting=True)
    await hub.look()
    assert await stage.keys_of() == []


async def test_deletion_waits_for_a_silent_node_and_names_it_but_not_for_a_removed_one(
    stage: Stage, hub: ControlledHub
) -> None:
    await stage.apply()
    await hub.settle()
    stage.dead_nodes.add("n2")
    await stage.ask(deleting=True)
    await hub.settle()
    hub.clock.advance(31)
    await hub.settle()
    assert list(stage.members()) == ["m2"]
    assert "m2 on n2 cannot be deleted: node n2 is silent" in stage.condition(ConditionType.CONVERGED).message
    await stage.write(txns.Delete(keys.node("n2")))
    await hub.settle()
    assert await stage.keys_of() == []


async def test_leftovers_without_an_instance_are_swept_but_members_never(stage: Stage, hub: ControlledHub) -> None:
    gone, lost = InstanceRef("demo", "gone"), InstanceRef("demo", "lost")
    await stage.write(
        txns.Put(keys.ha(gone), to_json(HaRecord())),
        txns.Put(keys.secret(gone, "app"), b"sealed"),
        txns.Put(keys.port(15500), gone.key.encode()),
        txns.Put(keys.ha(lost), to_json(HaRecord())),
        txns.Put(
            keys.member("n1", MemberRef(lost, MemberName("m1"))),
            to_json(MemberDesired(project="demo", instance="lost", member="m1", node="n1")),
        ),
    )
    await hub.look()
    assert await stage.keys_of(gone) != [], "one look might have met an instance that is just being made"
    await hub.recheck()
    assert await stage.keys_of(gone) == []
    assert len(await stage.keys_of(lost)) == 2


# --- dying in between -------------------------------------------------------------------------------------------------


async def whole_life(stage: Stage, *, left: int, unheard: bool) -> bool:
    """One instance from creation to deletion, by a hub that dies after `left` commits and one that takes its place.
    Whether the first one died."""
    mortal = await stage.hub(left=left, unheard=unheard)
    died = False

    async def settle() -> None:
        nonlocal mortal, died
        try:
            await mortal.settle()
        except Killed:
            died = True
            mortal = await stage.hub(name="hub2")
            await mortal.settle()

    await stage.apply(replicas=1)
    await settle()
    assert (stage.status().phase, list(stage.members())) == (Phase.RUNNING, ["m1", "m2"])
    assert sorted(stage.mirror.ports) == [15000, 15001, 15002]
    await stage.apply(replicas=2, parameters={"work_mem": "8MB"})
    await settle()
    assert (stage.status().phase, list(stage.members())) == (Phase.RUNNING, ["m1", "m2", "m3"])
    assert len({member.node for member in stage.members().values()}) == 3
    assert stage.status().observed_generation == 2
    await stage.ask(restart_id=1)
    await settle()
    assert {member.restart_id for member in stage.members().values()} == {1}
    assert stage.status().phase is Phase.RUNNING
    await stage.apply(replicas=0)
    await settle()
    assert (stage.status().phase, list(stage.members())) == (Phase.RUNNING, ["m1"])
    await stage.ask(deleting=True)
    await settle()
    assert await stage.keys_of() == []
    assert stage.mirror.ports == {}
    return died


@pytest.mark.parametrize("unheard", [False, True], ids=["before the commit", "before its answer"])
async def test_a_hub_may_die_at_any_commit_and_its_successor_finishes(stage: Stage, *, unheard: bool) -> None:
    for left in range(100):
        stage.mirror.events.clear()
        died = await whole_life(stage, left=left, unheard=unheard)
        told = [event for event in stage.events() if event.startswith("instance_")]
        assert told == [
            "instance_creating",
            "instance_running",
            *["instance_modifying", "instance_running"] * 3,
            "instance_deleting",
            "instance_deleted",
        ], f"killed after {left} commits"
        if not died:
            assert left > 10, "the whole life has many commits"
            return
    raise AssertionError("no end of commits")


async def test_a_step_that_is_carried_out_late_does_not_double_what_was_done_meanwhile(
    stage: Stage, hub: ControlledHub
) -> None:
    await stage.add_nodes("n4", "n5")
    await stage.apply(replicas=1)
    await hub.settle()
    await stage.apply(replicas=2)
    wanted = spec(replicas=2)

    def judged() -> txns.Txn:
        pairs = [pair for pair in stage.mirror.members if pair[1].instance == ORDERS]
        situation = gather(stage.mirror, ORDERS, pairs, spec=wanted)
        step = next_step(stage.mirror, situation, port_range=(15000, 15999), now=1.0)
        assert step is not None
        return txns.all_of([hub.holding.compare, *step.compares], step.ops)

    assert await stage.store.commit(judged())  # the new generation
    late = judged()  # a third member, on the best node
    await stage.write(
        *(txns.Put(keys.node(n), to_json(replace(stage.mirror.nodes[n].record, cordoned=True))) for n in ("n3", "n4"))
    )
    assert await stage.store.commit(judged())  # a third member, on another node
    assert not await stage.store.commit(late)
    assert list(stage.members()) == ["m1", "m2", "m3"]


# --- the claim --------------------------------------------------------------------------------------------------------


async def test_a_hub_whose_claim_has_gone_changes_nothing(stage: Stage, hub: ControlledHub) -> None:
    await stage.hub(name="hub2")
    await stage.apply()
    before = stage.mirror.instances[ORDERS].mod_revision
    await hub.look()
    assert ORDERS not in stage.mirror.status
    assert not stage.members()
    assert stage.mirror.instances[ORDERS].mod_revision == before


async def test_a_twin_takes_over_when_the_holder_leaves_and_when_it_is_deposed(stage: Stage) -> None:
    first, second = (
        Controllers(replace(stage.full, config=stage.full.config.model_copy(update={"name": name})))
        for name in ("hub1", "hub2")
    )

    async def phase(ref: InstanceRef) -> Phase | None:
        return stage.status(ref).phase if ref in stage.mirror.status else None

    async def creating(ref: InstanceRef) -> None:
        await stage.apply(ref, replicas=0)
        await eventually(lambda: phase(ref), lambda seen: seen is Phase.CREATING, within=15)

    async with asyncio.TaskGroup() as group:
        one = group.create_task(first.run())
        await creating(InstanceRef("demo", "a"))
        two = group.create_task(second.run())
        one.cancel()
        await creating(InstanceRef("demo", "b"))
        # Deposed as by a lapse of its lease; it notices, and being alone takes the claim again.
        await stage.client.delete_prefix(keys.CLAIMS)
        await creating(InstanceRef("demo", "c"))
        two.cancel()


async def test_a_claim_is_free_again_when_its_holder_is_gone_for_a_lease(stage: Stage) -> None:
    clock = SystemClock()
    dead = await Claim(stage.client, clock, work="w", hub="hub1").take_if_free()
    assert dead is not None
    twin = Claim(stage.client, clock, work="w", hub="hub2")
    assert await twin.take_if_free() is None
    taken = await eventually(twin.take_if_free, within=12, every=0.3)
    assert taken is not None
    assert taken.created > dead.created


async def test_control_rests_while_etcd_is_away_and_goes_on_afterwards(tmp_path: Path) -> None:
    async with EtcdProcess.running() as etcd, Stage.on(etcd.endpoint, tmp_path) as stage:
        await stage.add_nodes("n1")
        async with asyncio.TaskGroup() as group:
            running = group.create_task(Controllers(stage.full).run())
            etcd.kill()
            await asyncio.sleep(0)
            await etcd.start()
            await stage.apply(replicas=0)

            async def phase() -> Phase | None:
                return stage.status().phase if ORDERS in stage.mirror.status else None

            await eventually(phase, lambda seen: seen is Phase.CREATING, within=30)
            running.cancel()


# --- wishes that time ends --------------------------------------------------------------------------------------------


async def schedule(stage: Stage, hub: ControlledHub, *, in_s: float, target: str = "m2") -> None:
    now = hub.clock.wall()
    wish = ScheduledSwitchover(id="s1", at=now + in_s, target=target, requested_by="ada", requested_at=now)
    await stage.write(txns.Put(keys.ha(ORDERS), to_json(replace(ha_of(stage), scheduled=wish))))


async def test_a_scheduled_switchover_is_asked_for_within_a_second_of_its_time(
    stage: Stage, hub: ControlledHub
) -> None:
    await stage.apply()
    await hub.settle()
    await schedule(stage, hub, in_s=12.0)
    hub.clock.advance(11.5)
    await hub.look()
    assert ha_of(stage).switchover is None
    hub.clock.advance(1.1)
    await hub.look()
    asked = ha_of(stage).switchover
    assert asked is not None
    assert (asked.id, asked.target, asked.requested_by, ha_of(stage).scheduled) == ("s1", "m2", "ada", None)
    assert "switchover_requested" in stage.events()


async def test_a_scheduled_switchover_of_an_instance_that_is_not_well_is_dropped(
    stage: Stage, hub: ControlledHub
) -> None:
    await stage.apply()
    await hub.settle()
    await schedule(stage, hub, in_s=5.0)
    stage.down["m3"] = MemberState.CRASHED
    await hub.settle()
    hub.clock.advance(6)
    await hub.look()
    assert (ha_of(stage).switchover, ha_of(stage).scheduled) == (None, None)
    dropped = stage.mirror.events[-1]
    assert (dropped.event, dropped.severity) == ("switchover_dropped", "warning")
    assert "the instance is not healthy (the engine of m3 on n3" in dropped.message


async def test_a_scheduled_switchover_that_no_hub_was_there_for_is_dropped_by_the_next_one(
    stage: Stage, hub: ControlledHub
) -> None:
    await stage.apply()
    await hub.settle()
    await schedule(stage, hub, in_s=5.0)
    successor = await stage.hub(name="hub2")
    successor.clock.advance(hub.clock.now() + 5.0 + 16 * 60)
    await successor.look()
    assert (ha_of(stage).switchover, ha_of(stage).scheduled) == (None, None)
    assert "no hub was at work for 16 minutes after its time" in stage.mirror.events[-1].message
    assert ha_of(stage).history[-1].kind == "switchover_ended"


@pytest.mark.parametrize("unheard", [False, True])
async def test_a_hub_that_dies_while_it_asks_for_a_scheduled_switchover_asks_once(stage: Stage, unheard: bool) -> None:
    await stage.apply()
    hub = await stage.hub()
    await hub.settle()
    await schedule(stage, hub, in_s=1.0)
    mortal = await stage.hub(name="hub2", left=0, unheard=unheard)
    mortal.clock.advance(hub.clock.now() + 2.0)
    with pytest.raises(Killed):
        await mortal.look()
    successor = await stage.hub(name="hub3")
    successor.clock.advance(hub.clock.now() + 3.0)
    await successor.look()
    assert ha_of(stage).scheduled is None
    assert ha_of(stage).switchover is not None
    assert stage.events().count("switchover_requested") == 1


async def test_an_order_that_nobody_carried_out_is_dropped(stage: Stage, hub: ControlledHub) -> None:
    await stage.apply()
    await hub.settle()
    now = hub.clock.wall()
    order = ForcedFailover(id="o1", target="m3", after_term=1, requested_by="ada", requested_at=now)
    await stage.write(txns.Put(keys.ha(ORDERS), to_json(replace(ha_of(stage), forced=order))))
    hub.clock.advance(30)
    await hub.look()
    assert ha_of(stage).forced == order
    hub.clock.advance(20)
    await hub.look()
    assert ha_of(stage).forced is None
    assert (stage.mirror.events[-1].event, stage.mirror.events[-1].severity) == ("failover_dropped", "error")


async def test_a_pause_is_a_condition_and_no_trouble(stage: Stage, hub: ControlledHub) -> None:
    await stage.apply()
    await hub.settle()
    paused = replace(ha_of(stage), paused=True, paused_by="ada", paused_at=hub.clock.wall())
    await stage.write(txns.Put(keys.ha(ORDERS), to_json(paused)))
    await hub.settle()
    told = stage.condition(ConditionType.AUTOMATIC_FAILOVER)
    assert (told.status, told.reason, stage.status().phase) == (False, "Paused", Phase.RUNNING)


async def test_changed_tags_reach_members_without_a_restart(stage: Stage, hub: ControlledHub) -> None:
    await stage.apply()
    await hub.settle()
    await stage.apply(members={"m2": {"no_failover": True, "priority": 4}})
    await hub.settle()
    desired = {name: (one.no_failover, one.priority, one.restart_id) for name, one in stage.members().items()}
    assert desired == {"m1": (False, 0, 0), "m2": (True, 4, 0), "m3": (False, 0, 0)}
    assert stage.status().phase is Phase.RUNNING
