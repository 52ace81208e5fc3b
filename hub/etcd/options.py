"""Channel options towards etcd, each with its reason, as measured with grpcio 1.85."""

from __future__ import annotations

CHANNEL_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.lb_policy_name", "round_robin"),  # all members are used, and a dead one is left at once
    # A frozen member is noticed after 13 s. keepalive_timeout_ms alone does nothing (68 s): http2.ping_timeout_ms is
    # the one that is read. Etcd's own floor for client pings is 5 s.
    ("grpc.keepalive_time_ms", 8_000),
    ("grpc.keepalive_timeout_ms", 4_000),
    ("grpc.http2.ping_timeout_ms", 4_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 64 << 20),  # a page of 5,000 keys of 2 kB exceeds gRPC's 4 MiB
    ("grpc.initial_reconnect_backoff_ms", 200),
    (
        "grpc.max_reconnect_backoff_ms",
        2_000,
    ),  # the default of 120 s would leave a hub without etcd long after its return
    ("grpc.enable_retries", 0),  # what may be repeated is known here, not in the transport
)
