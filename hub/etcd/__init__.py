"""The hub's way to etcd: key layout, transactions as values, a thin asyncio client, one resuming watch, a mirror."""
