"""`moorage-proxy`: one of a node's processes, started by the agent and outliving it.

It takes the place of a process of an older generation by taking its listening sockets over (`proxy.listeners`), and
leaves its own place by serving on whom it has (`proxy.leaving`).

SIGTERM ends it in an orderly way: nobody new, idle sessions at once, a bounded time for those in a transaction, then
57P01 for them too. Tables are still taken meanwhile, so fences hold to the end. SIGHUP reads the certificate again,
which otherwise happens when its files have changed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import ipaddress
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop

from core.clock import SystemClock
from core.log import EventLog, setup_logging
from proxy.cancel import Canceller
from proxy.certificate import Certificate
from proxy.control import Control
from proxy.family import Answer, Family, FamilySocket, Place, Request
from proxy.gate import Gate, Limits
from proxy.headcount import Count
from proxy.inner_tls import InnerTls
from proxy.leaving import Leaving, Standing
from proxy.listeners import Listeners
from proxy.sweeping import Sweep
from proxy.table import Table

log = EventLog("proxy.main")
DRAIN_S = 5.0
DRAIN_LOOK_S = 0.05
COUNT_TIMEOUT_S = 0.5  # a sibling that does not say how many clients it has keeps a login waiting no longer
FAREWELL_S = 1.0  # for last words to go out
OTHER_FDS = 256  # listeners, control, log; the rest is two for each client


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="moorage-proxy", description=(__doc__ or "").splitlines()[0])
    limits = Limits()
    parser.add_argument("--address", required=True, type=_address, help="IP address to listen on and to connect from")
    parser.add_argument("--control", required=True, type=Path, help="path of the agent's Unix socket")
    parser.add_argument("--cert", type=Path, help="certificate shown to clients, PEM; without it there is no TLS")
    parser.add_argument("--key", type=Path, help="its key, PEM")
    parser.add_argument("--ca", type=Path, help="the nodes' CA, PEM; without it connections to engines are plain")
    parser.add_argument("--pid-file", type=Path, help="written at the start, removed at the end")
    parser.add_argument("--siblings", type=Path, help="folder where the node's other proxies are found; none = alone")
    parser.add_argument("--processes", type=_count, default=limits.processes, help="that share this node's clients")
    parser.add_argument("--generation", type=int, default=0, help="the sockets of older ones are taken over")
    parser.add_argument("--index", type=int, default=0, help="among the processes of one generation")
    parser.add_argument("--release", default="", help="told to the agent")
    parser.add_argument("--drain-s", type=float, default=DRAIN_S, help="how long transactions may go on after SIGTERM")
    parser.add_argument("--startup-s", type=float, default=limits.startup_s, help="for a client to say who it is")
    parser.add_argument("--clients-max", type=int, default=limits.clients_max, help="of all instances")
    parser.add_argument("--waiters-max", type=int, default=limits.waiters_max, help="clients held, of each instance")
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    parser.add_argument("--log-format", default="auto", choices=["json", "console", "auto"])
    return parser.parse_args()


def _address(text: str) -> str:
    return str(ipaddress.ip_address(text))


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise ValueError(text)
    return count


async def serve(options: argparse.Namespace) -> None:
    """Until SIGTERM or SIGINT. OSError when the control socket cannot be made."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_report_failure)
    certificate = Certificate(options.cert, options.key)
    gate = make_gate(options, certificate)
    place = Place(generation=options.generation, index=options.index)
    family = Family(folder=options.siblings, place=place, processes=options.processes) if options.siblings else None
    if family is not None:
        gate.counted_elsewhere = functools.partial(counted_by_siblings, family)
    canceller = Canceller(gate, family)
    listeners = Listeners(gate, canceller.cancel, family)
    gate.table.on_listeners = listeners.changed
    leaving = Leaving(gate, listeners.close)
    standing = Standing(leaving=leaving, place=place, release=options.release, unopened=listeners.unopened)
    control = Control(gate, options.control, standing)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, certificate.reload)
    with pid_file(options.pid_file):
        with contextlib.ExitStack() as open_sockets:
            if family is not None:
                beside = FamilySocket(place.path(family.folder), siblings_desk(gate, listeners, leaving, canceller))
                beside.start()
                open_sockets.callback(beside.close)
            await control.start()
            open_sockets.callback(control.close)
            log.info("proxy_started", address=options.address, pid=os.getpid(), clients_max=gate.limits.clients_max)
            async with asyncio.TaskGroup() as group:
                listening = group.create_task(listeners.run(), name="listeners")
                sweeping = group.create_task(Sweep(gate).run(), name="sweep")
                over = group.create_task(leaving.over(), name="leaving")
                over.add_done_callback(lambda _: stopping.set())
                await stopping.wait()
                for task in (listening, sweeping, over):
                    task.cancel()
            listeners.close()
            await drain(gate, options.drain_s)
        log.info("proxy_stopped", pid=os.getpid())


def siblings_desk(
    gate: Gate, listeners: Listeners, leaving: Leaving, canceller: Canceller
) -> Callable[[Request], Awaitable[Answer]]:
    """What this process does for its siblings."""

    async def answer(request: Request) -> Answer:
        match request["ask"]:
            case "share":
                return listeners.share([int(number) for number in request["ports"]])
            case "sockets":
                return listeners.give(int(request["from"]))
            case "leave":
                leaving.begin()
                return Answer()
            case "count":
                count = gate.headcount.of(str(request["instance"]), str(request["user"]))
                return Answer(fields={"instance": count.instance, "user": count.user})
            case "cancel":
                key = (int(request["pid"]), bytes.fromhex(request["key"]))
                return Answer(fields={"held": await canceller.cancel_here(key)})
            case other:
                raise ValueError(f"a sibling asks for {other!r}")

    return answer


async def counted_by_siblings(family: Family, instance: str, user: str) -> list[Count]:
    """How many clients each of the others has."""
    answers = await family.ask_all({"ask": "count", "instance": instance, "user": user}, COUNT_TIMEOUT_S)
    return [Count(int(answer.fields["instance"]), int(answer.fields["user"])) for answer in answers]


def make_gate(options: argparse.Namespace, certificate: Certificate) -> Gate:
    """With as many clients as there may be file descriptors for."""
    _, fds = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (fds, fds))
    clients_max = options.clients_max
    if fds != resource.RLIM_INFINITY:
        clients_max = max(1, min(clients_max, (fds - OTHER_FDS) // 2))
    clock = SystemClock()
    return Gate(
        table=Table(clock),
        clock=clock,
        local_address=options.address,
        tls=certificate.context,
        inner_tls=InnerTls(local_address=options.address, ca=options.ca, cert=options.cert, key=options.key),
        limits=Limits(
            processes=options.processes,
            clients_max=clients_max,
            waiters_max=options.waiters_max,
            startup_s=options.startup_s,
        ),
    )


@contextlib.contextmanager
def pid_file(path: Path | None) -> Any:
    """Pid and start time (clock ticks since boot), which name a process even after pids are reused. Ours while we run;
    a successor's is left alone."""
    started = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    text = f"{os.getpid()} {started}\n"
    if path is not None:
        unready = path.with_name(f"{path.name}.new")
        unready.write_text(text)
        unready.rename(path)  # whoever reads it meanwhile must not take it for that of a dead process
    try:
        yield
    finally:
        if path is not None and path.exists() and path.read_text() == text:
            path.unlink()


async def drain(gate: Gate, within_s: float) -> None:
    """End who is idle, as soon as it is; after a while the others too."""
    gate.stopping = True
    log.info("drain_started", clients=len(gate.guests))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while left := [guest for guest in gate.guests if not guest.ended]:
                for guest in left:
                    if guest.idle:
                        guest.shut_down()
                await asyncio.sleep(DRAIN_LOOK_S)
    for guest in tuple(gate.guests):
        guest.shut_down()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FAREWELL_S):
            while gate.guests:  # noqa: ASYNC110 - at most a few looks, at the very end
                await asyncio.sleep(DRAIN_LOOK_S)


def _report_failure(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What fails in a callback ends the connection it belongs to, and is told here."""
    error = context.get("exception") or RuntimeError(str(context.get("message")))
    log.unexpected("callback_failed", error, what=str(context.get("message", "")))


def main() -> None:
    options = arguments()
    setup_logging(level=options.log_level, fmt=options.log_format)
    try:
        uvloop.run(serve(options))
    except OSError as error:
        log.error("proxy_failed", error=str(error), control=str(options.control))
        sys.exit(1)


if __name__ == "__main__":
    main()
