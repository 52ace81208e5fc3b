"""A new, empty data directory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from agent.engines.files import make_owned_directory, remove_tree
from agent.engines.postgres.member import SUPERUSER, Member

INITDB_WITHIN_S = 180.0


async def initialise(member: Member, *, remove: Callable[[Path], None] = remove_tree) -> None:
    """Beside the final place, then moved there by one rename, so that a half-made one is never taken for whole."""
    paths = member.paths
    member.relabel(begun="initialise")
    await asyncio.to_thread(remove, paths.incoming)
    await asyncio.to_thread(remove, paths.data)
    make_owned_directory(paths.incoming, member.setup.run_as)
    arguments = [
        *("--pgdata", str(paths.incoming), "--username", SUPERUSER, "--data-checksums"),
        *("--encoding", "UTF8", "--locale", "C.UTF-8", "--auth-local", "peer", "--auth-host", "scram-sha-256"),
    ]
    if not member.setup.durable:
        arguments.append("--no-sync")
    await member.tools.run("initdb", *arguments, within_s=INITDB_WITHIN_S)
    paths.incoming.rename(paths.data)
