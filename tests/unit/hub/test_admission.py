"""What may be applied to what is there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from core.errors import ConflictError, ExistsError, MoorageError, NotFoundError, UserError
from core.ids import InstanceRef
from core.records import InstanceRecord, NodeRecord, ProjectRecord
from core.specs import Document, InstanceSpec, NodeSpec, ProjectSpec, parse_document
from hub.admission import MAX_DOCUMENTS, Planned, World, plan, usage

ORDERS = InstanceRef("demo", "orders")
WALL = 1000.0


def project(name: str = "demo", **fields: Any) -> ProjectSpec:
    spec = parse_document({"kind": "Project", "name": name, **fields})
    assert isinstance(spec, ProjectSpec)
    return spec


def instance(name: str = "orders", **fields: Any) -> InstanceSpec:
    spec = parse_document({"kind": "Instance", "project": "demo", "name": name, **fields})
    assert isinstance(spec, InstanceSpec)
    return spec


def node(name: str = "n1", **fields: Any) -> NodeSpec:
    spec = parse_document({"kind": "Node", "name": name, **fields})
    assert isinstance(spec, NodeSpec)
    return spec


def world(*documents: Document, nodes: tuple[str, ...] = ()) -> World:
    """The world after these were applied."""
    empty = World(nodes={name: NodeRecord(name=name) for name in nodes}, projects={}, instances={})
    return after(empty, *documents) if documents else empty


def after(before: World, *documents: Document) -> World:
    records = [step.record for step in plan(documents, before, wall=WALL)]
    return replace(
        before,
        nodes={**before.nodes, **{r.name: r for r in records if isinstance(r, NodeRecord)}},
        projects={**before.projects, **{r.name: r for r in records if isinstance(r, ProjectRecord)}},
        instances={
            **before.instances,
            **{InstanceRef(r.project, r.name): r for r in records if isinstance(r, InstanceRecord)},
        },
    )


def planned(document: Document, before: World) -> Planned:
    return plan([document], before, wall=WALL)[0]


def refusal(document: Document, before: World) -> str:
    with pytest.raises(MoorageError) as refused:
        plan([document], before, wall=WALL)
    return str(refused.value)


def test_project_and_instance_may_come_in_one_batch_project_first() -> None:
    steps = plan([project(), instance(replicas=2)], world(), wall=WALL)
    assert [(step.kind, step.name, step.outcome) for step in steps] == [
        ("Project", "demo", "created"),
        ("Instance", "demo/orders", "created"),
    ]
    assert steps[1].changes == ("replicas: 2",)
    record = steps[1].record
    assert isinstance(record, InstanceRecord)
    assert (record.generation, record.created_at, record.spec["replicas"]) == (1, WALL, 2)


def test_instance_before_its_project_is_refused() -> None:
    with pytest.raises(NotFoundError, match=r"demo/orders: project 'demo' does not exist.*before this one"):
        plan([instance(), project()], world(), wall=WALL)


def test_same_document_again_changes_nothing() -> None:
    before = world(project(), instance())
    for document in (project(), instance()):
        step = planned(document, before)
        assert (step.outcome, step.changes, step.record) == ("unchanged", (), None)
    assert planned(instance(), before).generation == 1


def test_generation_grows_only_with_the_spec() -> None:
    before = world(project(), instance())
    step = planned(instance(replicas=1), before)
    assert (step.outcome, step.changes, step.generation) == ("changed", ("replicas: 0 -> 1",), 2)


def test_what_is_asked_beside_the_spec_survives_a_change() -> None:
    before = world(project(), instance())
    record = replace(before.instances[ORDERS], restart_id=7)
    step = planned(instance(replicas=1), replace(before, instances={ORDERS: record}))
    assert isinstance(step.record, InstanceRecord)
    assert (step.record.restart_id, step.record.created_at) == (7, WALL)


def test_field_that_an_older_version_did_not_store_is_no_change() -> None:
    before = world(project(), instance())
    record = before.instances[ORDERS]
    spec = {field: value for field, value in record.spec.items() if field != "proxy"}
    older = replace(before, instances={ORDERS: replace(record, spec=spec)})
    assert planned(instance(), older).outcome == "unchanged"


def test_creating_what_exists_is_refused_when_asked_so() -> None:
    with pytest.raises(ExistsError, match="demo: project exists already"):
        plan([project()], world(project()), wall=WALL, create_only=True)


def test_instance_that_is_being_deleted_takes_no_changes() -> None:
    before = world(project(), instance())
    leaving = replace(before, instances={ORDERS: replace(before.instances[ORDERS], deleting=True)})
    assert "is being deleted" in refusal(instance(replicas=1), leaving)


@pytest.mark.parametrize(
    ("old", "new", "running", "message"),
    [
        (15, 14, None, "engine_version cannot go down (15 -> 14). Write engine_version: 15."),
        (15, 16, None, "engine_version cannot change yet (15 -> 16). Write engine_version: 15, as it was."),
        (15, None, None, "engine_version cannot change yet (15 -> unset). Write engine_version: 15, as it was."),
        (None, 16, 15, "engine_version cannot change yet (unset -> 16). Write engine_version: null, as it was."),
        (None, 14, 15, "engine_version cannot go down (15 -> 14). Write engine_version: 15."),
        (None, 15, 15, ""),
        (15, 15, 15, ""),
    ],
)
def test_engine_version_stays(old: int | None, new: int | None, running: int | None, message: str) -> None:
    before = world(project(), instance(engine_version=old))
    before = replace(before, engine_versions={ORDERS: running} if running is not None else {})
    document = instance(engine_version=new)
    if message:
        assert refusal(document, before) == f"demo/orders: {message}"
    else:
        assert planned(document, before).outcome in ("changed", "unchanged")


def test_region_outside_the_projects_is_refused() -> None:
    before = world(project(allowed_regions=["eu", "uk"]))
    assert "region 'us' is not allowed in project 'demo' (allowed: eu, uk)" in refusal(
        instance(placement={"region": "us"}), before
    )
    assert planned(instance(placement={"region": "eu"}), before).outcome == "created"


def test_node_document_needs_an_enrolled_node() -> None:
    assert "n1: node is not enrolled. Nodes come by enrolment" in refusal(node(), world())
    step = planned(node(labels={"disk": "ssd"}, cordoned=True), world(nodes=("n1",)))
    assert step.changes == ("labels.disk: set to ssd", "cordoned: false -> true")


def test_batch_must_not_name_an_object_twice_nor_be_empty_nor_too_large() -> None:
    with pytest.raises(UserError, match="demo: Project is in the batch twice"):
        plan([project(), project()], world(), wall=WALL)
    with pytest.raises(UserError, match="no document"):
        plan([], world(), wall=WALL)
    with pytest.raises(UserError, match="more than 50"):
        plan([project(f"p{number}") for number in range(MAX_DOCUMENTS + 1)], world(), wall=WALL)


SMALL = {"cpu": 1, "memory": "1Gi", "disk": "1Gi"}


@pytest.mark.parametrize(
    ("quota", "message"),
    [
        ({"instances": 1}, "quota of instances is 1; 1 are in use, and 2 would be"),
        ({"cpu": 2.5}, "quota of cpu is 2.5; 1 are in use, and 4 would be"),
        ({"memory": "3.5Gi"}, "quota of memory is 3.5Gi; 1Gi are in use, and 4Gi would be"),
        ({"disk": "3Gi"}, "quota of disk is 3Gi; 1Gi are in use, and 4Gi would be"),
        ({"instances": 2, "cpu": 4, "memory": "4Gi", "disk": "4Gi"}, ""),
    ],
)
def test_quota_counts_all_members_and_tells_figures(quota: dict[str, Any], message: str) -> None:
    before = world(project(quota=quota), instance("first", resources=SMALL))
    document = instance("second", replicas=2, resources=SMALL)
    if message:
        assert message in refusal(document, before)
    else:
        assert planned(document, before).outcome == "created"


def test_quota_is_checked_against_the_whole_batch() -> None:
    before = world(project(quota={"instances": 2}))
    with pytest.raises(ConflictError, match="0 are in use, and 3 would be"):
        plan([instance(name) for name in ("a", "b", "c")], before, wall=WALL)
    raised = project(quota={"instances": 3})
    assert plan([raised, *(instance(name) for name in ("a", "b", "c"))], before, wall=WALL)


def test_quota_cannot_go_below_what_is_in_use() -> None:
    before = world(project(), instance("a"), instance("b"))
    assert "quota of instances is 1; 2 are in use, and 2 would be" in refusal(project(quota={"instances": 1}), before)


def test_what_is_over_quota_already_may_shrink_step_by_step() -> None:
    before = world(project(), instance(replicas=4, resources=SMALL))
    tight = replace(before.projects["demo"], spec=project(quota={"cpu": 2}).model_dump(mode="json"))
    before = replace(before, projects={"demo": tight})
    assert planned(instance(replicas=3, resources=SMALL), before).outcome == "changed"
    assert "quota of cpu" in refusal(instance(replicas=5, resources=SMALL), before)
    assert planned(project(labels={"a": "b"}, quota={"cpu": 2}), before).outcome == "changed"


def test_instances_that_are_being_deleted_take_nothing() -> None:
    record = world(project(), instance(replicas=1)).instances[ORDERS]
    assert usage([record]).instances == 1
    assert usage([replace(record, deleting=True)]).instances == 0


def test_plan_leaves_its_world_as_it_was() -> None:
    before = world(project())
    plan([instance(), project("other")], before, wall=WALL)
    assert (set(before.projects), set(before.instances)) == ({"demo"}, set())


# --- what is particular to members ------------------------------------------------------------------------------------


def with_members(before: World, *names: str) -> World:
    return replace(before, members={ORDERS: set(names)})


@pytest.mark.parametrize(
    ("tags", "told"),
    [
        ({"m4": {}}, "demo/orders: members.m4: m4 is no member: there will be m1 to m3. See `moorctl instance show`."),
        ({"m2": {"upstream": "m9"}}, "demo/orders: members.m2.upstream: m9 is no member: there will be m1 to m3."),
    ],
)
def test_nothing_is_said_about_members_that_will_not_be(tags: dict[str, Any], told: str) -> None:
    assert refusal(instance(replicas=2, members=tags), world(project())).startswith(told)


def test_members_that_replaced_others_are_known_by_their_names() -> None:
    before = with_members(world(project(), instance(replicas=2)), "m1", "m3", "m5")
    assert planned(instance(replicas=2, members={"m5": {"priority": 1}}), before).outcome == "changed"
    assert "m6 is no member: there are m1, m3, m5" in refusal(instance(replicas=2, members={"m6": {}}), before)


def test_a_document_may_be_applied_again_though_its_member_was_replaced() -> None:
    tagged = instance(replicas=1, members={"m2": {"upstream": "m1"}, "m1": {"priority": 3}})
    before = with_members(world(project(), tagged), "m1", "m2")
    gone = with_members(before, "m7", "m8")
    assert planned(tagged, gone).outcome == "unchanged"
    smaller = instance(replicas=0, members={"m2": {"upstream": "m1"}, "m1": {"priority": 3}})
    assert planned(smaller, with_members(before, "m1")).outcome == "changed"


def test_a_stored_document_from_before_there_were_tags_is_unchanged() -> None:
    before = world(project(), instance())
    record = before.instances[ORDERS]
    old = {name: value for name, value in record.spec.items() if name != "members"}
    before = replace(before, instances={ORDERS: replace(record, spec=old)})
    assert planned(instance(), before).outcome == "unchanged"
