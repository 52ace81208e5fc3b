"""What at least two parts share, and nothing else.

Admission rule: used by two parts today; each module imports at most one heavy library. The proxy may import only
`ids`, `routes`, `status`, `errors`, `log`, `clock` and `backoff`, which need nothing beyond the standard library.
"""
