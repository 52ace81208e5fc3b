"""The model of etcd is not trusted: it must do what a real member does, transaction by transaction."""

from __future__ import annotations

import random

from core.ids import InstanceRef
from core.records import Ballot, HaRecord, LeadershipChange, NodeRecord, to_json
from hub.etcd import keys, txns
from hub.etcd.client import EtcdClient
from tests.sim.etcd_model import Entry, Etcd, Store
from tests.sim.world import Host, World
from tests.support.etcd import EtcdProcess
from tests.support.waiting import eventually

ROOT = "/moorage/"
REF = InstanceRef("demo", "orders")


async def entries(client: EtcdClient) -> dict[str, Entry]:
    found, _ = await client.list(ROOT)
    return {kv.key: Entry(kv.value, kv.mod_revision, kv.create_revision, kv.lease_id) for kv in found}


async def both(client: EtcdClient, store: Store, txn: txns.Txn) -> bool:
    """Do it to the real one and to the model; they must agree."""
    real = await client.commit(txn)
    succeeded, _ = store.commit(txn)
    assert (real.succeeded, real.revision) == (succeeded, store.revision), txn
    return succeeded


def some_txn(dice: random.Random, store: Store) -> txns.Txn:
    names = [f"{ROOT}x/{name}" for name in "abc"]
    revisions = [
        0,
        *(e.mod_revision for e in store.entries.values()),
        *(e.create_revision for e in store.entries.values()),
    ]
    kinds: list[type[txns.ModIs] | type[txns.CreatedIs]] = [txns.ModIs, txns.CreatedIs]
    compares: list[txns.Compare] = [
        dice.choice(kinds)(dice.choice(names), dice.choice(revisions)) for _ in range(dice.randint(0, 2))
    ]
    touched = dice.sample(names, dice.randint(0, 3))
    then: list[txns.Op] = [
        txns.Delete(key) if dice.random() < 0.4 else txns.Put(key, dice.randbytes(3).hex().encode()) for key in touched
    ]
    if not then and dice.random() < 0.3:
        then.append(txns.DeletePrefix(f"{ROOT}x/"))
    return txns.all_of(compares, then)


async def test_any_transactions_do_to_the_model_what_they_do_to_etcd() -> None:
    dice = random.Random(4)
    async with EtcdProcess.running() as etcd:
        client = EtcdClient([etcd.endpoint])
        store = Store()
        succeeded = [await both(client, store, some_txn(dice, store)) for _ in range(400)]
        assert store.entries == await entries(client)
        assert 50 < sum(succeeded) < 350
        await client.aclose()


async def test_a_term_of_leadership_does_to_the_model_what_it_does_to_etcd() -> None:
    async with EtcdProcess.running() as etcd:
        client = EtcdClient([etcd.endpoint])
        store = Store()
        lease = await client.grant(60)
        ha = HaRecord(bootstrap="m1")
        puts = [txns.Put(keys.ha(REF), to_json(ha)), txns.Put(keys.node("n1"), to_json(NodeRecord(name="n1")))]
        await both(client, store, txns.all_of([], puts))
        ballot = Ballot(member="m1", node="n1", term=1, timeline=1, lsn=1)
        seen = store.entries[keys.ha(REF)].mod_revision
        assert await both(client, store, txns.cast_ballot(REF, ballot=ballot, ha_revision=seen, lease_id=lease))
        acquire = txns.acquire(
            REF,
            ha=ha,
            ha_revision=seen,
            member="m1",
            node="n1",
            lease_id=lease,
            change=LeadershipChange(term=0, member="", reason=""),
            node_revision=store.entries[keys.node("n1")].mod_revision,
        )
        assert await both(client, store, acquire)
        assert not await both(client, store, acquire)
        assert not await both(client, store, txns.cast_ballot(REF, ballot=ballot, ha_revision=seen, lease_id=lease))
        leader = store.entries[keys.leader(REF)]
        update = txns.update_ha(
            REF,
            leader_created=leader.create_revision,
            ha_revision=store.entries[keys.ha(REF)].mod_revision,
            next_ha=HaRecord(term=1, leader="m1", system_id="7"),
        )
        assert await both(client, store, update)
        assert store.entries == await entries(client)
        await client.aclose()


async def test_a_lease_that_ends_takes_its_keys_at_one_revision_from_both() -> None:
    async with EtcdProcess.running() as etcd:
        client = EtcdClient([etcd.endpoint])
        store = Store()
        lease = await client.grant(1)
        puts = [txns.Put(f"{ROOT}x/{name}", b"", lease) for name in "abc"]
        await both(client, store, txns.all_of([], [*puts, txns.Put(f"{ROOT}x/d", b"")]))

        async def gone() -> bool:
            return len(await entries(client)) == 1

        await eventually(gone, within=10.0)
        store.expire(lease)
        await both(client, store, txns.all_of([], [txns.Put(f"{ROOT}x/e", b"")]))
        assert store.entries == await entries(client)
        await client.aclose()


def test_a_new_etcd_leader_gives_every_lease_its_full_time_again() -> None:
    world = World(1)
    etcd = Etcd(world, Host(world, "etcd"))
    lease = etcd.grant(6.0)
    etcd.commit(txns.all_of([], [txns.Put(f"{ROOT}x/a", b"", lease)]))
    world.run(5.0)
    etcd.change_leader()
    world.run(10.9)
    assert f"{ROOT}x/a" in etcd.store.entries
    world.run(11.6)
    assert f"{ROOT}x/a" not in etcd.store.entries


def test_an_old_leader_that_hangs_confirms_what_its_successor_does_not_honour() -> None:
    world = World(1)
    etcd = Etcd(world, Host(world, "etcd"))
    lease = etcd.grant(6.0)
    etcd.commit(txns.all_of([], [txns.Put(f"{ROOT}x/a", b"", lease)]))
    etcd.change_leader(hung=True)
    world.run(4.0)
    assert etcd.keepalive(lease) < etcd.raft_term
    world.run(6.6)
    assert f"{ROOT}x/a" not in etcd.store.entries
