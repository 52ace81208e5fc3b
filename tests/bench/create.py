"""Time from `create` to Running for one primary and two replicas, against the plain tools in the same run.

The plain tools: initdb, start, two pg_basebackup, two starts, one after the other as a person or a playbook would.

    ./dev bench create [--rounds 3] [--json FILE]
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from pathlib import Path

from tests.support.agent import engine_user
from tests.support.bench import Rows, parser
from tests.support.cluster import DEBIAN_BIN, running_cluster, short_root
from tests.support.ports import free_port

PASSWORD_FREE = "host all all 127.0.0.0/8 trust\nhost replication all 127.0.0.0/8 trust\n"


def as_engine_user(*command: str) -> None:
    """Run one of PostgreSQL's programs as the unprivileged user, when this is root."""
    user = engine_user()
    prefix = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"] if user else []
    subprocess.run([*prefix, *command], check=True, capture_output=True, timeout=120, cwd="/")


def plain(root: Path) -> float:
    """Seconds the plain tools take."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    if user := engine_user():
        shutil.chown(root, user)
    ports = [free_port() for _ in range(3)]
    dirs = [root / f"d{n}" for n in range(3)]
    started = time.monotonic()
    as_engine_user(f"{DEBIAN_BIN}/initdb", "-D", str(dirs[0]), "--data-checksums", "-A", "trust", "-U", "postgres")
    with (dirs[0] / "pg_hba.conf").open("a") as hba:
        hba.write(PASSWORD_FREE)
    try:
        for number, (directory, port) in enumerate(zip(dirs, ports, strict=True)):
            if number:
                source = ("-h", "127.0.0.1", "-p", str(ports[0]), "-U", "postgres")
                as_engine_user(f"{DEBIAN_BIN}/pg_basebackup", "-D", str(directory), "-R", "-c", "fast", *source)
            options = f"-p {port} -k {root} -c listen_addresses=127.0.0.1"
            log = str(root / f"log{number}")
            as_engine_user(f"{DEBIAN_BIN}/pg_ctl", "-D", str(directory), "-l", log, "-w", "-o", options, "start")
        return time.monotonic() - started
    finally:
        for directory in dirs:
            if (directory / "postmaster.pid").exists():
                as_engine_user(f"{DEBIAN_BIN}/pg_ctl", "-D", str(directory), "-m", "immediate", "stop")


async def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    rows = Rows(options.json)
    ours, theirs = [], []
    async with short_root("create") as root, running_cluster(root) as cluster:
        for number in range(options.rounds):
            theirs.append(await asyncio.to_thread(plain, root / "plain"))
            name = f"demo/orders{number}"
            started = time.monotonic()
            await cluster.create(name)
            ours.append(time.monotonic() - started)
            await cluster.actl("instance", "delete", name, "--yes", "--wait")
    rows.add_spread("create_1_plus_2", "moorage", "to_running", "s", ours)
    rows.add_spread("create_1_plus_2", "plain_tools", "to_running", "s", theirs)
    rows.add(
        "create_1_plus_2",
        "moorage",
        "ratio_to_plain",
        "x",
        sorted(ours)[len(ours) // 2] / sorted(theirs)[len(theirs) // 2],
    )
    rows.finish()


if __name__ == "__main__":
    os.umask(0o022)
    asyncio.run(main())
