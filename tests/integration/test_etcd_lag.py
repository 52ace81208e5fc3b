"""A watch that has gone quiet, a member that lags, a write that others have overwritten: real etcd behind a wire."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager

import pytest

from core.records import NodeRecord, to_json
from hub.etcd import keys, txns
from hub.etcd import watch as watch_module
from hub.etcd.client import EtcdClient
from hub.etcd.errors import Compacted, WatchCanceled
from hub.etcd.mirror import Mirror
from hub.etcd.store import Store
from protos.etcd import rpc_pb2
from tests.support.etcd import EtcdProcess
from tests.support.waiting import eventually
from tests.support.wire import Wire

KEY = keys.node("n1")
VALUE = to_json(NodeRecord(name="n1"))


@pytest.fixture
async def etcd():
    async with EtcdProcess.running() as etcd:
        yield etcd


@pytest.fixture
async def client(etcd):
    client = EtcdClient([etcd.endpoint])
    yield client
    await client.aclose()


@pytest.fixture
async def wire(etcd):
    async with Wire.running(etcd.endpoint) as wire:
        yield wire


@pytest.fixture
async def through(wire):
    client = EtcdClient([wire.endpoint])
    yield client
    await client.aclose()


@asynccontextmanager
async def following(client: EtcdClient, wire: Wire):
    """A mirror in step, with its watch open."""
    mirror = Mirror(client)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(mirror.run())
        async with asyncio.timeout(10):
            await mirror.synced.wait()

        async def watching() -> bool:
            return wire.open_streams > 0

        await eventually(watching, within=5)
        yield mirror
        task.cancel()


async def test_a_watch_that_does_not_bring_our_own_write_is_opened_anew(through, wire):
    async with following(through, wire) as mirror:
        assert wire.mute() == 1
        started = time.monotonic()
        assert await Store(through, mirror).commit(txns.put_if(KEY, VALUE, revision=0))
        assert "n1" in mirror.nodes
        assert time.monotonic() - started < 4


async def test_a_watch_that_hides_what_others_write_is_opened_anew_long_before_the_check(through, wire, client):
    async with following(through, wire) as mirror:
        assert wire.mute() == 1
        await client.commit(txns.put_if(KEY, VALUE, revision=0))

        async def shown() -> bool:
            return "n1" in mirror.nodes

        await eventually(shown, within=8)


async def test_a_write_that_others_have_overwritten_since_is_still_told_to_be_made(through, client, wire):
    born = await client.commit(txns.put_if(KEY, b"0", revision=0))
    await through.get(KEY)
    wire.swallowing = True
    task = asyncio.ensure_future(through.commit(txns.put_if(KEY, b"mine", revision=born.revision)))

    async def overwritten() -> bool:
        found = await client.get(KEY)
        again = txns.put_if(KEY, b"theirs", revision=found.mod_revision)
        return found.value == b"mine" and (await client.commit(again)).succeeded

    await eventually(overwritten, within=5)
    wire.swallowing = False
    wire.cut()
    async with asyncio.timeout(10):
        outcome = await task
    assert outcome.succeeded
    assert outcome.revision == born.revision + 1
    assert (await client.get(KEY)).value == b"theirs"


async def test_a_page_of_large_values_is_read(client):
    for number in range(66):
        await client.commit(txns.put_if(f"{keys.NODES}{number}", b"x" * 1_000_000, revision=0))
    found, _ = await client.list(keys.NODES)
    assert len(found) == 66, "more than 64 MiB in one page"


@pytest.mark.parametrize(
    ("response", "error"),
    [
        ({"canceled": True, "cancel_reason": "etcdserver: no leader"}, watch_module._Ended),
        ({"canceled": True}, watch_module._Ended),
        ({"canceled": True, "created": True, "cancel_reason": "etcdserver: permission denied"}, WatchCanceled),
        ({"canceled": True, "compact_revision": 7}, Compacted),
    ],
)
async def test_only_denied_access_and_compaction_end_a_watch_for_good(response, error):
    with pytest.raises(error):
        watch_module._raise_if_ended(rpc_pb2.WatchResponse(**response))
