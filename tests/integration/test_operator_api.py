"""What operators may ask of a hub, over real TLS and on a real etcd."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import StatusCode

from core import scram
from core.identity import new_operator_token
from core.ids import InstanceRef
from core.records import HaRecord, InstanceStatus, NodeRecord
from core.status import Role
from hub.etcd import keys
from hub.secrets import REPLICATION_USER
from protos.v1 import operator_pb2 as pb
from tests.support.api import Api, empty, one_etcd, refused, running_api
from tests.support.etcd import EtcdProcess
from tests.support.waiting import eventually

ORDERS = InstanceRef("demo", "orders")
PROJECT: dict[str, Any] = {"kind": "Project", "name": "demo"}
INSTANCE: dict[str, Any] = {"kind": "Instance", "project": "demo", "name": "orders", "replicas": 1}


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdProcess]:
    with one_etcd() as etcd:
        yield etcd


@pytest.fixture
async def api(etcd: EtcdProcess, tmp_path: Path) -> AsyncIterator[Api]:
    await empty(etcd)
    async with running_api(etcd.endpoint, tmp_path) as api:
        yield api


# --- who may -------------------------------------------------------------------------------------------------------


async def test_caller_without_a_good_token_is_told_so(api: Api) -> None:
    for token in ("", "junk", new_operator_token().text(), api.admin[:-1] + ("0" if api.admin[-1] != "0" else "1")):
        with refused(StatusCode.UNAUTHENTICATED) as refusal:
            await api.call(pb.GetStatusRequest(), token=token)
        assert refusal.error["code"] == "unauthenticated"
        assert refusal.error["hint"]


async def test_viewer_reads_but_neither_writes_nor_sees_passwords(api: Api) -> None:
    await api.apply(PROJECT, INSTANCE)
    viewer = await api.operator("viewer")
    await api.call(pb.GetStatusRequest(), token=viewer)
    await api.call(pb.GetRequest(kind=pb.KIND_INSTANCE, name="demo/orders"), token=viewer)
    for request in (
        pb.ApplyRequest(documents=[json.dumps({**INSTANCE, "replicas": 2})]),
        pb.DeleteRequest(kind=pb.KIND_INSTANCE, name="demo/orders"),
        pb.SwitchoverRequest(name="demo/orders"),
        pb.RestartInstanceRequest(name="demo/orders"),
        pb.GetCredentialsRequest(name="demo/orders"),
        pb.CordonNodeRequest(node="n1", cordoned=True),
        pb.CreateJoinTokenRequest(),
    ):
        with refused(StatusCode.PERMISSION_DENIED) as refusal:
            await api.call(request, token=viewer)
        assert "operator 'a-viewer' is viewer" in refusal.text
    assert api.hub.mirror.instances[ORDERS].record.generation == 1


async def test_operator_changes_instances_but_not_who_takes_part(api: Api) -> None:
    operator = await api.operator("operator")
    with refused(StatusCode.PERMISSION_DENIED):
        await api.apply(PROJECT, INSTANCE, token=operator)
    await api.apply(PROJECT)
    await api.apply(INSTANCE, token=operator)
    for request in (
        pb.CreateJoinTokenRequest(),
        pb.CordonNodeRequest(node="n1"),
        pb.DeleteRequest(kind=pb.KIND_PROJECT, name="demo"),
        pb.DeleteRequest(kind=pb.KIND_NODE, name="n1"),
    ):
        with refused(StatusCode.PERMISSION_DENIED):
            await api.call(request, token=operator)
    await api.call(pb.DeleteRequest(kind=pb.KIND_INSTANCE, name="demo/orders"), token=operator)


# --- applying ------------------------------------------------------------------------------------------------------


async def test_documents_are_applied_and_told_in_sentences(api: Api) -> None:
    created = await api.apply(PROJECT, INSTANCE)
    assert [(one.name, one.outcome, one.generation) for one in created] == [
        ("demo", pb.Applied.OUTCOME_CREATED, 0),
        ("demo/orders", pb.Applied.OUTCOME_CREATED, 1),
    ]
    again = await api.apply(PROJECT, INSTANCE)
    assert [one.outcome for one in again] == [pb.Applied.OUTCOME_UNCHANGED] * 2
    (changed,) = await api.apply({**INSTANCE, "replicas": 2, "parameters": {"work_mem": "8MB"}})
    assert (changed.outcome, changed.generation) == (pb.Applied.OUTCOME_CHANGED, 2)
    assert list(changed.changes) == ["replicas: 1 -> 2", "parameters.work_mem: set to 8MB"]
    told = [(event.event, event.message, event.source) for event in await api.events("demo/", count=2)]
    assert told == [
        ("instance_created", "by admin: replicas: 1", "hub-1"),
        ("instance_changed", "by admin: replicas: 1 -> 2; parameters.work_mem: set to 8MB", "hub-1"),
    ]


async def test_dry_run_tells_and_writes_nothing(api: Api) -> None:
    before = api.hub.mirror.revision
    results = await api.apply(PROJECT, INSTANCE, dry_run=True)
    assert [one.outcome for one in results] == [pb.Applied.OUTCOME_CREATED] * 2
    assert api.hub.mirror.revision == before
    assert not api.hub.mirror.secrets


@pytest.mark.parametrize(
    ("bad", "code", "message"),
    [
        (
            {**INSTANCE, "name": "second", "replica": 1},
            StatusCode.INVALID_ARGUMENT,
            "document 3: replica: is not a known field",
        ),
        ({**INSTANCE, "project": "nowhere"}, StatusCode.NOT_FOUND, "nowhere/orders: project 'nowhere' does not exist"),
        ({"kind": "Node", "name": "n1"}, StatusCode.NOT_FOUND, "n1: node is not enrolled"),
        (PROJECT, StatusCode.INVALID_ARGUMENT, "demo: Project is in the batch twice"),
        (
            {**INSTANCE, "name": "big", "resources": {"cpu": 64}},
            StatusCode.FAILED_PRECONDITION,
            "project demo: quota of cpu is 4; 0 are in use, and 130 would be",
        ),
    ],
)
async def test_batch_with_one_bad_document_writes_nothing(
    api: Api, bad: dict[str, Any], code: StatusCode, message: str
) -> None:
    with refused(code) as refusal:
        await api.apply({**PROJECT, "quota": {"cpu": 4}}, INSTANCE, bad)
    assert refusal.text.startswith(message)
    mirror = api.hub.mirror
    assert not mirror.projects
    assert not mirror.instances
    assert not mirror.secrets


async def test_all_unfit_documents_of_a_batch_are_told_at_once(api: Api) -> None:
    with refused(StatusCode.INVALID_ARGUMENT) as refusal:
        await api.call(pb.ApplyRequest(documents=["{", json.dumps(PROJECT), json.dumps({**INSTANCE, "name": 5})]))
    assert "document 1: not valid JSON" in refusal.text
    assert "document 3: name: must be text" in refusal.text
    assert "document 2" not in refusal.text


@pytest.mark.parametrize("letter", ["x", "ä", "😀", "\x01", "\ud800"])
async def test_refusal_of_something_huge_still_fits_into_an_answer(api: Api, letter: str) -> None:
    with refused(StatusCode.INVALID_ARGUMENT) as refusal:
        await api.apply({"kind": letter * 20_000})
    assert refusal.text.startswith("document 1.kind: kind '")
    assert refusal.error["code"] == "bad-request"
    assert refusal.error["what"].endswith("…")


async def test_creating_twice_is_refused_when_asked_so(api: Api) -> None:
    await api.apply(PROJECT, INSTANCE, create_only=True)
    with refused(StatusCode.ALREADY_EXISTS) as refusal:
        await api.apply(INSTANCE, create_only=True)
    assert refusal.error == {
        "code": "exists",
        "what": "instance exists already",
        "object": "demo/orders",
        "hint": "Use apply to change it.",
    }


async def test_of_many_that_create_the_same_instance_one_does(api: Api) -> None:
    await api.apply(PROJECT)
    outcomes = await asyncio.gather(*(api.apply(INSTANCE, create_only=True) for _ in range(5)), return_exceptions=True)
    failures = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    assert len(failures) == 4
    assert {failure.code() for failure in failures} == {StatusCode.ALREADY_EXISTS}


async def test_quota_holds_against_writers_at_the_same_moment(api: Api) -> None:
    await api.apply({**PROJECT, "quota": {"instances": 2}})
    attempts = (api.apply({**INSTANCE, "name": f"i{number}"}) for number in range(4))
    outcomes = await asyncio.gather(*attempts, return_exceptions=True)
    assert sum(not isinstance(outcome, BaseException) for outcome in outcomes) == 2
    assert len(api.hub.mirror.instances) == 2


# --- passwords -----------------------------------------------------------------------------------------------------


async def test_passwords_are_made_with_the_instance_and_kept_when_it_changes(api: Api) -> None:
    await api.apply(PROJECT, INSTANCE)
    before = api.hub.secrets.password(ORDERS, "app")
    users = [{"name": "app"}, {"name": "reporter"}]
    await api.apply({**INSTANCE, "users": users})
    assert api.hub.secrets.password(ORDERS, "app") == before
    assert set(api.hub.mirror.secrets[ORDERS]) == {"app", "reporter", REPLICATION_USER}


async def test_nodes_get_verifiers_of_users_and_the_password_of_replication(api: Api) -> None:
    await api.apply(PROJECT, INSTANCE)
    secrets = api.hub.secrets.member_secrets(ORDERS, ["app", "not-there-yet"])
    assert scram.password_fits(api.hub.secrets.password(ORDERS, "app"), secrets.verifiers["app"])
    assert secrets.replication_password == api.hub.secrets.password(ORDERS, REPLICATION_USER)
    assert set(secrets.verifiers) == {"app"}
    assert secrets.replication_password not in repr(secrets)


async def test_of_many_that_make_a_password_at_once_one_wins(api: Api) -> None:
    made = await asyncio.gather(*(api.hub.secrets.ensure(ORDERS, ["app"]) for _ in range(5)))
    assert sorted(user for users in made for user in users) == ["app", REPLICATION_USER]


async def test_credentials_name_the_leaders_host_first(api: Api) -> None:
    await api.apply(PROJECT, INSTANCE)
    with refused(StatusCode.FAILED_PRECONDITION) as refusal:
        await api.call(pb.GetCredentialsRequest(name="demo/orders"))
    assert refusal.text == "demo/orders: instance is not placed yet. Wait until it is Running."
    await api.place(ORDERS, "n1", "n2", leader="m2")
    found = await api.call(pb.GetCredentialsRequest(name="demo/orders"))
    assert (found.user, found.database, list(found.hosts)) == ("app", "app", ["127.0.0.12", "127.0.0.11"])
    assert (found.rw_port, found.ro_port, found.client_tls) == (15001, 15002, "prefer")
    assert found.password == api.hub.secrets.password(ORDERS, "app")
    assert found.ca_pem == api.hub.authority.ca_pem
    with refused(StatusCode.NOT_FOUND) as refusal:
        await api.call(pb.GetCredentialsRequest(name="demo/orders", user=REPLICATION_USER))
    assert "is not declared" in refusal.text


# --- deleting ------------------------------------------------------------------------------------------------------


async def test_protected_instance_is_not_deleted(api: Api) -> None:
    await api.apply(PROJECT, {**INSTANCE, "deletion_protection": True})
    request = pb.DeleteRequest(kind=pb.KIND_INSTANCE, name="demo/orders")
    with refused(StatusCode.FAILED_PRECONDITION) as refusal:
        await api.call(request)
    assert "Apply deletion_protection: false first" in refusal.text
    await api.apply(INSTANCE)
    await api.call(request)
    await api.call(request)
    assert api.hub.mirror.instances[ORDERS].record.deleting
    told = [event.event for event in await api.events("demo/orders", count=3)]
    assert told == ["instance_created", "instance_changed", "instance_deletion_requested"]
    with refused(StatusCode.FAILED_PRECONDITION) as refusal:
        await api.apply({**INSTANCE, "replicas": 2})
    assert "is being deleted" in refusal.text


async def test_project_with_instances_is_not_deleted(api: Api) -> None:
    await api.apply(PROJECT, INSTANCE)
    request = pb.DeleteRequest(kind=pb.KIND_PROJECT, name="demo")
    with refused(StatusCode.FAILED_PRECONDITION) as refusal:
        await api.call(request)
    assert refusal.text == "demo: project still has demo/orders. Delete them first."
    await api.hub.client.delete_prefix(keys.INSTANCES)
    await eventually(lambda: asyncio.sleep(0, not api.hub.mirror.instances), within=5)
    await api.call(request)
    with refused(StatusCode.NOT_FOUND):
        await api.call(request)


async def test_node_with_members_goes_only_when_it_is_dead(api: Api) -> None:
    await api.apply(PROJECT, INSTANCE)
    await api.place(ORDERS, "n1")
    await api.put(keys.silent("n1"), NodeRecord(name="n1"))
    await api.call(pb.DeleteRequest(kind=pb.KIND_NODE, name="n1"))
    (event,) = await api.events("node/n1", count=1)
    assert (event.event, event.message) == ("node_removed", "by admin, with demo/orders/m1 on it")


async def test_node_with_members_stays_and_an_empty_one_goes_with_all_its_keys(api: Api) -> None:
    await api.apply(PROJECT, INSTANCE)
    await api.place(ORDERS, "n1")
    await api.put(keys.node("n2"), NodeRecord(name="n2"))
    with refused(StatusCode.FAILED_PRECONDITION) as refusal:
        await api.call(pb.DeleteRequest(kind=pb.KIND_NODE, name="n1"))
    assert refusal.text.startswith("n1: node is alive and has demo/orders/m1.")
    await api.put(keys.silent("n2"), NodeRecord(name="n2"))
    await api.call(pb.DeleteRequest(kind=pb.KIND_NODE, name="n2"))
    assert set(api.hub.mirror.nodes) == {"n1"}
    assert await api.hub.client.get(keys.silent("n2")) is None


# --- wishes --------------------------------------------------------------------------------------------------------


async def test_switchover_lies_in_the_ha_record_once(api: Api) -> None:
    await api.apply(PROJECT, INSTANCE)
    await api.place(ORDERS, "n1", "n2")
    request_id = (await api.call(pb.SwitchoverRequest(name="demo/orders", target="m2"))).id
    asked = api.hub.mirror.ha[ORDERS].record.switchover
    assert asked is not None
    assert (asked.id, asked.target, asked.requested_by) == (request_id, "m2", "admin")
    with refused(StatusCode.FAILED_PRECONDITION) as refusal:
        await api.call(pb.SwitchoverRequest(name="demo/orders"))
    assert refusal.text == f"demo/orders: switchover {request_id} is under way. Wait until it is over."


async def test_switchover_that_cannot_be_is_refused_with_the_reason(api: Api) -> None:
    await api.apply(PROJECT, INSTANCE)
    await check_switchover(api, "", StatusCode.FAILED_PRECONDITION, "instance has no primary now")
    await api.place(ORDERS, "n1", "n2")
    await check_switchover(api, "m1", StatusCode.FAILED_PRECONDITION, "m1 is the primary already")
    await check_switchover(api, "m9", StatusCode.NOT_FOUND, "member 'm9' does not exist. Members: m1, m2.")
    (key,) = [key for key in api.hub.mirror.observed if key[0] == "n2"]
    seen = api.hub.mirror.observed[key].record
    await api.put(keys.observed(*key), replace(seen, role=Role.UNKNOWN))
    await check_switchover(api, "m2", StatusCode.FAILED_PRECONDITION, "m2 is not a running replica (unknown, running)")
    await check_switchover(
        api, "", StatusCode.FAILED_PRECONDITION, "no replica can become primary: m2 is not a running"
    )
    await api.put(keys.silent("n2"), NodeRecord(name="n2"))
    await check_switchover(api, "m2", StatusCode.FAILED_PRECONDITION, "node n2 of m2 is silent, so it cannot become")
    await api.put(keys.ha(ORDERS), HaRecord(term=1, leader="m1", paused=True))
    await check_switchover(api, "m2", StatusCode.FAILED_PRECONDITION, "leadership is paused")
    assert api.hub.mirror.ha[ORDERS].record.switchover is None


async def check_switchover(api: Api, target: str, code: StatusCode, message: str) -> None:
    with refused(code) as refusal:
        await api.call(pb.SwitchoverRequest(name="demo/orders", target=target))
    assert refusal.text.startswith(f"demo/orders: {message}")


async def test_each_restart_has_the_next_number(api: Api) -> None:
    await api.apply(PROJECT, INSTANCE)
    request = pb.RestartInstanceRequest(name="demo/orders")
    assert [(await api.call(request)).restart_id for _ in range(2)] == [1, 2]
    record = api.hub.mirror.instances[ORDERS].record
    assert (record.restart_id, record.generation) == (2, 1)
    with refused(StatusCode.NOT_FOUND):
        await api.call(pb.RestartInstanceRequest(name="demo/other"))
    with refused(StatusCode.INVALID_ARGUMENT) as refusal:
        await api.call(pb.RestartInstanceRequest(name="orders"))
    assert "write PROJECT/INSTANCE" in refusal.text


async def test_node_is_closed_and_opened(api: Api) -> None:
    await api.put(keys.node("n1"), NodeRecord(name="n1", address="127.0.0.11"))
    for cordoned in (True, True, False):
        await api.call(pb.CordonNodeRequest(node="n1", cordoned=cordoned))
        assert api.hub.mirror.nodes["n1"].record.cordoned is cordoned
    assert [event.event for event in await api.events("node/n1", count=2)] == ["node_cordoned", "node_uncordoned"]
    with refused(StatusCode.NOT_FOUND):
        await api.call(pb.CordonNodeRequest(node="n9", cordoned=True))


@pytest.mark.parametrize(("node", "ttl_s"), [("Bad", 0), ("moorage-hub", 0), ("", 31 * 86400)])
async def test_join_token_for_an_unfit_name_or_time_is_refused(api: Api, node: str, ttl_s: int) -> None:
    with refused(StatusCode.INVALID_ARGUMENT):
        await api.join_token(node=node, ttl_s=ttl_s)


# --- reading -------------------------------------------------------------------------------------------------------


async def test_objects_are_shown_with_spec_and_status(api: Api) -> None:
    await api.apply(PROJECT, INSTANCE)
    await api.place(ORDERS, "n1", "n2")
    spec, status = await api.get(pb.KIND_INSTANCE, "demo/orders")
    assert (spec["kind"], spec["replicas"], status["phase"], status["leader"]["member"]) == (
        "Instance", 1, "Running", "m1",
    )  # fmt: skip
    listed = (await api.call(pb.ListRequest(kind=pb.KIND_INSTANCE, project="demo"))).objects
    assert [found.name for found in listed] == ["demo/orders"]
    assert not (await api.call(pb.ListRequest(kind=pb.KIND_INSTANCE, project="other"))).objects
    whole = json.loads((await api.call(pb.GetStatusRequest())).status_json)
    assert [node["name"] for node in whole["nodes"]] == ["n1", "n2"]
    assert [instance["name"] for instance in whole["instances"]] == ["demo/orders"]
    assert whole["projects"][0]["usage"]["instances"] == 1


@pytest.mark.parametrize(
    ("kind", "name", "code"),
    [
        (pb.KIND_INSTANCE, "demo/none", StatusCode.NOT_FOUND),
        (pb.KIND_INSTANCE, "none", StatusCode.INVALID_ARGUMENT),
        (pb.KIND_PROJECT, "none", StatusCode.NOT_FOUND),
        (pb.KIND_NODE, "../etc", StatusCode.NOT_FOUND),
        (pb.KIND_UNSPECIFIED, "demo", StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_what_is_not_there_is_said_so(api: Api, kind: pb.Kind.ValueType, name: str, code: StatusCode) -> None:
    with refused(code):
        await api.get(kind, name)


async def test_placement_is_explained_on_paper_and_for_what_is_there(api: Api) -> None:
    await api.apply(PROJECT, INSTANCE)
    answer = await api.call(pb.ExplainRequest(name="demo/orders"))
    explanation = json.loads(answer.explanation_json)
    assert not explanation["placeable"]
    assert explanation["summary"] in answer.lines[0]
    on_paper = await api.call(pb.ExplainRequest(document=json.dumps({**INSTANCE, "name": "paper"})))
    assert not json.loads(on_paper.explanation_json)["placeable"]
    for request in (pb.ExplainRequest(), pb.ExplainRequest(document=json.dumps(PROJECT))):
        with refused(StatusCode.INVALID_ARGUMENT):
            await api.call(request)


async def test_failure_nobody_expected_tells_nothing_of_the_inside(api: Api) -> None:
    await api.apply(PROJECT, INSTANCE)
    await api.put(keys.status(ORDERS), InstanceStatus(project="demo", name="orders", rw_port=1, ro_port=2))
    await api.put(keys.instance(ORDERS), replace(api.hub.mirror.instances[ORDERS].record, spec={"users": [{}]}))
    with refused(StatusCode.INTERNAL) as refusal:
        await api.call(pb.GetCredentialsRequest(name="demo/orders"))
    assert "KeyError" not in refusal.text
    assert refusal.error["code"] == "internal"
