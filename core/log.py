"""Event logging: a past-tense event name and fields, one line each.

`log.info("lease_renewed", instance="demo/orders", term=7)`. JSON where a machine reads (the default when standard
error is not a terminal), columns where a person does. Error: a person must act; warning: may have to; info: something
changed; debug: the rest. Nothing is logged per heartbeat or per query. Values never hold secrets.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import traceback
from typing import Literal, TextIO

from core.clock import SystemClock, iso

Format = Literal["json", "console", "auto"]
_clock = SystemClock()
LEVELS = {logging.DEBUG: "debug", logging.INFO: "info", logging.WARNING: "warning", logging.ERROR: "error"}


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
        if not self._log.isEnabledFor(level):
            return
        if _direct is not None and not self._log.handlers:  # nobody listens to this one beside
            _direct.write(level, self._component, event, fields)
        else:
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
        return self.line(record.levelno, getattr(record, "component", record.name), record.getMessage(), fields)

    def line(self, level: int, component: str, event: str, fields: dict[str, object]) -> str:
        at, name = iso(_clock.wall()), LEVELS.get(level, "info")
        if self._as_json:
            return _encode({"at": at, "level": name, "component": component, "event": event, **fields})
        text = " ".join(f"{key}={value}" for key, value in fields.items() if key != "traceback")
        line = f"{at[11:-1]} {name:7} {component:16} {event} {text}".rstrip()
        return f"{line}\n{fields['traceback']}" if "traceback" in fields else line


class _Direct:
    """The short way of our own events, which a proxy has two of for each client: no LogRecord is made for them."""

    def __init__(self, stream: TextIO, formatter: _Formatter) -> None:
        self._stream = stream
        self._formatter = formatter

    def write(self, level: int, component: str, event: str, fields: dict[str, object]) -> None:
        line = self._formatter.line(level, component, event, fields)
        with contextlib.suppress(OSError, ValueError):  # a full disk must not end what is told of
            self._stream.write(f"{line}\n")
            self._stream.flush()


_direct: _Direct | None = None  # once logging has been set up


def setup_logging(*, level: str = "info", fmt: Format = "auto") -> None:
    """Send all event logs to standard error. `auto` is console on a terminal, JSON elsewhere."""
    as_json = fmt == "json" or (fmt == "auto" and not sys.stderr.isatty())
    formatter, handler = _Formatter(as_json=as_json), logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger("moorage")
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    root.propagate = False
    global _direct  # noqa: PLW0603 - one a process, as the handlers are
    _direct = _Direct(sys.stderr, formatter)
