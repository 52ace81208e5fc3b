"""The data path: clients on one side, engines on the other, routes from the agent beside it.

A process of its own that outlives the agent. It listens on each instance's read-write and read-only port, lets a client
in when the route says to whom, holds it while there is no primary, and forwards whole buffers both ways. It decides
nothing about leadership: a route carries the time at which it ends, and past that time no write session is opened, fed
or left open, even if nobody tells.

A connection begins in `reception` (TLS, cancel, startup packet), goes on as a `session` (wait for a server, relay) and
has its server's side in `server`, a connection out of `pools` that others of the same login used before; in transaction
mode it has one for each transaction anew (`sharing`); `table` holds the routes and the fences that cut sessions,
`routing` judges who goes where, `gate` is what all connections share, `control` is the agent's way in; `tls` is the
clients' TLS, `postgres.frames` knows whether a session stands between two messages.

Only the standard library, uvloop and the light part of `core` are imported here: one process a core, each small.
"""
