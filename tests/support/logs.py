"""What a component has logged, as events and fields; independent of how logging is set up at the moment."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

Logged = list[tuple[str, dict[str, Any]]]


class _Collector(logging.Handler):
    def __init__(self, logged: Logged) -> None:
        super().__init__()
        self._logged = logged

    def emit(self, record: logging.LogRecord) -> None:
        self._logged.append((record.getMessage(), getattr(record, "event_fields", {})))


@contextmanager
def logged_by(component: str, *, level: int = logging.DEBUG) -> Iterator[Logged]:
    """(event, fields) in order, of at least this level."""
    logger = logging.getLogger(f"moorage.{component}")
    logged: Logged = []
    collector, before = _Collector(logged), logger.level
    collector.setLevel(level)
    logger.addHandler(collector)
    logger.setLevel(level)
    try:
        yield logged
    finally:
        logger.removeHandler(collector)
        logger.setLevel(before)
