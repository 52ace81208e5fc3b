"""From the spec to how clients share server connections, and what bounds them. Pure."""

from __future__ import annotations

from core.records import ClientsDesired
from core.routes import Pooling, PoolRule
from core.specs.instance import InstanceSpec
from core.specs.proxy import PoolingSpec

OBSERVING_ROLE = "pg_monitor"  # its members see everybody's statistics in the engine too


def clients_of(spec: InstanceSpec) -> ClientsDesired:
    """All of it, for every member of the instance alike."""
    proxy = spec.proxy
    return ClientsDesired(
        pooling=pooling_of(proxy.pooling),
        pools=tuple(
            PoolRule(pooling=pooling_of(rule), user=rule.user or "", database=rule.database or "")
            for rule in proxy.pools
        ),
        clients_max=proxy.limits.clients,
        clients_per_user_max=proxy.limits.clients_per_user,
        client_idle_s=proxy.limits.idle_s,
        idle_transaction_s=proxy.limits.idle_transaction_s,
        client_unread_s=proxy.limits.unread_s,
        slow_query_ms=proxy.slow_query_ms,
        lag_max_bytes=proxy.reads.lag_max_bytes,
        splits=proxy.splitting == "statements",
        split_functions=proxy.splitting_functions,
        observers=observers_of(spec),
    )


def pooling_of(spec: PoolingSpec) -> Pooling:
    """What was left open is what it means in the spec's mode."""
    return Pooling(
        mode=spec.mode,
        size=spec.used_size,
        reserve=spec.reserve,
        reserve_after_s=spec.reserve_after_s,
        queue_timeout_s=spec.queue_timeout_s,
        idle_max=spec.idle_max,
        idle_s=spec.used_idle_s,
        life_s=spec.life_s,
        statements_max=spec.statements_max,
        reset=spec.reset,
    )


def observers_of(spec: InstanceSpec) -> tuple[str, ...]:
    """Who may ask the proxy's own database: those that may see as much in the engine, and those that are named."""
    named = frozenset(spec.proxy.observers)
    return tuple(
        sorted(user.name for user in spec.users if user.superuser or OBSERVING_ROLE in user.roles or user.name in named)
    )
