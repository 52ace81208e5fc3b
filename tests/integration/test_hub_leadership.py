"""Leadership through two hubs on one etcd: one leader at a time, whatever is repeated, late or lost."""

from __future__ import annotations

import asyncio
import itertools
import json
from contextlib import AsyncExitStack

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from core.ids import InstanceRef
from core.records import Ballot, HaRecord, SwitchoverRequest, SyncRecord, to_json
from hub.etcd import keys, txns
from hub.etcd.client import EtcdClient
from protos.v1 import agent_pb2, agent_pb2_grpc, common_pb2
from tests.support.desired import place, write
from tests.support.etcd import EtcdProcess
from tests.support.hub import HubProcess
from tests.support.waiting import eventually

TTL_S = 3
_numbers = itertools.count(1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def etcd():
    async with EtcdProcess.running() as etcd:
        yield etcd


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hubs(etcd, tmp_path_factory):
    root = tmp_path_factory.mktemp("hubs")
    hubs = [HubProcess(root / name, etcd.endpoint, name=name, lease_ttl_s=TTL_S) for name in ("hub1", "hub2")]
    for hub in hubs:
        await hub.start()
    yield hubs
    for hub in hubs:
        hub.kill()


@pytest.fixture
async def client(etcd):
    client = EtcdClient([etcd.endpoint])
    yield client
    await client.aclose()


class Member:
    """A member of the test's instance, whose agent talks to one of the hubs."""

    def __init__(self, ref: InstanceRef, name: str, node: str, stub: agent_pb2_grpc.AgentServiceStub) -> None:
        self.ref = ref
        self.name = name
        self.node = node
        self.stub = stub
        self.id = common_pb2.MemberId(project=ref.project, instance=ref.instance, member=name)

    async def acquire(self, after_term: int, lease_id: int = 0) -> agent_pb2.AcquireResponse:
        position = common_pb2.Position(timeline=2, lsn=0x16_B374D848)
        request = agent_pb2.AcquireRequest(
            id=self.id, after_term=after_term, lease_id=lease_id, reason="a test", position=position
        )
        return await self.stub.Acquire(request, timeout=10)

    async def release(self, term: int, handover: str = "") -> bool:
        request = agent_pb2.ReleaseRequest(id=self.id, term=term, handover=handover, reason="a test")
        return (await self.stub.Release(request, timeout=10)).released

    async def beat(self, lease_id: int = 0) -> agent_pb2.HeartbeatResponse:
        return await self.stub.Heartbeat(agent_pb2.HeartbeatRequest(node_id=self.node, lease_id=lease_id), timeout=5)

    async def cast(self, term: int, **facts) -> bool:
        ballot = Ballot(**{"member": self.name, "node": self.node, "term": term, "timeline": 1, "lsn": 5, **facts})
        request = agent_pb2.CastBallotRequest(id=self.id, ballot_json=to_json(ballot))
        return (await self.stub.CastBallot(request, timeout=10)).cast

    async def update(self, term: int, **change) -> bool:
        return (
            await self.stub.UpdateHa(agent_pb2.UpdateHaRequest(id=self.id, term=term, **change), timeout=10)
        ).updated


@pytest.fixture
async def members(hubs, client):
    """m1 talks to hub1, m2 to hub2; both hubs know of them."""
    ref = InstanceRef("demo", f"i{next(_numbers)}")
    async with AsyncExitStack() as stack:
        members = []
        for number, hub in enumerate(hubs, start=1):
            serial = next(_numbers)
            node = await hub.enrol(f"n{serial}", f"127.0.2.{serial}")
            stub = await stack.enter_async_context(hub.agent(node))
            members.append(Member(ref, f"m{number}", node.name, stub))
        await place(client, ref, **{member.name: member.node for member in members})
        for member in members:
            await eventually(member.beat, lambda answer: len(answer.leaders) == 1, within=5)
        yield members


async def ha_of(client: EtcdClient, ref: InstanceRef) -> dict:
    return json.loads((await client.get(keys.ha(ref))).value)


async def leader_of(client: EtcdClient, ref: InstanceRef) -> dict | None:
    found = await client.get(keys.leader(ref))
    return json.loads(found.value) if found else None


async def leaderless(client: EtcdClient, ref: InstanceRef) -> None:
    await eventually(lambda: leader_of(client, ref), lambda leader: leader is None, within=3 * TTL_S)


async def known_by(member: Member, *, term: int) -> None:
    """Until the member's hub knows the leadership of this term (0 = nobody leads)."""
    await eventually(member.beat, lambda answer: answer.leaders[0].term == term, within=3 * TTL_S)


# --- taking -----------------------------------------------------------------------------------------------------------


async def test_of_two_candidates_at_two_hubs_exactly_one_becomes_leader(members, client):
    answers = await asyncio.gather(*(member.acquire(0) for member in members))
    won = [member for member, answer in zip(members, answers, strict=True) if answer.acquired]
    assert len(won) == 1
    assert [answer.term for answer in answers] == [1, 1]
    loser = next(answer for answer in answers if not answer.acquired)
    assert (loser.leader, loser.lease_id) == (won[0].name, 0)
    leader, ha = await leader_of(client, members[0].ref), await ha_of(client, members[0].ref)
    assert (leader["member"], leader["node"], leader["term"]) == (won[0].name, won[0].node, 1)
    assert (ha["term"], ha["leader"]) == (1, won[0].name)
    line = ha["history"][-1]
    assert (line["term"], line["member"], line["reason"], line["timeline"]) == (1, won[0].name, "a test", 2)
    assert line["lsn"] == "16/B374D848"


async def test_an_acquire_whose_answer_was_lost_may_be_repeated(members):
    first = await members[0].acquire(0)
    again = await members[0].acquire(0)
    assert (again.acquired, again.term, again.lease_id) == (True, 1, first.lease_id)


async def test_an_acquire_after_a_term_that_has_passed_changes_nothing(members, client):
    taken = await members[0].acquire(0)
    assert await members[0].release(taken.term)
    late = await members[1].acquire(0)
    assert (late.acquired, late.term, late.leader) == (False, 1, "")
    assert await leader_of(client, members[0].ref) is None


async def test_an_acquire_on_a_lease_that_is_gone_gets_a_new_one(members, client):
    old = await client.grant(TTL_S)
    await client.revoke(old)
    answer = await members[0].acquire(0, lease_id=old)
    assert answer.acquired
    assert answer.lease_id not in (0, old)


async def test_a_node_leads_two_instances_on_one_lease(members, client):
    first = await members[0].acquire(0)
    other = InstanceRef("demo", f"i{next(_numbers)}")
    await place(client, other, m1=members[0].node)
    second = Member(other, "m1", members[0].node, members[0].stub)
    await eventually(second.beat, lambda answer: len(answer.leaders) == 2, within=5)
    answer = await second.acquire(0, lease_id=first.lease_id)
    assert (answer.acquired, answer.lease_id) == (True, first.lease_id)
    beat = await second.beat(first.lease_id)
    assert beat.lease_confirmed
    assert {(leader.instance, leader.member, leader.term) for leader in beat.leaders} == {
        (members[0].ref.instance, "m1", 1),
        (other.instance, "m1", 1),
    }


async def test_no_node_hangs_its_leadership_on_another_nodes_lease(members):
    taken = await members[0].acquire(0)
    await known_by(members[1], term=1)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await members[1].acquire(1, lease_id=taken.lease_id)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await members[1].beat(taken.lease_id)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_an_instance_without_leadership_record_is_told_so(members, client):
    await write(client, txns.Delete(keys.ha(members[0].ref)))
    refusals = await eventually(
        lambda: asyncio.gather(members[0].acquire(0), return_exceptions=True),
        lambda answers: isinstance(answers[0], grpc.aio.AioRpcError),
        within=5,
    )
    assert refusals[0].code() is grpc.StatusCode.NOT_FOUND


# --- keeping and losing -----------------------------------------------------------------------------------------------


async def test_a_renewed_lease_keeps_the_leadership_and_an_expired_one_frees_it(members, client):
    taken = await members[0].acquire(0)
    renewed_until = asyncio.get_running_loop().time() + 1.5 * TTL_S
    while asyncio.get_running_loop().time() < renewed_until:
        beat = await members[0].beat(taken.lease_id)
        assert beat.lease_confirmed
        assert 0 < beat.leaders[0].remaining_ms <= TTL_S * 1000
        await asyncio.sleep(beat.next_ms / 1000)
    assert (await leader_of(client, members[0].ref))["member"] == "m1"
    await leaderless(client, members[0].ref)
    beat = await members[0].beat(taken.lease_id)
    assert beat.lease_gone
    assert not beat.lease_confirmed
    await known_by(members[1], term=0)
    assert (await members[1].acquire(1)).term == 2


async def test_a_leader_whose_lease_has_gone_changes_nothing_any_more(members, client):
    await members[0].acquire(0)
    sync = to_json(SyncRecord(mode="sync", k=1, names=("m1",), seq=1))
    await leaderless(client, members[0].ref)
    await known_by(members[1], term=0)
    assert not await members[0].update(1, sync_json=sync)
    assert (await members[1].acquire(1)).acquired
    assert not await members[0].update(1, sync_json=sync)
    assert not await members[0].release(1)
    assert (await ha_of(client, members[0].ref))["sync"]["names"] == []
    assert (await leader_of(client, members[0].ref))["member"] == "m2"


async def test_a_lease_is_confirmed_only_while_its_leader_key_is_there(members, client):
    taken = await members[0].acquire(0)
    assert (await members[0].beat(taken.lease_id)).lease_confirmed
    await write(client, txns.Delete(keys.leader(members[0].ref)))
    beat = await members[0].beat(taken.lease_id)
    assert not beat.lease_confirmed
    gone = await eventually(
        lambda: members[0].beat(taken.lease_id), lambda answer: answer.lease_gone, within=3 * TTL_S, every=0.3
    )
    assert gone.leaders[0].term == 0
    assert await client.time_to_live(taken.lease_id) == 0


async def test_a_replica_at_another_hub_learns_how_long_the_leader_lasts_at_least(members, client):
    taken = await members[0].acquire(0)
    await members[0].beat(taken.lease_id)
    await known_by(members[1], term=1)
    told = (await members[1].beat()).leaders[0]
    assert (told.member, told.term) == ("m1", 1)
    left_ms = await client.time_to_live(taken.lease_id) * 1000
    assert 0 < told.remaining_ms <= left_ms + 1000  # etcd tells whole seconds, cut off
    await leaderless(client, members[0].ref)
    assert (await members[1].beat()).leaders[0].remaining_ms == 0


async def test_a_release_lets_the_next_one_in_at_once_and_names_whom_it_wants(members, client):
    taken = await members[0].acquire(0)
    assert await members[0].release(taken.term, handover="m2")
    assert not await members[0].release(taken.term)
    ha = await ha_of(client, members[0].ref)
    assert (ha["released_term"], ha["handover"]) == (1, "m2")
    await known_by(members[1], term=0)
    assert (await members[1].acquire(1)).term == 2
    assert (await ha_of(client, members[0].ref))["handover"] == ""


# --- ballots and facts ------------------------------------------------------------------------------------------------


async def test_ballots_count_only_for_the_election_that_is_due_and_while_nobody_leads(members, client):
    one, two = members
    assert await one.cast(1)
    assert await two.cast(1)
    assert not await one.cast(2)
    found, _ = await client.list(keys.ballots_of_term(one.ref, 1))
    assert {json.loads(kv.value)["member"] for kv in found} == {"m1", "m2"}
    assert all(kv.lease_id for kv in found)
    await one.acquire(0)
    assert (await client.list(keys.ballots(one.ref)))[0] == []
    assert not await two.cast(1)
    assert not await two.cast(2)


async def test_a_ballot_in_another_members_name_is_refused(members):
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await members[0].cast(1, member="m2")
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_the_leader_writes_its_sync_set_and_ends_a_switchover_with_a_note(members, client):
    one = members[0]
    await one.acquire(0)
    asked = HaRecord(term=1, leader="m1", switchover=SwitchoverRequest(id="s1", target="m2"))
    await write(client, txns.Put(keys.ha(one.ref), to_json(asked)))
    sync = SyncRecord(mode="sync", k=1, names=("m1", "m2"), seq=1)
    assert await one.update(1, sync_json=to_json(sync))
    assert await one.update(1, end_switchover="another")
    assert (await ha_of(client, one.ref))["switchover"]["id"] == "s1"
    assert await one.update(1, end_switchover="s1", note="the target lags")
    after = await ha_of(client, one.ref)
    assert after["sync"] == {"mode": "sync", "k": 1, "names": ["m1", "m2"], "seq": 1, "eras": []}
    assert after["switchover"] is None
    assert (after["history"][-1]["reason"], after["history"][-1]["member"]) == ("the target lags", "m1")


async def test_a_sync_record_that_comes_late_never_replaces_a_later_one(members, client):
    one = members[0]
    await one.acquire(0)
    later = SyncRecord(mode="sync", k=1, names=("m2",), seq=2)
    assert await one.update(1, sync_json=to_json(later))
    for seq in (1, 2):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await one.update(1, sync_json=to_json(SyncRecord(mode="sync", k=1, names=("m3",), seq=seq)))
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert await one.update(1, sync_json=to_json(later))
    assert (await ha_of(client, one.ref))["sync"]["names"] == ["m2"]


async def test_the_system_identifier_is_set_once(members, client):
    one = members[0]
    await one.acquire(0)
    assert await one.update(1, system_id="7001")
    assert await one.update(1, system_id="7001")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await one.update(1, system_id="7002")
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "7001" in refused.value.details()
    assert (await ha_of(client, one.ref))["system_id"] == "7001"


async def test_who_does_not_lead_changes_no_fact(members, client):
    await members[0].acquire(0)
    await known_by(members[1], term=1)
    assert not await members[1].update(1, system_id="7001")
    assert (await ha_of(client, members[0].ref))["system_id"] == ""
