"""PostgreSQL 13 and later: one member's engine on this node.

`engine.PostgresEngine` is the door; behind it, each in a module of its own: `install` finds installations; `initdb` and
`replication` make data directories; `settings` and `hba` say what the configuration is and `configuration` puts it
there; `process` starts, adopts, stops and kills; `control` reads pg_control without a server, `observe` asks a running
one; `rewind` brings a diverged directory back; `roles` makes users and databases. `member` holds what they share.

Kept throughout: a data directory is used only when it is known to be whole (it arrives by rename; a rewind is labelled
before its first byte); no process of the engine is left when it counts as stopped; in strict synchronous modes a commit
waits rather than being acknowledged by the primary alone, from the first moment a member can take writes.
"""
