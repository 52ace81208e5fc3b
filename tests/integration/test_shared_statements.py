"""Prepared statements over shared connections to a real PostgreSQL: without the proxy, and by drivers through it."""

from __future__ import annotations

import asyncio
import select
import socket
import struct

import asyncpg
import psycopg
import pytest

from core.routes import Pooling
from tests.support.conversations import converse
from tests.support.proxy import ADDRESS, APP_PASSWORD, Server, Tls, running_proxy, running_servers

TEXTS = (b"SELECT 'ok1' || $1", b"SELECT 'ok2' || $1", b"SELECT length($1)", b"SELECT 1 / $1::int", b"SELEC $1")
SEEDS = 15


class Session:
    """One session at the server, from behind the login."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection((ADDRESS, port), timeout=10)
        self._readable = select.poll()  # takes descriptors of any number
        self._readable.register(self._socket, select.POLLIN)
        words = b"user\0postgres\0database\0postgres\0\0"
        self._socket.sendall(struct.pack("!II", 8 + len(words), 196608) + words)
        heard = b""
        while not heard.endswith(b"Z\0\0\0\x05I"):
            heard += self._socket.recv(65536)

    def feed(self, data: bytes) -> bytes:
        if data:
            self._socket.sendall(data)
        return self._socket.recv(65536) if self._readable.poll(0 if data else 1) else b""

    def close(self) -> None:
        self._socket.close()


def test_each_client_sees_what_it_would_see_on_a_session_of_its_own():
    with running_servers("m1") as (server,):
        for seed in range(SEEDS):
            sessions: list[Session] = []

            def begin(sessions: list[Session] = sessions) -> Session:
                sessions.append(Session(server.port))
                return sessions[-1]

            try:
                converse(seed, begin, TEXTS)
            finally:
                for session in sessions:
                    session.close()


SHARED = Pooling(mode="transaction", size=3, statements_max=4)
CLIENTS, ROUNDS = 6, 15


async def use_psycopg(client: psycopg.AsyncConnection, number: int) -> None:
    """More statements than the driver keeps, so that it deallocates; batches; errors between."""
    for turn in range(ROUNDS):
        for kind in range(4):
            answer = await client.execute(f"SELECT %s::int * 10 + {kind}", [turn])
            assert await answer.fetchone() == (turn * 10 + kind,)
        async with client.pipeline() as batch:
            cursors = [await client.execute(f"SELECT %s::text || '{kind}'", [str(number)]) for kind in range(4)]
            await batch.sync()
            assert [await one.fetchone() for one in cursors] == [(f"{number}{kind}",) for kind in range(4)]
        with pytest.raises(psycopg.errors.DivisionByZero):
            await client.execute("SELECT 1 / %s::int", [0])
    await client.execute("DEALLOCATE ALL")
    assert await (await client.execute("SELECT %s::int", [number])).fetchone() == (number,)


async def use_asyncpg(client: asyncpg.Connection, number: int) -> None:
    for turn in range(ROUNDS):
        assert await client.fetchval("SELECT $1::int", turn) == turn
        async with client.transaction():
            assert await client.fetchval("SELECT $1::text", f"{number}") == f"{number}"
            await client.executemany("INSERT INTO written VALUES ($1)", [(turn,), (number,)])
        with pytest.raises(asyncpg.DivisionByZeroError):
            await client.fetchval("SELECT 1 / $1::int", 0)


async def check_table_changes(server: Server, client: asyncpg.Connection) -> None:
    """A statement whose result has changed fails once, as on a connection of one's own, and then goes on."""
    assert await client.fetch("SELECT * FROM written WHERE id < 0") == []
    server.value("ALTER TABLE written ADD COLUMN more int DEFAULT 7")
    for _ in range(2):
        await client.fetch("SELECT * FROM written WHERE id < 0")


async def test_drivers_keep_their_statements_while_connections_change(tmp_path):
    with running_servers("m1") as (server,):
        async with running_proxy(Tls.make(tmp_path)) as proxy:
            await proxy.serve(server, pooling=SHARED)
            ones = [await proxy.connect(user="app") for _ in range(CLIENTS)]
            for one in ones:
                one.prepare_threshold, one.prepared_max = 0, 2
            fields = {"host": ADDRESS, "port": proxy.rw_port, "user": "app", "password": APP_PASSWORD}
            others = [await asyncpg.connect(**fields, database="postgres", ssl=False) for _ in range(CLIENTS)]
            async with asyncio.TaskGroup() as group:
                for number in range(CLIENTS):
                    group.create_task(use_psycopg(ones[number], number))
                    group.create_task(use_asyncpg(others[number], number))
            assert server.backends() <= 2 * SHARED.size
            await check_table_changes(server, others[0])
            for one in (*ones, *others):
                await one.close()
            assert server.value("SELECT count(*) FROM written") == 2 * CLIENTS * ROUNDS
