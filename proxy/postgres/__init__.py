"""PostgreSQL's protocol without I/O: bytes in, values out. Everything here is pure and bounded."""
