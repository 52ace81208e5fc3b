"""What hostile, broken or unlucky peers do to the proxy: each gets a clear answer, none costs the others anything."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest

from core.routes import MAX_LINE_BYTES, Pooling
from proxy.gate import REFUSALS_LOGGED_PER_S
from proxy.postgres.server_side import sqlstate_of
from tests.support.ports import free_port
from tests.support.proxy import (
    ADDRESS,
    GSSENC_REQUEST,
    INSTANCE,
    SSL_REQUEST,
    Proxy,
    RawClient,
    Server,
    Tls,
    lent_proxy,
    proxy_process,
    query,
    running_proxy,
    running_servers,
    startup_packet,
)
from tests.support.waiting import eventually

NONE_KEPT = Pooling(idle_max=0)
pytestmark = pytest.mark.timeout(60)
MIB = 1 << 20
STARTUP_S = 0.4


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Server]]:
    with running_servers("m1", "m2") as running:
        yield running


@pytest.fixture(scope="module")
def process(tls: Tls) -> Iterator[Proxy]:
    with proxy_process(tls, "--startup-s", str(STARTUP_S), "--clients-max", "700") as running:
        yield running


@pytest.fixture
async def proxy(process: Proxy, servers: list[Server]) -> AsyncIterator[Proxy]:
    """Serving m1, with little patience; connections are counted, so none is kept for the next client."""
    async with lent_proxy(process) as running:
        await running.serve(servers[0], pooling=NONE_KEPT)
        yield running


async def answer_to(port: int, data: bytes) -> bytes:
    """All that the proxy says to these bytes until it closes."""
    client = await RawClient.open(port)
    client.send(data)
    try:
        return await client.rest()
    finally:
        client.close()


async def works(proxy: Proxy) -> bool:
    client = await RawClient.connect(proxy.rw_port)
    client.send(query("SELECT 1"))
    good = (await client.until("Z"))[-1] == ("Z", b"I")
    client.close()
    return good


async def connections(proxy: Proxy) -> int:
    return proxy.established()


# --- first bytes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\xff" * 100_000,
        struct.pack("!II", 0x7FFFFFFF, 3 << 16),
        struct.pack("!II", 4, 3 << 16),
        struct.pack("!II", 9, 3 << 16) + b"\0",
        struct.pack("!II", 8, 2 << 16),
        struct.pack("!II", 12, 80877102) + b"\0\0\0\1",
        SSL_REQUEST + startup_packet(),
        SSL_REQUEST + b"\x16\x03\x01",
        GSSENC_REQUEST + SSL_REQUEST,
    ],
    ids=[
        "http",
        "noise",
        "huge",
        "tiny",
        "no-user",
        "version-2",
        "short-cancel",
        "stuffed",
        "stuffed-tls",
        "two-wishes",
    ],
)
async def test_what_is_not_this_protocol_gets_08p01(proxy, data):
    answer = await answer_to(proxy.rw_port, data)
    assert sqlstate_of(answer[5:]) == "08P01"
    assert await works(proxy)


async def test_a_flood_of_refusals_is_counted_but_not_all_logged(tls):
    async with running_proxy(tls) as proxy:
        await proxy.serve(None)
        for _ in range(5 * REFUSALS_LOGGED_PER_S):
            client = await RawClient.open(proxy.rw_port)
            client.send(b"nonsense")
            client.close()

        async def refused() -> int:
            return (await proxy.again()).refused

        await eventually(refused, lambda count: count == 5 * REFUSALS_LOGGED_PER_S, within=10)
        assert 0 < len(proxy.events("client_refused")) < 5 * REFUSALS_LOGGED_PER_S


async def test_random_bytes_never_disturb_other_clients(proxy):
    dice = random.Random(7)
    other = await RawClient.connect(proxy.rw_port)

    async def attack(data: bytes) -> None:
        client = await RawClient.open(proxy.rw_port)
        client.send(data)
        await client.rest()
        client.close()

    await asyncio.gather(*(attack(dice.randbytes(dice.randrange(1, 3000))) for _ in range(100)))
    other.send(query("SELECT 1"))
    await other.until("Z")
    other.close()
    await eventually(lambda: connections(proxy), lambda count: count == 0, within=5)


async def test_gss_is_declined_and_tls_may_follow(proxy, tls):
    client = await RawClient.open(proxy.rw_port)
    client.send(GSSENC_REQUEST)
    assert await client.reader.readexactly(1) == b"N"
    await client.encrypt(tls.ca)
    assert (await client.log_in())[-1] == ("Z", b"I")
    client.close()
    await client.writer.wait_closed()


@pytest.mark.parametrize("wish", [GSSENC_REQUEST, SSL_REQUEST])
async def test_a_wish_is_heard_once(proxy, servers, wish):
    await proxy.serve(servers[0], client_tls="off")
    client = await RawClient.open(proxy.rw_port)
    client.send(wish)
    assert await client.reader.readexactly(1) == b"N"
    client.send(wish)
    assert sqlstate_of((await client.rest())[5:]) == "08P01"
    client.close()


async def test_a_login_may_come_byte_by_byte_with_the_first_query_behind_it(proxy):
    client = await RawClient.open(proxy.rw_port)
    sock = client.writer.get_extra_info("socket")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    await client.log_in(slowly=True, behind=query("SELECT 6*7"))
    assert ("D", b"\0\1\0\0\0\x0242") in await client.until("Z")
    client.close()


async def test_too_much_before_the_server_has_answered_is_refused(proxy):
    await proxy.serve(None)
    answer = await answer_to(proxy.rw_port, startup_packet() + b"x" * 60_000 + b"x" * 60_000)
    # By the size of the pieces it comes in, it is too much, or no password either.
    assert b"C08P01\0" in answer
    assert b"too much data before" in answer or b"expected SASL response" in answer


# --- slow and many --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [b"", b"\0\0\0", startup_packet()[:-1]], ids=["silent", "three-bytes", "nearly"])
async def test_a_client_that_does_not_complete_its_startup_is_closed(proxy, first):
    assert sqlstate_of((await answer_to(proxy.rw_port, first))[5:]) == "08006"


async def test_a_client_that_does_not_complete_its_handshake_is_closed(proxy):
    assert await answer_to(proxy.rw_port, SSL_REQUEST) == b"S"
    await eventually(lambda: connections(proxy), lambda count: count == 0, within=5)


async def test_clients_that_vanish_or_talk_nonsense_in_the_handshake_leave_nothing_behind(proxy):
    for words in (b"", b"\x16\x03\x01\x02\x00\x01", b"nonsense" * 100):
        client = await RawClient.open(proxy.rw_port)
        client.send(SSL_REQUEST)
        assert await client.reader.readexactly(1) == b"S"
        client.send(words)
        client.close()
    await eventually(lambda: connections(proxy), lambda count: count == 0, within=5)
    assert await works(proxy)


async def test_five_hundred_idle_clients_cost_little_and_all_are_served(proxy):
    before = proxy.rss_bytes()
    clients: list[RawClient] = []
    for _ in range(10):
        clients += await asyncio.gather(*(RawClient.connect(proxy.rw_port) for _ in range(50)))
    assert (await proxy.again()).sessions[INSTANCE].read_write == 500
    assert (proxy.rss_bytes() - before) / 500 < 30_000
    busy_s = sum(psutil.Process(proxy.pid).cpu_times()[:2])
    for client in clients:
        client.send(query("SELECT 1"))
    for client in clients:
        await client.until("Z")
    assert sum(psutil.Process(proxy.pid).cpu_times()[:2]) - busy_s < 1
    for client in clients:
        client.close()
    await eventually(lambda: connections(proxy), lambda count: count == 0, within=10)


async def test_one_client_too_many_is_told_so(tls, servers):
    async with running_proxy(tls, "--clients-max", "2") as proxy:
        await proxy.serve(servers[0], pooling=NONE_KEPT)
        clients = [await RawClient.connect(proxy.rw_port) for _ in range(2)]
        assert sqlstate_of((await answer_to(proxy.rw_port, b""))[5:]) == "53300"
        clients[0].close()
        await eventually(lambda: connections(proxy), lambda count: count == 2, within=5)
        assert await works(proxy)
        clients[1].close()


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
async def test_a_client_that_does_not_read_holds_nothing_up_and_is_cut_like_any_other(proxy, servers, tls, encrypted):
    client = await RawClient.connect(proxy.rw_port, ca=tls.ca if encrypted else None)
    pid = int(await client.value("SELECT pg_backend_pid()"))
    client.writer.transport.pause_reading()
    before = proxy.rss_bytes()
    client.send(query("SELECT repeat('x', 1000000) FROM generate_series(1, 300)"))
    await eventually(lambda: stuck(servers[0], pid), within=10, what="the server waits for its client")
    assert proxy.rss_bytes() - before < 12 * MIB
    assert await works(proxy)
    await proxy.serve(None)
    await eventually(lambda: connections(proxy), lambda count: count == 0, within=10)
    client.writer.transport.abort()


async def stuck(server: Server, pid: int) -> bool:
    return server.value(f"SELECT wait_event FROM pg_stat_activity WHERE pid = {pid}") == "ClientWrite"


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
async def test_a_server_that_does_not_read_holds_its_client_back(proxy, tls, encrypted):
    client = await RawClient.connect(proxy.rw_port, ca=tls.ca if encrypted else None)
    backend = psutil.Process(int(await client.value("SELECT pg_backend_pid()")))
    backend.suspend()
    before, taken = proxy.rss_bytes(), [(await proxy.again()).bytes_in]
    try:
        # 64 MiB do not fit into four kernel buffers and what the proxy may hold.
        client.send(b"Q" + struct.pack("!I", 64 * MIB) + b"x" * (64 * MIB))

        async def at_rest() -> bool:
            taken.append((await proxy.again()).bytes_in)
            return taken[0] < taken[-2] == taken[-1]

        await eventually(at_rest, within=20, every=0.2)
        assert taken[-1] - taken[0] < 16 * MIB
        assert proxy.rss_bytes() - before < 12 * MIB
        assert await works(proxy)
    finally:
        backend.resume()
        client.writer.transport.abort()


# --- the control socket ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense\n",
        b"\xff\xfe\n",
        b"{}\n",
        b"[" * 100_000 + b"\n",
        b"x" * (MAX_LINE_BYTES + MIB) + b"\n",
        json.dumps({"seq": 9, "routes": [{"instance": "a/b", "rw_port": 99999, "ro_port": 1}]}).encode() + b"\n",
        json.dumps({"seq": 9, "routes": [{"instance": "a/b"}]}).encode() + b"\n",
    ],
    ids=["words", "bytes", "empty", "deep", "long", "port", "missing"],
)
async def test_garbage_on_the_control_socket_changes_nothing(proxy, line):
    session = await RawClient.connect(proxy.rw_port)
    with pytest.raises((ValueError, ConnectionError)):
        await proxy.send_line(line)
    await proxy.leave()
    assert await works(proxy)
    session.send(query("SELECT 1"))
    await session.until("Z")
    session.close()
    assert proxy.events("table_refused")
    assert (await proxy.again()).seq == proxy.seq


async def test_a_number_alone_asks_for_a_report_and_changes_nothing(proxy):
    session = await RawClient.connect(proxy.rw_port)
    report = await proxy.send_line(b'{"seq":4711}\n')
    assert (report.seq, report.pid) == (4711, proxy.pid)
    assert report.sessions[INSTANCE].read_write == 1
    session.close()


async def test_the_pid_file_names_the_process_by_pid_and_start_time(proxy):
    stat = Path(f"/proc/{proxy.pid}/stat").read_text().rpartition(")")[2].split()
    assert (proxy.folder / "proxy.pid").read_text().split() == [str(proxy.pid), stat[19]]


async def test_only_its_owner_may_use_the_control_socket(proxy):
    assert proxy.socket.stat().st_mode & 0o777 == 0o600


async def test_a_control_socket_that_cannot_be_made_is_said_in_one_line(tls, tmp_path):
    proxy = Proxy(tmp_path, tls, ("--control", "/nonexistent/control.sock"))
    with pytest.raises(AssertionError):
        proxy.start(within=1)
    assert proxy.process is not None
    assert proxy.process.wait(timeout=5) == 1
    assert "Traceback" not in proxy.log.read_text()
    assert not (tmp_path / "proxy.pid").exists()


# --- ports ----------------------------------------------------------------------------------------------------------


async def test_a_port_that_is_taken_is_tried_until_it_is_free(proxy, servers):
    with socket.create_server((ADDRESS, free_port())) as other:
        port = other.getsockname()[1]
        await proxy.send(proxy.route(servers[0], rw_port=port))
        await eventually(lambda: events(proxy, "listen_failed"), within=5)
        client = await RawClient.connect(proxy.ro_port)
        client.close()
    proxy.rw_port = port
    await eventually(lambda: works(proxy), within=5)
    assert len(proxy.events("listen_failed")) == 1, "said once, not with every try"


async def events(proxy: Proxy, name: str) -> int:
    return len(proxy.events(name))


async def test_ports_may_move_between_instances_in_one_table(proxy, servers):
    m1, m2 = servers
    a, b = proxy.rw_port, free_port()
    others = free_port(), free_port()
    one = proxy.route(m1, instance="demo/one", rw_port=a, ro_port=others[0])
    two = proxy.route(m2, instance="demo/two", rw_port=b, ro_port=others[1])
    await proxy.send(one, two)
    await eventually(lambda: name_at(a, b), lambda names: names == ("m1", "m2"), within=5)
    swapped = (
        proxy.route(m1, instance="demo/one", rw_port=b, ro_port=others[1]),
        proxy.route(m2, instance="demo/two", rw_port=a, ro_port=others[0]),
    )
    await proxy.send(*swapped)
    await eventually(lambda: name_at(a, b), lambda names: names == ("m2", "m1"), within=5)
    assert proxy.listening() == {a, b, *others}
    assert proxy.events("listen_failed") == []


async def name_at(*ports: int) -> tuple[str, ...]:
    """Of the servers behind these ports; a port that is just moving refuses, and tells no name."""
    names = []
    for port in ports:
        client = await RawClient.open(port)
        await client.log_in()
        names.append(await client.value("SHOW cluster_name"))
        client.close()
    return tuple(names)


async def test_no_descriptor_is_left_behind(proxy):
    fds = Path(f"/proc/{proxy.pid}/fd")
    assert await works(proxy)
    await eventually(lambda: connections(proxy), lambda count: count == 0, within=5)
    before = len(list(fds.iterdir()))
    for data in (b"", SSL_REQUEST, b"nonsense", startup_packet()[:9]):
        client = await RawClient.open(proxy.rw_port)
        client.send(data)
        client.close()
    assert await works(proxy)
    await eventually(lambda: connections(proxy), lambda count: count == 0, within=5)
    assert len(list(fds.iterdir())) == before
