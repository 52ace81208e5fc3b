"""One engine that follows a remote PostgreSQL, through its changes of timeline."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from agent.engines.postgres.engine import PostgresEngine
from core.errors import MoorageError
from core.records import REMOTE, Followers, MemberDesired, PeerMember, RemotePrimary, remote_peer
from tests.support.postgres import APP_PASSWORD, Site, offers
from tests.support.proxy import Server, as_engine_user, running_servers
from tests.support.waiting import eventually

pytestmark = [pytest.mark.timeout(120), pytest.mark.skipif("system" not in offers(), reason="no system PostgreSQL")]

PASSWORD = "far:away"


def follows(server: Server, **more: Any) -> RemotePrimary:
    return RemotePrimary(hosts=(f"127.0.0.1:{server.port}",), user="follower", **more)


def prepare(server: Server) -> None:
    with (server.data / "pg_hba.conf").open("a") as rules:
        rules.write("host replication follower 127.0.0.0/8 scram-sha-256\n")
    server.value(f"CREATE ROLE follower LOGIN REPLICATION PASSWORD '{PASSWORD}'")
    server.value("SELECT pg_reload_conf()")


def given(site: Site, member: str, remote: RemotePrimary) -> PostgresEngine:
    """An engine that knows its remote primary."""
    engine = site.engine(member)
    desired: MemberDesired = replace(site.desired(member), standby=remote)
    engine.update(desired, replace(site.secrets(), remote_password=PASSWORD))
    return engine


async def rows(engine: PostgresEngine) -> int:
    async with engine._member.session(within_s=5) as session:
        return int((await session.row("SELECT count(*) AS many FROM written", within_s=5))["many"])


async def streams(engine: PostgresEngine, timeline: int) -> None:
    async def looks() -> tuple[str, bool, int]:
        seen = await engine.observe()
        return seen.upstream, seen.streaming, seen.position.timeline

    await eventually(looks, lambda seen: seen == (REMOTE, True, timeline), within=30, what=f"timeline {timeline}")


def begin_timeline(server: Server) -> None:
    """As if it had been a standby and were promoted."""
    subprocess.run(as_engine_user("touch", str(server.data / "standby.signal")), check=True, timeout=10)
    server.start()
    server.value("SELECT pg_promote()")


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    made = Site(offer=offers()["system"])
    yield made
    await made.close()


async def test_timelines_of_the_remote_primary_are_followed_and_a_log_that_has_parted_is_copied_anew(
    site: Site,
) -> None:
    with running_servers("far") as (server,):
        prepare(server)
        remote = follows(server)
        peer: PeerMember = remote_peer(remote)
        engine = given(site, "m1", remote)
        await engine.clone(peer)
        await engine.start_replica(peer)
        await streams(engine, 1)

        # the remote primary fails over to a server that has everything
        server.value("INSERT INTO written SELECT generate_series(1, 10)")
        await eventually(lambda: rows(engine), lambda many: many == 10, within=20)
        server.kill()
        begin_timeline(server)
        server.value("INSERT INTO written SELECT generate_series(11, 20)")
        await streams(engine, 2)
        await eventually(lambda: rows(engine), lambda many: many == 20, within=20)

        # then to one that lacks what was sent here
        server.kill()
        older = server.folder / "older"
        subprocess.run(["cp", "-a", str(server.data), str(older)], check=True, timeout=60)
        server.start()
        server.value("INSERT INTO written SELECT generate_series(21, 30)")
        await streams(engine, 2)
        await eventually(lambda: rows(engine), lambda many: many == 30, within=20)
        server.kill()
        server.data.rename(server.folder / "lost")
        older.rename(server.data)
        begin_timeline(server)
        server.value("INSERT INTO written VALUES (31)")
        (fork,) = [fork for fork in await engine.timeline_forks(peer) if fork.timeline == 2]
        assert (await engine.observe()).position.lsn > fork.lsn
        said = await engine.rejoin(peer)
        assert "was cloned from remote" in said, said
        assert "its former data is kept in" in said, said
        await streams(engine, 3)
        await eventually(lambda: rows(engine), lambda many: many == 21, within=20)


async def test_an_instance_lets_a_declared_role_follow_it_from_its_networks_and_nobody_else(site: Site) -> None:
    east, west = await site.primary("m1"), site.engine("m2")
    site.sql("m1", "CREATE TABLE written (id int)", "INSERT INTO written VALUES (1)")
    remote = RemotePrimary(hosts=(f"{site.address('m1')}:{site.port}",), user="app", sslmode="require")
    west.update(replace(site.desired("m2"), standby=remote), replace(site.secrets(), remote_password=APP_PASSWORD))
    with pytest.raises(MoorageError, match=r"no pg_hba\.conf entry"):
        await west.clone(remote_peer(remote))
    let_in = Followers(user="app", networks=("127.0.0.0/8",))
    east.update(replace(site.desired("m1"), followers=let_in), site.secrets())
    assert await east.converge()
    await west.clone(remote_peer(remote))
    await west.start_replica(remote_peer(remote))
    await streams(west, 1)

    # promoted, it has the roles that it needs
    west.update(site.desired("m2"), site.secrets())
    await west.promote()
    assert await west.converge()
    assert site.sql("m2", "INSERT INTO written VALUES (2)", "SELECT count(*) FROM written") == [(2,)]
