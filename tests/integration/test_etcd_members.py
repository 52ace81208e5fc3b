"""Three etcd members: one is frozen, killed, left alone; and each with a certificate of its own."""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import pytest_asyncio

from core.errors import DeniedError
from core.identity import make_ca
from hub.etcd import txns
from hub.etcd.client import EtcdClient
from hub.etcd.errors import EtcdUnavailable, WatchCanceled
from hub.etcd.options import FROZEN_NOTICED_WITHIN_S
from tests.support.etcd import EtcdCluster, EtcdProcess, issue_etcd_tls
from tests.support.logs import logged_by
from tests.support.waiting import eventually
from tests.support.watched import watching
from tests.support.wire import Wire

_numbers = itertools.count(1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster():
    async with EtcdCluster.running() as cluster:
        yield cluster


@pytest.fixture
def prefix() -> str:
    return f"/moorage/test/{next(_numbers)}/"


class Wired:
    """A client with a wire to each member, so that one can tell whose member has its watch."""

    def __init__(self, cluster: EtcdCluster, wires: list[Wire], client: EtcdClient) -> None:
        self.client = client
        self._by_member = list(zip(cluster.members, wires, strict=True))

    async def member_of_the_watch(self) -> EtcdProcess:
        async def look() -> list[EtcdProcess]:
            return [member for member, wire in self._by_member if wire.open_streams]

        [member] = await eventually(look, lambda members: len(members) == 1, within=5)
        return member


@asynccontextmanager
async def wired(cluster: EtcdCluster):
    async with AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(Wire.running(endpoint)) for endpoint in cluster.endpoints]
        client = EtcdClient([wire.endpoint for wire in wires])
        stack.push_async_callback(client.aclose)
        yield Wired(cluster, wires, client)


class Writer:
    """Writes without end; `written` is (revision, seconds it took)."""

    def __init__(self, client: EtcdClient, prefix: str) -> None:
        self._client = client
        self._prefix = prefix
        self.written: list[tuple[int, float]] = []

    async def run(self) -> None:
        for number in itertools.count():
            started = time.monotonic()
            outcome = await self._client.commit(txns.put_if(f"{self._prefix}{number}", b"v", revision=0))
            assert outcome.succeeded
            self.written.append((outcome.revision, time.monotonic() - started))
            await asyncio.sleep(0.05)

    @property
    def revisions(self) -> list[int]:
        return [revision for revision, _ in self.written]

    @property
    def slowest_s(self) -> float:
        return max(took for _, took in self.written)


@asynccontextmanager
async def beside(work):
    """The work goes on beside the block and must not fail in it."""
    task = asyncio.ensure_future(work)
    try:
        yield
        assert not task.done() or task.result()
    finally:
        task.cancel()
        await asyncio.wait([task])


async def renew(client: EtcdClient, lease_id: int, missed: list[float]) -> None:
    while True:
        try:
            await client.keepalive(lease_id)
        except EtcdUnavailable:
            missed.append(time.monotonic())
        await asyncio.sleep(0.5)


async def newer_than(watched, revision: int, *, within: float) -> None:
    async def look() -> int:
        return watched.revision

    await eventually(look, lambda seen: seen > revision, within=within)


async def test_a_frozen_member_is_noticed_writes_go_on_and_no_event_is_lost_or_doubled(cluster, prefix):
    """Nothing goes over the watch's connection but pings, the slowest case: traffic would show the freeze sooner."""
    busy = EtcdClient(cluster.endpoints)
    writer, missed = Writer(busy, prefix), []
    lease_id = await busy.grant(60)
    async with wired(cluster) as one, watching(one.client, prefix, after=await busy.newest_change("/")) as watched:
        frozen = await one.member_of_the_watch()
        frozen.pause()
        since = time.monotonic()
        try:
            async with beside(writer.run()), beside(renew(busy, lease_id, missed)):
                await watched.has(1, within=FROZEN_NOTICED_WITHIN_S)
                blind_s, told = time.monotonic() - since, len(writer.written)
        finally:
            frozen.resume()
        await watched.has(told)
    await busy.aclose()
    assert watched.revisions[:told] == writer.revisions[:told]
    assert blind_s > 5, "else this was not the quiet case"
    assert told > 1, "meanwhile others wrote through the members that live"
    assert writer.slowest_s < 8, "one deadline, and an election if it led"
    assert len(missed) <= 3, "renewals turn away from a member that does not answer"


async def test_a_killed_member_costs_the_watch_a_moment_and_no_write(cluster, prefix):
    """If it led, a write under way at another member may hang to its deadline; it is sent again then."""
    async with wired(cluster) as one:
        start = await one.client.newest_change("/")
        writer = Writer(one.client, prefix)
        async with watching(one.client, prefix, after=start) as watched:
            killed = await one.member_of_the_watch()
            async with beside(writer.run()):
                await watched.has(5)
                killed.kill()
                try:
                    await newer_than(watched, watched.revision + 1, within=10)
                finally:
                    await killed.start()
                told = len(writer.written)
            await watched.has(told)
        assert watched.revisions[:told] == writer.revisions[:told]


async def test_a_member_that_is_left_alone_ends_its_watch_and_refuses(cluster, prefix):
    """Without `hasleader` it would keep the watch open and silent."""
    left, *others = cluster.members
    client, patient = EtcdClient([left.endpoint], timeout_s=1.5), EtcdClient(cluster.endpoints)
    with logged_by("hub.watch") as logged:
        async with watching(client, prefix, after=await client.newest_change("/")) as watched:
            for member in others:
                member.kill()
            try:

                async def broken() -> list[str]:
                    return [fields["reason"] for event, fields in logged if event == "watch_interrupted"]

                reasons = await eventually(broken, within=10)
                assert "no leader" in reasons[0]
                with pytest.raises(EtcdUnavailable, match=r"no leader|[Dd]eadline"):
                    await client.get(prefix)
            finally:
                for member in others:
                    member.spawn()
                for member in others:
                    await member.ready()
            outcome = await patient.commit(txns.put_if(f"{prefix}a", b"v", revision=0))
            await watched.has(1)
        assert watched.revisions == [outcome.revision]
    await client.aclose()
    await patient.aclose()


async def test_each_member_with_a_certificate_of_its_own_lets_in_whom_it_knows_and_to_what_it_may(tmp_path, prefix):
    ca = make_ca(now=time.time() - 60)
    async with EtcdCluster.running(ca=ca) as cluster:
        known = EtcdClient(cluster.endpoints, tls=issue_etcd_tls(ca, tmp_path, "hub-1"))
        await _use_every_member(known, prefix)
        (tmp_path / "other").mkdir()
        stranger = issue_etcd_tls(make_ca(now=time.time() - 60), tmp_path / "other", "hub-1")
        for outsider in (EtcdClient(cluster.endpoints), EtcdClient(cluster.endpoints, tls=stranger)):
            with pytest.raises(EtcdUnavailable):
                await outsider.get(prefix)
            await outsider.aclose()

        await _let_in(cluster.members[0], "hub-1")
        cluster.members[1].kill()
        await _use_every_member(known, f"{prefix}again/")
        await cluster.members[1].start()
        await _use_every_member(known, f"{prefix}still/")
        with pytest.raises(DeniedError, match="permission denied") as refused:
            await known.commit(txns.put_if("/elsewhere/a", b"v", revision=0))
        assert "certificate" in refused.value.hint
        with pytest.raises(WatchCanceled, match="permission denied"):
            async with asyncio.timeout(5):
                await anext(known.watch("/elsewhere/", after=0))
        await known.aclose()


async def _use_every_member(client: EtcdClient, prefix: str) -> None:
    start = await client.newest_change("/moorage/")
    async with watching(client, prefix, after=start) as watched:
        for number in range(9):
            assert (await client.commit(txns.put_if(f"{prefix}{number}", b"v", revision=0))).succeeded
        lease_id = await client.grant(30)
        for _ in range(3):
            assert await client.keepalive(lease_id) == 30
        await watched.has(9)


async def _let_in(member: EtcdProcess, user: str) -> None:
    """Whoever's certificate names this user may use Moorage's prefix and nothing else."""
    for command in (
        ["user", "add", "root", "--no-password"],
        ["user", "grant-role", "root", "root"],
        ["user", "add", user, "--no-password"],
        ["role", "add", "moorage"],
        ["role", "grant-permission", "moorage", "--prefix=true", "readwrite", "/moorage/"],
        ["user", "grant-role", user, "moorage"],
        ["auth", "enable"],
    ):
        assert await member.ctl(*command) == 0, command
