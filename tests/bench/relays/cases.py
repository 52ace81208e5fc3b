"""What is measured, by name: `prepared_64_session` is pgbench -S by the prepared protocol, 64 clients, session pooling.

`connect` is pgbench -C (a connection for each transaction), `login` a client of our own that only logs in by SCRAM and
leaves, `idle` so many clients that do nothing. A name that ends in `_tls` is the same with TLS to the client.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

PROTOCOLS = ("simple", "extended", "prepared")
CLIENTS = (1, 16, 64, 256)
CONNECTING = 8
IDLE = 1000
IDLE_SHARING = 9_800  # with transaction pooling; what a proxy takes that may open 20,000 files
SYSTEMS = {
    "direct": "PostgreSQL alone",
    "moorage": "Moorage",
    "other": "Moorage, other build",
    "pgbouncer": "PgBouncer",
    "haproxy": "HAProxy",
}
USUAL = ("direct", "moorage", "pgbouncer", "haproxy")
POOLING_BY_TRANSACTION = ("direct", "moorage", "other", "pgbouncer")
# Statements prepared by the protocol are lost in PgBouncer's transaction mode before 1.21; Debian has an older one.
PREPARED_BY_TRANSACTION = ("direct", "moorage", "other")


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the bench."""

    kind: str  # a protocol of pgbench, or `connect`, `login`, `idle`
    clients: int
    mode: str = "session"
    tls: bool = False

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.clients}_{self.mode}" + ("_tls" if self.tls else "")

    def systems(self, wanted: Sequence[str]) -> list[str]:
        """Those of the wanted that this can be asked of, in this order."""
        able = tuple(SYSTEMS)
        if self.mode == "transaction":
            able = PREPARED_BY_TRANSACTION if self.kind == "prepared" else POOLING_BY_TRANSACTION
        return [name for name in wanted if name in able and not (self.kind == "idle" and name == "direct")]


def all_cases() -> list[Case]:
    """In the order in which they are run; the most telling first, for a run that is stopped."""
    session = [Case(kind, clients) for clients in (64, 1, 16, 256) for kind in reversed(PROTOCOLS)]
    others = [Case("connect", CONNECTING), Case("login", CONNECTING), Case("idle", IDLE)]
    pooled = [Case(kind, clients, "transaction") for kind in reversed(PROTOCOLS) for clients in CLIENTS]
    pooled.append(Case("idle", IDLE_SHARING, "transaction"))
    secured = [Case(case.kind, case.clients, tls=True) for case in (*session, *others) if case.kind != "login"]
    return [*session, *others, *secured, *pooled]


def chosen_cases(patterns: Sequence[str]) -> list[Case]:
    """All whose name fits one of the patterns (`prepared_*`). ValueError when a pattern fits none."""
    cases = all_cases()
    for pattern in patterns:
        if not any(fnmatchcase(case.name, pattern) for case in cases):
            raise ValueError(f"no case is called {pattern!r}; there are {', '.join(case.name for case in cases)}")
    return [case for case in cases if not patterns or any(fnmatchcase(case.name, pattern) for pattern in patterns)]
