"""The etcd client against one real member: reading, compare-and-swap, leases, and answers that get lost on the way."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time

import pytest
import pytest_asyncio

from core.errors import UserError
from hub.etcd import client as client_module
from hub.etcd import txns
from hub.etcd.client import EtcdClient
from hub.etcd.errors import EtcdUnavailable, LeaseGone
from tests.support.etcd import EtcdProcess
from tests.support.ports import free_port
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
def key() -> str:
    return f"/moorage/test/{next(_numbers)}k"  # no key of a test is the beginning of another's


# --- reading and compare-and-swap -------------------------------------------------------------------------------------


async def test_a_put_is_read_back_with_its_revisions(client, key):
    assert await client.get(key) is None
    first = await client.commit(txns.put_if(key, b"one", revision=0))
    second = await client.commit(txns.put_if(key, b"two", revision=first.revision))
    assert first.succeeded
    assert second.made_revision
    found = await client.get(key)
    assert (found.value, found.create_revision, found.mod_revision) == (b"two", first.revision, second.revision)


async def test_a_compare_that_does_not_hold_changes_nothing(client, key):
    await client.commit(txns.put_if(key, b"one", revision=0))
    for txn in (txns.put_if(key, b"two", revision=0), txns.delete_if(key, revision=1)):
        refused = await client.commit(txn)
        assert not refused.succeeded
        assert not refused.made_revision
    assert (await client.get(key)).value == b"one"


async def test_the_same_life_of_a_key_survives_rewriting_and_ends_with_deletion(client, key):
    born = (await client.commit(txns.put_if(key, b"one", revision=0))).revision
    await client.commit(txns.put_if(key, b"two", revision=born))
    same_life = txns.all_of([txns.CreatedIs(key, born)], [txns.Put(key, b"three")])
    assert (await client.commit(same_life)).succeeded
    await client.commit(txns.all_of([], [txns.Delete(key)]))
    await client.commit(txns.put_if(key, b"other", revision=0))
    assert not (await client.commit(same_life)).succeeded


async def test_deleting_nothing_makes_no_revision(client, key):
    outcome = await client.commit(txns.all_of([txns.ModIs(key, 0)], [txns.Delete(key)]))
    assert outcome.succeeded
    assert not outcome.made_revision


async def test_a_list_of_many_pages_is_of_one_revision(client, key, monkeypatch):
    """Pages are read upwards while keys are written downwards, so that the two meet."""
    monkeypatch.setattr(client_module, "PAGE_KEYS", 1)
    names = [f"{key}/{number:03d}" for number in range(60)]
    await client.commit(txns.all_of([], [txns.Put(name, b"old") for name in names]))

    async def overwrite() -> None:
        for name in reversed(names):
            await client.commit(txns.all_of([], [txns.Put(name, b"new")]))

    writing = asyncio.ensure_future(overwrite())
    found, revision = await client.list(f"{key}/")
    await writing
    assert [kv.key for kv in found] == names
    assert all(kv.mod_revision <= revision for kv in found)


async def test_a_prefix_ends_where_it_says(client, key):
    puts = [txns.Put(name, b"") for name in (f"{key}/a", f"{key}/b", f"{key}0", key)]
    await client.commit(txns.all_of([], puts))
    assert [kv.key for kv in (await client.list(f"{key}/"))[0]] == [f"{key}/a", f"{key}/b"]
    assert (await client.survey(f"{key}/")).count == 2
    assert await client.delete_prefix(f"{key}/") == 2
    assert await client.list(f"{key}/") == ([], (await client.survey(key)).revision)
    assert await client.get(f"{key}0") is not None


async def test_many_single_keys_are_read_at_one_revision(client, key):
    names = [f"{key}/{number:03d}" for number in range(200)]
    for start in (0, 100):
        await client.commit(txns.all_of([], [txns.Put(name, b"v") for name in names[start : start + 100]]))
    found, revision = await client.read([*names, f"{key}/absent"])
    assert list(found) == names
    assert revision >= max(kv.mod_revision for kv in found.values())


async def test_a_survey_tells_the_newest_change_and_the_number_of_keys(client, key):
    assert (await client.survey(f"{key}/")).newest == 0
    await client.commit(txns.all_of([], [txns.Put(f"{key}/a", b""), txns.Put(f"{key}/b", b"")]))
    last = await client.commit(txns.all_of([], [txns.Put(f"{key}/a", b"again")]))
    foreign = await client.commit(txns.all_of([], [txns.Put(f"{key}-foreign", b"")]))
    seen = await client.survey(f"{key}/")
    assert (seen.newest, seen.count, seen.revision) == (last.revision, 2, foreign.revision)


# --- too large --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1_700_000, 3_000_000], ids=["over etcd's limit", "over gRPC's limit"])
async def test_a_transaction_of_too_many_bytes_is_the_users_error_and_names_the_largest_key(client, key, size):
    txn = txns.all_of([], [txns.Put(key, b"x" * size), txns.Put(f"{key}/small", b"x")])
    with pytest.raises(UserError, match=f"the largest is {key} with {size}") as refused:
        await client.commit(txn)
    assert "several smaller changes" in refused.value.hint
    assert await client.get(key) is None


async def test_a_transaction_of_too_many_keys_is_the_users_error(client, key):
    puts = [txns.Put(f"{key}/{number}", b"x") for number in range(129)]
    with pytest.raises(UserError, match=r"too large for etcd \(129 keys, 129 bytes"):
        await client.commit(txns.all_of([], puts))


async def test_one_key_twice_in_a_transaction_is_the_users_error(client, key):
    with pytest.raises(UserError, match="duplicate key"):
        await client.commit(txns.all_of([], [txns.Put(key, b"1"), txns.Put(key, b"2")]))


# --- leases -----------------------------------------------------------------------------------------------------------


async def test_a_lease_is_renewed_and_takes_its_keys_with_it(client, key):
    lease_id = await client.grant(30)
    await client.commit(txns.put_if(key, b"v", revision=0, lease_id=lease_id))
    assert (await client.get(key)).lease_id == lease_id
    assert await client.keepalive(lease_id) == 30
    assert 0 < await client.time_to_live(lease_id) <= 30
    await client.revoke(lease_id)
    assert await client.get(key) is None
    assert await client.time_to_live(lease_id) == 0


async def test_renewing_a_lease_that_is_gone_raises_and_revoking_it_does_not(client):
    lease_id = await client.grant(30)
    await client.revoke(lease_id)
    with pytest.raises(LeaseGone):
        await client.keepalive(lease_id)
    await client.revoke(lease_id)


async def test_a_lease_is_not_told_to_be_gone_in_its_last_second_and_takes_no_put_once_it_is(client, key):
    lease_id = await client.grant(2)
    await client.commit(txns.put_if(key, b"v", revision=0, lease_id=lease_id))
    told: list[tuple[float, bool]] = []

    async def look() -> bool:
        left = await client.time_to_live(lease_id)
        told.append((left, await client.get(key) is not None))
        return left == 0

    await eventually(look, within=8)
    assert any(0 < left < 1 for left, _ in told)
    assert not told[-1][1], "gone means that what hung on it is gone"
    with pytest.raises(LeaseGone):
        await client.commit(txns.put_if(key, b"v", revision=0, lease_id=lease_id))
    assert await client.get(key) is None


async def test_a_renewal_that_gets_no_answer_ends_by_its_own_deadline(through, wire):
    lease_id = await through.grant(30)
    wire.swallowing = True
    started = time.monotonic()
    with pytest.raises(EtcdUnavailable):
        await through.keepalive(lease_id)
    assert time.monotonic() - started < client_module.KEEPALIVE_TIMEOUT_S + 0.5
    wire.swallowing = False
    wire.cut()
    await through.get("/")  # unlike a renewal, it is asked again until a new connection is there
    assert await through.keepalive(lease_id) == 30


# --- answers that get lost --------------------------------------------------------------------------------------------


async def lose_answer_of(work, wire: Wire, done):
    """Run `work` with its first answer swallowed, once `done` shows that etcd has carried it out; its outcome."""
    wire.swallowing = True
    task = asyncio.ensure_future(work)
    await eventually(done, within=5, every=0.01)
    wire.swallowing = False
    wire.cut()
    async with asyncio.timeout(10):
        return await task


async def test_a_write_whose_answer_was_lost_is_found_to_be_our_own(through, client, wire, key):
    await through.get(key)
    lease_id = await client.grant(30)
    txn = txns.put_if(key, b"mine", revision=0, lease_id=lease_id)
    outcome = await lose_answer_of(through.commit(txn), wire, lambda: client.get(key))
    found = await client.get(key)
    assert outcome.succeeded
    assert outcome.made_revision
    assert outcome.revision == found.mod_revision == found.create_revision, "as if the answer had come"
    assert wire.connections == 2


async def test_a_deletion_whose_answer_was_lost_is_found_to_be_our_own(through, client, wire, key):
    born = (await through.commit(txns.put_if(key, b"v", revision=0))).revision
    gone = lambda: _absent(client, key)  # noqa: E731
    outcome = await lose_answer_of(through.commit(txns.delete_if(key, revision=born)), wire, gone)
    assert outcome.succeeded
    assert outcome.made_revision
    assert outcome.revision > born


async def _absent(client: EtcdClient, key: str) -> bool:
    return await client.get(key) is None


async def test_what_somebody_else_has_written_meanwhile_is_not_taken_for_our_own(through, client, wire, key):
    await through.get(key)

    async def overtaken() -> bool:
        found = await client.get(key)
        return (
            found is not None
            and (await client.commit(txns.put_if(key, b"theirs", revision=found.mod_revision))).succeeded
        )

    outcome = await lose_answer_of(through.commit(txns.put_if(key, b"mine", revision=0)), wire, overtaken)
    assert not outcome.succeeded
    assert (await client.get(key)).value == b"theirs"


async def test_the_same_value_under_another_lease_is_not_taken_for_our_own(through, client, wire, key):
    mine, theirs = await client.grant(30), await client.grant(30)
    await through.get(key)

    async def overtaken() -> bool:
        found = await client.get(key)
        return (
            found is not None
            and (await client.commit(txns.put_if(key, b"v", revision=found.mod_revision, lease_id=theirs))).succeeded
        )

    txn = txns.put_if(key, b"v", revision=0, lease_id=mine)
    assert not (await lose_answer_of(through.commit(txn), wire, overtaken)).succeeded


async def test_a_write_that_compares_nothing_is_never_sent_twice(through, client, wire, key):
    await through.get(key)
    with pytest.raises(EtcdUnavailable):
        await lose_answer_of(through.commit(txns.all_of([], [txns.Put(key, b"blind")])), wire, lambda: client.get(key))
    found = await client.get(key)
    assert found.mod_revision == found.create_revision


async def test_deleting_a_prefix_is_never_sent_twice(through, client, wire, key):
    await client.commit(txns.put_if(key, b"old", revision=0))
    await through.get(key)

    async def made_anew() -> bool:
        gone = await client.get(key) is None
        return gone and (await client.commit(txns.put_if(key, b"new", revision=0))).succeeded

    with pytest.raises(EtcdUnavailable):
        await lose_answer_of(through.delete_prefix(key), wire, made_anew)
    assert (await client.get(key)).value == b"new"


async def test_a_read_whose_answer_was_lost_is_asked_again(through, client, wire, key):
    await client.commit(txns.put_if(key, b"v", revision=0))
    await through.get(key)
    sent = wire.connections
    found = await lose_answer_of(through.get(key), wire, _soon)
    assert found.value == b"v"
    assert wire.connections == sent + 1


async def _soon() -> bool:
    await asyncio.sleep(0.05)
    return True


# --- endpoints --------------------------------------------------------------------------------------------------------


async def test_no_etcd_at_all_is_told_quickly(key):
    client = EtcdClient([f"127.0.0.1:{free_port()}"])
    started = time.monotonic()
    with pytest.raises(EtcdUnavailable, match="quorum"):
        await client.get(key)
    await client.aclose()
    assert time.monotonic() - started < 6


async def test_one_dead_endpoint_of_several_fails_no_call_not_even_the_first(etcd, key):
    for turn in range(4):
        dead = [f"127.0.0.1:{free_port()}" for _ in range(3)]
        client = EtcdClient([*dead[:turn], etcd.endpoint, *dead[turn:]])
        await client.commit(txns.all_of([], [txns.Put(key, b"blind")]))
        for _ in range(5):
            await client.keepalive(await client.grant(5))
        await client.aclose()


async def test_host_names_and_addresses_may_be_mixed(etcd, key):
    client = EtcdClient([f"localhost:{etcd.client_port}", etcd.endpoint])
    for number in range(6):
        assert (await client.commit(txns.put_if(f"{key}/{number}", b"v", revision=0))).succeeded
    await client.aclose()


async def test_an_endpoint_that_accepts_and_says_nothing_delays_nobody_while_another_answers(etcd, key):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        client = EtcdClient([f"127.0.0.1:{deaf.getsockname()[1]}", etcd.endpoint])
        started = time.monotonic()
        for _ in range(5):
            await client.get(key)
        assert time.monotonic() - started < 2
        await client.aclose()


async def test_a_client_that_is_closed_leaves_no_task_behind(etcd, key):
    before = asyncio.all_tasks()
    client = EtcdClient([etcd.endpoint])
    await client.keepalive(await client.grant(5))
    watching = client.watch("/moorage/", after=0)
    reading = asyncio.ensure_future(anext(watching))
    await client.commit(txns.put_if(key, b"v", revision=0))
    await reading
    await watching.aclose()
    await client.aclose()
    await eventually(_no_task_but(before), within=2)


def _no_task_but(before):
    async def look() -> bool:
        return asyncio.all_tasks() <= before

    return look
