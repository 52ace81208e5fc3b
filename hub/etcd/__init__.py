"""The hub's way to etcd: key layout, transactions as values, a thin asyncio client, one resuming watch, a mirror.

    keys       the layout                                   (pure)
    txns       the transactions and why they are safe       (pure)
    members    a channel to each etcd member, and which one the next call goes to
    client     calls with deadlines, and what may be repeated
    watch      every change once
    contents   etcd as typed dictionaries
    mirror     contents that follow the watch, and the check that they do
    store      writing, done when the mirror shows it
    messages, options, errors                               gRPC's side of it

Readers use the mirror's dictionaries, writers the store; only leases and linearizable reads go to the client.
"""
