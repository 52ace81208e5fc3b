"""Clients of every kind through the real proxy to real PostgreSQL servers."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import ssl
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psycopg
import pytest

from core.routes import Pooling
from proxy.postgres.server_side import sqlstate_of
from tests.support.proxy import (
    ADDRESS,
    APP_PASSWORD,
    BIN,
    RawClient,
    Server,
    Tls,
    query,
    running_proxy,
    running_servers,
    startup_packet,
)
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(60)
MIB = 1 << 20


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Server]]:
    with running_servers("m1", "m2", "m3") as running:
        yield running


async def value(connection: psycopg.AsyncConnection, statement: str) -> object:
    row = await (await connection.execute(statement)).fetchone()
    assert row is not None
    return row[0]


async def backends(server: Server) -> int:
    return server.backends()


# --- clients of every kind ------------------------------------------------------------------------------------------


async def test_psql_works(proxy, servers):
    await proxy.serve(servers[0])
    done = await asyncio.to_thread(
        subprocess.run,
        [str(BIN / "psql"), "-XAtc", "SHOW cluster_name", proxy.dsn(user="app", password=APP_PASSWORD)],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "m1"), done.stderr


@pytest.mark.parametrize("sslmode", ["disable", "require"])
async def test_psycopg_works_with_scram(proxy, servers, sslmode):
    await proxy.serve(servers[0])
    async with await proxy.connect(user="app", password=APP_PASSWORD, sslmode=sslmode) as connection:
        assert await value(connection, "SHOW cluster_name") == "m1"
        assert len(await value(connection, "SELECT repeat('x', 3000000)")) == 3_000_000
    (event,) = proxy.events("client_connected")
    assert (event["client"], event["user"], event["tls"]) == (ADDRESS, "app", sslmode == "require")


@pytest.mark.parametrize("ssl", ["disable", "require"])
async def test_asyncpg_works(proxy, servers, ssl):
    await proxy.serve(servers[0])
    connection = await asyncpg.connect(
        host=ADDRESS, port=proxy.rw_port, user="app", password=APP_PASSWORD, database="postgres", ssl=ssl
    )
    try:
        assert await connection.fetchval("SELECT $1::int + 1", 41) == 42
    finally:
        await connection.close()


async def test_a_wrong_password_is_refused(proxy, servers):
    await proxy.serve(servers[0])
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        await proxy.connect(user="app", password="wrong")


async def test_verify_full_accepts_the_certificate_and_nothing_else(proxy, servers, tls):
    await proxy.serve(servers[0])
    async with await proxy.connect(sslmode="verify-full", sslrootcert=tls.ca) as connection:
        assert connection.pgconn.ssl_in_use
    with pytest.raises(psycopg.OperationalError, match="certificate"):
        await proxy.connect(host="localhost", hostaddr=ADDRESS, sslmode="verify-full", sslrootcert=tls.ca)


async def test_a_renewed_certificate_is_shown_at_once_and_a_broken_one_is_not(servers, tmp_path):
    mine = Tls.make(tmp_path)
    other = Tls.make(Path(tempfile.mkdtemp(dir=tmp_path)))
    async with running_proxy(mine) as proxy:
        await proxy.serve(servers[0])
        async with await proxy.connect(sslmode="verify-full", sslrootcert=mine.ca):
            pass
        mine.cert.write_bytes(other.cert.read_bytes())  # does not fit the key
        async with await proxy.connect(sslmode="verify-full", sslrootcert=mine.ca):
            pass
        mine.key.write_bytes(other.key.read_bytes())
        async with await proxy.connect(sslmode="verify-full", sslrootcert=other.ca):
            pass


async def test_sighup_reads_the_certificate_again_and_ends_nothing(servers, tmp_path):
    async with running_proxy(Tls.make(tmp_path)) as proxy:
        await proxy.serve(servers[0])
        async with await proxy.connect() as connection:
            loaded = len(proxy.events("certificate_loaded"))
            proxy.process.send_signal(signal.SIGHUP)

            async def loads() -> int:
                return len(proxy.events("certificate_loaded"))

            await eventually(loads, lambda seen: seen == loaded + 1, within=5)
            assert await (await connection.execute("SELECT 1")).fetchone() == (1,)


async def test_plain_clients_are_refused_where_tls_is_required(proxy, servers):
    await proxy.serve(servers[0], client_tls="require")
    with pytest.raises(psycopg.OperationalError, match="accepts TLS connections only"):
        await proxy.connect(sslmode="disable")
    async with await proxy.connect(sslmode="prefer") as connection:
        assert connection.pgconn.ssl_in_use


async def test_tls_can_be_switched_off(proxy, servers):
    await proxy.serve(servers[0], client_tls="off")
    async with await proxy.connect(sslmode="prefer") as connection:
        assert not connection.pgconn.ssl_in_use
    with pytest.raises(psycopg.OperationalError, match="does not support SSL"):
        await proxy.connect(sslmode="require")


async def test_direct_tls_works(proxy, servers, tls):
    await proxy.serve(servers[0])
    dsn = {"user": "app", "password": APP_PASSWORD, "sslmode": "verify-full", "sslrootcert": tls.ca}
    async with await proxy.connect(**dsn, sslnegotiation="direct") as connection:
        assert connection.pgconn.ssl_in_use
        assert await (await connection.execute("SELECT length(%s)", ("x" * MIB,))).fetchone() == (MIB,)


async def test_direct_tls_must_name_the_protocol(proxy, servers, tls):
    await proxy.serve(servers[0])
    context = ssl.create_default_context(cafile=str(tls.ca))
    reader, writer = await asyncio.open_connection(ADDRESS, proxy.rw_port, ssl=context, server_hostname=ADDRESS)
    async with asyncio.timeout(10):
        assert sqlstate_of((await reader.read())[5:]) == "08P01"
    writer.close()


async def test_direct_tls_gets_an_alert_where_there_is_no_tls(proxy, servers):
    await proxy.serve(servers[0], client_tls="off")
    with pytest.raises(psycopg.OperationalError, match="alert"):
        await proxy.connect(sslmode="require", sslnegotiation="direct")


async def test_a_client_hello_in_pieces_is_understood(proxy, servers, tls):
    """And the answer to what lies behind the handshake in the same piece."""
    await proxy.serve(servers[0])
    context = ssl.create_default_context(cafile=str(tls.ca))
    context.set_alpn_protocols(["postgresql"])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    secured = context.wrap_bio(incoming, outgoing, server_hostname=ADDRESS)
    client = await RawClient.open(proxy.rw_port)
    async with asyncio.timeout(10):
        with pytest.raises(ssl.SSLWantReadError):
            secured.do_handshake()
        for byte in outgoing.read():
            client.send(bytes([byte]))
            await client.writer.drain()
        while True:
            incoming.write(await client.reader.read(1 << 16))
            try:
                secured.do_handshake()
                break
            except ssl.SSLWantReadError:
                client.send(outgoing.read())
        secured.write(startup_packet())
        client.send(outgoing.read())
        answer = b""
        while not answer.endswith(b"SCRAM-SHA-256\0\0"):
            incoming.write(await client.reader.read(1 << 16))
            with contextlib.suppress(ssl.SSLWantReadError):
                answer += secured.read(1 << 16)
    client.close()


async def test_addresses_outside_the_allow_list_are_refused(proxy, servers):
    await proxy.serve(servers[0], allow=("10.0.0.0/8",))
    with pytest.raises(psycopg.OperationalError, match="allow list"):
        await proxy.connect()


async def test_copy_of_200_mb_each_way_needs_little_memory(proxy, servers):
    """COPY out stalls half-way: what is under way then must be bounded, not the whole."""
    await proxy.serve(servers[0])
    line, lines = b"x" * 1023 + b"\n", 200_000
    before = proxy.rss_bytes()
    async with await proxy.connect() as connection:
        await connection.execute("CREATE TEMP TABLE big (t text)")
        async with connection.cursor().copy("COPY big FROM STDIN") as copy:
            for _ in range(lines // 1000):
                await copy.write(line * 1000)
        most = proxy.rss_bytes()
        received = 0
        async with connection.cursor().copy("COPY big TO STDOUT") as copy:
            async for chunk in copy:
                received += len(chunk)
                if received % (20_000 * 1024) == 0:
                    await asyncio.sleep(0.02)  # a client slower than the server
                    most = max(most, proxy.rss_bytes())
        assert received == lines * 1024
    assert most - before < 12 * MIB


async def test_a_client_that_stops_sending_still_gets_its_answer(proxy, servers):
    await proxy.serve(servers[0], pooling=Pooling(idle_max=0))
    client = await RawClient.connect(proxy.rw_port)
    client.send(query("SELECT pg_sleep(0.2), 6*7"))
    client.writer.write_eof()
    assert b"\0\x0242" in await client.rest()
    client.close()
    await eventually(lambda: backends(servers[0]), lambda seen: seen == 0, within=5)


async def test_both_sides_are_probed_when_idle(proxy, servers):
    """Timer 2 in /proc/net/tcp is the keepalive timer."""
    await proxy.serve(servers[0])
    async with await proxy.connect():
        port = f"{proxy.rw_port:04X}"
        rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        ours = [row for row in rows if row[1].endswith(f":{port}") and row[3] == "01"]
        servers_side = [row for row in rows if row[2].endswith(f":{servers[0].port:04X}") and row[3] == "01"]
        assert ours
        assert servers_side
        assert {row[5][:2] for row in (*ours, *servers_side)} == {"02"}


# --- cancel ---------------------------------------------------------------------------------------------------------


async def cancelled(connection: psycopg.AsyncConnection, cancel) -> None:
    async with asyncio.TaskGroup() as group:

        async def sleep() -> None:
            with pytest.raises(psycopg.errors.QueryCanceled):
                await connection.execute("SELECT pg_sleep(30)")

        sleeping = group.create_task(sleep())
        while not sleeping.done():
            await cancel()
            await asyncio.wait({sleeping}, timeout=0.2)


async def test_cancel_reaches_the_right_server(proxy, servers):
    m1, m2, m3 = servers
    await proxy.serve(m1, replicas=(m2.endpoint, m3.endpoint))
    for read_only in (False, True):
        async with await proxy.connect(read_only=read_only, sslmode="require") as connection:
            await cancelled(connection, connection.cancel_safe)
            assert await value(connection, "SELECT 1") == 1


async def test_cancel_through_another_nodes_proxy_reaches_the_right_server(proxy, servers, tls):
    m1, m2, _ = servers
    await proxy.serve(m1, replicas=(m2.endpoint,))
    async with running_proxy(tls, "--address", "127.0.0.2") as other:
        other.rw_port, other.ro_port = proxy.rw_port, proxy.ro_port
        await other.serve(m1, replicas=(m2.endpoint,))
        client = await RawClient.connect(proxy.rw_port)
        client.send(query("SELECT pg_sleep(30)"))
        request = struct.pack("!II", 12 + len(client.key), 80877102) + struct.pack("!I", client.pid) + client.key
        await eventually(
            lambda: asleep(m1), lambda seen: seen == 1, within=5, what="the query runs, and can be cancelled"
        )
        reader, writer = await asyncio.open_connection("127.0.0.2", other.rw_port, local_addr=("127.0.0.9", 0))
        writer.write(request)
        assert await reader.read() == b""
        writer.close()
        messages = await client.until("Z")
        assert [sqlstate_of(body) for kind, body in messages if kind == "E"] == ["57014"]
        client.close()


async def asleep(server: Server) -> int:
    return int(server.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"))
