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
from core.records import (
    Ballot,
    HaRecord,
    InstanceStatus,
    LeadershipChange,
    NodeRecord,
    StepTaken,
    SwitchoverRequest,
    SyncRecord,
)
from core.status import Condition, ConditionType, Role
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
    assert api.hub.mirror.ha[ORDERS].record.switchover is None


async def check_switchover(api: Api, target: str, code: StatusCode, message: str) -> None:
    with refused(code) as refusal:
        await api.call(pb.SwitchoverRequest(name="demo/orders", target=target))
    assert refusal.text.startswith(f"demo/orders: {message}")


def ha_of(api: Api) -> HaRecord:
    return api.hub.mirror.ha[ORDERS].record


async def change_ha(api: Api, **fields: Any) -> None:
    await api.put(keys.ha(ORDERS), replace(ha_of(api), **fields))


async def test_switchover_is_scheduled_once_and_taken_back(api: Api) -> None:
    await api.apply(PROJECT, INSTANCE)
    await api.place(ORDERS, "n1", "n2")
    asked = await api.call(pb.SwitchoverRequest(name="demo/orders", target="m2", delay_ms=600_000))
    assert asked.at_ms / 1000 == pytest.approx(api.hub.clock.wall() + 600, abs=5)
    wish = ha_of(api).scheduled
    assert wish is not None
    assert (wish.id, wish.target, wish.requested_by, ha_of(api).switchover) == (asked.id, "m2", "admin", None)
    for at_ms in (0, asked.at_ms + 1000):
        with refused(StatusCode.FAILED_PRECONDITION) as refusal:
            await api.call(pb.SwitchoverRequest(name="demo/orders", at_ms=at_ms))
        assert refusal.error["what"].startswith("admin has scheduled a switchover to m2 for ")
        assert refusal.error["hint"] == "Take that one back first: moorctl instance switchover demo/orders --cancel"
    cancelled = await api.call(pb.CancelSwitchoverRequest(name="demo/orders"))
    assert (cancelled.id, cancelled.target, cancelled.at_ms) == (asked.id, "m2", asked.at_ms)
    assert ha_of(api).scheduled is None
    with refused(StatusCode.FAILED_PRECONDITION) as refusal:
        await api.call(pb.CancelSwitchoverRequest(name="demo/orders"))
    assert refusal.text == "demo/orders: no switchover is scheduled"
    told = [event.event for event in await api.events("demo/orders", count=3)]
    assert told == ["instance_created", "switchover_scheduled", "switchover_cancelled"]


async def test_switchover_that_has_begun_is_not_taken_back(api: Api) -> None:
    await api.apply(PROJECT, INSTANCE)
    await api.place(ORDERS, "n1", "n2")
    await api.call(pb.SwitchoverRequest(name="demo/orders"))
    with refused(StatusCode.FAILED_PRECONDITION) as refusal:
        await api.call(pb.CancelSwitchoverRequest(name="demo/orders"))
    assert "has begun" in refusal.text


@pytest.mark.parametrize(
    ("when", "code", "told"),
    [
        ({"at_ms": 1000}, StatusCode.INVALID_ARGUMENT, "--at: 1970-01-01 00:00:01 UTC is past: it is "),
        ({"delay_ms": 91 * 86_400_000}, StatusCode.INVALID_ARGUMENT, "is more than 90 days ahead"),
        ({"at_ms": 1 << 63}, StatusCode.INVALID_ARGUMENT, "at_ms: is too far ahead"),
        ({"at_ms": 1 << 42, "delay_ms": 1}, StatusCode.INVALID_ARGUMENT, "give a time or a delay, not both"),
        ({"delay_ms": 1000, "target": "m9"}, StatusCode.NOT_FOUND, "member 'm9' does not exist"),
        ({"delay_ms": 1000, "target": "m1"}, StatusCode.FAILED_PRECONDITION, "m1 is the primary already"),
    ],
)
async def test_switchover_that_can_never_be_is_not_scheduled(
    api: Api, when: dict[str, Any], code: StatusCode, told: str
) -> None:
    await api.apply(PROJECT, INSTANCE)
    await api.place(ORDERS, "n1", "n2")
    with refused(code) as refusal:
        await api.call(pb.SwitchoverRequest(name="demo/orders", **when))
    assert told in refusal.text
    assert ha_of(api).scheduled is None


async def test_what_may_pass_by_then_does_not_keep_a_switchover_from_being_scheduled(api: Api) -> None:
    await api.apply(PROJECT, INSTANCE)
    await api.place(ORDERS, "n1", "n2")
    await api.put(keys.silent("n2"), NodeRecord(name="n2"))
    await api.call(pb.SwitchoverRequest(name="demo/orders", target="m2", delay_ms=60_000))
    assert ha_of(api).scheduled is not None


async def test_pause_is_laid_down_with_who_and_why_and_ended_by_resume(api: Api) -> None:
    await api.apply(PROJECT, INSTANCE)
    await api.place(ORDERS, "n1", "n2")
    for reason in ("new\ndisk", "another"):
        await api.call(pb.PauseFailoverRequest(name="demo/orders", reason=reason))
    ha = ha_of(api)
    assert (ha.paused, ha.paused_by, ha.pause_reason) == (True, "admin", "new disk")
    assert ha.paused_at == pytest.approx(api.hub.clock.wall(), abs=5)
    _, status = await api.get(pb.KIND_INSTANCE, "demo/orders")
    assert (status["ha"]["paused_by"], status["ha"]["pause_reason"]) == ("admin", "new disk")
    await api.call(pb.SwitchoverRequest(name="demo/orders", target="m2"))  # a person's wish: a pause does not forbid it
    for _ in range(2):
        await api.call(pb.ResumeFailoverRequest(name="demo/orders"))
    ha = ha_of(api)
    assert (ha.paused, ha.paused_by, ha.paused_at, ha.pause_reason) == (False, "", 0.0, "")
    assert ha.switchover is not None
    assert [(line.kind, line.reason) for line in ha.history] == [
        ("paused", "automatic failover paused by admin: new disk"),
        ("resumed", "automatic failover resumed by admin"),
    ]
    told = [event.event for event in await api.events("demo/orders", count=4)]
    assert told == ["instance_created", "failover_paused", "switchover_requested", "failover_resumed"]


async def test_wishes_need_an_instance_that_is_placed(api: Api) -> None:
    await api.apply(PROJECT, INSTANCE)
    for request in (
        pb.SwitchoverRequest(name="demo/orders", delay_ms=1000),
        pb.CancelSwitchoverRequest(name="demo/orders"),
        pb.PauseFailoverRequest(name="demo/orders"),
        pb.ResumeFailoverRequest(name="demo/orders"),
        pb.PlanFailoverRequest(name="demo/orders"),
        pb.FailoverRequest(name="demo/orders", target="m2"),
    ):
        with refused(StatusCode.FAILED_PRECONDITION) as refusal:
            await api.call(request)
        assert "not placed yet" in refusal.text
    assert list((await api.call(pb.GetHistoryRequest(name="demo/orders"))).entries_json) == []
    with refused(StatusCode.NOT_FOUND):
        await api.call(pb.GetHistoryRequest(name="demo/none"))


async def test_of_two_wishes_at_the_same_moment_both_are_judged_by_what_is_there(api: Api) -> None:
    await api.apply(PROJECT, INSTANCE)
    await api.place(ORDERS, "n1", "n2")
    wishes = [pb.SwitchoverRequest(name="demo/orders", delay_ms=1000 * n) for n in range(1, 4)]
    outcomes = await asyncio.gather(
        *(api.call(wish) for wish in wishes),
        api.call(pb.PauseFailoverRequest(name="demo/orders")),
        return_exceptions=True,
    )
    failures = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    assert [failure.code() for failure in failures] == [StatusCode.FAILED_PRECONDITION] * 2
    assert ha_of(api).paused
    assert ha_of(api).scheduled is not None


# --- forced failover -----------------------------------------------------------------------------------------------


async def lost_primary(api: Api) -> None:
    """m1 led in term 1 and its node is gone; m2 confirmed every commit and its node is gone as well; m3 is there."""
    await api.apply(PROJECT, {**INSTANCE, "replicas": 2, "replication": {"mode": "sync"}})
    await api.place(ORDERS, "n1", "n2", "n3")
    await api.hub.client.delete_prefix(keys.leader(ORDERS))
    await change_ha(api, system_id="7", sync=SyncRecord(mode="sync", k=1, names=("m2",)))
    for node in ("n1", "n2"):
        await api.put(keys.silent(node), NodeRecord(name=node))
    await eventually(lambda: asyncio.sleep(0, ORDERS not in api.hub.mirror.leaders), within=5)


async def plan(api: Api, target: str = "") -> dict[str, Any]:
    answer = await api.call(pb.PlanFailoverRequest(name="demo/orders", target=target))
    found: dict[str, Any] = json.loads(answer.plan_json)
    return found


async def test_plan_of_a_failover_tells_what_would_be_lost_and_changes_nothing(api: Api) -> None:
    await lost_primary(api)
    ballot = Ballot(member="m3", node="n3", term=2, timeline=1, lsn=0x5000000, leader_lsn=0x5000400)
    await api.put(keys.ballot(ORDERS, 2, "m3"), ballot)
    before = ha_of(api)
    found = await plan(api)
    assert (found["target"], found["loss"], found["obstacle"], found["furthest"]) == ("m3", "possible", None, "m1")
    assert found["loss_text"].startswith("m3 is not in the sync set (m2): commits that it lacks are lost")
    m3 = next(member for member in found["members"] if member["name"] == "m3")
    assert (m3["lsn"], m3["position_from"], m3["behind_bytes"]) == ("0/5000000", "ballot", 1024)
    assert found["waits_for"] == ["m1: node n1 is silent", "m2: node n2 is silent"]
    assert (await plan(api, "m2"))["obstacle"].startswith("node n2 of m2 is silent")
    with refused(StatusCode.NOT_FOUND):
        await plan(api, "m9")
    assert ha_of(api) == before


async def test_forced_failover_is_ordered_for_the_term_that_was_judged(api: Api) -> None:
    await lost_primary(api)
    with refused(StatusCode.FAILED_PRECONDITION) as refusal:
        await api.call(pb.FailoverRequest(name="demo/orders", target="m3", after_term=7))
    assert refusal.error["what"] == "things have changed: m1 has led in term 1 since, not 7"
    with refused(StatusCode.FAILED_PRECONDITION) as refusal:
        await api.call(pb.FailoverRequest(name="demo/orders", target="m2", after_term=1))
    assert "would not hear of the order" in refusal.text
    with refused(StatusCode.INVALID_ARGUMENT):
        await api.call(pb.FailoverRequest(name="demo/orders", after_term=1))
    await change_ha(api, switchover=SwitchoverRequest(id="old", target="m2"), paused=True)
    request = pb.FailoverRequest(name="demo/orders", target="m3", after_term=1)
    order = (await api.call(request)).id
    assert (await api.call(request)).id == order  # sent twice is asked once
    ha = ha_of(api)
    assert ha.forced is not None
    assert (ha.forced.id, ha.forced.target, ha.forced.after_term, ha.forced.requested_by) == (order, "m3", 1, "admin")
    assert ha.switchover is None
    (line,) = ha.history
    assert (line.kind, line.member) == ("ordered", "m3")
    assert "commits that it lacks are lost" in line.loss
    assert (await api.get(pb.KIND_INSTANCE, "demo/orders"))[1]["ha"]["forced"]["id"] == order
    told = await api.events("demo/orders", count=2)
    assert (told[-1].event, told[-1].severity) == ("failover_forced", "warning")
    with refused(StatusCode.FAILED_PRECONDITION) as refusal:
        await api.call(pb.SwitchoverRequest(name="demo/orders"))
    assert "a forced failover to m3 is under way" in refusal.text
    entries = [json.loads(text) for text in (await api.call(pb.GetHistoryRequest(name="demo/orders"))).entries_json]
    assert [entry["kind"] for entry in entries] == ["ordered"]


async def test_failover_of_what_was_never_initialised_is_refused(api: Api) -> None:
    await api.apply(PROJECT, INSTANCE)
    await api.place(ORDERS, "n1", "n2")
    with refused(StatusCode.FAILED_PRECONDITION) as refusal:
        await api.call(pb.FailoverRequest(name="demo/orders", target="m2", after_term=1))
    assert "never been initialised" in refusal.text


async def test_plan_while_the_primary_lives_advises_a_switchover(api: Api) -> None:
    await api.apply(PROJECT, INSTANCE)
    await api.place(ORDERS, "n1", "n2")
    found = await plan(api)
    assert (found["primary_alive"], found["leader"], found["target"]) == (True, "m1", "m2")
    assert "moorctl instance switchover demo/orders --to m2" in found["advice"]


# --- history -------------------------------------------------------------------------------------------------------


async def test_history_is_whole_and_as_long_as_asked(api: Api) -> None:
    await api.apply(PROJECT, INSTANCE)
    await api.place(ORDERS, "n1", "n2")
    steps = (StepTaken(name="promoted", took_s=0.25),)
    lines = tuple(
        LeadershipChange(term=term, member="m1", reason="x", at=1.0, kind="led", ballots=("m1 at 0/1",), steps=steps)
        for term in range(1, 6)
    )
    await change_ha(api, history=lines)
    viewer = await api.operator("viewer")
    answer = await api.call(pb.GetHistoryRequest(name="demo/orders", limit=2), token=viewer)
    entries = [json.loads(text) for text in answer.entries_json]
    assert [entry["term"] for entry in entries] == [4, 5]
    assert entries[0]["steps"] == [{"name": "promoted", "took_s": 0.25}]
    assert (entries[0]["at"], entries[0]["ballots"]) == ("1970-01-01T00:00:01.000Z", ["m1 at 0/1"])
    assert len((await api.call(pb.GetHistoryRequest(name="demo/orders"))).entries_json) == 5


# --- operator tokens -----------------------------------------------------------------------------------------------


async def test_operator_token_is_good_until_it_is_revoked(api: Api) -> None:
    made = await api.call(pb.CreateOperatorTokenRequest(name="ada", role="operator"))
    await api.call(pb.GetStatusRequest(), token=made.token)
    with refused(StatusCode.PERMISSION_DENIED):
        await api.call(pb.ListOperatorTokensRequest(), token=made.token)
    listed = list((await api.call(pb.ListOperatorTokensRequest())).tokens)
    assert [(one.name, one.role, one.own) for one in listed] == [("ada", "operator", False), ("admin", "admin", True)]
    assert listed[0].id == made.id
    assert listed[0].created_at_ms / 1000 == pytest.approx(api.hub.clock.wall(), abs=30)
    revoked = await api.call(pb.RevokeOperatorTokenRequest(token="ada"))
    assert (revoked.id, revoked.name) == (made.id, "ada")
    with refused(StatusCode.UNAUTHENTICATED):
        await api.call(pb.GetStatusRequest(), token=made.token)
    told = [event.event for event in await api.events("operator/", count=2)]
    assert told == ["operator_token_created", "operator_token_revoked"]


async def test_last_admin_is_not_locked_out_and_names_must_be_clear(api: Api) -> None:
    with refused(StatusCode.FAILED_PRECONDITION) as refusal:
        await api.call(pb.RevokeOperatorTokenRequest(token="admin"))
    assert "it is the only admin's token" in refusal.text
    with refused(StatusCode.NOT_FOUND):
        await api.call(pb.RevokeOperatorTokenRequest(token="nobody"))
    with refused(StatusCode.INVALID_ARGUMENT):
        await api.call(pb.CreateOperatorTokenRequest(name="x", role="root"))
    with refused(StatusCode.INVALID_ARGUMENT):
        await api.call(pb.CreateOperatorTokenRequest(name="", role="viewer"))
    ids = [(await api.call(pb.CreateOperatorTokenRequest(name="twin", role="admin"))).id for _ in range(2)]
    with refused(StatusCode.FAILED_PRECONDITION) as refusal:
        await api.call(pb.RevokeOperatorTokenRequest(token="twin"))
    assert "2 tokens have this name" in refusal.text
    assert (await api.call(pb.RevokeOperatorTokenRequest(token=ids[0]))).id == ids[0]


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


async def test_explain_also_tells_why_nobody_leads(api: Api) -> None:
    await api.apply(PROJECT, INSTANCE)
    await api.place(ORDERS, "n1", "n2")
    assert json.loads((await api.call(pb.ExplainRequest(name="demo/orders"))).explanation_json)["leadership"] == {}
    type_, message = ConditionType.PRIMARY_AVAILABLE, "nobody leads since term 1 of m1; missing: m2"
    stuck = Condition(type=type_, status=False, reason="ElectionStuck", message=message)
    await api.put(keys.status(ORDERS), InstanceStatus(project="demo", name="orders", conditions=(stuck,)))
    answer = await api.call(pb.ExplainRequest(name="demo/orders"))
    assert answer.lines[-1] == f"PrimaryAvailable: {message}"
    assert json.loads(answer.explanation_json)["leadership"] == {"PrimaryAvailable": message}


async def test_failure_nobody_expected_tells_nothing_of_the_inside(api: Api) -> None:
    await api.apply(PROJECT, INSTANCE)
    await api.put(keys.status(ORDERS), InstanceStatus(project="demo", name="orders", rw_port=1, ro_port=2))
    await api.put(keys.instance(ORDERS), replace(api.hub.mirror.instances[ORDERS].record, spec={"users": [{}]}))
    with refused(StatusCode.INTERNAL) as refusal:
        await api.call(pb.GetCredentialsRequest(name="demo/orders"))
    assert "KeyError" not in refusal.text
    assert refusal.error["code"] == "internal"
