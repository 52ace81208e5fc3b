"""The mirror and the store over real etcd: in step, listed anew, never stale without knowing it."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from core.errors import TimedOutError
from core.records import Event, NodeRecord, to_json
from hub.etcd import keys, txns
from hub.etcd.client import EtcdClient
from hub.etcd.mirror import Changes, Mirror, StaleMirror
from hub.etcd.store import Store, ensure_store_id
from tests.support.etcd import EtcdProcess
from tests.support.logs import logged_by
from tests.support.waiting import eventually
from tests.support.wire import Wire

_numbers = itertools.count(1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def etcd():
    async with EtcdProcess.running() as etcd:
        yield etcd


@pytest.fixture
async def client(etcd):
    client = EtcdClient([etcd.endpoint])
    await client.delete_prefix(keys.ROOT)
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
def node() -> str:
    return f"n{next(_numbers)}"


@asynccontextmanager
async def following(client: EtcdClient, **times: float):
    """A mirror in step; `run` is its task."""
    mirror = Mirror(client, **times)
    run = asyncio.ensure_future(mirror.run())
    try:
        async with asyncio.timeout(5):
            await mirror.synced.wait()
        yield mirror, run
        assert not run.done(), f"the mirror has ended: {run}"
    finally:
        run.cancel()
        await asyncio.wait([run])


async def end_of(run: asyncio.Task[None], within: float) -> BaseException:
    """What a mirror that must end has ended with."""
    await asyncio.wait([run], timeout=within)
    assert run.done(), f"the mirror still runs after {within} s"
    with pytest.raises(BaseExceptionGroup) as ended:
        await run
    [error] = ended.value.exceptions
    return error


def node_put(name: str, *, revision: int = 0, zone: str = "") -> txns.Txn:
    return txns.put_if(keys.node(name), to_json(NodeRecord(name=name, zone=zone)), revision=revision)


# --- the mirror -------------------------------------------------------------------------------------------------------


async def test_it_lists_what_is_there_and_follows_what_comes_and_goes(client, node):
    first = await client.commit(node_put(node, zone="a"))
    async with following(client) as (mirror, _):
        assert mirror.nodes[node].record.zone == "a"
        second = await client.commit(node_put(node, revision=first.revision, zone="b"))
        await mirror.reached(second.revision)
        held = mirror.nodes[node]
        assert (held.record.zone, held.mod_revision, held.create_revision) == ("b", second.revision, first.revision)
        gone = await client.commit(txns.delete_if(keys.node(node), revision=second.revision))
        await mirror.reached(gone.revision)
        assert node not in mirror.nodes


async def test_subscribers_are_told_after_the_change_is_there_until_they_stop(client, node):
    async with following(client) as (mirror, _):
        told: list[Changes] = []
        stop = mirror.subscribe(lambda changes: told.append(changes) if node in mirror.nodes else None)
        await mirror.reached((await client.commit(node_put(node))).revision)
        assert [changes.nodes for changes in told] == [{node}]
        assert not told[0].everything
        stop()
        await mirror.reached((await client.commit(node_put(f"{node}-b"))).revision)
        assert len(told) == 1


async def test_a_failing_subscriber_ends_it(client, node):
    mirror = Mirror(client)
    run = asyncio.ensure_future(mirror.run())
    await mirror.synced.wait()

    def fail(_changes: Changes) -> None:
        raise ZeroDivisionError

    mirror.subscribe(fail)
    await client.commit(node_put(node))
    assert isinstance(await end_of(run, within=5), ZeroDivisionError)


async def test_waiting_for_a_revision_that_does_not_come_ends_in_time(client):
    async with following(client) as (mirror, _):
        with pytest.raises(TimedOutError, match="did not reach revision"):
            await mirror.reached(10**9, timeout_s=0.1)


async def test_a_value_that_cannot_be_read_does_not_end_it_and_the_last_good_one_is_served(client, node):
    with logged_by("hub.mirror") as logged:
        async with following(client) as (mirror, _):
            good = await client.commit(node_put(node, zone="good"))
            bad = await client.commit(txns.put_if(keys.node(node), b"\xff{", revision=good.revision))
            unknown = txns.all_of([], [txns.Put("/moorage/novelties/x", b""), txns.Put("/moorage/\udcff", b"")])
            await mirror.reached((await client.commit(unknown)).revision)
            assert mirror.nodes[node].record.zone == "good"
            assert mirror.nodes[node].mod_revision == good.revision
            told = [(fields["key"], fields["revision"]) for event, fields in logged if event == "record_undecodable"]
            assert len(told) == 3
            assert told[0] == (keys.node(node), bad.revision)
            mended = await client.commit(node_put(node, revision=bad.revision, zone="mended"))
            await mirror.reached(mended.revision)
            assert mirror.nodes[node].record.zone == "mended"


async def test_it_waits_for_an_etcd_that_is_not_there_yet_and_outlives_its_absence(node):
    async with EtcdProcess.running() as etcd:
        etcd.stop()
        client = EtcdClient([etcd.endpoint])
        mirror = Mirror(client)
        run = asyncio.ensure_future(mirror.run())
        await asyncio.wait([run], timeout=0.2)
        assert not run.done()
        assert not mirror.synced.is_set()
        await etcd.start()
        async with asyncio.timeout(20):
            await mirror.synced.wait()
        await mirror.reached((await client.commit(node_put(node))).revision)
        etcd.stop()
        assert node in mirror.nodes, "what is known is served on"
        await etcd.start()
        await mirror.reached((await client.commit(node_put(f"{node}-b"))).revision)
        assert {node, f"{node}-b"} <= mirror.nodes.keys()
        run.cancel()
        await asyncio.wait([run])
        await client.aclose()


async def test_it_lists_anew_after_compaction_and_says_everything(client, through, wire, etcd, node):
    kept, unreadable, gone, come = node, f"{node}-u", f"{node}-g", f"{node}-c"
    for name in (kept, unreadable, gone):
        await client.commit(node_put(name))
    with logged_by("hub.mirror") as logged:
        async with following(through) as (mirror, _):
            await mirror.reached(
                (await client.commit(txns.all_of([], [txns.Put(keys.node(unreadable), b"{")]))).revision
            )
            told: list[Changes] = []
            mirror.subscribe(told.append)
            wire.cuts.extend([0] * 3)
            wire.cut()
            await client.commit(txns.all_of([], [txns.Delete(keys.node(gone))]))
            await client.commit(node_put(come))
            last = await client.commit(txns.all_of([], [txns.Put(keys.silent(kept), b"")]))
            assert await etcd.ctl("compaction", str(last.revision)) == 0
            await mirror.reached(last.revision, timeout_s=10)
            assert set(mirror.nodes) == {kept, unreadable, come}
            assert mirror.silent == {kept}
            [changes] = told
            assert changes.everything
            assert {kept, gone, come} <= changes.nodes
            assert "watch_compacted" in [event for event, _ in logged]
            assert [event for event, _ in logged].count("record_undecodable") == 1
            follow_up = await client.commit(txns.all_of([], [txns.Delete(keys.node(come))]))
            await mirror.reached(follow_up.revision)
            assert come not in mirror.nodes


@pytest.mark.parametrize("change", ["a change", "a deletion"])
async def test_a_watch_that_brings_nothing_though_etcd_answers_ends_it(client, through, wire, node, change):
    first = await client.commit(node_put(node))
    mirror = Mirror(through, check_every_s=0.2, behind_max_s=0.3)
    run = asyncio.ensure_future(mirror.run())
    await mirror.synced.wait()
    await mirror.reached((await client.commit(node_put(f"{node}-b"))).revision)
    assert wire.mute() == 1, "the watch's stream"
    changed, deleted = node_put(node, revision=first.revision), txns.delete_if(keys.node(node), revision=first.revision)
    assert (await client.commit(changed if change == "a change" else deleted)).succeeded
    assert isinstance(await end_of(run, within=5), StaleMirror)


async def test_a_busy_and_a_quiet_watch_pass_the_check_beside_foreign_writes(client, node):
    async with following(client, check_every_s=0.05, behind_max_s=0.2) as (mirror, run):

        async def churn() -> None:
            for number in range(150):
                put = await client.commit(node_put(f"{node}-{number}"))
                await client.commit(txns.put_if(f"/elsewhere/{node}/{number}", b"", revision=0))
                await client.commit(txns.delete_if(keys.node(f"{node}-{number}"), revision=put.revision))

        await asyncio.gather(*[churn()])
        await asyncio.wait([run], timeout=0.6)
        assert not run.done()
        assert not [name for name in mirror.nodes if name.startswith(node)]


async def test_an_etcd_that_was_restored_from_a_snapshot_ends_it(tmp_path, node):
    """Its revisions are used a second time: the watch would wait for numbers that mean something else."""
    async with EtcdProcess.running() as etcd:
        client = EtcdClient([etcd.endpoint])
        await client.commit(node_put(node))
        snapshot = tmp_path / "snapshot.db"
        assert await etcd.ctl("snapshot", "save", str(snapshot)) == 0
        await client.commit(node_put(f"{node}-lost"))
        mirror = Mirror(client, check_every_s=0.2)
        run = asyncio.ensure_future(mirror.run())
        await mirror.synced.wait()
        await etcd.restore(snapshot)
        assert isinstance(error := await end_of(run, within=10), StaleMirror)
        assert "went back" in str(error)
        await client.aclose()


# --- the store --------------------------------------------------------------------------------------------------------


async def test_what_was_written_is_in_the_mirror_on_return(client, node):
    async with following(client) as (mirror, _):
        store = Store(client, mirror)
        for number in range(20):
            assert await store.commit(node_put(f"{node}-{number}"))
            assert f"{node}-{number}" in mirror.nodes
            born = mirror.nodes[f"{node}-{number}"].mod_revision
            assert await store.commit(txns.delete_if(keys.node(f"{node}-{number}"), revision=born))
            assert f"{node}-{number}" not in mirror.nodes


@pytest.mark.parametrize("change", ["overwritten", "deleted"])
async def test_whoever_was_refused_finds_in_the_mirror_why(client, through, wire, node, change):
    """The watch is held up, so that only waiting for it can show the change."""
    async with following(through) as (mirror, _):
        store = Store(client, mirror)
        assert await store.commit(node_put(node))
        known = mirror.nodes[node].mod_revision
        wire.swallowing = True
        if change == "overwritten":
            await client.commit(node_put(node, revision=known, zone="b"))
        else:
            await client.commit(txns.delete_if(keys.node(node), revision=known))
        await client.commit(txns.all_of([], [txns.Put(f"/elsewhere/{node}", b"")]))
        refused = asyncio.ensure_future(store.commit(node_put(node, revision=known, zone="c")))
        await asyncio.wait([refused], timeout=0.3)
        assert not refused.done()
        wire.swallowing = False
        wire.cut()
        assert await refused is False
        assert (node in mirror.nodes) is (change == "overwritten")


async def test_what_makes_no_revision_of_ours_waits_for_none(client, node):
    async with following(client) as (mirror, _):
        store = Store(client, mirror)
        await client.commit(txns.all_of([], [txns.Put(f"/elsewhere/{node}", b"")]))
        async with asyncio.timeout(2):
            assert await store.commit(txns.all_of([txns.ModIs(keys.node(node), 0)], []))
            assert await store.commit(txns.all_of([], [txns.Delete(keys.node(node))]))
            assert not await store.commit(node_put(node, revision=77))


async def test_events_of_one_moment_do_not_meet_and_are_told(client):
    async with following(client) as (mirror, _):
        store = Store(client, mirror)
        told: list[Event] = []
        mirror.subscribe(lambda changes: told.extend(changes.events))
        sent = [Event(at=1000.5, event="node_joined", object=f"node/n{number}") for number in range(20)]
        await asyncio.gather(*map(store.add_event, sent))

        async def heard() -> int:
            return len(told)

        await eventually(heard, lambda count: count == 20, within=5)
        assert sorted(event.object for event in mirror.events) == sorted(event.object for event in sent)


async def test_the_store_id_is_made_once_and_stays(client):
    ids = await asyncio.gather(*[ensure_store_id(client) for _ in range(5)])
    assert len(set(ids)) == 1
    assert len(ids[0]) == 16
    assert await ensure_store_id(client) == ids[0]
    async with following(client) as (mirror, _):
        assert mirror.store_id == ids[0]
