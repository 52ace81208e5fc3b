"""Event logging: a past-tense event name and fields, one line each.

`log.info("lease_renewed", instance="demo/orders", term=7)`. JSON where a machine reads (the default when standard
error is not a terminal), columns where a person does. Error: a person must act; warning: may have to; info: something
changed; debug: the rest. Nothing is logged per heartbeat or per query. Values never hold secrets.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from typing import Literal

from core.clock import SystemClock, iso

Format = Literal["json", "console", "auto"]
_clock = SystemClock()


class EventLog:
    """Logger of one component, such as `agent.pull`."""

    def __init__(self, component: str) -> None:
        self._log = logging.getLogger(f"moorage.{component}")
        self._component = component

    def debug(self, event: str, **fields: object) -> None:
        self._emit(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        self._emit(logging.INFO, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        self._emit(logging.WARNING, event, fields)

    def error(self, event: str, **fields: object) -> None:
        self._emit(logging.ERROR, event, fields)

    def unexpected(self, event: str, error: BaseException, **fields: object) -> None:
        """An unexpected failure with its traceback; expected ones are warnings without."""
        text = "".join(traceback.format_exception(error))
        self._emit(logging.ERROR, event, {**fields, "error": repr(error), "traceback": text})

    def _emit(self, level: int, event: str, fields: dict[str, object]) -> None:
        if self._log.isEnabledFor(level):
            # Not by `log`, which looks through the stack for a caller that nobody reads.
            extra = {"event_fields": fields, "component": self._component}
            self._log.handle(self._log.makeRecord(self._log.name, level, "", 0, event, (), None, extra=extra))


_encode = json.JSONEncoder(default=str).encode


class _Formatter(logging.Formatter):
    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = getattr(record, "event_fields", {})
        component = getattr(record, "component", record.name)
        at = iso(_clock.wall())
        if self._as_json:
            head = {"at": at, "level": record.levelname.lower(), "component": component, "event": record.getMessage()}
            return _encode({**head, **fields})
        text = " ".join(f"{key}={value}" for key, value in fields.items() if key != "traceback")
        line = f"{at[11:-1]} {record.levelname.lower():7} {component:16} {record.getMessage()} {text}".rstrip()
        return f"{line}\n{fields['traceback']}" if "traceback" in fields else line


def setup_logging(*, level: str = "info", fmt: Format = "auto") -> None:
    """Send all event logs to standard error. `auto` is console on a terminal, JSON elsewhere."""
    as_json = fmt == "json" or (fmt == "auto" and not sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(as_json=as_json))
    root = logging.getLogger("moorage")
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    root.propagate = False
