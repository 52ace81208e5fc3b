"""The agent's end of the control socket at the real proxy: settled routes, and verifiers from a real engine."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import psycopg
import pytest

from agent.config import AgentConfig
from agent.engines.postgres.engine import PostgresEngine
from agent.fleet import Fleet, halt
from agent.peer import Peers, PeerServer, PeerService
from agent.verifiers import Desk, mock_secret
from core.errors import UnavailableError
from core.ids import MemberName, MemberRef
from core.records import HaRecord, InstanceView, LeaderRecord, MemberSecrets
from core.routes import Endpoint, Route, VerifierAnswer, VerifierAsk
from core.scram import password_fits
from tests.support.ports import free_port
from tests.support.postgres import APP_PASSWORD, INSTANCE, Site, offers
from tests.support.proxy import SSL_REQUEST, Tls, made_tls, startup_packet
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(60)
ADDRESS = "127.0.0.1"
M1, M2 = (MemberRef(INSTANCE, MemberName(name)) for name in ("m1", "m2"))


@dataclass(slots=True)
class Linked:
    """An agent as far as its proxy goes."""

    config: AgentConfig
    routes: tuple[Route, ...] | None
    routes_before: tuple[Route, ...] | None = None
    pusher: Fleet = field(init=False)

    def __post_init__(self) -> None:
        self.pusher = Fleet(self.config, lambda: self.routes, Desk({}, Peers(self.config.identity_dir)))

    def pid(self) -> int:
        (pid,) = self.pusher.pids().values()
        return pid


def route(**changes: object) -> Route:
    fields = {"instance": str(INSTANCE), "rw_port": free_port(), "ro_port": free_port(), **changes}
    return Route(**fields)


def config(root: Path, tls: Tls) -> AgentConfig:
    made = AgentConfig(node="n1", address=ADDRESS, data_root=root)
    made.identity_dir.mkdir(parents=True)
    for source in (tls.cert, tls.key, tls.ca):
        (made.identity_dir / source.name).write_bytes(source.read_bytes())
    return made


@asynccontextmanager
async def running(work: object) -> AsyncIterator[None]:
    task = asyncio.ensure_future(work)
    try:
        yield
        assert not task.done(), "it should run for ever"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def linked(tmp_path: Path) -> AsyncIterator[Linked]:
    with made_tls() as tls:
        one = Linked(config(tmp_path, tls), (route(),))
        try:
            async with running(one.pusher.run()):
                await one.pusher.settled(10)
                yield one
        finally:
            await halt(one.config, 5)
            assert one.pusher.pids() == {}


async def test_settled_answers_when_the_routes_of_the_moment_are_in_force(linked):
    linked.routes_before, linked.routes = linked.routes, (route(paused=True),)
    report = await linked.pusher.settled(5)
    assert report.pid == linked.pid()
    (before,) = linked.routes_before
    with pytest.raises(ConnectionRefusedError):  # the former route's port is closed: the new table is in force
        await asyncio.open_connection(ADDRESS, before.rw_port)


async def test_settled_asks_for_a_fresh_report_also_when_nothing_has_changed(linked):
    reports = [await linked.pusher.settled(5) for _ in range(3)]
    assert len({report.seq for report in reports}) == 3


async def test_many_may_wait_at_once(linked):
    reports = await asyncio.gather(*(linked.pusher.settled(5) for _ in range(20)))
    assert {report.pid for report in reports} == {linked.pid()}


async def test_settled_fails_in_time_while_the_proxy_is_silent_and_works_again_afterwards(linked):
    os.kill(linked.pid(), signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(UnavailableError, match="did not take its routes"):
            await linked.pusher.settled(0.2)
        assert time.monotonic() - began < 2
    finally:
        os.kill(linked.pid(), signal.SIGCONT)
    assert (await linked.pusher.settled(10)).pid == linked.pid()


async def test_settled_waits_for_the_next_proxy_when_one_dies(linked):
    before = linked.pid()
    os.kill(before, signal.SIGKILL)
    report = await linked.pusher.settled(15)
    assert report.pid == linked.pid() != before


async def test_settled_fails_at_once_while_the_routes_are_not_known(linked):
    linked.routes = None
    with pytest.raises(UnavailableError, match="does not know its routes yet"):
        await linked.pusher.settled(5)


# --- verifiers ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Kept:
    """What a keeper is to the desk, and to peers that ask."""

    ref: MemberRef
    driver: PostgresEngine
    secrets: MemberSecrets
    instance: InstanceView | None = None
    deleted: bool = False

    async def verifiers(self, users: list[str]) -> dict[str, str | None]:
        return await self.driver.verifiers(users)

    def member_nodes(self) -> frozenset[str]:
        return frozenset({"n1", "n2"})


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    found = offers()
    made = Site(offer=found.get("system") or found["wheel"])
    yield made
    await made.close()


def desk_of(site: Site, *kept: Kept) -> Desk:
    """Of the node of the first."""
    folder = site.identity(kept[0].ref.member).cert.parent
    return Desk({one.ref: one for one in kept}, Peers(folder))


async def ask(desk: Desk, *users: str, instance: str = str(INSTANCE)) -> dict[str, VerifierAnswer]:
    answers: dict[str, VerifierAnswer] = {}
    async with asyncio.TaskGroup() as group:
        conversation = desk.conversation(group, lambda answer: answers.update({answer.user: answer}))
        for user in users:
            conversation.asked(VerifierAsk(instance=instance, user=user))
    return answers


async def test_the_engine_is_asked_for_roles_and_never_for_the_systems_own(site):
    engine = await site.primary()
    desk = desk_of(site, Kept(M1, engine, site.secrets()))
    async with engine._member.session(within_s=5) as session:
        await session.rows("CREATE ROLE made LOGIN PASSWORD 'by sql'", within_s=5)
        await session.rows("CREATE ROLE silent LOGIN", within_s=5)
    users = ("app", "made", "silent", "nobody", "postgres", "moorage_replication", "odd\0name", "\udcff")
    answers = await ask(desk, *users)
    assert {user for user, answer in answers.items() if answer.found} == set(users)
    fitting = {user: answer.verifier for user, answer in answers.items() if answer.verifier}
    assert password_fits(APP_PASSWORD, fitting.pop("app"))
    assert password_fits("by sql", fitting.pop("made"))
    assert fitting == {}


async def test_an_engine_that_is_down_is_said_so(site):
    engine = await site.primary()
    desk = desk_of(site, Kept(M1, engine, site.secrets()))
    await engine.stop()
    assert not (await ask(desk, "app"))["app"].found
    assert not (await ask(desk, "app", instance="demo/elsewhere"))["app"].found
    assert not (await ask(desk, "app", instance="nonsense"))["app"].found


async def test_a_replica_answers_with_what_it_has_received_even_if_it_has_not_replayed_it_yet(site):
    primary = await site.primary(others=("m2",))
    replica = await site.replica("m2")
    desk = desk_of(site, Kept(M2, replica, site.secrets()))
    async with (
        primary._member.session(within_s=5) as at_primary,
        replica._member.session(within_s=5) as at_replica,
    ):
        await at_replica.rows("SELECT pg_wal_replay_pause()", within_s=5)
        await at_primary.rows("CREATE ROLE late LOGIN PASSWORD 'secret'", within_s=5)
        (row,) = await at_primary.rows("SELECT pg_current_wal_flush_lsn()::text AS lsn", within_s=5)

        async def received() -> bool:
            (there,) = await at_replica.rows(
                "SELECT pg_last_wal_receive_lsn() >= %s::pg_lsn AS all", [row["lsn"]], within_s=5
            )
            return there["all"]

        await eventually(received, within=10)
        asked = asyncio.ensure_future(ask(desk, "late"))
        await at_replica.rows("SELECT pg_wal_replay_resume()", within_s=5)
        answers = await asked
    assert answers["late"].verifier is not None


def view(site: Site, *, peer_port: int) -> InstanceView:
    return InstanceView(
        project=INSTANCE.project,
        instance=INSTANCE.instance,
        leader=LeaderRecord(member="m1", node="n1", term=1, lease_id=1),
        ha=HaRecord(),
        ballots=(),
        members=(replace(site.peer("m1"), peer_port=peer_port), site.peer("m2")),
    )


async def test_the_leaders_agent_is_asked_when_the_engine_beside_cannot_say(site):
    primary = await site.primary(others=("m2",))
    port = free_port()
    service = PeerService({M1: Kept(M1, primary, site.secrets())}.get)
    server = PeerServer(site.address("m1"), port, site.identity("m1").cert.parent, service)
    await server.start()
    desk = desk_of(site, Kept(M2, site.engine("m2"), site.secrets(), view(site, peer_port=port)))
    try:
        answers = await ask(desk, "app", "nobody", "moorage_replication", "\udcff")
        assert password_fits(APP_PASSWORD, answers["app"].verifier or "")
        for user in ("nobody", "moorage_replication", "\udcff"):  # the last is no text, so no role has that name
            assert answers[user].found
            assert answers[user].verifier is None
        await primary.stop()
        assert not (await ask(desk, "app"))["app"].found
    finally:
        await desk._peers.close()
        await server.stop()


# --- to an engine on another node -------------------------------------------------------------------------------------


async def test_a_client_of_another_nodes_proxy_comes_to_the_engine_by_tls(site):
    """The proxy of n2, the engine of n1: access rules, certificates, verifiers and login as in a cluster."""
    if not site.offer.tls:
        pytest.skip("needs an engine with TLS")
    await site.primary(others=("m2",))
    site.identity("m2")
    node = AgentConfig(node="n2", address=site.address("m2"), data_root=site.data_root("m2"))
    desk = desk_of(site, Kept(M2, site.engine("m2"), site.secrets()))
    engine = Endpoint(member="m1", host=site.address("m1"), port=site.port, tls=True, node="n1")
    served = route(primary=engine, expires_at_s=time.monotonic() + 60)
    pusher = Fleet(node, lambda: (served,), desk)
    try:
        async with running(pusher.run()):
            await pusher.settled(10)
            client = site.conninfo("m2", port=str(served.rw_port), sslmode="verify-full", channel_binding="require")
            client["sslrootcert"] = str(site.identity("m2").ca)

            async def listening() -> bool:
                (await asyncio.open_connection(site.address("m2"), served.rw_port))[1].close()
                return True

            await eventually(listening, within=5)
            async with await psycopg.AsyncConnection.connect(**client) as connection:
                cursor = await connection.execute(
                    "SELECT usename, ssl, client_dn, client_addr::text"
                    " FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) WHERE pid = pg_backend_pid()"
                )
                assert await cursor.fetchone() == ("app", True, "/CN=n2", "127.0.0.22/32")
        assert b"rejects connection" in await first_words(site, tls=False)
        assert b"valid client certificate" in await first_words(site, tls=True)
    finally:
        await halt(node, 5)
        assert pusher.pids() == {}


async def first_words(site: Site, *, tls: bool) -> bytes:
    """What the engine says to somebody on the other node who comes past its proxy."""
    async with asyncio.timeout(10):
        source = (site.address("m2"), 0)
        reader, writer = await asyncio.open_connection(site.address("m1"), site.port, local_addr=source)
        try:
            if tls:
                writer.write(SSL_REQUEST)
                assert await reader.readexactly(1) == b"S"
                await writer.start_tls(ssl.create_default_context(cafile=str(site.identity("m2").ca)))
            writer.write(startup_packet(user="app", database="shop"))
            return await reader.read(4096)
        finally:
            writer.close()


async def test_declared_users_are_told_with_a_secret_that_all_nodes_share(site):
    one, other = (desk_of(site, Kept(M1, site.engine("m1"), site.secrets())) for _ in range(2))
    assert one.declared() == other.declared()
    told = one.declared().passwords[str(INSTANCE)]
    assert told.verifiers == site.secrets().verifiers
    assert len(bytes.fromhex(told.mock_secret)) == 32
    assert told.mock_secret != mock_secret(MemberSecrets(replication_password="another"))
