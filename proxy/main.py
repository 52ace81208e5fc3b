"""`moorage-proxy`: one process, started by the agent and outliving it.

SIGTERM ends it in an orderly way: nobody new, a bounded time for those who are there, then 57P01. The certificate is
read again when its file has changed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import resource
import signal
import ssl
from pathlib import Path

import uvloop

from core.clock import SystemClock
from core.log import EventLog, setup_logging
from proxy.cancel import Canceller
from proxy.control import Control
from proxy.listeners import Listeners
from proxy.session import Gate
from proxy.table import Table

log = EventLog("proxy.main")
CLIENTS_MAX = 20_000
DRAIN_LOOK_S = 0.05


class Certificate:
    """The TLS context of the certificate on disk; made anew when the file changes, kept when the new one is broken."""

    def __init__(self, cert: Path | None, key: Path | None) -> None:
        self._cert = cert
        self._key = key
        self._read_at = 0.0
        self._context: ssl.SSLContext | None = None

    def context(self) -> ssl.SSLContext | None:
        if self._cert is None or self._key is None:
            return None
        try:
            changed_at = self._cert.stat().st_mtime
            if changed_at != self._read_at:
                self._read_at = changed_at
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.minimum_version = ssl.TLSVersion.TLSv1_2
                context.load_cert_chain(self._cert, self._key)
                self._context = context
        except (OSError, ssl.SSLError) as error:
            log.error("certificate_unusable", path=str(self._cert), error=str(error))
        return self._context


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="moorage-proxy", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--address", required=True, help="IP address to listen on and to connect from")
    parser.add_argument("--control", required=True, type=Path, help="path of the agent's Unix socket")
    parser.add_argument("--cert", type=Path, help="certificate shown to clients, PEM; without it there is no TLS")
    parser.add_argument("--key", type=Path, help="its key, PEM")
    parser.add_argument("--pid-file", type=Path, help="written at the start, removed at the end")
    parser.add_argument("--drain-s", type=float, default=3.0, help="how long sessions may go on after SIGTERM")
    parser.add_argument("--clients-max", type=int, default=CLIENTS_MAX)
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    parser.add_argument("--log-format", default="auto", choices=["json", "console", "auto"])
    return parser.parse_args()


async def serve(options: argparse.Namespace) -> None:
    """Until SIGTERM or SIGINT."""
    clock = SystemClock()
    table = Table(clock)
    certificate = Certificate(options.cert, options.key)
    gate = Gate(
        table=table,
        clock=clock,
        local_address=options.address,
        tls=certificate.context,
        clients_max=options.clients_max,
    )
    gate.cancel = Canceller(gate).cancel
    listeners = Listeners(gate, options.address)
    table.on_listeners = listeners.changed
    control = Control(gate, options.control)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    if options.pid_file is not None:
        options.pid_file.write_text(f"{os.getpid()}\n")
    await control.start()
    log.info("proxy_started", address=options.address, pid=os.getpid())
    try:
        async with asyncio.TaskGroup() as group:
            listening = group.create_task(listeners.run(), name="listeners")
            await stopping.wait()
            listening.cancel()
        listeners.close()
        await drain(gate, options.drain_s)
    finally:
        control.close()
        if options.pid_file is not None:
            options.pid_file.unlink(missing_ok=True)
        log.info("proxy_stopped", pid=os.getpid())


async def drain(gate: Gate, within_s: float) -> None:
    """Let sessions end by themselves for a while, then end them."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while gate.table.sessions:  # noqa: ASYNC110 - at most a few looks, at the very end
                await asyncio.sleep(DRAIN_LOOK_S)
    for session in tuple(gate.clients):
        session.shut_down()
    await asyncio.sleep(0)


def main() -> None:
    options = arguments()
    setup_logging(level=options.log_level, fmt=options.log_format)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    uvloop.run(serve(options))


if __name__ == "__main__":
    main()
