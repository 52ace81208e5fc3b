"""By what the engine checks its users' passwords, for the proxy, which checks them in its place.

A replica knows a role once it has replayed its making. It is asked after it has replayed what it had received when the
question came, so that a client that made a role on the primary of a synchronous pair may log in here at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from agent.engines.postgres.member import REPLICATION_USER, SUPERUSER, Member
from agent.engines.postgres.session import Session

ANSWER_S = 1.0  # the proxy's client waits
REPLAY_WITHIN_S = 0.3  # a replay that is held up longer answers with what there is
LOOK_S = 0.01
OURS = (SUPERUSER, REPLICATION_USER)  # never a client's, whatever password they have


async def verifiers(member: Member, users: Collection[str]) -> dict[str, str | None]:
    """Of each user what pg_authid keeps; None without a role or a password. MoorageError when nobody answers."""
    found: dict[str, str | None] = dict.fromkeys(users)
    wanted = [user for user in users if user not in OURS and "\0" not in user]
    if not wanted:
        return found
    async with member.session(within_s=ANSWER_S) as session:
        await _replayed(session)
        rows = await session.rows(
            "SELECT rolname::text AS name, rolpassword AS verifier FROM pg_authid WHERE rolname = ANY(%s)",
            [wanted],
            within_s=ANSWER_S,
        )
    found.update((row["name"], row["verifier"]) for row in rows)
    return found


async def _replayed(session: Session) -> None:
    """A replica has replayed what it had received, or takes too long."""
    now = await session.row("SELECT pg_last_wal_receive_lsn()::text AS received", within_s=ANSWER_S)
    for _ in range(round(REPLAY_WITHIN_S / LOOK_S)):
        row = await session.row(
            "SELECT pg_is_in_recovery() AND pg_last_wal_replay_lsn() < %s::pg_lsn AS behind",
            [now["received"]],
            within_s=ANSWER_S,
        )
        if not row["behind"]:
            return
        await asyncio.sleep(LOOK_S)
