"""The proxy's own database, by which an instance's observers ask it what it does: SHOW POOLS, SHOW CLIENTS and so on.

Clients connect to the database `moorage` (or `pgbouncer`, for programs that know no other name) at the instance's
read-write port, prove who they are as everywhere, and are answered by the proxy itself. Columns are those of PgBouncer
1.24, names, order and types, so that what watches a PgBouncer watches this. Nothing can be changed here: what is
wanted stands in the instance's document.

    statements    what was asked                    pure
    answers       tables as messages                pure
    conversation  the protocol, bytes in, bytes out pure
    facts         what is shown                     pure
    pages         facts -> tables                   pure
    gathering     gate -> facts
    guest         the connection

An answer tells of one instance, and of one process of the proxy: that which has accepted the connection.
"""
