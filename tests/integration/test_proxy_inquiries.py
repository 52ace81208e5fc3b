"""Sessions on a server that does as it is told: half messages, data that looks like the end of an answer, and no answer
to the proxy's question."""

from __future__ import annotations

import asyncio
import dataclasses
import struct
from collections.abc import AsyncIterator, Iterator

import pytest

from core.routes import Endpoint
from proxy.postgres.carried import STATEMENT
from proxy.postgres.messages import READY_IDLE, message
from tests.support.ports import free_port
from tests.support.proxy import (
    ADDRESS,
    INSTANCE,
    Proxy,
    RawClient,
    Server,
    query,
    running_servers,
)
from tests.support.waiting import eventually, eventually_sync

pytestmark = pytest.mark.timeout(60)
NOTE = message(b"A", b"\0\0\0\1news\0hello\0")
ROWS = message(b"T", b"\0\1n\0" + b"\0" * 18)
DONE = message(b"C", b"SELECT 1\0") + READY_IDLE
ANSWER = message(b"1") + message(b"2") + message(b"C", b"SELECT 0\0") + message(b"3") + READY_IDLE


class Puppet:
    """Logs everybody in, and then only says what the test says."""

    def __init__(self) -> None:
        self.port = free_port()
        self.heard: list[bytearray] = []  # from each connection
        self._writers: list[asyncio.StreamWriter] = []

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(member="puppet", host=ADDRESS, port=self.port)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (length,) = struct.unpack("!I", await reader.readexactly(4))
        await reader.readexactly(length - 4)
        writer.write(message(b"R", b"\0\0\0\0") + message(b"K", struct.pack("!II", 7, 7)) + READY_IDLE)
        heard = bytearray()
        self._writers.append(writer)
        self.heard.append(heard)
        try:
            while data := await reader.read(65536):
                heard += data
        except OSError:
            pass
        finally:
            writer.close()

    def say(self, data: bytes) -> None:
        for writer in self._writers:
            writer.write(data)

    async def asked(self) -> int:
        """How often it was asked what sessions carry."""
        return sum(heard.count(CLOSING) for heard in self.heard)

    async def queried(self) -> int:
        return sum(heard.count(b"SELECT") for heard in self.heard)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


CLOSING = message(b"C", b"S" + STATEMENT + b"\0")  # the last of the question


@pytest.fixture
async def puppet() -> AsyncIterator[Puppet]:
    made = Puppet()
    async with await asyncio.start_server(made.serve, ADDRESS, made.port):
        yield made
        made.close()


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Server]]:
    with running_servers("m2") as running:
        yield running


async def serve(proxy: Proxy, puppet: Puppet, *, paused: bool = False) -> None:
    await proxy.send(dataclasses.replace(proxy.route(paused=paused), primary=puppet.endpoint))
    eventually_sync(lambda: proxy.rw_port in proxy.listening(), within=5, every=0.01)


async def busy(proxy: Proxy) -> int:
    return (await proxy.again()).busy[INSTANCE]


async def rests(proxy: Proxy) -> None:
    await eventually(lambda: busy(proxy), lambda count: count == 0, within=3, every=0.01)


async def test_the_server_is_not_asked_while_half_of_a_message_has_come(proxy, puppet):
    await serve(proxy, puppet)
    client = await RawClient.connect(proxy.rw_port)
    client.send(query("SELECT 1"))
    await eventually(puppet.queried, lambda count: count == 1, within=3)
    puppet.say(ROWS + DONE + NOTE[:7])
    await client.until("Z")
    await serve(proxy, puppet, paused=True)
    assert (await busy(proxy), await puppet.asked()) == (1, 0)
    puppet.say(NOTE[7:])
    assert await client.until("A") == [("A", NOTE[5:])]
    await eventually(puppet.asked, lambda count: count == 1, within=3)
    puppet.say(ANSWER + NOTE[:7])
    await rests(proxy)
    puppet.say(NOTE[7:])
    assert await client.until("A") == [("A", NOTE[5:])]
    client.close()


async def test_data_that_ends_like_an_answer_is_not_the_end_of_it(proxy, puppet):
    await serve(proxy, puppet)
    client = await RawClient.connect(proxy.rw_port)
    client.send(query("SELECT stored"))
    await eventually(puppet.queried, lambda count: count == 1, within=3)
    row = message(b"D", b"\0\1" + struct.pack("!I", 116) + b"x" * 100 + READY_IDLE + b"y" * 10)
    puppet.say(ROWS + row[:-10])
    await client.reader.readexactly(len(ROWS + row[:-10]))
    await serve(proxy, puppet, paused=True)
    assert (await busy(proxy), await puppet.asked()) == (1, 0)
    puppet.say(row[-10:] + DONE)
    assert await client.reader.readexactly(len(row[-10:] + DONE)) == row[-10:] + DONE
    await eventually(puppet.asked, lambda count: count == 1, within=3)
    puppet.say(ANSWER)
    await rests(proxy)
    client.close()


async def test_sessions_of_a_server_that_does_not_answer_the_question_are_asked_anew_on_the_next_one(
    proxy, puppet, servers
):
    """More of them than are asked at once: the others still stand in line when their server is exchanged."""
    m2 = servers[0]
    await serve(proxy, puppet)
    clients = [await RawClient.connect(proxy.rw_port) for _ in range(10)]
    for client in clients:
        client.send(query("SELECT 1"))
    await eventually(puppet.queried, lambda count: count == 10, within=3)
    puppet.say(ROWS + DONE)
    for client in clients:
        await client.until("Z")
    await serve(proxy, puppet, paused=True)
    await eventually(puppet.asked, lambda count: count == 8, within=3)
    await proxy.serve(m2, term=2)
    for client in clients:
        assert await client.value("SHOW cluster_name") == "m2"
    await proxy.serve(m2, term=2, paused=True)
    await rests(proxy)
    for client in clients:
        client.close()


async def test_a_server_that_does_not_answer_the_question_is_given_up_after_a_while(proxy, puppet, servers):
    await serve(proxy, puppet)
    client = await RawClient.connect(proxy.rw_port)
    client.send(query("SELECT 1"))
    await eventually(puppet.queried, lambda count: count == 1, within=3)
    puppet.say(ROWS + DONE)
    await client.until("Z")
    await serve(proxy, puppet, paused=True)
    assert await busy(proxy) == 1
    await eventually(lambda: busy(proxy), lambda count: count == 0, within=10)
    assert len(proxy.events("inquiry_timed_out")) == 1
    await proxy.serve(servers[0], term=2)
    assert await client.value("SHOW cluster_name") == "m2"
    client.close()
