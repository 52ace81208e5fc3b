"""Events as operators watch them: past ones, new ones, each once, and bounded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode

from core.errors import OverloadedError, UnavailableError
from core.records import Event, to_json
from hub.etcd import keys, txns
from hub.events import EventWriter
from hub.rpc.event_stream import QUEUE_MAX, EventStreams
from protos.v1 import operator_pb2 as pb
from tests.support.api import Api, empty, one_etcd, refused, running_api
from tests.support.etcd import EtcdProcess

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


async def test_watcher_gets_past_events_and_then_new_ones_each_once(api: Api) -> None:
    await api.apply(PROJECT, INSTANCE)
    watch = api.watch(pb.WatchEventsRequest(object_prefix="demo/", follow=True))
    seen = [json.loads((await watch.read()).event_json)["event"]]
    await api.apply({"kind": "Project", "name": "other"})
    await api.apply({**INSTANCE, "replicas": 2})
    seen.append(json.loads((await watch.read()).event_json)["event"])
    watch.cancel()
    assert seen == ["instance_created", "instance_changed"]


async def test_watcher_who_leaves_is_forgotten(api: Api) -> None:
    await api.apply(PROJECT)
    watch = api.watch(pb.WatchEventsRequest(follow=True))
    await watch.read()
    watch.cancel()
    await api.apply({"kind": "Project", "name": "other"})
    assert [event.event for event in await api.events("project/", count=2)] == ["project_created"] * 2


async def test_watcher_who_reads_too_slowly_gets_what_was_kept_and_then_the_reason(api: Api) -> None:
    await api.apply(PROJECT)
    await api.events("project/", count=1)
    stream = EventStreams(api.hub.mirror).stream(prefix="", limit=1, follow=True)
    assert (await anext(stream)).event == "project_created"
    for batch in range(QUEUE_MAX // 100 + 1):
        puts = [
            txns.Put(
                keys.event(number, "x"), to_json(Event(at=1e9 + number, event="thing_happened", object=f"t/{number}"))
            )
            for number in range(batch * 100, batch * 100 + 100)
        ]
        assert await api.hub.store.commit(txns.all_of([], puts))
    kept = [(await anext(stream)).object for _ in range(QUEUE_MAX)]
    assert kept == [f"t/{number}" for number in range(QUEUE_MAX)]
    with pytest.raises(OverloadedError, match="faster than they are read"):
        await anext(stream)


async def test_watchers_are_sent_elsewhere_when_the_hub_drains(api: Api) -> None:
    await api.apply(PROJECT)
    streams = EventStreams(api.hub.mirror)
    stream = streams.stream(prefix="project/", limit=0, follow=True)
    await anext(stream)
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    streams.end_all()
    with pytest.raises(UnavailableError, match="shutting down"):
        await waiting


async def test_watcher_without_a_good_token_is_told_so(api: Api) -> None:
    with refused(StatusCode.UNAUTHENTICATED) as refusal:
        await api.watch(pb.WatchEventsRequest(follow=True), token="junk").read()
    assert refusal.error["code"] == "unauthenticated"


async def test_past_events_are_the_newest_ones(api: Api) -> None:
    for name in ("a", "b", "c"):
        await api.apply({"kind": "Project", "name": name})
    await api.events("project/", count=3)
    watch = api.watch(pb.WatchEventsRequest(object_prefix="project/", limit=2))
    assert [json.loads(answer.event_json)["object"] async for answer in watch] == ["project/b", "project/c"]


async def test_events_beyond_number_and_age_are_trimmed(api: Api) -> None:
    writer = EventWriter(api.hub.store, "hub-1")
    for number in range(5):
        await writer.emit("thing_happened", f"thing/{number}")
    assert await writer.trim(keep=3) == 2
    assert await writer.trim(keep=3) == 0
    left, _ = await api.hub.client.list(keys.EVENTS)
    assert [json.loads(kv.value)["object"] for kv in left] == ["thing/2", "thing/3", "thing/4"]
    assert await writer.trim(age_s=-1) == 3
