"""What stands between pgbench and the engine: nothing, our proxy, PgBouncer, HAProxy; each one process of one thread.

All show the same certificate, log as they do by default, and reach the engine without TLS; HAProxy passes the client's
TLS through to the engine. All are started anew for each case, and ended by their pid.
"""

from __future__ import annotations

import contextlib
import resource
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import psycopg

from core.routes import Pooling
from tests.bench.relays.cases import Case
from tests.support.ports import free_port
from tests.support.proxy import (
    ADDRESS,
    APP_PASSWORD,
    BIN,
    VERIFIERS,
    Proxy,
    Server,
    Tls,
    as_engine_user,
    engine_folder,
)
from tests.support.waiting import eventually_sync

PGBOUNCER = Path("/usr/sbin/pgbouncer")
HAPROXY = Path("/usr/sbin/haproxy")
SCALE = 10  # pgbench_accounts of 1,000,000 rows, all in memory
CLIENTS_MAX = 1300
TRANSACTION_POOL = 20  # PgBouncer's default
POOLING = {"session": Pooling(), "transaction": Pooling(mode="transaction", size=TRANSACTION_POOL)}
SETTINGS = f"""
max_connections = {CLIENTS_MAX}
shared_buffers = 512MB
ssl = on
ssl_cert_file = 'node.crt'
ssl_key_file = 'node.key'
"""


class Missing(Exception):
    """A peer is not installed; the text says how it would be."""


@dataclass(slots=True)
class Contender:
    """Where clients connect, and whose processor time and memory counts."""

    name: str
    port: int
    processes: list[psutil.Process] = field(default_factory=list)

    def conninfo(self, case: Case) -> str:
        fields = {
            "host": ADDRESS,
            "port": self.port,
            "user": "app",
            "password": APP_PASSWORD,
            # PgBouncer knows the pooling mode by the name of the database.
            "dbname": "pooled" if case.mode == "transaction" and self.name == "pgbouncer" else "postgres",
            "sslmode": "require" if case.tls else "disable",
            "gssencmode": "disable",
            "connect_timeout": 20,
        }
        return " ".join(f"{name}={value}" for name, value in fields.items())

    def cpu_s(self) -> float:
        return sum(times.user + times.system for times in (process.cpu_times() for process in self.processes))

    def pss_bytes(self) -> int:
        return sum(process.memory_full_info().pss for process in self.processes)


@dataclass(frozen=True, slots=True)
class Site:
    """The engine, and what all need to stand before it."""

    server: Server
    tls: Tls
    folder: Path


def bench_cpu_s(place: Site, contender: Contender) -> float:
    """Processor seconds that the whole bench has used so far: engine, contender, load, and what has ended of them."""
    postmaster = psutil.Process(place.server.pid)
    used = contender.cpu_s() if contender.processes else 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        used += usage.ru_utime + usage.ru_stime
    used += sum(postmaster.cpu_times()[:4])  # backends that have ended count as their parent's
    for backend in postmaster.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            used += sum(backend.cpu_times()[:2])
    return used


def machine_cpu_s() -> float:
    """Processor seconds that everything on this machine has used so far, or its host has kept from it."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system + times.irq + times.softirq + times.steal


@contextmanager
def site() -> Iterator[Site]:
    """An engine with pgbench's tables."""
    with engine_folder() as folder:
        tls = Tls.make(folder)
        server = Server("engine", folder)
        try:
            server.initialise()
            for file in (tls.cert, tls.key):
                copy = server.data / file.name
                shutil.copyfile(file, copy)
                copy.chmod(0o600)
                shutil.chown(copy, server.data.owner(), server.data.group())
            with (server.data / "postgresql.conf").open("a") as settings:
                settings.write(SETTINGS)
            server.start()
            server.prepare()
            command = [str(BIN / "pgbench"), "-i", "-q", "-s", str(SCALE), server.dsn()]
            subprocess.run(command, check=True, capture_output=True, timeout=120)
            server.value("GRANT SELECT ON ALL TABLES IN SCHEMA public TO app")
            server.value("CHECKPOINT")
            yield Site(server, tls, folder)
        finally:
            server.kill()


@asynccontextmanager
async def standing(name: str, place: Site, case: Case, other: Path = Path()) -> AsyncIterator[Contender]:
    """One contender, ready for clients; `other` is the program of another build of our proxy."""
    match name:
        case "direct":
            yield Contender(name, place.server.port)
        case "moorage" | "other":
            async with _ours(name, place, case, other) as ours:
                yield ours
        case "pgbouncer":
            with _pgbouncer(place, case) as theirs:
                yield theirs
        case "haproxy":
            with _haproxy(place, case) as theirs:
                yield theirs
        case _:
            raise ValueError(f"nobody is called {name!r}")


@asynccontextmanager
async def _ours(name: str, place: Site, case: Case, other: Path) -> AsyncIterator[Contender]:
    folder = _fresh(place.folder / name)
    proxy = Proxy(folder, place.tls)
    if name == "other":
        proxy.program = other
    try:
        proxy.start()
        await proxy.serve(place.server, pooling=POOLING[case.mode])
        yield Contender(name, proxy.rw_port, _family(proxy.pid))
    finally:
        await proxy.leave()
        proxy.close()


@contextmanager
def _pgbouncer(place: Site, case: Case) -> Iterator[Contender]:
    if not PGBOUNCER.exists():
        raise Missing("pgbouncer is not installed: apt install pgbouncer")
    folder, port = _fresh(place.folder / "pgbouncer"), free_port()
    backend = f"host={ADDRESS} port={place.server.port} dbname=postgres"
    (folder / "users.txt").write_text("".join(f'"{user}" "{verifier}"\n' for user, verifier in VERIFIERS.items()))
    shutil.copyfile(place.tls.key, folder / "node.key")
    (folder / "pgbouncer.ini").write_text(f"""
[databases]
postgres = {backend} pool_mode=session pool_size={CLIENTS_MAX}
pooled = {backend} pool_mode=transaction pool_size={TRANSACTION_POOL}
[pgbouncer]
listen_addr = {ADDRESS}
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {folder}/users.txt
max_client_conn = {max(2 * CLIENTS_MAX, case.clients + 100)}
ignore_startup_parameters = extra_float_digits
client_tls_sslmode = allow
client_tls_cert_file = {place.tls.cert}
client_tls_key_file = {folder}/node.key
logfile = {folder}/pgbouncer.log
""")
    for path in (folder, *folder.iterdir()):
        shutil.chown(path, place.server.data.owner(), place.server.data.group())
    with _program(folder, as_engine_user(str(PGBOUNCER), "-q", str(folder / "pgbouncer.ini"))) as process:
        contender = Contender("pgbouncer", port)
        _await_ready(contender, case, folder)
        contender.processes = _family(process.pid)
        yield contender


@contextmanager
def _haproxy(place: Site, case: Case) -> Iterator[Contender]:
    if not HAPROXY.exists():
        raise Missing("haproxy is not installed: apt install haproxy")
    folder, port = _fresh(place.folder / "haproxy"), free_port()
    (folder / "haproxy.cfg").write_text(f"""
global
  nbthread 1
  maxconn {2 * CLIENTS_MAX}
defaults
  mode tcp
  timeout connect 5s
  timeout client 30m
  timeout server 30m
listen engine
  bind {ADDRESS}:{port}
  server engine {ADDRESS}:{place.server.port}
""")
    with _program(folder, [str(HAPROXY), "-db", "-f", str(folder / "haproxy.cfg")]) as process:
        contender = Contender("haproxy", port)
        _await_ready(contender, case, folder)
        contender.processes = _family(process.pid)
        yield contender


@contextmanager
def _program(folder: Path, command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "output.log").open("ab") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/")
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)  # PgBouncer drops everybody then; HAProxy too
        try:
            process.wait(timeout=3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=10)


def _await_ready(contender: Contender, case: Case, folder: Path) -> None:
    def ask() -> bool:
        try:
            psycopg.connect(contender.conninfo(Case("simple", 1, case.mode))).close()
        except psycopg.OperationalError as error:
            raise OSError(f"{error}\n{(folder / 'output.log').read_text()[-1000:]}") from error
        return True

    eventually_sync(ask, within=15, what=f"{contender.name} lets a client in")


def _family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o755)
    return folder
