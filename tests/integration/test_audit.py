"""The audit trail on a real etcd: each change by an operator leaves an entry; whatever is done to the trail shows."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode

from cli.audit import check
from core.errors import ConflictError
from core.records import ProjectRecord, to_json
from hub.audit import AuditTrail
from hub.etcd import keys, txns
from protos.v1 import operator_pb2 as pb
from tests.support.api import Api, empty, one_etcd, refused, running_api
from tests.support.etcd import EtcdProcess

PROJECT: dict[str, Any] = {"kind": "Project", "name": "demo"}
INSTANCE: dict[str, Any] = {"kind": "Instance", "project": "demo", "name": "orders", "users": [{"name": "app"}]}


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdProcess]:
    with one_etcd() as etcd:
        yield etcd


@pytest.fixture
async def api(etcd: EtcdProcess, tmp_path: Path) -> AsyncIterator[Api]:
    await empty(etcd)
    async with running_api(etcd.endpoint, tmp_path) as api:
        await api.hub.client.delete_prefix(keys.AUDIT)
        await api.hub.client.delete_prefix(keys.AUDIT_HEAD)
        yield api


async def trail(api: Api) -> tuple[list[dict[str, Any]], list[str]]:
    """Entries and their texts, checked."""
    page = await api.call(pb.ListAuditRequest())
    check(list(page.entries), page.head_seq, page.head_sha256)
    return [json.loads(text) for text in page.entries], list(page.entries)


async def test_each_change_leaves_an_entry_with_who_what_and_from_where(api: Api) -> None:
    assert (await api.call(pb.ListAuditRequest())).head_seq == 0
    await api.apply(PROJECT)
    await api.apply({**INSTANCE, "replicas": 1})
    await api.apply({**INSTANCE, "replicas": 2})
    await api.apply({**INSTANCE, "replicas": 2})  # changes nothing, and says nothing
    await api.apply({**INSTANCE, "replicas": 0}, dry_run=True)
    await api.call(pb.RestartInstanceRequest(name="demo/orders"))
    token = (await api.call(pb.CreateOperatorTokenRequest(name="anna", role="operator"))).token
    join = await api.join_token(node="n1")
    await api.call(pb.RevokeOperatorTokenRequest(token="anna"))
    await api.call(pb.DeleteRequest(kind=pb.KIND_INSTANCE, name="demo/orders"))
    entries, texts = await trail(api)
    told = [(one["verb"], one["object"]) for one in entries]
    assert told == [
        ("Apply", "Project/demo"),
        ("Apply", "Instance/demo/orders"),
        ("Apply", "Instance/demo/orders"),
        ("RestartInstance", "demo/orders"),
        ("CreateOperatorToken", "operator/anna"),
        ("CreateJoinToken", "node/n1"),
        ("RevokeOperatorToken", "anna"),
        ("Delete", "demo/orders"),
    ]
    assert {one["operator"] for one in entries} == {"admin"}
    assert all(one["from"].startswith("ipv4:127.0.0.1:") and one["at"] and one["token"] for one in entries)
    changed = {change["field"]: (change["before"], change["after"]) for change in entries[2]["changes"]}
    assert changed["spec.replicas"] == (1, 2)
    gone = {change["field"]: (change["before"], change["after"]) for change in entries[7]["changes"]}
    assert gone == {"deleting": (False, True)}
    for secret in (token, join, api.admin):
        parts = [part for part in secret.replace(".", " ").split() if len(part) >= 20]
        assert parts
        assert not any(part in text for part in parts for text in texts)
    assert "secret_sha256" not in "".join(texts)


async def test_reading_a_password_leaves_an_entry_and_refusals_leave_none(api: Api) -> None:
    await api.apply(PROJECT, INSTANCE)
    before = len((await trail(api))[0])
    viewer = await api.operator("viewer")
    with refused(StatusCode.PERMISSION_DENIED):
        await api.call(pb.ListAuditRequest(), token=viewer)
    with refused(StatusCode.PERMISSION_DENIED):
        await api.call(pb.RestartInstanceRequest(name="demo/orders"), token=viewer)
    with refused(StatusCode.INVALID_ARGUMENT):
        await api.call(pb.ListAuditRequest(after=-1))
    with refused(StatusCode.FAILED_PRECONDITION):  # no port yet, so no password is shown
        await api.call(pb.GetCredentialsRequest(name="demo/orders"))
    assert len((await trail(api))[0]) == before
    operator = api.hub.authority.verify(api.admin)
    await api.hub.audit.note(operator, "demo/orders", "password of app")
    assert (await trail(api))[0][-1]["changes"] == [{"read": "password of app"}]


async def test_changes_at_one_moment_all_get_in_and_a_lost_race_leaves_none(api: Api) -> None:
    names = [f"p{number}" for number in range(8)]
    await asyncio.gather(*(api.apply({**PROJECT, "name": name}) for name in names))
    entries, _ = await trail(api)
    assert sorted(one["object"] for one in entries) == [f"Project/{name}" for name in names]
    stale = txns.put_if(keys.project("p0"), b"{}", revision=1)
    assert not await api.hub.audit.commit(api.hub.authority.verify(api.admin), "p0", stale)
    assert len((await trail(api))[0]) == 8


async def test_hubs_that_write_at_one_moment_keep_one_chain(api: Api) -> None:
    hub = api.hub
    operator = hub.authority.verify(api.admin)
    trails = [hub.audit, *(AuditTrail(hub.client, hub.store, hub.clock) for _ in range(2))]  # as of three hubs
    projects = {f"p{number}": trails[number % 3] for number in range(9)}
    made = [
        one.commit(operator, name, txns.put_if(keys.project(name), to_json(ProjectRecord(name=name)), revision=0))
        for name, one in projects.items()
    ]
    assert await asyncio.gather(*made) == [True] * 9
    entries, _ = await trail(api)
    assert sorted(one["object"] for one in entries) == sorted(projects)


async def test_whatever_is_done_to_the_trail_shows(api: Api) -> None:
    for number in range(4):
        await api.apply({**PROJECT, "name": f"p{number}"})
    client = api.hub.client
    _, texts = await trail(api)
    second = keys.audit(2)
    forged = texts[1].replace("admin", "other")
    await client.commit(txns.Txn((), (txns.Put(second, forged.encode()),)))
    with pytest.raises(ConflictError, match="broken at entry 3"):
        await trail(api)
    await client.commit(txns.Txn((), (txns.Delete(second),)))
    with refused(StatusCode.NOT_FOUND):
        await trail(api)
    await client.commit(txns.Txn((), (txns.Put(second, texts[1].encode()),)))
    assert len((await trail(api))[0]) == 4
    cut = {"seq": 3, "sha256": hashlib.sha256(texts[2].encode()).hexdigest()}
    await client.commit(txns.Txn((), (txns.Put(keys.AUDIT_HEAD, json.dumps(cut).encode()),)))
    assert len((await trail(api))[0]) == 3  # seen only by who has noted the head: moorctl audit verify --head
    await client.commit(txns.Txn((), (txns.Put(keys.AUDIT_HEAD, json.dumps({**cut, "seq": 4}).encode()),)))
    with pytest.raises(ConflictError, match="head does not fit"):
        await trail(api)
