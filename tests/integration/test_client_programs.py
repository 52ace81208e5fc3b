"""PostgreSQL's own programs through the real proxy, and logins that are out of the ordinary: the answer must be the
server's, whether the way leads through the proxy or not."""

from __future__ import annotations

import asyncio
import signal
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest

from core.scram import make_verifier
from tests.support.proxy import (
    ADDRESS,
    BIN,
    HBA,
    OWNER_PASSWORD,
    Proxy,
    RawClient,
    Server,
    lent_proxy,
    made_tls,
    proxy_process,
    running_servers,
    startup_packet,
)
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(90)
PASSWORD = "some-secret"
VERIFIER = make_verifier(PASSWORD, salt=b"0123456789abcdef", iterations=16)
TREMA, LONG = "Größe \"of' one", "y" * 63
ROLES = {  # attributes, by name; all have the same password
    "nologin": "NOLOGIN",
    "expired": "LOGIN VALID UNTIL '2001-01-01'",
    "limited": "LOGIN CONNECTION LIMIT 0",
    "streaming": "LOGIN REPLICATION",
    TREMA: "LOGIN",
    LONG: "LOGIN",
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_servers("m1") as (running,):
        for name, attributes in ROLES.items():
            quoted = '"' + name.replace('"', '""') + '"'
            running.value(f"CREATE ROLE {quoted} PASSWORD '{VERIFIER}' {attributes}")
        running.value("CREATE DATABASE closed ALLOW_CONNECTIONS false")
        # The owner is trusted, for the tests' own way past the proxy; who would be refused by rule has to prove itself.
        (running.data / "pg_hba.conf").write_text(HBA.replace("host all all", "host all postgres") + SCRAM_FOR_ALL)
        running.value("SELECT pg_reload_conf()")
        yield running


SCRAM_FOR_ALL = "host all all 127.0.0.0/8 scram-sha-256\n"


@pytest.fixture(scope="module")
def process() -> Iterator[Proxy]:
    with made_tls() as tls, proxy_process(tls) as running:
        yield running


@pytest.fixture
async def proxy(process: Proxy, server: Server) -> AsyncIterator[Proxy]:
    async with lent_proxy(process) as running:
        await running.serve(server)
        await running.declare(**dict.fromkeys(ROLES, VERIFIER))
        yield running


def environment(port: int, **changes: str) -> dict[str, str]:
    place = {"PGHOST": ADDRESS, "PGPORT": str(port), "PGUSER": "postgres", "PGPASSWORD": OWNER_PASSWORD}
    return {"PATH": f"{BIN}:/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PGDATABASE": "postgres", **place, **changes}


def run(program: str, *arguments: str, port: int, stdin: str = "", **changes: str) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / program), *arguments]
    return subprocess.run(
        command, env=environment(port, **changes), input=stdin, capture_output=True, text=True, timeout=60
    )


def output(program: str, *arguments: str, port: int, stdin: str = "", **changes: str) -> str:
    done = run(program, *arguments, port=port, stdin=stdin, **changes)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- programs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sslmode", ["disable", "require"])
def test_psql_copies_and_describes(proxy, tmp_path, sslmode):
    script = f"""
        CREATE TEMP TABLE copied (id int, body text);
        \\copy copied FROM PROGRAM 'seq 1 1000 | sed "s/$/\\tx/"'
        \\copy copied TO '{tmp_path / "out"}'
        SELECT 1 AS one, 'x' AS letter \\gdesc
        SELECT count(*) FROM copied;
        \\d copied
    """
    told = output("psql", "-XAt", "-v", "ON_ERROR_STOP=1", port=proxy.rw_port, stdin=script, PGSSLMODE=sslmode)
    assert "one|integer" in told
    assert "\n1000\n" in told
    assert (tmp_path / "out").read_text().count("\n") == 1000


async def test_interrupting_psql_cancels_its_query(proxy, server):
    command = [str(BIN / "psql"), "-XAtc", "SELECT pg_sleep(50)"]
    with subprocess.Popen(
        command, env=environment(proxy.rw_port), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as psql:
        sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(50)' AND state = 'active'"

        async def begun() -> bool:
            return bool(server.value(sleeping))

        await eventually(begun, within=10)
        psql.send_signal(signal.SIGINT)
        _, complaint = await asyncio.to_thread(psql.communicate, timeout=20)
    assert "canceling statement due to user request" in complaint
    assert server.value(sleeping) == 0


@pytest.mark.parametrize("mode", ["simple", "extended", "prepared"])
def test_pgbench_runs_in_every_protocol_and_connects_anew_each_time(proxy, mode):
    output("createdb", "bench", port=proxy.rw_port)
    try:
        output("pgbench", "-q", "-i", "-s", "1", "bench", port=proxy.rw_port)
        for more in (["-t", "50"], ["-t", "10", "-C", "-S"], ["-t", "10", "-C", "-S"]):
            told = output("pgbench", "-n", "-M", mode, "-c", "4", *more, "bench", port=proxy.rw_port)
            assert "number of failed transactions: 0 " in told
    finally:
        output("dropdb", "bench", port=proxy.rw_port)


def test_pgbench_pipelines(proxy, tmp_path):
    (tmp_path / "pipe.sql").write_text("\\startpipeline\nSELECT 1;\nSELECT 2;\nSELECT 3;\n\\endpipeline\n")
    script = str(tmp_path / "pipe.sql")
    told = output("pgbench", "-n", "-M", "extended", "-f", script, "-c", "2", "-t", "100", port=proxy.rw_port)
    assert "actually processed: 200/200" in told


def test_a_dump_comes_back_the_same(proxy, tmp_path):
    port = proxy.rw_port
    output("createdb", "source", port=port)
    output("psql", "-Xqc", "CREATE TABLE t AS SELECT n, repeat('x', n % 90) AS body FROM generate_series(1, 20000) n",
           "source", port=port)  # fmt: skip
    output("psql", "-Xqc", "SELECT lo_from_bytea(0, 'large')", "source", port=port)
    output("pg_dump", "-Fd", "-j", "3", "-f", str(tmp_path / "dump"), "source", port=port)
    output("createdb", "target", port=port)
    output("pg_restore", "-j", "3", "-d", "target", str(tmp_path / "dump"), port=port)
    check = "SELECT md5(string_agg(t::text, ',' ORDER BY n)) FROM t"
    sums = {output("psql", "-XAtc", check, name, port=port) for name in ("source", "target")}
    assert len(sums) == 1
    output("vacuumdb", "-z", "-j", "2", "target", port=port)
    output("reindexdb", "target", port=port)
    assert "CREATE ROLE app" in output("pg_dumpall", "--globals-only", port=port)
    for name in ("source", "target"):
        output("dropdb", name, port=port)


def test_replication_passes_for_whom_the_server_lets_and_else_the_server_says_no(proxy, tmp_path):
    allowed = run("psql", "replication=database dbname=postgres", "-XAtc", "IDENTIFY_SYSTEM", port=proxy.rw_port)
    assert (allowed.returncode, allowed.stdout.strip().endswith("|postgres")) == (0, True)
    physical = {"PGUSER": "streaming", "PGPASSWORD": PASSWORD}
    refused = run("pg_receivewal", "--no-loop", "-D", str(tmp_path), port=proxy.rw_port, **physical)
    assert refused.returncode != 0
    assert "no pg_hba.conf entry for replication connection" in refused.stderr
    ordinary = {"PGUSER": TREMA, "PGPASSWORD": PASSWORD}
    refused = run("pg_recvlogical", "-d", "postgres", "-S", "s", "--create-slot", port=proxy.rw_port, **ordinary)
    assert "must be superuser or replication role" in refused.stderr


# --- logins -----------------------------------------------------------------------------------------------------------


def refusal(port: int, **changes: object) -> str:
    fields = {"host": ADDRESS, "port": port, "password": PASSWORD, "connect_timeout": 10, "sslmode": "disable"}
    with pytest.raises(psycopg.OperationalError) as refused:
        psycopg.connect(**{"dbname": "postgres", **fields, **changes})  # type: ignore[arg-type]
    return str(refused.value).partition("FATAL:")[2]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"user": "nologin"}, 'role "nologin" is not permitted to log in'),
        ({"user": "expired"}, 'password authentication failed for user "expired"'),
        ({"user": "limited"}, 'too many connections for role "limited"'),
        ({"user": "app", "password": "wrong"}, 'password authentication failed for user "app"'),
        ({"user": TREMA, "dbname": "closed"}, 'database "closed" is not currently accepting connections'),
        ({"user": TREMA, "dbname": "nowhere"}, 'database "nowhere" does not exist'),
        ({"user": TREMA, "dbname": ""}, f'database "{TREMA}" does not exist'),
        ({"user": TREMA, "options": "-c nope=1"}, 'unrecognized configuration parameter "nope"'),
        ({"user": TREMA, "options": "-c work_mem=x"}, 'invalid value for parameter "work_mem": "x"'),
        ({"user": TREMA, "options": "--bogus"}, "--bogus requires a value"),
        ({"user": TREMA, "client_encoding": "bogus"}, 'invalid value for parameter "client_encoding": "bogus"'),
        ({"user": TREMA, "replication": "bogus"}, 'invalid value for parameter "replication": "bogus"'),
    ],
    ids=str,
)
def test_a_login_is_refused_in_the_servers_words(proxy, server, changes, words):
    through, past = refusal(proxy.rw_port, **changes), refusal(server.port, **changes)
    assert through == past
    assert words in through


@pytest.mark.parametrize("user", [TREMA, LONG, LONG + "yy"])
def test_odd_names_and_settings_at_the_startup_reach_the_server(proxy, user):
    place = {"host": ADDRESS, "port": proxy.rw_port, "user": user, "password": PASSWORD, "dbname": "postgres"}
    options = "-c work_mem=7MB -c moorage.note=b\\ c"
    with psycopg.connect(**place, options=options, application_name="odd one") as connection:
        row = connection.execute(
            "SELECT current_user, current_setting('work_mem'), current_setting('moorage.note'),"
            " current_setting('application_name')"
        ).fetchone()
    assert row == (user[:63], "7MB", "b c", "odd one")


async def test_settings_that_are_no_utf8_reach_the_server_as_they_are(proxy):
    client = await RawClient.open(proxy.rw_port)
    client.send(startup_packet(application_name="J@rgen").replace(b"@", b"\xfc"))
    await client.prove_password()
    await client.greeted()
    assert (
        await client.value("SHOW application_name") == "J?rgen"
    )  # the server puts a `?` for each byte that is not ASCII
    client.close()


@pytest.mark.parametrize(("asked", "offered"), [(1, 0), (2, 2), (9999, 2)])
async def test_a_newer_protocol_and_unknown_options_are_negotiated(proxy, asked, offered):
    client = await RawClient.open(proxy.rw_port)
    packet = bytearray(startup_packet(**{"_pq_.novelty": "on"}))
    struct.pack_into("!I", packet, 4, 3 << 16 | asked)
    client.send(bytes(packet))
    ((kind, body),) = await client.until("v")
    assert (kind, body) == ("v", struct.pack("!II", 3 << 16 | offered, 1) + b"_pq_.novelty\0")
    await client.prove_password()
    await client.greeted()
    assert len(client.key) == (32 if offered else 4)
    client.close()


def test_channel_binding_can_be_demanded(proxy):
    with psycopg.connect(proxy.dsn(sslmode="require", channel_binding="require")) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    with pytest.raises(psycopg.OperationalError, match="channel binding required, but SSL not in use"):
        psycopg.connect(proxy.dsn(sslmode="disable", channel_binding="require"))
