"""A driver's own test suite through the proxy: Go's lib/pq, as Debian has it. Needs `golang-go` and
`golang-github-lib-pq-dev`, a minute and some space, so it is left out by default: `./dev test -m soak`."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from core.routes import Pooling
from core.scram import make_verifier
from tests.support.proxy import ADDRESS, made_tls, running_proxy, running_servers

SOURCE = Path("/usr/share/gocode/src/github.com/lib/pq")
PASSWORD = "of-some-length"
# TestErrorDuringStartup asks about a user of whom only an agent knows whether it exists, and none runs here.
# TestHasCorrectRootGroupPermissions fails for root without any server.
BEYOND = {"TestErrorDuringStartup", "TestHasCorrectRootGroupPermissions"}
# It terminates its own backend, and expects to be cut; in transaction mode the client is not.
NOT_SHARED = {"TestPing"}

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]


@pytest.mark.skipif(
    shutil.which("go") is None or not SOURCE.exists(), reason="apt install golang-go golang-github-lib-pq-dev"
)
@pytest.mark.parametrize("mode", ["session", "transaction"])
async def test_lib_pq(tmp_path: Path, mode: str) -> None:
    place = tmp_path / "go" / "src" / "github.com" / "lib"
    shutil.copytree(SOURCE, place / "pq", symlinks=False)
    verifier = make_verifier(PASSWORD, salt=b"0123456789abcdef", iterations=4096)  # fewer are refused by this driver
    with made_tls() as tls, running_servers("m1") as (server,):
        async with running_proxy(tls) as proxy:
            server.value(f"ALTER ROLE postgres PASSWORD '{verifier}'")
            server.value("CREATE DATABASE pqgotest")
            pooling = Pooling(mode="transaction", size=20) if mode == "transaction" else Pooling()
            await proxy.serve(server, pooling=pooling)
            await proxy.declare(postgres=verifier)
            server_at = {"PGHOST": ADDRESS, "PGPORT": str(proxy.rw_port), "PGUSER": "postgres", "PGPASSWORD": PASSWORD}
            go = {"GOPATH": str(tmp_path / "go"), "GO111MODULE": "off", "GOCACHE": str(tmp_path / "cache")}
            done = await asyncio.to_thread(
                subprocess.run,
                ["go", "test", "-timeout", "500s", "."],
                cwd=place / "pq",
                env={"PATH": os.environ["PATH"], "PGSSLMODE": "disable", "PGDATABASE": "pqgotest", **server_at, **go},
                capture_output=True,
                text=True,
            )
    failed = set(re.findall(r"^--- FAIL: (\w+)", done.stdout, re.MULTILINE))
    assert failed <= BEYOND | (NOT_SHARED if mode == "transaction" else set()), done.stdout[-3000:]
    assert "panic" not in done.stdout
    assert "github.com/lib/pq" in done.stdout
