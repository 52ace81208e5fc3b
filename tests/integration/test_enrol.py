"""First contact: what makes a machine a node, and what does not."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from grpc import StatusCode

from core import identity
from core.identity import certificate_facts, make_ca, make_csr, new_key_pem, parse_join_token
from core.records import JoinToken
from core.sealing import Sealer
from hub.authority import Authority
from hub.etcd import keys
from hub.rpc.enrol import FAILURES_AT_ONCE
from protos.v1 import operator_pb2 as pb
from tests.support.api import Api, channel_to, empty, one_etcd, refused, running_api
from tests.support.etcd import EtcdProcess

NOT_GOOD = "node/n1: the join token is not good (unknown, used, expired, or made for another node)."


@pytest.fixture(scope="module")
def shared_etcd() -> Iterator[EtcdProcess]:
    with one_etcd() as etcd:
        yield etcd


@pytest.fixture
async def etcd(shared_etcd: EtcdProcess) -> EtcdProcess:
    await empty(shared_etcd)
    return shared_etcd


async def test_machine_with_a_fresh_token_becomes_a_node(etcd: EtcdProcess, tmp_path: Path) -> None:
    async with running_api(etcd.endpoint, tmp_path) as api:
        answer = await api.enrol("n1", await api.join_token(), zone="z1", region="eu", cpu=4.0)
        facts = certificate_facts(answer.certificate_pem)
        assert (facts.cn, facts.hosts) == ("n1", ("n1", "127.0.0.11"))
        assert answer.ca_pem == api.hub.authority.ca_pem
        assert list(answer.hub_addresses) == [api.hub.config.listen_agents]
        spec, status = await api.get(pb.KIND_NODE, "n1")
        assert spec == {
            "kind": "Node", "version": 1, "name": "n1", "labels": {}, "price_per_hour": 0.0, "cordoned": False,
        }  # fmt: skip
        assert (status["zone"], status["capacity"]["cpu"]) == ("z1", 4.0)
        assert status["certificate_serial"] == facts.serial
        assert [event.event for event in await api.events("node/n1", count=1)] == ["node_enrolled"]


async def test_token_carries_the_ca_that_proves_the_hub(etcd: EtcdProcess, tmp_path: Path) -> None:
    async with running_api(etcd.endpoint, tmp_path) as api:
        token = parse_join_token(await api.join_token())
        assert token.ca_pem == api.hub.authority.ca_pem
        async with channel_to(api.hub.config.listen_operators, make_ca(now=api.hub.clock.wall()).cert_pem) as channel:
            stranger = Api(api.hub, channel, api.admin)
            with refused(StatusCode.UNAVAILABLE):
                await stranger.enrol("n1", token.text())
        assert "n1" not in api.hub.mirror.nodes


async def test_token_is_good_once(etcd: EtcdProcess, tmp_path: Path) -> None:
    async with running_api(etcd.endpoint, tmp_path) as api:
        token = await api.join_token()
        await api.enrol("n1", token)
        for again in ("n1", "n2"):
            with refused(StatusCode.UNAUTHENTICATED) as refusal:
                await api.enrol(again, token)
            assert refusal.error["code"] == "unauthenticated"
        assert set(api.hub.mirror.nodes) == {"n1"}


async def test_of_many_machines_with_one_token_one_is_admitted(etcd: EtcdProcess, tmp_path: Path) -> None:
    async with running_api(etcd.endpoint, tmp_path) as api, running_api(etcd.endpoint, tmp_path, name="hub-2") as twin:
        token = await api.join_token()
        hubs = [api, twin] * 3
        names = [f"n{number}" for number in range(len(hubs))]
        outcomes = await asyncio.gather(
            *(hub.enrol(name, token) for hub, name in zip(hubs, names, strict=True)), return_exceptions=True
        )
        assert sum(not isinstance(outcome, BaseException) for outcome in outcomes) == 1
        assert len(api.hub.mirror.nodes) == 1


async def test_unknown_expired_and_foreign_tokens_get_the_same_answer(etcd: EtcdProcess, tmp_path: Path) -> None:
    async with running_api(etcd.endpoint, tmp_path) as api:
        unknown = identity.new_join_token(api.hub.authority.ca_pem).text()
        expired = await api.join_token()
        await outdate(api, expired)
        foreign = await api.join_token(node="n2")
        wrong_secret = parse_join_token(await api.join_token())
        forged = replace(wrong_secret, secret="0" * 32).text()
        for token in (unknown, expired, foreign, forged, "junk", ""):
            with refused(StatusCode.UNAUTHENTICATED) as refusal:
                await api.enrol("n1", token)
            assert refusal.text.startswith(NOT_GOOD)
        assert not api.hub.mirror.nodes
        await api.enrol("n2", foreign)  # the attempt of another has not used it up


async def outdate(api: Api, token: str) -> None:
    known = api.hub.mirror.tokens[parse_join_token(token).id].record
    assert isinstance(known, JoinToken)
    await api.put(keys.token(known.id), replace(known, expires_at=api.hub.clock.wall() - 1))


async def test_token_made_at_another_hub_is_known_at_once(etcd: EtcdProcess, tmp_path: Path) -> None:
    async with running_api(etcd.endpoint, tmp_path) as api, running_api(etcd.endpoint, tmp_path, name="hub-2") as twin:
        for number in range(5):
            await twin.enrol(f"n{number}", await api.join_token())


async def test_request_for_another_name_is_refused_and_costs_no_token(etcd: EtcdProcess, tmp_path: Path) -> None:
    async with running_api(etcd.endpoint, tmp_path) as api:
        token = await api.join_token()
        foreign = make_csr(new_key_pem(), node="n2", address="127.0.0.11")
        with refused(StatusCode.INVALID_ARGUMENT) as refusal:
            await api.enrol("n1", token, csr=foreign)
        assert refusal.text == "csr_pem: certificate request is for n2, not for node n1"
        await api.enrol("n1", token)


@pytest.mark.parametrize(
    ("node", "facts", "message"),
    [
        ("Bad_Name", {}, "node_id: node name 'Bad_Name' is not valid"),
        ("", {}, "node_id: node name '' is not valid"),
        ("moorage-hub", {}, "node_id: node name 'moorage-hub' is reserved"),
        ("n1", {"address": "somewhere"}, "facts.address: 'somewhere' is not an IP address"),
        ("n1", {"address": "0.0.0.0"}, "address: 0.0.0.0 is not an address of one machine"),
        ("n1", {"peer_port": 0}, "facts.peer_port: 0 is not a TCP port"),
        ("n1", {"zone": "Z 1"}, "facts.zone: 'Z 1' is not valid"),
        ("n1", {"cpu": math.nan}, "facts.cpu: nan is not a number of cores"),
        ("n1", {"cpu": -1.0}, "facts.cpu: -1.0 is not a number of cores"),
        ("n1", {"csr": b"junk"}, "csr_pem: not a PKCS#10 certificate request in PEM"),
    ],
)
async def test_unfit_facts_are_refused_by_field(
    etcd: EtcdProcess, tmp_path: Path, node: str, facts: dict[str, object], message: str
) -> None:
    async with running_api(etcd.endpoint, tmp_path) as api:
        with refused(StatusCode.INVALID_ARGUMENT) as refusal:
            await api.enrol(
                node, await api.join_token(), **{"csr": make_csr(new_key_pem(), node="n1", address="::1"), **facts}
            )
        assert refusal.text.startswith(message)
        assert not api.hub.mirror.nodes


async def test_rebuilt_machine_comes_back_and_keeps_what_operators_set(etcd: EtcdProcess, tmp_path: Path) -> None:
    async with running_api(etcd.endpoint, tmp_path) as api:
        first = await api.enrol("n1", await api.join_token())
        await api.apply(
            {"kind": "Node", "name": "n1", "labels": {"disk": "ssd"}, "price_per_hour": 2.5, "cordoned": True}
        )
        second = await api.enrol("n1", await api.join_token(), cpu=8.0)
        node = api.hub.mirror.nodes["n1"].record
        assert (node.labels, node.price_per_hour, node.cordoned, node.cpu) == ({"disk": "ssd"}, 2.5, True, 8.0)
        serials = [certificate_facts(answer.certificate_pem).serial for answer in (first, second)]
        assert node.certificate_serial == serials[1] != serials[0]
        events = await api.events("node/n1", count=3)
        assert [(event.event, event.severity) for event in events] == [
            ("node_enrolled", "info"),
            ("node_changed", "info"),
            ("node_enrolled", "warning"),
        ]
        assert events[2].message.startswith("again, address 127.0.0.11")


async def test_address_of_another_node_is_warned_of(etcd: EtcdProcess, tmp_path: Path) -> None:
    async with running_api(etcd.endpoint, tmp_path) as api:
        await api.enrol("n1", await api.join_token())
        await api.enrol("n2", await api.join_token())
        told = await api.events("node/n2", count=2)
        assert [event.event for event in told] == ["node_enrolled", "node_address_shared"]


async def test_flood_of_bad_tokens_is_shut_out_but_good_ones_come_through(etcd: EtcdProcess, tmp_path: Path) -> None:
    async with running_api(etcd.endpoint, tmp_path) as api:
        codes = set()
        for _ in range(2 * FAILURES_AT_ONCE):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await api.enrol("n1", identity.new_join_token(api.hub.authority.ca_pem).text())
            codes.add(caught.value.code())
        assert codes == {StatusCode.UNAUTHENTICATED, StatusCode.RESOURCE_EXHAUSTED}
        await api.enrol("n1", await api.join_token())


async def test_secret_of_a_token_is_nowhere_in_etcd_in_clear(etcd: EtcdProcess, tmp_path: Path) -> None:
    async with running_api(etcd.endpoint, tmp_path) as api:
        token = parse_join_token(await api.join_token())
        stored, _ = await api.hub.client.list(keys.ROOT)
        everything = b"".join(kv.value for kv in stored)
        assert token.secret.encode() not in everything
        assert api.admin.split(".")[2].encode() not in everything
        assert b"PRIVATE KEY" not in everything


async def test_two_hubs_that_start_at_once_agree_on_one_ca(etcd: EtcdProcess, tmp_path: Path) -> None:
    async with running_api(etcd.endpoint, tmp_path) as api:
        await api.hub.client.delete_prefix(keys.CA)
        hub, sealer = api.hub, Sealer.load(tmp_path / "seal.key")
        made = await asyncio.gather(
            *(Authority.load_or_create(hub.store, hub.mirror, sealer, hub.config) for _ in range(4))
        )
        assert len({authority.ca_pem for authority in made}) == 1
        assert made[0].ca_pem != hub.authority.ca_pem


async def test_stale_tokens_are_removed_and_good_ones_kept(etcd: EtcdProcess, tmp_path: Path) -> None:
    async with running_api(etcd.endpoint, tmp_path) as api:
        used, expired, good = [await api.join_token() for _ in range(3)]
        await api.enrol("n1", used)
        await outdate(api, expired)
        assert await api.hub.authority.remove_stale_join_tokens() == 2
        assert set(api.hub.mirror.tokens) == {parse_join_token(good).id}
