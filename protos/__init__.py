"""The wire contract: .proto files and what protoc made of them (`./dev protos`), nothing hand-written.

`v1` is Moorage's own contract, `etcd` a trimmed copy of etcd's. Fields are added, never renumbered or reused; a removed
number is `reserved`. The hub serves protocol version N and N-1.
"""
