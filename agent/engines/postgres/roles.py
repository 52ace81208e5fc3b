"""Roles, databases and extensions as declared, on the primary. What is not declared is left alone.

Every statement is made only where something differs, so that a quiet primary writes no log. The replication user gets
what pg_rewind and the probes of other members need, and nothing else. Passwords arrive as SCRAM verifiers.

A declared user's memberships in predefined roles (`pg_*`) and in other declared users are exactly the declared ones:
taking a right out of the specification takes it away. Other grants belong to whoever made them.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass, field

from psycopg import sql

from agent.engines.postgres.member import REPLICATION_USER, Member
from agent.engines.postgres.session import Row, Session
from core.errors import EngineError, TimedOutError, UnavailableError
from core.log import EventLog
from core.records import DatabaseDesired, UserDesired
from core.scram import make_verifier, password_fits

log = EventLog("agent.roles")
STATEMENT_S = 30.0  # CREATE DATABASE copies a template
_REWIND_FUNCTIONS = (
    "pg_catalog.pg_ls_dir(text, boolean, boolean)",
    "pg_catalog.pg_stat_file(text, boolean)",
    "pg_catalog.pg_read_binary_file(text)",
    "pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean)",
)


@dataclass(slots=True)
class Outcome:
    """What could not be made, as sentences; everything else is as declared."""

    problems: list[str] = field(default_factory=list)


class Declared:
    """One run over everything declared, on one session in database postgres."""

    def __init__(self, member: Member, session: Session) -> None:
        self._member = member
        self._session = session
        self.outcome = Outcome()

    async def converge(self) -> Outcome:
        """Make it so. Connection trouble is raised, refusals of single objects are collected."""
        await self._replication_user()
        known = await self._users()
        for user in self._member.desired.users:
            await self._one(f"user {user.name}", self._user(user, known.get(user.name)))
        for user in self._member.desired.users:
            await self._one(f"roles of user {user.name}", self._memberships(user))
        databases = {row["name"]: row["owner"] for row in await self._rows(_DATABASES)}
        for database in self._member.desired.databases:
            await self._one(f"database {database.name}", self._database(database, databases.get(database.name)))
        for database in self._member.desired.databases:
            if database.extensions:
                await self._one(f"extensions of database {database.name}", self._extensions(database))
        return self.outcome

    async def _one(self, what: str, work: Awaitable[object]) -> None:
        try:
            await work
        except EngineError as error:
            self._problem(f"{what}: {error.what}")

    def _problem(self, text: str) -> None:
        log.warning("declared_object_failed", member=self._member.subject, why=text)
        self.outcome.problems.append(text)

    async def _rows(self, query: str | sql.Composable, *parameters: object) -> list[Row]:
        return await self._session.rows(query, list(parameters) or None, within_s=STATEMENT_S)

    # --- the replication user ---------------------------------------------------------------------------------------

    async def _replication_user(self) -> None:
        password = self._member.secrets.replication_password
        known = (await self._users()).get(REPLICATION_USER)
        name = sql.Identifier(REPLICATION_USER)
        if known is None:
            await self._rows(sql.SQL("CREATE ROLE {} LOGIN REPLICATION").format(name))
            log.info("role_created", member=self._member.subject, role=REPLICATION_USER)
        if password and not _fits(password, known["verifier"] if known else None):
            await self._rows(sql.SQL("ALTER ROLE {} PASSWORD {}").format(name, sql.Literal(make_verifier(password))))
        for function in _REWIND_FUNCTIONS:
            granted = await self._rows(
                "SELECT has_function_privilege(%s, %s, 'execute') AS granted", REPLICATION_USER, function
            )
            if not granted[0]["granted"]:
                grant = sql.SQL("GRANT EXECUTE ON FUNCTION {} TO {}").format(sql.SQL(function), name)
                await self._rows(grant)
        if self._member.setup.offer.version >= 15:
            await self._grant("pg_checkpoint", REPLICATION_USER, await self._granted_to(REPLICATION_USER))

    # --- users ------------------------------------------------------------------------------------------------------

    async def _users(self) -> dict[str, Row]:
        rows = await self._rows(
            "SELECT rolname AS name, rolsuper AS superuser, rolcanlogin AS login, rolreplication AS replicates,"
            " rolpassword AS verifier"
            " FROM pg_authid"
        )
        return {row["name"]: row for row in rows}

    async def _user(self, user: UserDesired, known: Row | None) -> None:
        name = sql.Identifier(user.name)
        if known is None:
            await self._rows(sql.SQL("CREATE ROLE {} LOGIN").format(name))
            log.info("role_created", member=self._member.subject, role=user.name)
        elif not known["login"]:
            await self._rows(sql.SQL("ALTER ROLE {} LOGIN").format(name))
        if user.superuser != bool(known and known["superuser"]):
            word = sql.SQL("SUPERUSER" if user.superuser else "NOSUPERUSER")
            await self._rows(sql.SQL("ALTER ROLE {} {}").format(name, word))
        followers = self._member.desired.followers
        if followers is not None and followers.user == user.name and not (known and known["replicates"]):
            await self._rows(sql.SQL("ALTER ROLE {} REPLICATION").format(name))
        verifier = self._member.secrets.verifiers.get(user.name)
        if verifier and verifier != (known["verifier"] if known else None):
            await self._rows(sql.SQL("ALTER ROLE {} PASSWORD {}").format(name, sql.Literal(verifier)))

    async def _granted_to(self, user: str) -> set[str]:
        rows = await self._rows(
            "SELECT DISTINCT m.roleid::regrole::text AS role FROM pg_auth_members m WHERE m.member = %s::regrole",
            sql.Identifier(user).as_string(None),
        )
        return {row["role"].strip('"') for row in rows}

    async def _grant(self, role: str, user: str, granted: set[str]) -> None:
        if role not in granted:
            await self._rows(sql.SQL("GRANT {} TO {}").format(sql.Identifier(role), sql.Identifier(user)))

    async def _memberships(self, user: UserDesired) -> None:
        granted = await self._granted_to(user.name)
        declared = {other.name for other in self._member.desired.users}
        for role in user.roles:
            await self._one(f"role {role} of user {user.name}", self._grant(role, user.name, granted))
        for role in sorted(granted - set(user.roles)):
            if role.startswith("pg_") or role in declared:
                await self._rows(sql.SQL("REVOKE {} FROM {}").format(sql.Identifier(role), sql.Identifier(user.name)))

    # --- databases --------------------------------------------------------------------------------------------------

    async def _database(self, database: DatabaseDesired, owner: str | None) -> None:
        name, wanted = sql.Identifier(database.name), sql.Identifier(database.owner)
        if owner is None:
            await self._rows(sql.SQL("CREATE DATABASE {} OWNER {}").format(name, wanted))
            log.info("database_created", member=self._member.subject, database=database.name)
        elif owner != database.owner:
            await self._rows(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(name, wanted))

    async def _extensions(self, database: DatabaseDesired) -> None:
        try:
            async with self._member.session(within_s=STATEMENT_S, database=database.name) as session:
                rows = await session.rows("SELECT extname FROM pg_extension", within_s=STATEMENT_S)
                for extension in set(database.extensions) - {row["extname"] for row in rows}:
                    create = sql.SQL("CREATE EXTENSION IF NOT EXISTS {} CASCADE").format(sql.Identifier(extension))
                    what = f"extension {extension} in database {database.name}"
                    await self._one(what, session.rows(create, within_s=STATEMENT_S))
        except (UnavailableError, TimedOutError) as error:
            raise EngineError(error.what) from error


_DATABASES = "SELECT d.datname AS name, r.rolname AS owner FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba"


def _fits(password: str, verifier: str | None) -> bool:
    try:
        return verifier is not None and password_fits(password, verifier)
    except ValueError:
        return False
