"""What a session carries beside its login, and how it gets to another server: the one question that tells it, and the
steps that make it again.

The server itself is asked, on the session's own connection while the session is at rest, so the answer is what holds:
settings that were set or reset, the role, channels listened to, statements prepared by SQL, and which of those prepared
by the protocol are still there, with their texts if the proxy's own copies are in doubt. It is asked by a statement
with a name, because a simple query would take the client's unnamed one away. What cannot be made again (`obstacles`)
keeps a session where it is: it ends with its server. So does more than the server is asked to tell (`TOLD_BYTES_MAX`).

Left behind without a word are the values of `currval` and `lastval`, and notifications that are sent while a session is
between two servers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from proxy.postgres.messages import (
    MAX_MESSAGE_BYTES,
    SYNC,
    Garbled,
    Stream,
    close,
    columns,
    error_fields,
    message,
    parameter_of,
    parse,
    run,
)

STATEMENT = b"moorage_state"
TOLD_BYTES_MAX = 2 << 20  # of names and values
ANSWER_BYTES_MAX = TOLD_BYTES_MAX + (1 << 20)  # with what else may come: notifications
ROW_BYTES = 64  # what a row costs beside its name and value
TOO_MUCH = "carries more than the proxy keeps"
DISMISSED = "57P01"  # a server stops, or ends one session on purpose
LAST_WORDS = frozenset({DISMISSED, "57P02", "57P03"})  # of a server that ends
QUESTION = b"""
WITH carried (kind, name, value) AS (
SELECT DISTINCT 'obstacle', 'has temporary objects', '' FROM pg_catalog.pg_depend
 WHERE refclassid = 2615 AND refobjid = pg_catalog.pg_my_temp_schema()
UNION ALL SELECT 'obstacle', 'has a cursor WITH HOLD', '' FROM pg_catalog.pg_cursors WHERE is_holdable
UNION ALL SELECT DISTINCT 'obstacle', 'holds advisory locks', '' FROM pg_catalog.pg_locks
 WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid()
UNION ALL SELECT 'setting', name, setting FROM pg_catalog.pg_settings
 WHERE source = 'session' AND name NOT IN ('transaction_isolation', 'transaction_read_only', 'transaction_deferrable')
UNION ALL SELECT 'own', name, pg_catalog.current_setting(name, true) FROM pg_catalog.unnest($1::text[]) AS own (name)
 WHERE pg_catalog.current_setting(name, true) IS NOT NULL
UNION ALL SELECT 'role', 'role', pg_catalog.current_setting('role') WHERE pg_catalog.current_setting('role') <> 'none'
UNION ALL SELECT 'user', 'session_authorization', session_user
UNION ALL SELECT 'channel', channel, '' FROM pg_catalog.pg_listening_channels() AS listening (channel)
UNION ALL SELECT CASE WHEN from_sql THEN 'sql' ELSE 'protocol' END, name, CASE WHEN from_sql THEN statement
  WHEN $2::pg_catalog.bool
  THEN pg_catalog.concat(pg_catalog.array_to_string(parameter_types::oid[], ','), ' ', statement) END
  FROM pg_catalog.pg_prepared_statements WHERE name <> 'moorage_state'
), size (bytes) AS (SELECT pg_catalog.sum(%d + pg_catalog.octet_length(name)
 + coalesce(pg_catalog.octet_length(value), 0)) FROM carried)
SELECT kind, name, value FROM carried WHERE (SELECT bytes FROM size) <= %d
UNION ALL SELECT 'obstacle', '%s', '' FROM size WHERE bytes > %d
""" % (ROW_BYTES, TOLD_BYTES_MAX, TOO_MUCH.encode(), TOLD_BYTES_MAX)
_SET = b"SELECT pg_catalog.set_config($1::text, $2::text, false)"


@dataclass(frozen=True, slots=True)
class Carried:
    """`settings`: in the order in which they are set again. `by_sql`: PREPARE statements. `obstacles`: why it
    cannot be moved."""

    settings: tuple[tuple[bytes, bytes], ...] = ()
    channels: tuple[bytes, ...] = ()
    by_sql: tuple[bytes, ...] = ()
    obstacles: tuple[str, ...] = ()


NOTHING = Carried()


class Inquiry:
    """Asks once. `failed` says why there is no answer; `dismissal` is by what the server has ended the session."""

    def __init__(self, user: str, names: Iterable[bytes], *, texts: bool = False) -> None:
        self._user = user.encode(errors="surrogateescape")
        self._names = b"{" + b",".join(b'"' + name + b'"' for name in sorted(names)) + b"}"
        self._texts = b"t" if texts else b"f"
        self._stream = Stream()
        self._rows: list[tuple[bytes, bytes, bytes]] = []
        self._bytes = 0
        self.done = False
        self.failed = ""
        self.dismissal = b""

    def begin(self) -> bytes:
        return parse(STATEMENT, QUESTION) + run(STATEMENT, [self._names, self._texts]) + close(STATEMENT) + SYNC

    def feed(self, data: bytes) -> bytes:
        """What of the server's words is for the client: notifications and changed parameters. Garbled when it is no
        answer to the question."""
        self._bytes += len(data)
        if self._bytes > ANSWER_BYTES_MAX:
            raise Garbled("the server's answer is too long")
        passed = b""
        for kind, body in self._stream.feed(data):
            match chr(kind):
                case "A" | "S":
                    passed += message(bytes((kind,)), body)
                case "E" | "N":
                    self._complaint(kind, body)
                case _ if self.done:
                    raise Garbled("the server says more than it was asked")
                case "D":
                    self._row(body)
                case "Z":
                    self.done = True
                case "1" | "2" | "3" | "C":
                    pass
                case other:
                    raise Garbled(f"message {other!r} is no part of the answer")
        return passed

    @property
    def rest(self) -> bytes:
        """When it is `done`: the beginning of a message that is no part of the answer."""
        return self._stream.rest

    def _row(self, body: bytes) -> None:
        kind, name, value = (part or b"" for part in columns(body))
        self._rows.append((kind, name, value))

    def _complaint(self, kind: int, body: bytes) -> None:
        fields = error_fields(body)
        code = fields.get("C", "")
        if code == DISMISSED and kind == ord("E"):
            self.dismissal = message(b"E", body)
        elif kind == ord("E") and code not in LAST_WORDS:
            self.failed = fields.get("M", "") or "the server did not answer"

    def answer(self) -> Carried:
        """When it is `done` and has not `failed`."""
        of: dict[bytes, list[tuple[bytes, bytes]]] = {}
        for kind, name, value in self._rows:
            of.setdefault(kind, []).append((name, value))
        # The encoding comes first, for all that follows is in it. Who the session acts as comes last: it may be a
        # role that was not allowed to set the rest.
        settings = sorted([*of.get(b"setting", []), *of.get(b"own", [])], key=lambda one: one[0] != b"client_encoding")
        users = [one for one in of.get(b"user", []) if one[1] != self._user and one[1].isascii()]
        by_sql = of.get(b"sql", [])
        obstacles = [name.decode(errors="replace") for name, _ in of.get(b"obstacle", [])]
        if not all(statement.lstrip().lower().startswith(b"prepare") for _, statement in by_sql):
            obstacles.append("has a prepared statement whose text is not known")
        return Carried(
            settings=(*settings, *users, *of.get(b"role", [])),
            channels=tuple(name for name, _ in of.get(b"channel", [])),
            by_sql=tuple(statement for _, statement in by_sql),
            obstacles=tuple(dict.fromkeys(obstacles)),
        )

    def statements(self) -> dict[bytes, bytes] | None:
        """Those of the protocol by name: as a Parse message, or empty where the text was not asked for. None when there
        is too much to be told."""
        if any(kind == b"obstacle" and name == TOO_MUCH.encode() for kind, name, _ in self._rows):
            return None
        return {name: _parsing(name, value) for kind, name, value in self._rows if kind == b"protocol"}


def _parsing(name: bytes, told: bytes) -> bytes:
    """`told`: parameter types, then the text. They are the types that the server has found, so that the statement
    becomes the same again."""
    types, space, text = told.partition(b" ")
    if not space:
        return b""
    try:
        numbers = [int(number) for number in types.split(b",") if number]
        described = struct.pack(f"!H{len(numbers)}I", len(numbers), *numbers)
    except (ValueError, struct.error) as error:
        raise Garbled("a prepared statement without its types") from error
    return message(b"P", name + b"\0" + text + b"\0" + described)


@dataclass(frozen=True, slots=True)
class Step:
    """A few messages that one Sync ends. `dispensable`: the session is whole also without it."""

    what: str
    data: bytes
    dispensable: bool = False


def _plainly(what: str, statement: bytes) -> Step:
    return Step(what, parse(b"", statement) + run(b""))


# As after the login: whatever a client has left, and only settings, with who it acts as.
LIKE_NEW = [_plainly("the reset", b"DISCARD ALL")]
SETTINGS_LIKE_NEW = [
    _plainly("the reset", b"SET SESSION AUTHORIZATION DEFAULT"),
    _plainly("the reset", b"RESET ALL"),
]


def steps_of(
    carried: Carried, prepared: dict[bytes, bytes], unnamed: bytes, unconfirmed: Iterable[bytes]
) -> list[Step]:
    """To be sent in one go to a server that has just taken the login. `prepared`: Parse messages by name; those that
    are `unconfirmed` may never have been taken."""
    steps: list[Step] = []
    doubtful = set(unconfirmed)
    if carried.settings:
        steps.append(Step("its settings", parse(b"", _SET)))
        steps += [Step(f"setting {shown(name)}", run(b"", [name, value])) for name, value in carried.settings]
    for channel in carried.channels:
        listen = b'LISTEN "' + channel.replace(b'"', b'""') + b'"'
        steps.append(Step(f"channel {shown(channel)}", parse(b"", listen) + run(b"")))
    # By the extended protocol, which takes one statement only: should the text be a longer script, none of it runs.
    steps += [Step("a prepared statement", parse(b"", statement) + run(b"")) for statement in carried.by_sql]
    for name, parsing in prepared.items():
        steps.append(Step(f"prepared statement {shown(name)}", parsing, dispensable=name in doubtful))
    if unnamed:
        steps.append(Step("the unnamed statement", unnamed, dispensable=True))
    elif steps:
        steps.append(Step("the unnamed statement", close(b"")))
    return steps


class Restoring:
    """Carries the steps out. `failed` says what could not be made again."""

    def __init__(self, steps: list[Step]) -> None:
        self._steps = steps
        self._at = 0
        self._stream = Stream()
        self.parameters: dict[str, str] = {}  # that the server reported meanwhile
        self.notifications = b""  # for the client, behind them
        self.failed = ""

    def begin(self) -> bytes:
        return b"".join(step.data + SYNC for step in self._steps)

    @property
    def done(self) -> bool:
        return self._at == len(self._steps)

    @property
    def rest(self) -> bytes:
        """When it is `done`: the beginning of a message that is no part of the answer."""
        return self._stream.rest

    def feed(self, data: bytes) -> None:
        """Take what came from the server. Garbled when it is no answer to the steps."""
        for kind, body in self._stream.feed(data):
            match chr(kind):
                case "Z" if not self.done:
                    self._at += 1
                case "S":
                    name, value = parameter_of(body)
                    self.parameters[name] = value
                case "A":
                    if len(self.notifications) < MAX_MESSAGE_BYTES:
                        self.notifications += message(b"A", body)
                case "E":
                    self._refused(body)
                case "Z":
                    raise Garbled("the server says more than it was asked")
                case _:
                    pass

    def _refused(self, body: bytes) -> None:
        step = self._steps[min(self._at, len(self._steps) - 1)]
        if not step.dispensable and not self.failed:
            self.failed = f"{step.what} could not be made again: {error_fields(body).get('M', '')}"


def shown(name: bytes) -> str:
    return name.decode(errors="replace")[:80]
