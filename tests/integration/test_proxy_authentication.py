"""Real drivers prove their password to our end, and our end logs in for them to a real PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import secrets
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import asyncpg
import psycopg
import pytest

from core.clock import SystemClock
from core.errors import UnavailableError
from core.routes import (
    Declared,
    Endpoint,
    Passwords,
    VerifierAnswer,
    VerifierAsk,
    decode_note,
    decode_report,
    encode,
    encode_question,
)
from core.scram import make_verifier
from proxy.certificate import Certificate, end_point
from proxy.control import Control
from proxy.gate import Gate
from proxy.inner_tls import InnerTls, secured
from proxy.postgres.authentication import AUTHENTICATION_OK, Accepted, ClientAuthentication, Rejected
from proxy.postgres.login import LoggedIn, LoginRefused, ServerLogin, negotiation
from proxy.postgres.scram import Login, Verifier
from proxy.postgres.startup import SSL_REQUEST as SSL_REQUEST_CODE
from proxy.postgres.startup import Startup, read_first
from proxy.table import Table
from tests.support.proxy import ADDRESS, APP_PASSWORD, BIN, Server, Tls, made_tls, running_servers
from tests.support.scram import client_key

pytestmark = pytest.mark.timeout(60)
CHUNK_BYTES = 1 << 16
WITHIN_S = 10.0


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_servers("m1") as (running,):
        yield running


def verifier_of(server: Server, user: str) -> Verifier | None:
    text = server.value(f"SELECT (SELECT rolpassword FROM pg_authid WHERE rolname = '{user}')")
    return Verifier.parse(text) if text else None


# --- the smallest proxy ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Middle:
    """Authenticates one client after another, logs in for it, and passes bytes on."""

    server: Server
    certificate: Certificate | None = None
    claims: bytes | None = None  # another channel binding than that of the certificate
    port: int = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Middle]:
        listening = await asyncio.start_server(self._serve, ADDRESS, 0)
        self.port = listening.sockets[0].getsockname()[1]
        async with listening:
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(WITHIN_S):
                await self._session(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has what it wanted
        finally:
            writer.close()

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        channel = None
        packet = await self._first(reader)
        if int.from_bytes(packet[4:8], "big") == SSL_REQUEST_CODE:
            context = self.certificate.context() if self.certificate else None
            writer.write(b"N" if context is None else b"S")
            if context is not None:
                await writer.start_tls(context)
                channel = self.claims or context.end_point
            packet = await self._first(reader)
        startup, _ = read_first(packet) or (None, 0)
        assert isinstance(startup, Startup)
        writer.write(negotiation(startup.packet, startup.parameters))
        login = await self._authenticate(reader, writer, startup.user, channel)
        if login is not None:
            await self._relay(reader, writer, startup, login)

    @staticmethod
    async def _first(reader: asyncio.StreamReader) -> bytes:
        head = await reader.readexactly(4)
        return head + await reader.readexactly(int.from_bytes(head, "big") - 4)

    async def _authenticate(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, user: str, channel: bytes | None
    ) -> Login | None:
        exchange = ClientAuthentication(
            user,
            await asyncio.to_thread(verifier_of, self.server, user),
            nonce=secrets.token_urlsafe(18),
            channel_binding=channel,
            mock_secret=b"of the instance",
        )
        writer.write(exchange.begin())
        while data := await reader.read(CHUNK_BYTES):
            progress = exchange.feed(data)
            writer.write(progress.reply)
            if isinstance(progress.outcome, Rejected):
                writer.write(progress.outcome.reply_error)
            if progress.outcome is not None:
                return progress.outcome.login if isinstance(progress.outcome, Accepted) else None
        return None

    async def _relay(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, startup: Startup, login: Login
    ) -> None:
        from_server, to_server = await asyncio.open_connection(ADDRESS, self.server.port)
        try:
            outcome = await log_in(from_server, to_server, login, tuple(startup.parameters.items()))
            if isinstance(outcome, LoginRefused):
                writer.write(outcome.packet)
                return
            writer.write(AUTHENTICATION_OK + greeting(outcome))
            async with asyncio.TaskGroup() as group:
                group.create_task(pump(from_server, writer))
                group.create_task(pump(reader, to_server))
        finally:
            to_server.close()


def greeting(outcome: LoggedIn) -> bytes:
    said = b""
    for name, value in outcome.parameters.items():
        body = f"{name}\0{value}\0".encode()
        said += b"S" + (4 + len(body)).to_bytes(4, "big") + body
    said += b"K" + (8 + len(outcome.key)).to_bytes(4, "big") + outcome.pid.to_bytes(4, "big") + outcome.key
    return said + b"Z\0\0\0\x05I" + outcome.rest


async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(CHUNK_BYTES):
        sink.write(data)
        await sink.drain()
    sink.close()


async def log_in(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, login: Login, parameters: tuple[tuple[str, str], ...]
) -> LoggedIn | LoginRefused:
    exchange = ServerLogin(login, parameters, secrets.token_urlsafe(18))
    writer.write(exchange.begin())
    while True:
        data = await reader.read(CHUNK_BYTES)
        if not data:
            raise ConnectionResetError("the server has closed")
        progress = exchange.feed(data)
        writer.write(progress.send)
        if progress.outcome is not None:
            return progress.outcome


async def log_in_at(server: Server, login: Login, **parameters: str) -> LoggedIn | LoginRefused:
    async with asyncio.timeout(WITHIN_S):
        reader, writer = await asyncio.open_connection(ADDRESS, server.port)
        try:
            return await log_in(reader, writer, login, tuple({"database": "postgres", **parameters}.items()))
        finally:
            writer.close()


def dsn(port: int, **changes: object) -> str:
    fields = {"host": ADDRESS, "port": port, "user": "app", "password": APP_PASSWORD, "dbname": "postgres"}
    return " ".join(f"{name}={value}" for name, value in {**fields, "connect_timeout": 10, **changes}.items())


@pytest.fixture
async def plain(server: Server) -> AsyncIterator[Middle]:
    async with Middle(server).running() as running:
        yield running


@pytest.fixture
async def encrypted(server: Server, tls: Tls) -> AsyncIterator[Middle]:
    async with Middle(server, Certificate(tls.cert, tls.key)).running() as running:
        yield running


# --- drivers ---------------------------------------------------------------------------------------------------------


async def test_psycopg_logs_in_through_our_ends(plain):
    async with await psycopg.AsyncConnection.connect(dsn(plain.port, application_name="shop")) as connection:
        row = await (await connection.execute("SELECT current_user, current_setting('application_name')")).fetchone()
        assert row == ("app", "shop")
        assert connection.info.parameter_status("server_version") is not None
        assert connection.info.backend_pid > 0


async def test_psql_logs_in_through_our_ends(plain):
    done = await asyncio.to_thread(
        subprocess.run,
        [str(BIN / "psql"), "-XAtc", "SELECT current_user", dsn(plain.port)],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "app"), done.stderr


@pytest.mark.parametrize("ssl_mode", ["disable", "require"])
async def test_asyncpg_logs_in_through_our_ends(encrypted, ssl_mode):
    connection = await asyncpg.connect(
        host=ADDRESS, port=encrypted.port, user="app", password=APP_PASSWORD, database="postgres", ssl=ssl_mode
    )
    try:
        assert await connection.fetchval("SELECT $1::int + 1", 41) == 42
    finally:
        await connection.close()


async def test_libpq_binds_its_proof_to_the_channel(encrypted, tls):
    text = dsn(encrypted.port, sslmode="verify-full", sslrootcert=tls.ca, channel_binding="require")
    async with await psycopg.AsyncConnection.connect(text) as connection:
        assert connection.info.user == "app"


async def test_a_channel_that_is_not_the_clients_is_refused(server, tls):
    async with Middle(server, Certificate(tls.cert, tls.key), claims=b"x" * 32).running() as middle:
        with pytest.raises(psycopg.OperationalError, match="channel binding check failed"):
            await psycopg.AsyncConnection.connect(dsn(middle.port, sslmode="require"))


@pytest.mark.parametrize("user", ["app", "nobody"])
async def test_a_wrong_password_and_a_user_that_does_not_exist_are_refused_alike(plain, user):
    with pytest.raises(psycopg.OperationalError) as refused:
        await psycopg.AsyncConnection.connect(dsn(plain.port, user=user, password="wrong"))
    assert f'FATAL:  password authentication failed for user "{user}"' in str(refused.value)
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(host=ADDRESS, port=plain.port, user=user, password="wrong", database="postgres")


async def test_the_servers_refusal_after_the_password_reaches_the_client(plain):
    with pytest.raises(psycopg.OperationalError, match='database "nowhere" does not exist'):
        await psycopg.AsyncConnection.connect(dsn(plain.port, dbname="nowhere"))


# --- logging in ------------------------------------------------------------------------------------------------------


def login_of(server: Server, user: str, password: str) -> Login:
    verifier = verifier_of(server, user)
    assert verifier is not None
    return Login(user, client_key(password, verifier), verifier)


async def test_a_login_serves_again_and_again(server):
    login = login_of(server, "app", APP_PASSWORD)
    for _ in range(2):
        outcome = await log_in_at(server, login, TimeZone="Asia/Tokyo")
        assert isinstance(outcome, LoggedIn)
        assert outcome.parameters["TimeZone"] == "Asia/Tokyo"
        assert (outcome.pid > 0, len(outcome.key)) == (True, 4)


async def test_a_login_ends_with_a_change_of_the_password(server):
    server.value("CREATE ROLE changing LOGIN PASSWORD 'before'")
    login = login_of(server, "changing", "before")
    # Its access rules let everybody else in by trust: for this one they must ask.
    hba = server.data / "pg_hba.conf"
    before = hba.read_text()
    hba.write_text("host all changing 127.0.0.0/8 scram-sha-256\n" + before)
    try:
        server.value("SELECT pg_reload_conf()")
        assert isinstance(await log_in_at(server, login), LoggedIn)
        server.value("ALTER ROLE changing PASSWORD 'after'")
        outcome = await log_in_at(server, login)
        assert isinstance(outcome, LoginRefused)
        assert (outcome.sqlstate, outcome.stale) == ("28P01", True)
        hba.write_text("host all changing 127.0.0.0/8 password\n" + before)
        server.value("SELECT pg_reload_conf()")
        outcome = await log_in_at(server, login)
        assert isinstance(outcome, LoginRefused)
        assert (outcome.sqlstate, "a password in clear" in outcome.message) == ("28000", True)
    finally:
        hba.write_text(before)
        server.value("SELECT pg_reload_conf()")


async def test_a_server_that_only_pretends_to_know_the_verifier_is_found_out(server):
    login = login_of(server, "app", APP_PASSWORD)
    forged = replace(login.verifier, server_key=b"\0" * 32)
    outcome = await log_in_at(server, Login("app", login.client_key, forged))
    assert isinstance(outcome, LoginRefused)
    assert "does not know the user's verifier" in outcome.message


async def test_a_server_that_trusts_us_is_taken_as_it_is(server):
    verifier = Verifier.parse(make_verifier("unused"))
    outcome = await log_in_at(server, Login("postgres", client_key("unused", verifier), verifier))
    assert isinstance(outcome, LoggedIn)


# --- TLS to the engine -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls_server(tls: Tls) -> Iterator[Server]:
    """Shows the certificate of node n1, and asks for one of the nodes'."""
    with running_servers("m1") as (running,):
        for source, name in ((tls.cert, "node.crt"), (tls.key, "node.key"), (tls.ca, "ca.crt")):
            target = running.data / name
            target.write_bytes(source.read_bytes())
            target.chmod(0o600)
            owner = running.data.stat()
            os.chown(target, owner.st_uid, owner.st_gid)
        with (running.data / "postgresql.conf").open("a") as file:
            file.write("ssl = on\nssl_cert_file = 'node.crt'\nssl_key_file = 'node.key'\nssl_ca_file = 'ca.crt'\n")
        (running.data / "pg_hba.conf").write_text(
            "hostssl all app 127.0.0.0/8 scram-sha-256 clientcert=verify-ca\nhostnossl all postgres 127.0.0.0/8 trust\n"
        )
        running.value("SELECT pg_reload_conf()")
        yield running


class Collector(asyncio.Protocol):
    """What a session would be."""

    def __init__(self) -> None:
        self.data = asyncio.Queue[bytes]()

    def data_received(self, data: bytes) -> None:
        self.data.put_nowait(data)


async def log_in_by_tls(inner: InnerTls, server: Server, login: Login, **changes: object) -> LoggedIn | LoginRefused:
    endpoint = replace(Endpoint(member="m1", host=ADDRESS, port=server.port, tls=True, node="n1"), **changes)
    upper, exchange = Collector(), ServerLogin(login, (("database", "postgres"),), secrets.token_urlsafe(18))
    async with asyncio.timeout(WITHIN_S):
        loop = asyncio.get_running_loop()
        plain, _ = await loop.create_connection(asyncio.Protocol, ADDRESS, server.port)
        try:
            context = inner.context_for(endpoint)
            assert context is not None
            transport = await secured(plain, context, endpoint, upper)
            transport.write(exchange.begin())
            while True:
                progress = exchange.feed(await upper.data.get())
                transport.write(progress.send)
                if progress.outcome is not None:
                    return progress.outcome
        finally:
            plain.abort()


def inner_tls(tls: Tls, **changes: Path) -> InnerTls:
    return InnerTls(**{"local_address": "127.0.0.99", "ca": tls.ca, "cert": tls.cert, "key": tls.key, **changes})


async def test_logs_in_by_tls_to_an_engine_on_another_node(tls_server, tls):
    login = login_of(tls_server, "app", APP_PASSWORD)
    outcome = await log_in_by_tls(inner_tls(tls), tls_server, login)
    assert isinstance(outcome, LoggedIn)
    assert tls_server.value("SELECT 1") == 1


async def test_an_engine_with_another_nodes_certificate_is_not_talked_to(tls_server, tls):
    login = login_of(tls_server, "app", APP_PASSWORD)
    with pytest.raises(ssl.SSLCertVerificationError):
        await log_in_by_tls(inner_tls(tls), tls_server, login, node="n2")


async def test_an_engine_of_another_ca_is_not_talked_to(tls_server, tls):
    login = login_of(tls_server, "app", APP_PASSWORD)
    with made_tls() as other, pytest.raises(ssl.SSLCertVerificationError):
        await log_in_by_tls(inner_tls(tls, ca=other.ca), tls_server, login)


async def test_an_engine_that_offers_no_tls_is_not_talked_to_in_clear(server, tls):
    with pytest.raises(ssl.SSLError, match="does not offer TLS"):
        await log_in_by_tls(inner_tls(tls), server, login_of(server, "app", APP_PASSWORD))


def test_the_own_engine_and_one_without_tls_are_talked_to_in_clear(tls):
    inner = inner_tls(tls)
    assert inner.context_for(Endpoint(member="m1", host="127.0.0.99", port=1, tls=True)) is None
    assert inner.context_for(Endpoint(member="m1", host=ADDRESS, port=1, tls=False)) is None
    assert InnerTls().context_for(Endpoint(member="m1", host=ADDRESS, port=1, tls=True)) is None


def test_tls_that_cannot_be_had_is_an_error_and_not_left_out(tls, tmp_path):
    inner = inner_tls(tls, ca=tmp_path / "missing.crt")
    with pytest.raises(ssl.SSLError, match="TLS to m1 is not possible"):
        inner.context_for(Endpoint(member="m1", host=ADDRESS, port=1, tls=True))


# --- verifiers over the control socket ------------------------------------------------------------------------------


@pytest.fixture
async def gate(tmp_path: Path) -> AsyncIterator[Gate]:
    """With its control socket open."""
    clock = SystemClock()
    made = Gate(table=Table(clock), clock=clock, local_address=ADDRESS, tls=lambda: None)
    control = Control(made, tmp_path / "control.sock")
    await control.start()
    yield made
    control.close()


@dataclass(slots=True)
class AgentEnd:
    """The agent's end of the socket, by hand."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, folder: Path) -> AgentEnd:
        return cls(*await asyncio.open_unix_connection(str(folder / "control.sock")))

    async def say(self, *messages: Declared | VerifierAnswer) -> None:
        """Until they have been taken."""
        for message in messages:
            self.writer.write(encode(message))
        self.writer.write(encode_question(7))
        assert decode_report(await self.line()).seq == 7

    async def line(self) -> bytes:
        async with asyncio.timeout(WITHIN_S):
            return await self.reader.readline()


OF_APP = make_verifier(APP_PASSWORD)
DECLARED = Declared(passwords={"demo/shop": Passwords(mock_secret="ab" * 32, verifiers={"app": OF_APP})})


async def test_the_agent_tells_verifiers_and_is_asked_for_others(gate, tmp_path):
    agent = await AgentEnd.open(tmp_path)
    await agent.say(DECLARED)
    assert await gate.verifiers.find("demo/shop", "app") == Verifier.parse(OF_APP)
    looking = asyncio.ensure_future(gate.verifiers.find("demo/shop", "made"))
    assert decode_note(await agent.line()) == VerifierAsk(instance="demo/shop", user="made")
    await agent.say(VerifierAnswer(instance="demo/shop", user="made", found=True, verifier=OF_APP))
    assert await looking == Verifier.parse(OF_APP)
    agent.writer.close()


async def test_an_agent_that_goes_is_asked_no_more_and_what_it_told_stays(gate, tmp_path):
    agent = await AgentEnd.open(tmp_path)
    await agent.say(DECLARED)
    looking = asyncio.ensure_future(gate.verifiers.find("demo/shop", "made"))
    await agent.line()
    agent.writer.close()
    with pytest.raises(UnavailableError):
        await looking
    assert await gate.verifiers.find("demo/shop", "app") == Verifier.parse(OF_APP)


async def test_an_agent_that_has_told_nothing_is_not_asked(gate, tmp_path):
    agent = await AgentEnd.open(tmp_path)
    await agent.say()
    with pytest.raises(UnavailableError):
        await gate.verifiers.find("demo/shop", "made")
    await agent.say()
    agent.writer.close()


async def test_the_control_socket_is_the_owners_alone(gate, tmp_path):
    assert (tmp_path / "control.sock").stat().st_mode & 0o077 == 0


# --- channel binding of a certificate --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "size"),
    [
        (("ec", "ec_paramgen_curve:P-256", "-sha256"), 32),
        (("ec", "ec_paramgen_curve:P-384", "-sha384"), 48),
        (("rsa", "rsa_keygen_bits:2048", "-sha512"), 64),
        (("rsa", "rsa_keygen_bits:2048", "-sha1"), 32),
        (("ed25519", "", ""), 0),
    ],
)
def test_the_end_point_is_hashed_as_the_certificate_is_signed(tmp_path, algorithm, size):
    kind, option, digest = algorithm
    command = ["openssl", "req", "-x509", "-newkey", kind, "-nodes", "-subj", "/CN=x", "-keyout", str(tmp_path / "key")]
    more = [*(["-pkeyopt", option] if option else []), *([digest] if digest else [])]
    subprocess.run([*command, *more, "-out", str(tmp_path / "crt")], check=True, capture_output=True, timeout=20)
    assert len(end_point((tmp_path / "crt").read_text())) == size
