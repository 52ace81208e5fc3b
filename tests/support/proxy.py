"""Real PostgreSQL servers, and the real proxy process with the agent's end of its control socket.

Servers are copies of one initialised directory: a test module pays for initdb once. They run as user `postgres` when
the tests run as root, accept everybody by trust and user `app` by SCRAM, and name themselves by their setting
cluster_name. The proxy is told the verifiers of both.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import ssl
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg

from core.identity import make_ca, make_csr, new_key_pem, sign_node_csr
from core.routes import (
    MAX_LINE_BYTES,
    Declared,
    Endpoint,
    Passwords,
    ProxyReport,
    Route,
    RouteTable,
    decode_note,
    decode_report,
    encode,
)
from core.scram import make_verifier
from tests.support.ports import free_port
from tests.support.scram import scram_client
from tests.support.waiting import eventually_sync

BIN = Path("/usr/lib/postgresql/15/bin")
ADDRESS = "127.0.0.1"
INSTANCE = "demo/orders"
APP_PASSWORD = "app-secret"
OWNER_PASSWORD = "owner-secret"
# The same at all servers, as at the members of one instance; of few iterations, for tests with many clients.
VERIFIERS = {
    "app": make_verifier(APP_PASSWORD, salt=b"0123456789abcdef", iterations=16),
    "postgres": make_verifier(OWNER_PASSWORD, salt=b"0123456789abcdef", iterations=16),
}
FAR_S = 3600.0
SSL_REQUEST = struct.pack("!II", 8, 80877103)
GSSENC_REQUEST = struct.pack("!II", 8, 80877104)
SETTINGS = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
fsync = off
max_connections = 700
shared_buffers = 64MB
autovacuum = off
max_wal_size = 4GB
password_encryption = scram-sha-256
"""
HBA = """
host all app 127.0.0.0/8 scram-sha-256
host all all 127.0.0.0/8 trust
"""


def as_engine_user(*command: str) -> list[str]:
    if os.getuid() != 0:
        return list(command)
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *command]


@contextmanager
def engine_folder() -> Iterator[Path]:
    """A short directory that the engine's user may enter, gone at the end."""
    folder = Path(tempfile.mkdtemp(prefix="moorage-px-", dir="/tmp"))
    if os.getuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(slots=True)
class Server:
    """One PostgreSQL server."""

    name: str
    folder: Path
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        return self.folder / self.name

    @property
    def pid(self) -> int:
        """Of the postmaster."""
        assert self._process is not None
        return self._process.pid

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(member=self.name, host=ADDRESS, port=self.port)

    def initialise(self) -> None:
        template = self.folder / "template"
        if not template.exists():
            command = [str(BIN / "initdb"), "-D", str(template), "-U", "postgres", "-N", "-A", "trust", "-E", "UTF8"]
            subprocess.run(as_engine_user(*command, "--locale=C"), check=True, capture_output=True, timeout=60)
            with (template / "postgresql.conf").open("a") as file:
                file.write(SETTINGS)
            (template / "pg_hba.conf").write_text(HBA)
        subprocess.run(["cp", "-a", str(template), str(self.data)], check=True, timeout=60)

    def follow(self, primary: Server) -> None:
        """A copy of it, which replicates once it is started."""
        with (primary.data / "pg_hba.conf").open("a") as file:
            file.write("host replication all 127.0.0.0/8 trust\n")
        primary.value("SELECT pg_reload_conf()")
        source = f"host={ADDRESS} port={primary.port} user=postgres application_name={self.name}"
        command = [str(BIN / "pg_basebackup"), "-D", str(self.data), "-R", "-X", "stream", "-c", "fast", "-N"]
        subprocess.run(as_engine_user(*command, "-d", source), check=True, capture_output=True, timeout=60, cwd="/")

    def start(self, *, wait: bool = True) -> None:
        options = ["-p", str(self.port), "-c", f"cluster_name={self.name}"]
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                as_engine_user(str(BIN / "postgres"), "-D", str(self.data), *options),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        eventually_sync(lambda: self.value("SELECT 1"), within=30, what=f"{self.name} accepts connections")

    def prepare(self) -> None:
        self.value(f"CREATE ROLE app LOGIN PASSWORD '{VERIFIERS['app']}'")
        self.value("CREATE TABLE written (id int)")
        self.value("GRANT ALL ON written TO app")

    def value(self, statement: str) -> Any:
        """First value of the answer, past any proxy."""
        try:
            with psycopg.connect(self.dsn(), autocommit=True) as connection:
                cursor = connection.execute(statement)
                return cursor.fetchone()[0] if cursor.description else None  # type: ignore[index]
        except psycopg.OperationalError as error:
            raise OSError(str(error)) from error

    def dsn(self) -> str:
        return f"host={ADDRESS} port={self.port} user=postgres dbname=postgres connect_timeout=5 sslmode=disable"

    def backends(self) -> int:
        return int(self.value("SELECT count(*) FROM pg_stat_activity WHERE backend_type='client backend'")) - 1

    def signal(self, number: int) -> None:
        """To the postmaster alone."""
        assert self._process is not None
        os.kill(self._process.pid, number)

    def freeze(self) -> None:
        for process in self._family():
            process.suspend()

    def thaw(self) -> None:
        for process in self._family():
            process.resume()

    def kill(self) -> None:
        """All of it, at once: nobody sees another die and says something about it."""
        with suppress(psutil.Error):
            self.freeze()
        for process in reversed(self._family()):
            with suppress(psutil.Error):
                process.kill()
        if self._process is not None:
            self._process.wait(timeout=10)
            self._process = None

    def _family(self) -> list[psutil.Process]:
        if self._process is None or self._process.poll() is not None:
            return []
        postmaster = psutil.Process(self._process.pid)
        return [postmaster, *postmaster.children(recursive=True)]


@contextmanager
def running_servers(*names: str) -> Iterator[list[Server]]:
    with engine_folder() as folder:
        servers = [Server(name, folder) for name in names]
        try:
            for server in servers:
                server.initialise()
                server.start(wait=False)
            for server in servers:
                server.wait_ready()
                server.prepare()
            yield servers
        finally:
            for server in servers:
                server.kill()


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificate files of a proxy at ADDRESS."""

    cert: Path
    key: Path
    ca: Path

    @classmethod
    def make(cls, folder: Path) -> Tls:
        authority, key = make_ca(now=time.time()), new_key_pem()
        request = make_csr(key, node="n1", address=ADDRESS)
        signed = sign_node_csr(authority, request, node="n1", address=ADDRESS, now=time.time())
        files = cls(cert=folder / "node.crt", key=folder / "node.key", ca=folder / "ca.crt")
        files.cert.write_bytes(signed.cert_pem)
        files.key.write_bytes(key)
        files.ca.write_bytes(authority.cert_pem)
        return files


@dataclass(slots=True)
class Proxy:
    """The proxy's process, and the agent's end of its control socket."""

    folder: Path
    tls: Tls
    options: tuple[str, ...] = ()
    rw_port: int = field(default_factory=free_port)
    ro_port: int = field(default_factory=free_port)
    seq: int = 0
    name: str = ""  # where several share a folder
    told_before: int = 0  # bytes of the log that belong to earlier tests
    program: Path = Path(sys.executable).parent / "moorage-proxy"
    process: subprocess.Popen[bytes] | None = None
    _routes: tuple[Route, ...] = ()
    _control: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    @property
    def socket(self) -> Path:
        return self.folder / f"control{self.name}.sock"

    @property
    def log(self) -> Path:
        return self.folder / "proxy.log"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self, within: float = 20) -> None:
        arguments = [
            *(str(self.program), "--address", ADDRESS, "--control", str(self.socket), "--log-format", "json"),
            *(
                "--cert",
                str(self.tls.cert),
                "--key",
                str(self.tls.key),
                "--pid-file",
                str(self.folder / f"proxy{self.name}.pid"),
            ),
            *self.options,
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        eventually_sync(self.socket.exists, within=within, every=0.02, what="the proxy opens its control socket")

    # --- as the agent ---------------------------------------------------------------------------------------------

    async def send(self, *routes: Route) -> ProxyReport:
        """A table; its report."""
        self.seq += 1
        self._routes = routes
        return await self.send_line(encode(RouteTable(seq=self.seq, routes=routes)))

    async def again(self) -> ProxyReport:
        """The same table once more, for its report."""
        return await self.send(*self._routes)

    async def declare(self, **verifiers: str) -> ProxyReport:
        """These users as well, of all instances."""
        passwords = Passwords(mock_secret="00" * 32, verifiers={**VERIFIERS, **verifiers})
        told = Declared(passwords=dict.fromkeys((route.instance for route in self._routes), passwords))
        return await self.send_line(encode(told) + encode(RouteTable(seq=self.seq, routes=self._routes)))

    async def send_line(self, line: bytes) -> ProxyReport:
        async with asyncio.timeout(10):
            if self._control is None:
                self._control = await asyncio.open_unix_connection(str(self.socket), limit=MAX_LINE_BYTES)
                self._control[1].write(encode(declared()))
            reader, writer = self._control
            writer.write(line)
            await writer.drain()
            while decode_note(answer := await reader.readline()) is not None:
                pass  # it asks for a verifier, after a password that was wrong: it gets no answer here
            return decode_report(answer)

    async def leave(self) -> None:
        """The agent goes away."""
        if self._control is not None:
            self._control[1].close()
            with suppress(OSError):
                await self._control[1].wait_closed()
            self._control = None

    def route(self, primary: Server | None = None, *, valid_s: float = FAR_S, **changes: Any) -> Route:
        fields: dict[str, Any] = {
            "instance": INSTANCE,
            "rw_port": self.rw_port,
            "ro_port": self.ro_port,
            "term": 1,
            "primary": primary.endpoint if primary else None,
            "expires_at_s": time.monotonic() + valid_s,
        }
        return Route(**{**fields, **changes})

    async def serve(self, primary: Server | None = None, **changes: Any) -> ProxyReport:
        """One route, in force when this returns, its ports open."""
        report = await self.send(self.route(primary, **changes))
        eventually_sync(lambda: {self.rw_port, self.ro_port} <= self.listening(), within=5, every=0.01)
        return report

    # --- looking --------------------------------------------------------------------------------------------------

    def dsn(self, *, read_only: bool = False, **changes: object) -> str:
        port = self.ro_port if read_only else self.rw_port
        fields = {"host": ADDRESS, "port": port, "user": "postgres", "dbname": "postgres", "connect_timeout": 10}
        fields["password"] = APP_PASSWORD if changes.get("user") == "app" else OWNER_PASSWORD
        return " ".join(f"{name}={value}" for name, value in {**fields, "sslmode": "disable", **changes}.items())

    async def connect(self, **changes: Any) -> psycopg.AsyncConnection[Any]:
        return await psycopg.AsyncConnection.connect(self.dsn(**changes), autocommit=True)

    def listening(self) -> set[int]:
        return {
            connection.laddr.port
            for connection in psutil.Process(self.pid).net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        }

    def established(self) -> int:
        """Open TCP connections, on either side."""
        connections = psutil.Process(self.pid).net_connections("tcp")
        return sum(connection.status != psutil.CONN_LISTEN for connection in connections)

    def rss_bytes(self) -> int:
        return int(psutil.Process(self.pid).memory_info().rss)

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = self.log.read_text()[self.told_before :].splitlines()
        found = [json.loads(line) for line in lines if line.startswith("{")]
        return [event for event in found if event["event"] == name]

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(timeout=10)


@contextmanager
def proxy_process(tls: Tls, *options: str) -> Iterator[Proxy]:
    with tempfile.TemporaryDirectory(prefix="moorage-px-", dir="/tmp") as folder:
        proxy = Proxy(Path(folder), tls, options)
        try:
            proxy.start()
            yield proxy
        finally:
            proxy.close()


@asynccontextmanager
async def lent_proxy(proxy: Proxy) -> AsyncIterator[Proxy]:
    """A running proxy for one test: as good as new before it, and nothing may have failed inside at its end."""
    proxy.told_before = len(proxy.log.read_text())
    proxy.rw_port, proxy.ro_port = free_port(), free_port()
    try:
        yield proxy
        for event in ("client_task_failed", "callback_failed"):
            failed = proxy.events(event)
            assert not failed, [one.get("traceback", one) for one in failed]
    finally:
        if proxy.process is not None and proxy.process.poll() is None:
            proxy.process.send_signal(signal.SIGCONT)
            await proxy.leave()
            await proxy.send()
        await proxy.leave()


@asynccontextmanager
async def running_proxy(tls: Tls, *options: str) -> AsyncIterator[Proxy]:
    """A proxy of one's own."""
    with proxy_process(tls, *options) as proxy:
        async with lent_proxy(proxy):
            yield proxy


@contextmanager
def made_tls() -> Iterator[Tls]:
    with tempfile.TemporaryDirectory(prefix="moorage-px-") as folder:
        yield Tls.make(Path(folder))


def declared(*instances: str) -> Declared:
    """The users of the test's servers."""
    passwords = Passwords(mock_secret="00" * 32, verifiers=VERIFIERS)
    return Declared(passwords=dict.fromkeys(instances or (INSTANCE, "demo/one", "demo/two"), passwords))


def startup_packet(**parameters: str) -> bytes:
    words = {"user": "postgres", "database": "postgres", **parameters}
    body = b"".join(f"{name}\0{value}\0".encode() for name, value in words.items()) + b"\0"
    return struct.pack("!II", 8 + len(body), 3 << 16) + body


def query(statement: str) -> bytes:
    return b"Q" + struct.pack("!I", 5 + len(statement)) + statement.encode() + b"\0"


@dataclass(slots=True)
class RawClient:
    """A client whose every byte is in the test's hand."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    pid: int = 0
    key: bytes = b""

    @classmethod
    async def open(cls, port: int) -> RawClient:
        return cls(*await asyncio.open_connection(ADDRESS, port))

    @classmethod
    async def connect(cls, port: int, *, ca: Path | None = None) -> RawClient:
        """Until the server is ready for queries; with TLS if there is a CA to believe."""
        client = await cls.open(port)
        if ca is not None:
            await client.encrypt(ca)
        await client.log_in()
        return client

    async def log_in(self, *, slowly: bool = False, behind: bytes = b"", **parameters: str) -> list[tuple[str, bytes]]:
        """As the servers' owner; what came with the answer. `behind`: sent together with the last of it."""
        await self.prove(slowly=slowly, behind=behind, **parameters)
        return await self.greeted()

    async def greeted(self) -> list[tuple[str, bytes]]:
        greeting = await self.until("Z")
        for kind, body in greeting:
            if kind == "K":
                self.pid, self.key = struct.unpack_from("!I", body)[0], body[4:]
        return greeting

    async def prove(self, *, slowly: bool = False, behind: bytes = b"", **parameters: str) -> None:
        """Startup packet and password; the answer is left to be read."""
        await self._say(startup_packet(**parameters), slowly=slowly)
        await self.prove_password(slowly=slowly, behind=behind)

    async def prove_password(self, *, slowly: bool = False, behind: bytes = b"") -> None:
        """Behind a startup packet."""
        scram = scram_client(OWNER_PASSWORD)
        await self.until("R")
        first = b"SCRAM-SHA-256\0" + struct.pack("!I", len(scram.first())) + scram.first()
        await self._say(b"p" + struct.pack("!I", 4 + len(first)) + first, slowly=slowly)
        ((_, asked),) = await self.until("R")
        final = scram.final(asked[4:])
        await self._say(b"p" + struct.pack("!I", 4 + len(final)) + final + behind, slowly=slowly)
        ((_, told),) = await self.until("R")
        scram.check(told[4:])

    async def _say(self, data: bytes, *, slowly: bool) -> None:
        for piece in [data[at : at + 1] for at in range(len(data))] if slowly else [data]:
            self.send(piece)
            await self.writer.drain()

    async def encrypt(self, ca: Path) -> None:
        self.writer.write(SSL_REQUEST)
        assert await self.reader.readexactly(1) == b"S"
        await self.writer.start_tls(ssl.create_default_context(cafile=str(ca)), server_hostname=ADDRESS)

    async def until(self, last: str) -> list[tuple[str, bytes]]:
        """Messages up to the first of this kind."""
        found: list[tuple[str, bytes]] = []
        async with asyncio.timeout(10):
            while not found or found[-1][0] != last:
                kind, length = struct.unpack("!cI", await self.reader.readexactly(5))
                found.append((kind.decode(), await self.reader.readexactly(length - 4)))
        return found

    async def value(self, statement: str) -> str:
        """First value of the answer; empty when there is none."""
        self.send(query(statement))
        rows = [body for kind, body in await self.until("Z") if kind == "D"]
        if not rows:
            return ""
        (size,) = struct.unpack_from("!i", rows[0], 2)
        return rows[0][6 : 6 + size].decode() if size > 0 else ""

    async def rest(self) -> bytes:
        """All that comes before the connection ends."""
        try:
            async with asyncio.timeout(10):
                return await self.reader.read()
        except ConnectionResetError:
            return b""

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def close(self) -> None:
        self.writer.close()
