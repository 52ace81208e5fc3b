"""Channel options towards etcd, each with its reason, as measured with grpcio 1.85."""

from __future__ import annotations

PING_EVERY_MS = 8_000
PING_TIMEOUT_MS = 4_000
FROZEN_NOTICED_WITHIN_S = 15  # what the watch promises of a member that stands still but keeps its connections
ETCD_MIN_PING_MS = 5_000  # etcd's --grpc-keepalive-min-time: who pings more often is cut off

assert PING_EVERY_MS > ETCD_MIN_PING_MS
assert PING_EVERY_MS + PING_TIMEOUT_MS < FROZEN_NOTICED_WITHIN_S * 1000 - 1_000  # a second to watch elsewhere

CHANNEL_OPTIONS: tuple[tuple[str, int | str], ...] = (
    # One endpoint may be a DNS name for several members: all are used, and a lost connection is made anew at once.
    ("grpc.lb_policy_name", "round_robin"),
    # keepalive_timeout_ms alone does nothing (a frozen member was noticed after 68 s): http2.ping_timeout_ms is the one
    # that is read.
    ("grpc.keepalive_time_ms", PING_EVERY_MS),
    ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
    ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
    # Pings must go on while nothing else does, or a quiet watch on a frozen member hangs. On a connection without calls
    # etcd takes them for abuse: after the third it sends GOAWAY too_many_pings, and gRPC doubles the pause between
    # pings for good. Each answer clears etcd's count; the mirror's probe gives every member something to answer.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", -1),  # pages of keys, and etcd's own limit on values, bound an answer
    ("grpc.initial_reconnect_backoff_ms", 200),
    # The default of 120 s would leave a hub without etcd long after its return.
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_retries", 0),  # what may be repeated is known here, not in the transport
)
