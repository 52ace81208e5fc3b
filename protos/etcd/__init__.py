"""The part of etcd's own API that the hub speaks, under our own path so that no other client library clashes."""
