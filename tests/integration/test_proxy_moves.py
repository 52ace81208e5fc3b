"""Sessions that go from one server to another: what they take along, who stays behind, and that nothing runs twice."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Iterator
from typing import Any

import asyncpg
import psycopg
import pytest

from proxy.postgres import messages
from proxy.postgres.server_side import sqlstate_of
from tests.support.proxy import (
    ADDRESS,
    APP_PASSWORD,
    INSTANCE,
    Proxy,
    RawClient,
    Server,
    query,
    running_servers,
)
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(60)
GOING_DOWN = "57P01"


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Server]]:
    with running_servers("m1", "m2") as running:
        for server in running:
            server.value("CREATE ROLE clerk")
            server.value("GRANT clerk TO app")
            server.value("CREATE TABLE counted (n int)")
            server.value("GRANT ALL ON counted TO app")
        yield running


@pytest.fixture
def mortal(servers: list[Server]) -> Iterator[Server]:
    """The first of them, whatever the test does to it."""
    yield servers[0]
    servers[0].kill()
    servers[0].start()


async def value(connection: psycopg.AsyncConnection[Any], statement: str) -> object:
    row = await (await connection.execute(statement)).fetchone()
    assert row is not None
    return row[0]


async def busy(proxy: Proxy) -> int:
    return (await proxy.again()).busy[INSTANCE]


async def drained(proxy: Proxy, primary: Server, **changes: Any) -> None:
    """New transactions are held, and the running ones have ended."""
    await proxy.serve(primary, paused=True, **changes)
    await eventually(lambda: busy(proxy), lambda count: count == 0, within=10, every=0.01)


async def switch(proxy: Proxy, old: Server, new: Server, term: int = 2) -> None:
    """As an agent does it, but that both servers go on running."""
    await drained(proxy, old)
    await proxy.serve(None, paused=True)
    await proxy.serve(new, term=term)


async def waiting(proxy: Proxy) -> int:
    return (await proxy.again()).sessions[INSTANCE].waiting


async def settled(proxy: Proxy, server: Server) -> None:
    """What sessions carry has been asked: the proxy's question is the last thing that their backends ran."""
    clients = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    asked = f"{clients} AND query LIKE '%pg_my_temp_schema%' AND state = 'idle'"

    async def all_asked() -> bool:
        return bool(server.value(clients) == server.value(asked))

    await eventually(all_asked, within=5)


async def told(client: RawClient) -> tuple[str, str]:
    """SQLSTATE and detail of the last word."""
    rest = await client.rest()
    client.close()
    fields = messages.error_fields(rest[5:])
    return fields.get("C", ""), fields.get("D", "")


# --- planned ---------------------------------------------------------------------------------------------------------


async def test_a_session_takes_everything_along_that_it_has_set(proxy, servers):
    m1, m2 = servers
    await proxy.serve(m1)
    async with await proxy.connect(user="app") as connection:
        await connection.execute("SET search_path = 'pg_catalog', 'public'")
        await connection.execute("SET application_name = 'it''s \\me'")
        await connection.execute("SET statement_timeout = '77s'")
        await connection.execute("SELECT set_config('shop.tenant', 'acme', false)")
        await connection.execute("PREPARE twice (int) AS SELECT $1 * 2")
        await connection.execute("LISTEN news")
        await connection.execute("SET ROLE clerk")
        await switch(proxy, m1, m2)
        assert await value(connection, "SHOW cluster_name") == "m2"
        for name, expected in {
            "search_path": "pg_catalog, public",
            "application_name": "it's \\me",
            "statement_timeout": "77s",
            "shop.tenant": "acme",
            "role": "clerk",
        }.items():
            assert await value(connection, f"SELECT current_setting('{name}')") == expected
        assert await value(connection, "EXECUTE twice (21)") == 42
        m2.value("NOTIFY news, 'fresh'")
        async with asyncio.timeout(5):
            notifications = [note.payload async for note in connection.notifies(stop_after=1)]
        assert notifications == ["fresh"]
    assert proxy.events("session_moved")[0]["server"] == "m2"


async def test_prepared_statements_of_drivers_go_along(proxy, servers):
    m1, m2 = servers
    await proxy.serve(m1)
    connection = await asyncpg.connect(
        host=ADDRESS, port=proxy.rw_port, user="app", password=APP_PASSWORD, database="postgres", ssl="disable"
    )
    try:
        statement = await connection.prepare("SELECT $1::int + 1, current_setting('cluster_name')")
        assert tuple(await statement.fetchrow(1)) == (2, "m1")
        await switch(proxy, m1, m2)
        assert tuple(await statement.fetchrow(41)) == (42, "m2")
        assert await connection.fetchval("SELECT count(*) FROM pg_prepared_statements") >= 1
    finally:
        await connection.close()


async def test_statements_that_the_client_has_closed_do_not_come_back(proxy, servers):
    m1, m2 = servers
    await proxy.serve(m1)
    async with await proxy.connect() as connection:
        connection.prepare_threshold = 0
        for number in range(3):
            await connection.execute(f"SELECT {number} + %s", (1,))
        await connection.execute("DEALLOCATE ALL")
        await connection.execute("SELECT 7 + %s", (1,))
        connection.prepare_threshold = None
        await switch(proxy, m1, m2)
        kept = await value(connection, "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%7 +%'")
        gone = await value(connection, "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%2 +%'")
        assert (kept, gone) == (1, 0)


@pytest.mark.parametrize("closing", [b"", messages.parse(b"", b"SELEC") + messages.close(b"s1")])
@pytest.mark.parametrize("planned", [True, False], ids=["planned", "crash"])
async def test_a_session_goes_on_with_the_statement_that_its_server_has_kept(proxy, servers, closing, planned):
    """A second Parse of the same name is refused; behind an error in the same pipeline its Close is not even read."""
    m1, m2 = servers
    m2.value("TRUNCATE counted; INSERT INTO counted VALUES (1)")
    await proxy.serve(m1)
    client = await RawClient.connect(proxy.rw_port)
    client.send(messages.parse(b"s1", b"SELECT current_setting('cluster_name'), $1::int + 41") + messages.SYNC)
    await client.until("Z")
    client.send(closing + messages.parse(b"s1", b"DELETE FROM counted WHERE n = $1") + messages.SYNC)
    assert "E" in [kind for kind, _ in await client.until("Z")]
    if planned:
        await switch(proxy, m1, m2)
    else:
        await settled(proxy, m1)
        await proxy.serve(m2, term=2)
    client.send(messages.run(b"s1", [b"1"]) + messages.SYNC)
    assert ("D", b"\0\2\0\0\0\2m2\0\0\0\00242") in await client.until("Z")
    assert m2.value("SELECT count(*) FROM counted") == 1
    client.close()


async def test_statements_with_types_and_in_another_encoding_go_along_as_they_are(proxy, servers):
    m1, m2 = servers
    await proxy.serve(m1)
    client = await RawClient.connect(proxy.rw_port)
    typed = messages.message(b"P", b"s1\0SELECT pg_typeof($1), 'h\xc3\xbc'\0\0\1\0\0\0\x14")
    client.send(query("SET client_encoding = 'UTF8'") + typed + messages.SYNC + query("SET client_encoding = 'LATIN1'"))
    for _ in range(3):
        heard = await client.until("Z")
    assert "E" not in [kind for kind, _ in heard]
    client.send(messages.message(b"P", b"s2\0SELECT pg_typeof($1 + 1::int2)\0\0\0") + messages.SYNC)
    await client.until("Z")
    await switch(proxy, m1, m2)
    client.send(messages.run(b"s1", [b"1"]) + messages.SYNC)
    rows = [body for kind, body in await client.until("Z") if kind == "D"]
    assert rows == [b"\0\2\0\0\0\6bigint\0\0\0\2h\xfc"]
    client.send(messages.run(b"s2", [b"1"]) + messages.SYNC)
    assert "D" in [kind for kind, _ in await client.until("Z")]
    client.close()


async def test_an_unnamed_statement_is_there_for_the_bind_that_comes_later(proxy, servers):
    m1, m2 = servers
    await proxy.serve(m1)
    client = await RawClient.connect(proxy.rw_port)
    client.send(messages.parse(b"", b"SELECT current_setting('cluster_name')") + messages.SYNC)
    await client.until("Z")
    await switch(proxy, m1, m2)
    client.send(messages.run(b"") + messages.SYNC)
    assert ("D", b"\0\1\0\0\0\2m2") in await client.until("Z")
    client.close()


async def test_many_clients_of_every_kind_see_no_error_in_a_switchover(proxy, servers):
    """Some write all the time, each row once; some are idle; some hold a transaction open across the pause."""
    m1, m2 = servers
    for server in servers:
        server.value("TRUNCATE counted")
    await proxy.serve(m1)
    writers = [await proxy.connect(user="app") for _ in range(8)]
    idle = [await RawClient.connect(proxy.rw_port) for _ in range(20)]
    acknowledged: list[int] = []
    moved = asyncio.Event()

    async def write(worker: int) -> None:
        connection, number = writers[worker], 0
        while not (moved.is_set() and await value(connection, "SHOW cluster_name") == "m2") or number < 50:
            number += 1
            async with connection.transaction():
                await connection.execute("INSERT INTO counted VALUES (%s)", (worker * 1000 + number % 1000,))
            acknowledged.append(worker)

    async with asyncio.TaskGroup() as group:
        for worker in range(len(writers)):
            group.create_task(write(worker))
        await eventually(lambda: count_of(acknowledged), lambda count: count > 50, within=10)
        await switch(proxy, m1, m2)
        moved.set()
    for client in idle:
        assert await client.value("SHOW cluster_name") == "m2"
        client.close()
    for connection in writers:
        await connection.close()
    assert sum(int(server.value("SELECT count(*) FROM counted")) for server in servers) == len(acknowledged)
    assert int(m2.value("SELECT count(*) FROM counted")) > 0


async def count_of(things: list[int]) -> int:
    return len(things)


async def test_a_transaction_is_waited_for_and_its_session_goes_along(proxy, servers):
    m1, m2 = servers
    await proxy.serve(m1)
    client = await RawClient.connect(proxy.rw_port)
    client.send(query("BEGIN"))
    await client.until("Z")
    await proxy.serve(m1, paused=True)
    assert await busy(proxy) == 1
    assert await client.value("SHOW cluster_name") == "m1", "what is begun goes on"
    client.send(query("COMMIT") + query("SHOW cluster_name"))
    await client.until("Z")
    await client.until("Z")
    await eventually(lambda: busy(proxy), lambda count: count == 0, within=5)
    client.send(query("SHOW cluster_name"))
    await proxy.serve(m2, term=2)
    assert ("D", b"\0\1\0\0\0\2m2") in await client.until("Z")
    client.close()


async def test_what_is_sent_during_a_pause_is_held_and_goes_to_the_same_server_when_it_is_called_off(proxy, servers):
    m1 = servers[0]
    await proxy.serve(m1)
    client = await RawClient.connect(proxy.rw_port)
    await drained(proxy, m1)
    client.send(query("SELECT pg_backend_pid()"))
    client.send(query("SELECT 2"))
    assert await busy(proxy) == 0
    await proxy.serve(m1)
    assert [message[0] for message in await client.until("Z")].count("D") == 1
    assert ("D", b"\0\1\0\0\0\0012") in await client.until("Z")
    client.close()
    assert proxy.events("session_moved") == []


async def test_a_server_that_was_stopped_for_nothing_gets_its_sessions_back(proxy, mortal):
    await proxy.serve(mortal)
    async with await proxy.connect() as connection:
        await connection.execute("SET work_mem = '7MB'")
        await drained(proxy, mortal)
        mortal.kill()
        mortal.start()
        await proxy.serve(mortal)
        assert await value(connection, "SHOW work_mem") == "7MB"


async def test_a_client_that_is_held_too_long_is_told_57p03(proxy, servers):
    m1 = servers[0]
    await proxy.serve(m1, hold_s=0.3)
    client, silent = await RawClient.connect(proxy.rw_port), await RawClient.connect(proxy.rw_port)
    await drained(proxy, m1, hold_s=0.3)
    client.send(query("SELECT 1"))
    assert (await told(client))[0] == "57P03"
    await proxy.serve(m1)
    assert await silent.value("SELECT 1") == "1", "who is silent does not wait"
    silent.close()


async def test_a_flood_that_is_held_is_left_to_the_kernel_and_arrives_whole(proxy, servers):
    m1, m2 = servers
    await proxy.serve(m1)
    client = await RawClient.connect(proxy.rw_port)
    await drained(proxy, m1)
    before = proxy.rss_bytes()
    client.send(query(f"SELECT length('{'x' * (8 << 20)}')"))
    await eventually(lambda: backlog(client), lambda size: size > 0, within=5)
    assert proxy.rss_bytes() - before < 4 << 20
    await proxy.serve(m2, term=2)
    rows = [body for kind, body in await client.until("Z") if kind == "D"]
    assert rows == [b"\0\1\0\0\0\7" + str(8 << 20).encode()]
    client.close()


async def backlog(client: RawClient) -> int:
    return client.writer.transport.get_write_buffer_size()


async def test_pipelining_clients_are_moved_between_their_requests(proxy, servers):
    m1, m2 = servers
    await proxy.serve(m1)
    async with await proxy.connect() as connection:
        moved, names = asyncio.Event(), set[object]()

        async def pipeline() -> None:
            while not (moved.is_set() and "m2" in names):
                async with connection.pipeline():
                    cursors = [
                        await connection.execute("SELECT current_setting('cluster_name'), %s", (n,)) for n in range(20)
                    ]
                for n, cursor in enumerate(cursors):
                    row = await cursor.fetchone()
                    assert row is not None
                    assert row[1] == n
                    names.add(row[0])

        async with asyncio.TaskGroup() as group:
            group.create_task(pipeline())
            await eventually(lambda: count_of(list(names)), lambda count: count == 1, within=5)
            await switch(proxy, m1, m2)
            moved.set()
        assert names == {"m1", "m2"}


async def test_a_copy_is_finished_before_its_session_is_moved(proxy, servers):
    m1, m2 = servers
    m1.value("TRUNCATE written")
    await proxy.serve(m1)
    async with await proxy.connect() as connection:
        async with connection.cursor().copy("COPY written FROM STDIN") as copy:
            await copy.write(b"1\n")
            await proxy.serve(m1, paused=True)
            assert await busy(proxy) == 1
            await copy.write(b"2\n")
        await eventually(lambda: busy(proxy), lambda count: count == 0, within=5)
        await proxy.serve(m2, term=2)
        assert await value(connection, "SHOW cluster_name") == "m2"
    assert m1.value("SELECT count(*) FROM written") == 2


async def test_a_copy_by_the_extended_protocol_leaves_its_session_at_rest(proxy, servers):
    """libpq sends the Sync with the statement; a server that takes COPY data ignores it."""
    m1 = servers[0]
    await proxy.serve(m1)
    client = await RawClient.connect(proxy.rw_port)
    client.send(messages.parse(b"", b"COPY written FROM STDIN") + messages.run(b"") + messages.SYNC)
    await client.until("G")
    client.send(messages.message(b"d", b"5\n") + messages.message(b"c") + messages.SYNC)
    await client.until("Z")
    assert await busy(proxy) == 0
    await drained(proxy, m1)
    client.close()


async def test_whatever_drivers_do_their_sessions_come_to_rest(proxy, servers):
    """asyncpg sends COPY data without waiting to be asked; psycopg flushes behind its Sync, and fails half-way."""
    m1, m2 = servers
    await proxy.serve(m1)
    one = await asyncpg.connect(
        host=ADDRESS, port=proxy.rw_port, user="app", password=APP_PASSWORD, database="postgres", ssl="disable"
    )
    await one.executemany("INSERT INTO counted VALUES ($1)", [(number,) for number in range(500)])
    await one.copy_records_to_table("counted", records=[(number,) for number in range(5000)])
    with pytest.raises(asyncpg.BadCopyFileFormatError):
        await one.copy_to_table("counted", source=io.BytesIO(b"1\t2\n" * 1000))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await one.execute("SELECT pg_sleep(10)")
    async with await proxy.connect(user="app") as other:
        with pytest.raises(psycopg.errors.DivisionByZero):
            await divide(other)
        with pytest.raises(psycopg.errors.InvalidTextRepresentation):
            async with other.cursor().copy("COPY counted FROM STDIN") as copy:
                await copy.write("bad\n")
        assert [row async for row in other.cursor().stream("SELECT generate_series(1, 3)")] == [(1,), (2,), (3,)]
        await eventually(lambda: busy(proxy), lambda count: count == 0, within=5)
        await switch(proxy, m1, m2)
        assert await value(other, "SHOW cluster_name") == "m2"
        assert await one.fetchval("SHOW cluster_name") == "m2"
    await one.close()


async def divide(connection: psycopg.AsyncConnection[Any]) -> None:
    async with connection.pipeline():
        for number in range(20):
            await connection.execute("SELECT 1 / %s", (number - 10,))


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("CREATE TEMP TABLE mine (n int)", "has temporary objects"),
        ("SELECT pg_advisory_lock(1)", "holds advisory locks"),
        ("BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 1; COMMIT", "has a cursor WITH HOLD"),
        ("SELECT set_config(md5('x') || '.y', '1', false)", "names are not known"),
        ("LOAD 'auto_explain'", "has loaded a library"),
        ("SELECT set_config('a.b', repeat('x', 3 << 20), false)", "carries more than the proxy keeps"),
    ],
)
@pytest.mark.parametrize("planned", [True, False], ids=["planned", "crash"])
async def test_a_session_that_cannot_be_moved_is_ended_with_the_reason(proxy, servers, statement, why, planned):
    m1, m2 = servers
    await proxy.serve(m1)
    client = await RawClient.connect(proxy.rw_port)
    client.send(query(statement))
    await client.until("Z")
    if planned:
        await switch(proxy, m1, m2)
    else:
        await settled(proxy, m1)
        await proxy.serve(m2, term=2)
    sqlstate, detail = await told(client)
    assert sqlstate == GOING_DOWN
    assert why in detail


async def test_a_session_whose_temporary_table_is_gone_can_be_moved(proxy, servers):
    m1, m2 = servers
    await proxy.serve(m1)
    client = await RawClient.connect(proxy.rw_port)
    for statement in ("CREATE TEMP TABLE mine (n int)", "DROP TABLE mine"):
        client.send(query(statement))
        await client.until("Z")
    await switch(proxy, m1, m2)
    assert await client.value("SHOW cluster_name") == "m2"
    client.close()


async def test_what_cannot_be_made_again_ends_the_session_with_its_name(proxy, servers):
    m1, m2 = servers
    m1.value("CREATE TABLE here_only (n int)")
    await proxy.serve(m1)
    client = await RawClient.connect(proxy.rw_port)
    client.send(messages.parse(b"s1", b"SELECT * FROM here_only") + messages.SYNC)
    await client.until("Z")
    await switch(proxy, m1, m2)
    sqlstate, detail = await told(client)
    assert sqlstate == GOING_DOWN
    assert "s1" in detail
    assert "here_only" in detail


async def test_parameters_that_the_new_server_has_otherwise_are_told(proxy, servers):
    m1, m2 = servers
    m2.value("ALTER ROLE app SET TimeZone = 'Asia/Tokyo'")
    try:
        await proxy.serve(m1)
        async with await proxy.connect(user="app") as connection:
            before = connection.info.parameter_status("TimeZone")
            await switch(proxy, m1, m2)
            assert await value(connection, "SHOW TimeZone") == "Asia/Tokyo"
            assert before != connection.info.parameter_status("TimeZone") == "Asia/Tokyo"
    finally:
        m2.value("ALTER ROLE app RESET TimeZone")


async def test_cancel_reaches_the_server_that_the_session_is_on_now(proxy, servers):
    m1, m2 = servers
    await proxy.serve(m1)
    async with await proxy.connect() as connection:
        await switch(proxy, m1, m2)
        sleeping = asyncio.ensure_future(connection.execute("SELECT pg_sleep(30)"))
        await eventually(lambda: asleep(m2), lambda count: count == 1, within=5)
        await connection.cancel_safe()
        with pytest.raises(psycopg.errors.QueryCanceled):
            await sleeping


async def asleep(server: Server) -> int:
    return int(server.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"))


async def test_fifty_sessions_are_asked_in_a_moment(proxy, servers):
    m1 = servers[0]
    await proxy.serve(m1)
    clients = [await RawClient.connect(proxy.rw_port) for _ in range(50)]
    for client in clients:
        await client.value("SELECT 1")
    began = time.monotonic()
    await drained(proxy, m1)
    took_s = time.monotonic() - began
    assert took_s < 2, "a fraction of it on an idle machine"
    for client in clients:
        client.close()


# --- crashes ---------------------------------------------------------------------------------------------------------


async def test_idle_sessions_of_a_crashed_server_go_on_at_the_next_one(proxy, mortal, servers):
    m2 = servers[1]
    await proxy.serve(mortal)
    plain, prepared, changed = [await RawClient.connect(proxy.rw_port) for _ in range(3)]
    prepared.send(messages.parse(b"s1", b"SELECT current_setting('cluster_name')") + messages.SYNC)
    await prepared.until("Z")
    await changed.value("SET work_mem = '7MB'")
    await eventually(lambda: asked(mortal), lambda count: count == 1, within=5)
    mortal.kill()
    await eventually(lambda: waiting(proxy), lambda count: count == 3, within=5)
    await proxy.serve(m2, term=2)
    assert await plain.value("SHOW cluster_name") == "m2"
    prepared.send(messages.run(b"s1") + messages.SYNC)
    assert ("D", b"\0\1\0\0\0\2m2") in await prepared.until("Z")
    assert await changed.value("SHOW work_mem") == "7MB"
    for client in (plain, prepared, changed):
        client.close()


async def asked(server: Server) -> int:
    of_others = "pid <> pg_backend_pid() AND state = 'idle'"
    return int(
        server.value(f"SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_my_temp_schema%' AND {of_others}")
    )


async def test_a_session_that_has_just_changed_something_unknown_ends_with_its_server(proxy, mortal, servers):
    await proxy.serve(mortal)
    client = await RawClient.connect(proxy.rw_port)
    client.send(query("SET work_mem = '7MB'"))
    await client.until("Z")
    await proxy.serve(servers[1], term=2)
    assert await told(client) == (GOING_DOWN, "What the session carries was not known yet.")


async def test_a_statement_in_flight_at_a_crash_gets_one_error_and_never_runs_twice(proxy, mortal, servers):
    m2 = servers[1]
    m2.value("TRUNCATE written")
    await proxy.serve(mortal)
    client = await RawClient.connect(proxy.rw_port)
    client.send(query("INSERT INTO written SELECT 9 FROM pg_sleep(1)"))
    await eventually(lambda: asleep(mortal), lambda count: count == 1, within=5)
    mortal.kill()
    await proxy.serve(m2, term=2)
    rest = await client.rest()
    client.close()
    assert rest.count(b"57P01") == 1
    assert m2.value("SELECT count(*) FROM written") == 0


async def test_a_server_that_is_stopped_in_order_keeps_its_idle_clients_for_the_next_one(proxy, mortal, servers):
    """Each of its backends says 57P01 before it goes; the idle clients do not hear it."""
    await proxy.serve(mortal)
    clients = [await RawClient.connect(proxy.rw_port) for _ in range(5)]
    mortal.signal(2)  # fast shutdown
    await eventually(lambda: waiting(proxy), lambda count: count == 5, within=5)
    await proxy.serve(servers[1], term=2)
    for client in clients:
        assert await client.value("SHOW cluster_name") == "m2"
        client.close()


async def test_readers_go_to_another_replica_when_theirs_ends(proxy, mortal, servers):
    m2 = servers[1]
    await proxy.serve(m2, replicas=(mortal.endpoint,))
    reader = await RawClient.connect(proxy.ro_port)
    assert await reader.value("SHOW cluster_name") == "m1"
    mortal.kill()
    await eventually(lambda: moved(proxy), lambda count: count == 1, within=5)
    assert await reader.value("SHOW cluster_name") == "m2"
    reader.close()


async def moved(proxy: Proxy) -> int:
    return len(proxy.events("session_moved"))


async def test_three_hundred_sessions_are_moved_at_a_pace_the_server_bears(proxy, servers):
    m1, m2 = servers
    await proxy.serve(m1)
    clients: list[RawClient] = []
    for _ in range(6):
        clients += await asyncio.gather(*(RawClient.connect(proxy.rw_port) for _ in range(50)))
    await proxy.serve(m2, term=2)
    names = await asyncio.gather(*(client.value("SHOW cluster_name") for client in clients))
    assert set(names) == {"m2"}
    for client in clients:
        client.close()


# --- commits that were not replicated --------------------------------------------------------------------------------


@pytest.fixture
def lonely(servers: list[Server]) -> Iterator[Server]:
    """A primary that waits for a standby which never comes."""
    m1 = servers[0]
    m1.value("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    m1.value("SELECT pg_reload_conf()")
    yield m1
    m1.value("ALTER SYSTEM RESET synchronous_standby_names")
    m1.value("SELECT pg_reload_conf()")


async def in_sync_wait(server: Server) -> int:
    return int(server.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"))


def simple(number: int) -> bytes:
    return query(f"INSERT INTO written VALUES ({number})")


def extended(number: int) -> bytes:
    statement = f"INSERT INTO written VALUES ({number})".encode()
    return messages.parse(b"", statement) + messages.run(b"") + messages.SYNC


def in_block(number: int) -> bytes:
    return query(f"BEGIN; INSERT INTO written VALUES ({number}); COMMIT")


@pytest.mark.parametrize("request_of", [simple, extended, in_block])
@pytest.mark.parametrize("strict", [True, False])
async def test_a_commit_whose_wait_was_cancelled_is_told_as_40003_where_the_route_is_strict(
    proxy, lonely, request_of, strict
):
    await proxy.serve(lonely, strict=strict)
    client = await RawClient.connect(proxy.rw_port)
    pid = await client.value("SELECT pg_backend_pid()")
    client.send(request_of(7))
    await eventually(lambda: in_sync_wait(lonely), lambda count: count == 1, within=5)
    lonely.value(f"SELECT pg_cancel_backend({pid})")
    heard = await client.until("Z")
    errors = [sqlstate_of(body) for kind, body in heard if kind == "E"]
    last = heard[[kind for kind, _ in heard].index("N") :]
    acknowledged = "C" in [kind for kind, _ in (last if request_of is in_block else heard)]
    assert (errors, acknowledged) == ((["40003"], False) if strict else ([], True))
    assert await client.value("SELECT 1") == "1", "the session goes on"
    client.close()


async def test_a_commit_whose_wait_ends_with_the_session_is_not_acknowledged(proxy, lonely):
    await proxy.serve(lonely, strict=True)
    client = await RawClient.connect(proxy.rw_port)
    pid = await client.value("SELECT pg_backend_pid()")
    client.send(extended(8))
    await eventually(lambda: in_sync_wait(lonely), lambda count: count == 1, within=5)
    lonely.value(f"SELECT pg_terminate_backend({pid})")
    rest = await client.rest()
    client.close()
    assert b"INSERT 0 1" not in rest


SILENCING = "client_min_messages above warning"


async def test_a_session_may_not_silence_the_warning_where_the_route_is_strict(proxy, servers):
    m1 = servers[0]
    await proxy.serve(m1, strict=True)
    talker, born = await RawClient.connect(proxy.rw_port), await RawClient.open(proxy.rw_port)
    assert await talker.value("SET client_min_messages = warning") == ""
    talker.send(query("SET client_min_messages = error"))
    await born.log_in(options="-c client_min_messages=error")
    born.send(query("SELECT 1"))
    for client in (talker, born):
        fields = messages.error_fields((await client.rest())[5:])
        assert (fields["C"], SILENCING in fields["M"]) == ("0A000", True)
        client.close()


async def test_a_session_that_is_silent_is_ended_when_the_route_becomes_strict(proxy, servers):
    m1 = servers[0]
    await proxy.serve(m1)
    client = await RawClient.connect(proxy.rw_port)
    await client.value("SET client_min_messages = error")
    assert await client.value("SHOW client_min_messages") == "error"
    await proxy.serve(m1, strict=True)
    client.send(query("SELECT 1"))
    assert (await told(client))[0] == "0A000"


async def test_a_role_may_not_silence_the_warning_where_the_route_is_strict(proxy, servers):
    m1 = servers[0]
    m1.value("ALTER ROLE app SET client_min_messages = error")
    try:
        for strict, level in ((True, "notice"), (False, "error")):
            await proxy.serve(m1, strict=strict)
            async with await proxy.connect(user="app") as connection:
                await connection.execute("RESET ALL")
                assert await value(connection, "SHOW client_min_messages") == level
    finally:
        m1.value("ALTER ROLE app RESET client_min_messages")


async def test_large_results_pass_unharmed_where_the_route_is_strict(proxy, servers):
    await proxy.serve(servers[0], strict=True)
    async with await proxy.connect() as connection:
        cursor = await connection.execute("SELECT n, repeat('CZN', n % 50) FROM generate_series(1, 50000) n")
        rows = await cursor.fetchall()
        assert [row[0] for row in rows] == list(range(1, 50001))
        assert len(await value(connection, "SELECT repeat('x', 3000000)")) == 3_000_000  # type: ignore[arg-type]
        async with connection.cursor().copy("COPY (SELECT generate_series(1, 50000)) TO STDOUT") as copy:
            assert len([row async for row in copy.rows()]) == 50_000
