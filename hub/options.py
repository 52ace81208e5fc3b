"""Channel options of the hub's gRPC servers, each with its reason. Figures are measurements with grpcio 1.85."""

from __future__ import annotations

import resource

Options = list[tuple[str, int | str]]

# Calls that Python has not taken yet. Above gRPC's default (about 1,000 soft, 3,000 hard) they end as CANCELLED at
# random when all agents come back at once; raised, a herd of 5,000 returned without one, in half the time.
PENDING_REQUESTS = 30_000
PENDING_REQUESTS_HARD = 60_000

# Frees what a dead agent's connection holds; its poll is bounded by the hold anyway, so there is no hurry.
_PING_EVERY_MS = 60_000
# The option that counts for noticing a frozen peer; keepalive_timeout_ms alone does nothing (60-69 s instead of 13 s).
_PING_TIMEOUT_MS = 20_000
# Agents ping every 30 s while a poll is held; a server with default options cuts them off after the third.
_PINGS_TAKEN_EVERY_MS = 10_000

# Spreads agents over hubs that came later. gRPC adds 10 % of jitter itself.
_CONNECTION_AGE_MS = 3_600_000
# Above the longest hold (60 s), or polls would die with their connection.
_CONNECTION_AGE_GRACE_MS = 70_000

# A node's whole state, or a batch of documents; larger ones are refused by gRPC with RESOURCE_EXHAUSTED.
MESSAGE_MAX_BYTES = 4 << 20


def agent_server_options() -> Options:
    """For the port on which thousands of polls are held."""
    return [
        *_common(),
        ("grpc.keepalive_time_ms", _PING_EVERY_MS),
        ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", _PING_TIMEOUT_MS),
        ("grpc.server.max_pending_requests", PENDING_REQUESTS),
        ("grpc.server.max_pending_requests_hard_limit", PENDING_REQUESTS_HARD),
        ("grpc.max_connection_age_ms", _CONNECTION_AGE_MS),
        ("grpc.max_connection_age_grace_ms", _CONNECTION_AGE_GRACE_MS),
    ]


def operator_server_options() -> Options:
    """For the port of moorctl and of newcomers: strangers reach it, so its limits stay at gRPC's defaults."""
    return _common()


def _common() -> Options:
    return [
        # With 1 (the default) a second hub started by mistake shares the port in silence; with 0 it fails to bind.
        ("grpc.so_reuseport", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", _PINGS_TAKEN_EVERY_MS),
        ("grpc.max_receive_message_length", MESSAGE_MAX_BYTES),
        ("grpc.max_send_message_length", 2 * MESSAGE_MAX_BYTES),
        # Together 12 % less CPU for a heartbeat: nobody asks for channelz, and bandwidth probing serves bulk data.
        ("grpc.enable_channelz", 0),
        ("grpc.http2.bdp_probe", 0),
    ]


def raise_descriptor_limit() -> int:
    """Lift the soft limit of open files as far as the hard one allows. Returns the limit in force."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
