"""Pure: the tables that SHOW answers, from the facts.

Those that PgBouncer has too have its columns; one that means nothing here is there, and empty or 0. Those of our own
(ROUTES, ERRORS, TIMES) are named in no exporter, so that nothing is confused by them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from core.clock import moment
from core.figures import BUCKETS, bucket_labels
from core.routes import CLIENT_UNREAD_S, Pooling, Route
from proxy.admin.answers import Page, Value, table
from proxy.admin.facts import DATABASES, ClientFacts, Facts, ServerFacts
from proxy.admin.statistics import stats, stats_averages, stats_totals, totals

SPEAKS_AS = "1.24.0"  # the PgBouncer whose columns these are: exporters read it, and choose their questions by it
VERSION = f"PgBouncer {SPEAKS_AS} (spoken by moorage-proxy)"
_US = 1_000_000
_SOCKETS = (
    "type user database replication state addr port:i local_addr local_port:i connect_time request_time wait:i"
    " wait_us:i close_needed:i ptr link remote_pid:i tls application_name prepared_statements:i id:i"
)


@dataclass(frozen=True, slots=True)
class Topic:
    """What can be shown: what it tells, and how."""

    sentence: str
    page: Callable[[Facts], Page]


def show(what: str, facts: Facts) -> Page | None:
    """None when there is nothing of that name."""
    topic = TOPICS.get(what)
    return topic.page(facts) if topic is not None else None


def _help(_facts: Facts) -> Page:
    lines = (f"SHOW {name.upper():15} {topic.sentence}" for name, topic in TOPICS.items())
    return Page(notice="\n\t" + "\n\t".join(lines))


def _version(_facts: Facts) -> Page:
    return table("version", [(VERSION,)])


# --- clients and servers ----------------------------------------------------------------------------------------------


def _clients(facts: Facts) -> Page:
    return table(_SOCKETS, (_client(one) for one in facts.clients))


def _client(one: ClientFacts) -> tuple[Value, ...]:
    return (
        *("C", one.user, one.database, "physical" if one.replication else "none", one.state),
        *(one.ends.address, one.ends.port, one.ends.local_address, one.ends.local_port),
        *(moment(one.connected_at), moment(one.asked_at), *_wait(one.waits_s), 0),
        *(_pointer(one.number), _pointer(one.server), 0, _tls(one.tls), one.application, one.prepared, one.number),
    )


def _servers(facts: Facts) -> Page:
    return table(_SOCKETS, (_server(one) for one in facts.servers))


def _server(one: ServerFacts) -> tuple[Value, ...]:
    state = "new" if one.state == "login" else one.state
    return (
        *("S", one.user, one.database, "none", state),
        *(one.ends.address, one.ends.port, one.ends.local_address, one.ends.local_port),
        *(moment(one.connected_at), moment(one.used_at), 0, 0, 0),
        *(
            _pointer(one.number),
            _pointer(one.client),
            one.pid,
            _tls(one.tls),
            one.application,
            one.prepared,
            one.number,
        ),
    )


def _wait(seconds: float) -> tuple[int, int]:
    return divmod(round(seconds * _US), _US)


def _pointer(number: int) -> str:
    return f"{number:#x}" if number else ""


def _tls(tls: bool) -> str:
    return "TLS" if tls else ""


# --- pools and databases ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Pool:
    """Clients and servers of one user and database, counted."""

    clients: dict[str, int] = field(default_factory=dict)  # by state
    servers: dict[str, int] = field(default_factory=dict)
    waits_s: float = 0.0


def _counted(facts: Facts) -> dict[tuple[str, str], _Pool]:
    """By database and user. Those that have been used lately are there too, so that a graph does not end."""
    pools = {(one.database, one.user): _Pool() for one in facts.metered}
    for database, user, client, server, waits_s in facts.standings:
        pool = pools.get((database, user))
        if pool is None:
            pool = pools[database, user] = _Pool()
        if client:
            pool.clients[client] = pool.clients.get(client, 0) + 1
            pool.waits_s = max(pool.waits_s, waits_s)
        if server:
            pool.servers[server] = pool.servers.get(server, 0) + 1
    return pools


def _pools(facts: Facts) -> Page:
    rows: list[tuple[Value, ...]] = []
    for (database, user), pool in sorted(_counted(facts).items()):
        active = pool.clients.get("active", 0) + pool.clients.get("idle", 0)
        mode = "statement" if database in DATABASES else facts.route.pooling_of(user, database).mode
        rows.append(
            (
                *(database, user, active, pool.clients.get("waiting", 0), 0, 0, pool.servers.get("active", 0), 0, 0),
                *(pool.servers.get("idle", 0), 0, 0, pool.servers.get("login", 0), *_wait(pool.waits_s), mode, None),
            )
        )
    return table(
        "database user cl_active:i cl_waiting:i cl_active_cancel_req:i cl_waiting_cancel_req:i sv_active:i"
        " sv_active_cancel:i sv_being_canceled:i sv_idle:i sv_used:i sv_tested:i sv_login:i maxwait:i maxwait_us:i"
        " pool_mode load_balance_hosts",
        rows,
    )


def _databases(facts: Facts) -> Page:
    """Those that clients have asked for; which others the server has is not known here."""
    servers, clients = dict[str, int](), dict[str, int]()
    for (database, _), pool in _counted(facts).items():
        servers[database] = servers.get(database, 0) + sum(pool.servers.values())
        clients[database] = clients.get(database, 0) + sum(pool.clients.values())
    rows = [
        _database(facts.route, name, servers[name], clients[name]) for name in sorted(servers.keys() - {*DATABASES})
    ]
    own, name = sum(clients.get(name, 0) for name in DATABASES), DATABASES[0]
    rows.append((name, None, facts.route.rw_port, name, None, 0, 0, 0, 0, "statement", None, 0, 0, 0, own, 0, 0))
    return table(
        "name host port:i database force_user pool_size:i min_pool_size:i reserve_pool_size:i server_lifetime:i"
        " pool_mode load_balance_hosts max_connections:i current_connections:i max_client_connections:i"
        " current_client_connections:i paused:i disabled:i",
        rows,
    )


def _database(route: Route, name: str, servers: int, clients: int) -> tuple[Value, ...]:
    host, port = (route.primary.host, route.primary.port) if route.primary else (None, 0)
    pooling = route.pooling_of("", name)
    most = pooling.size + pooling.reserve if pooling.size else 0
    return (
        *(name, host, port, name, None, pooling.size, 0, pooling.reserve, int(pooling.life_s), pooling.mode, None),
        *(most, servers, route.clients_max, clients, int(route.paused), 0),
    )


def _users(facts: Facts) -> Page:
    counted = _counted(facts)
    names = sorted({user for _, user in counted})
    rows = [_user(facts, name, [pool for (_, user), pool in counted.items() if user == name]) for name in names]
    return table(
        "name pool_size reserve_pool_size pool_mode max_user_connections:i current_connections:i"
        " max_user_client_connections:i current_client_connections:i",
        rows,
    )


def _user(facts: Facts, name: str, pools: list[_Pool]) -> tuple[Value, ...]:
    own = facts.route.pooling_of(name, "")
    pooling = own if own != facts.route.pooling else None
    size, reserve, mode = (str(pooling.size), str(pooling.reserve), pooling.mode) if pooling else ("", "", None)
    servers = sum(sum(pool.servers.values()) for pool in pools)
    clients = sum(sum(pool.clients.values()) for pool in pools)
    return (name, size, reserve, mode, 0, servers, facts.route.clients_per_user_max, clients)


def _lists(facts: Facts) -> Page:
    counted = _counted(facts)
    clients = sum(sum(pool.clients.values()) for pool in counted.values())
    servers = sum(sum(pool.servers.values()) for pool in counted.values())
    items: dict[str, int] = {
        "databases": len({database for database, _ in counted} - set(DATABASES)) + 1,
        "users": len({user for _, user in counted}),
        "peers": 0,
        "pools": len(counted),
        "peer_pools": 0,
        "free_clients": 0,
        "used_clients": clients,
        "login_clients": facts.logins,
        "free_servers": 0,
        "used_servers": servers,
        **dict.fromkeys(("dns_names", "dns_zones", "dns_queries", "dns_pending"), 0),
    }
    return table("list items:i", list(items.items()))


def _state(facts: Facts) -> Page:
    paused = facts.route.paused
    rows = [("active", _yes(not paused)), ("paused", _yes(paused)), ("suspended", "no")]
    return table("key value", rows)


# --- settings ---------------------------------------------------------------------------------------------------------


def _config(facts: Facts) -> Page:
    """Under the names that PgBouncer has for them; where to change them is in the documents."""
    route, default = facts.route, Pooling()
    values: dict[str, tuple[object, object]] = {
        "admin_users": ("", ""),
        "stats_users": (",".join(route.observers), ""),
        "client_idle_timeout": (_whole(route.client_idle_s), 0),
        "client_tls_sslmode": ({"off": "disable", "prefer": "allow"}.get(route.client_tls, route.client_tls), "allow"),
        "default_pool_size": (route.pooling.size, default.size),
        "idle_transaction_timeout": (_whole(route.idle_transaction_s), 0),
        "listen_addr": (facts.address, ""),
        "listen_port": (route.rw_port, 0),
        "max_client_conn": (route.clients_max or facts.clients_max, facts.clients_max),
        "max_db_connections": (0, 0),
        "max_prepared_statements": (route.pooling.statements_max, default.statements_max),
        "max_user_client_connections": (route.clients_per_user_max, 0),
        "max_user_connections": (0, 0),
        "pool_mode": (route.pooling.mode, default.mode),
        "query_wait_timeout": (_whole(route.pooling.queue_timeout_s), _whole(default.queue_timeout_s)),
        "reserve_pool_size": (route.pooling.reserve, default.reserve),
        "reserve_pool_timeout": (_whole(route.pooling.reserve_after_s), _whole(default.reserve_after_s)),
        "server_idle_timeout": (_whole(route.pooling.idle_s), _whole(default.idle_s)),
        "server_lifetime": (_whole(route.pooling.life_s), _whole(default.life_s)),
        "moorage_instance": (route.instance, ""),
        "moorage_process": (facts.process, ""),
        "moorage_read_only_port": (route.ro_port, 0),
        "moorage_client_unread_timeout": (_whole(route.client_unread_s), _whole(CLIENT_UNREAD_S)),
        "moorage_slow_query_ms": (route.slow_query_ms, 0),
    }
    return table(
        "key value default changeable", [(key, str(now), str(was), "no") for key, (now, was) in values.items()]
    )


def _whole(seconds: float) -> str:
    return f"{seconds:g}"


def _yes(is_so: bool) -> str:
    return "yes" if is_so else "no"


# --- our own ----------------------------------------------------------------------------------------------------------


def _routes(facts: Facts) -> Page:
    route = facts.route
    primary = route.primary
    row = (
        *(route.instance, route.term, primary.member if primary else None),
        f"{primary.host}:{primary.port}" if primary else None,
        round(1000 * max(0.0, route.expires_at_s - facts.now)) if primary else None,
        ",".join(f"{one.member}={one.host}:{one.port}" for one in route.replicas),
        *(_yes(route.paused), _yes(route.strict), route.rw_port, route.ro_port, facts.process),
        facts.splitting,
    )
    return table(
        "instance term:i primary primary_address expires_in_ms:i replicas paused strict read_write_port:i"
        " read_only_port:i process:i splitting",
        [row],
    )


def _errors(facts: Facts) -> Page:
    kinds = (
        ("refused", facts.total.refused, ""),
        ("ended", facts.total.ended, ""),
        ("server", facts.total.errors, "..."),
    )
    rows = [(kind, f"{code}{more}", count) for kind, found, more in kinds for code, count in sorted(found.items())]
    return table("kind sqlstate count:n", rows)


def _times(facts: Facts) -> Page:
    queries, waits = (
        counts + (0,) * (BUCKETS - len(counts)) for counts in (facts.total.query_counts, facts.total.wait_counts)
    )
    return table("seconds_at_most queries:n waits:n", list(zip(bucket_labels(), queries, waits, strict=True)))


TOPICS = {
    "clients": Topic("who is connected, since when, and to which server connection", _clients),
    "config": Topic("settings, under PgBouncer's names; they are changed in the instance's document", _config),
    "databases": Topic("databases that clients have asked for", _databases),
    "errors": Topic(
        "what clients were told: by SQLSTATE, refused at the door or ended later; errors of servers", _errors
    ),
    "help": Topic("this list", _help),
    "lists": Topic("how many there are of each", _lists),
    "pools": Topic("clients and server connections of each database and user", _pools),
    "routes": Topic("where clients go: primary, term, replicas, and for how long that is vouched for", _routes),
    "servers": Topic("connections to servers", _servers),
    "state": Topic("whether clients are held just now", _state),
    "stats": Topic("what was done for each database since the process began, and on average", stats),
    "stats_averages": Topic("the averages alone, of the last whole minute", stats_averages),
    "stats_totals": Topic("the totals alone", stats_totals),
    "times": Topic("histogram: how long queries took, and how long clients waited for a server", _times),
    "totals": Topic("SHOW STATS of all databases together", totals),
    "users": Topic("users that have connected", _users),
    "version": Topic("as which PgBouncer this speaks", _version),
}
